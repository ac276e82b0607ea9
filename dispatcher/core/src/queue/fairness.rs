//! Which line's turn it is.
//!
//! Each line has a virtual counter: the tokens that it was given, divided by its weight. The line with the smallest
//! counter is next, so that over any time in which lines compete they get tokens in proportion to their weights
//! (virtual token counters, as in "Fairness in Serving Large Language Models", Sheng et al. 2024). A line that was
//! away comes back with the smallest counter of those that wait, or when nobody does that of the line that had the
//! last turn: it has no claim on what it did not use.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use flotilla_protocol::Class;
use serde::{Deserialize, Serialize};

use super::Line;

/// Lines without waiting requests that are remembered. The least served are forgotten first: they would come back
/// with a larger counter than theirs.
const IDLE_LINE_COUNT_MAX: usize = 1024;

/// What lines get of a capacity that does not suffice for all, in proportion to each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// Each tenant's line of interactive requests. 16: a person waits for them, so batch work gets a seventeenth of a
    /// full fleet, and never nothing.
    pub interactive: f64,
    /// Each tenant's line of batch requests.
    pub batch: f64,
    /// Requests that are too late, or were given up. 1 of 17 against one interactive line: their wait stays bounded,
    /// and they take little from those who can still be in time.
    pub late: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            interactive: 16.0,
            batch: 1.0,
            late: 1.0,
        }
    }
}

/// The counters of all lines.
#[derive(Debug, Default)]
pub(crate) struct Fairness {
    weights: Weights,
    lines: BTreeMap<Line, Counter>,
    /// The counter of the line that had the last turn.
    latest: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counter {
    /// Tokens given, by weight.
    served: f64,
    waiting: usize,
}

impl Fairness {
    pub(crate) fn new(weights: Weights) -> Self {
        Self {
            weights,
            lines: BTreeMap::new(),
            latest: 0.0,
        }
    }

    pub(crate) fn weight(&self, line: &Line) -> f64 {
        match line {
            Line::Live {
                class: Class::Interactive,
                ..
            } => self.weights.interactive,
            Line::Live {
                class: Class::Batch, ..
            } => self.weights.batch,
            Line::GivenUp | Line::Late => self.weights.late,
        }
    }

    pub(crate) fn served(&self, line: &Line) -> f64 {
        self.lines.get(line).map_or(0.0, |counter| counter.served)
    }

    /// Which of two lines is next: that which got less, of two that got the same the one that is named first.
    pub(crate) fn order(&self, left: &Line, right: &Line) -> Ordering {
        (self.served(left).total_cmp(&self.served(right))).then_with(|| left.cmp(right))
    }

    /// A request begins to wait in a line.
    pub(crate) fn join(&mut self, line: &Line) {
        if let Some(counter) = self.lines.get_mut(line).filter(|counter| counter.waiting > 0) {
            counter.waiting += 1;
            return;
        }
        let waiting = self.lines.values().filter(|counter| counter.waiting > 0);
        let least = waiting.map(|counter| counter.served).min_by(f64::total_cmp);
        if !self.lines.contains_key(line) {
            self.forget_one();
        }
        let latest = self.latest;
        let counter = self.lines.entry(line.clone()).or_default();
        counter.served = counter.served.max(least.unwrap_or(latest));
        counter.waiting = 1;
    }

    /// A request waits no more.
    pub(crate) fn leave(&mut self, line: &Line) {
        let counter = self.lines.get_mut(line).expect("who leaves a line had joined it");
        counter.waiting -= 1;
    }

    /// It was a line's turn, and it was given tokens.
    pub(crate) fn charge(&mut self, line: &Line, tokens: f64) {
        self.correct(line, tokens);
        self.latest = self.served(line);
    }

    /// A line was given more tokens than it was charged for, or fewer.
    pub(crate) fn correct(&mut self, line: &Line, tokens: f64) {
        let weight = self.weight(line);
        if let Some(counter) = self.lines.get_mut(line) {
            counter.served = (counter.served + tokens / weight).max(0.0);
        }
    }

    fn forget_one(&mut self) {
        if self.lines.len() < IDLE_LINE_COUNT_MAX {
            return;
        }
        let idle = self.lines.iter().filter(|(_, counter)| counter.waiting == 0);
        let least = idle.min_by(|(_, left), (_, right)| left.served.total_cmp(&right.served));
        if let Some(line) = least.map(|(line, _)| line.clone()) {
            self.lines.remove(&line);
        }
    }

    /// # Panics
    /// When a line counts others than these as waiting.
    pub(crate) fn counts_are(&self, waiting: &BTreeMap<&Line, usize>) {
        for (line, counter) in &self.lines {
            assert_eq!(
                counter.waiting,
                waiting.get(line).copied().unwrap_or(0),
                "{line:?}"
            );
        }
        assert!(waiting.keys().all(|line| self.lines.contains_key(*line)));
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::Tenant;
    use proptest::prelude::*;

    use super::*;

    fn line(index: usize) -> Line {
        let class = match index % 2 {
            0 => Class::Interactive,
            _ => Class::Batch,
        };
        let tenant = Some(Tenant::new(format!("t{index:05}")).unwrap());
        Line::Live { class, tenant }
    }

    #[test]
    fn many_idle_lines_are_forgotten_the_least_served_first_and_waiting_ones_never() {
        let mut fairness = Fairness::new(Weights::default());
        fairness.join(&line(0));
        for index in 1..2 * IDLE_LINE_COUNT_MAX {
            fairness.join(&line(index));
            fairness.charge(&line(index), 1.0);
            fairness.leave(&line(index));
        }
        assert_eq!(fairness.lines.len(), IDLE_LINE_COUNT_MAX);
        fairness.counts_are(&BTreeMap::from([(&line(0), 1)]));
    }

    proptest! {
        /// However much each is given at a time, the counters of lines that always wait stay within one turn.
        #[test]
        fn those_who_compete_get_tokens_in_proportion_to_their_weights(
            tokens in prop::collection::vec(1.0..500.0_f64, 1..300),
            line_count in 2_usize..6,
        ) {
            let mut fairness = Fairness::new(Weights::default());
            let lines: Vec<Line> = (0..line_count).map(line).collect();
            lines.iter().for_each(|line| fairness.join(line));
            for tokens in tokens {
                let next = lines.iter().min_by(|left, right| fairness.order(left, right)).unwrap();
                fairness.charge(next, tokens);
                let served: Vec<f64> = lines.iter().map(|line| fairness.served(line)).collect();
                let (least, most) = (served.iter().copied().fold(f64::MAX, f64::min), served.iter().copied().fold(0.0, f64::max));
                prop_assert!(most - least <= 500.0 / Weights::default().batch, "{:?}", served);
            }
        }

        /// A line that was away is served no earlier than one that waits all the time.
        #[test]
        fn who_comes_back_has_no_less_than_the_least_served(charges in prop::collection::vec(1.0..500.0_f64, 1..50)) {
            let mut fairness = Fairness::new(Weights::default());
            fairness.join(&line(0));
            for tokens in charges {
                fairness.charge(&line(0), tokens);
            }
            fairness.join(&line(1));
            prop_assert_eq!(fairness.served(&line(1)), fairness.served(&line(0)));
            fairness.leave(&line(0));
            fairness.leave(&line(1));
            fairness.join(&line(2));
            prop_assert!(fairness.served(&line(2)) >= fairness.served(&line(0)));
        }
    }
}
