//! Which line's turn it is.
//!
//! Each line has a virtual counter: the tokens that it was given, divided by its weight. The line with the smallest
//! counter is next, so that over any time in which lines compete they get tokens in proportion to their weights
//! (virtual token counters, as in "Fairness in Serving Large Language Models", Sheng et al. 2024). A line that was
//! away comes back with the smallest counter of those that wait, or when nobody does that of the line that had the
//! last turn: it has no claim on what it did not use.

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
    /// Each tenant's line of interactive requests. 16.
    pub interactive: f64,
    /// Each tenant's line of batch requests. 0.25, a 64th: a person waits for the others, and answers of batch work
    /// are long, so that by tokens it gets more of a device's time than its weight says; it never gets nothing.
    pub batch: f64,
    /// Requests that are too late, or were given up. 0.25: their wait stays bounded, and they take little from those
    /// who can still be in time.
    pub late: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            interactive: 16.0,
            batch: 0.25,
            late: 0.25,
        }
    }
}

/// A line, interned: while somebody waits in it, it keeps its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LineNumber(usize);

/// The counters of all lines.
#[derive(Debug, Default)]
pub(crate) struct Fairness {
    weights: Weights,
    numbers: BTreeMap<Line, LineNumber>,
    /// By number.
    counters: Vec<Counter>,
    /// Numbers that no line has.
    free: Vec<LineNumber>,
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
            ..Self::default()
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

    /// What a line was given, by its weight.
    pub(crate) fn served(&self, line: LineNumber) -> f64 {
        self.counters[line.0].served
    }

    /// A request begins to wait in a line.
    pub(crate) fn join(&mut self, line: &Line) -> LineNumber {
        let known = self.numbers.get(line).copied();
        if let Some(number) = known.filter(|number| self.counters[number.0].waiting > 0) {
            self.counters[number.0].waiting += 1;
            return number;
        }
        let waiting = self.counters.iter().filter(|counter| counter.waiting > 0);
        let least = waiting.map(|counter| counter.served).min_by(f64::total_cmp);
        let number = known.unwrap_or_else(|| self.add(line));
        let counter = &mut self.counters[number.0];
        counter.served = counter.served.max(least.unwrap_or(self.latest));
        counter.waiting = 1;
        number
    }

    /// A request waits no more.
    pub(crate) fn leave(&mut self, line: LineNumber) {
        self.counters[line.0].waiting -= 1;
    }

    /// It was a line's turn, and it was given tokens.
    pub(crate) fn charge(&mut self, line: &Line, tokens: f64) {
        self.correct(line, tokens);
        self.latest = self.numbers.get(line).map_or(0.0, |number| self.served(*number));
    }

    /// A line was given more tokens than it was charged for, or fewer.
    pub(crate) fn correct(&mut self, line: &Line, tokens: f64) {
        let weight = self.weight(line);
        if let Some(number) = self.numbers.get(line) {
            let counter = &mut self.counters[number.0];
            counter.served = (counter.served + tokens / weight).max(0.0);
        }
    }

    /// Gives a line a number, and forgets another for it when there are too many.
    fn add(&mut self, line: &Line) -> LineNumber {
        if self.numbers.len() >= IDLE_LINE_COUNT_MAX {
            self.forget_one();
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.counters.push(Counter::default());
            LineNumber(self.counters.len() - 1)
        });
        self.numbers.insert(line.clone(), number);
        number
    }

    fn forget_one(&mut self) {
        let known = self.numbers.iter();
        let idle = known.filter(|(_, number)| self.counters[number.0].waiting == 0);
        let least = idle.min_by(|(_, left), (_, right)| self.served(**left).total_cmp(&self.served(**right)));
        if let Some((line, number)) = least.map(|(line, number)| (line.clone(), *number)) {
            self.counters[number.0] = Counter::default();
            self.free.push(number);
            self.numbers.remove(&line);
        }
    }

    /// # Panics
    /// When a line counts others than these as waiting.
    pub(crate) fn counts_are(&self, waiting: &BTreeMap<&Line, usize>) {
        for (line, number) in &self.numbers {
            assert_eq!(
                self.counters[number.0].waiting,
                waiting.get(line).copied().unwrap_or(0),
                "{line:?}"
            );
        }
        assert!(waiting.keys().all(|line| self.numbers.contains_key(*line)));
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
            let number = fairness.join(&line(index));
            fairness.charge(&line(index), 1.0);
            fairness.leave(number);
        }
        assert_eq!(fairness.numbers.len(), IDLE_LINE_COUNT_MAX);
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
            let numbers: Vec<LineNumber> = lines.iter().map(|line| fairness.join(line)).collect();
            for tokens in tokens {
                let served = |line: &usize| fairness.served(numbers[*line]);
                let next = (0..lines.len()).min_by(|left, right| served(left).total_cmp(&served(right))).unwrap();
                fairness.charge(&lines[next], tokens);
                let served: Vec<f64> = numbers.iter().map(|line| fairness.served(*line)).collect();
                let (least, most) = (served.iter().copied().fold(f64::MAX, f64::min), served.iter().copied().fold(0.0, f64::max));
                prop_assert!(most - least <= 500.0 / Weights::default().batch, "{:?}", served);
            }
        }

        /// A line that was away is served no earlier than one that waits all the time.
        #[test]
        fn who_comes_back_has_no_less_than_the_least_served(charges in prop::collection::vec(1.0..500.0_f64, 1..50)) {
            let mut fairness = Fairness::new(Weights::default());
            let first = fairness.join(&line(0));
            for tokens in charges {
                fairness.charge(&line(0), tokens);
            }
            let second = fairness.join(&line(1));
            prop_assert_eq!(fairness.served(second), fairness.served(first));
            fairness.leave(first);
            fairness.leave(second);
            let third = fairness.join(&line(2));
            prop_assert!(fairness.served(third) >= fairness.served(first));
        }
    }
}
