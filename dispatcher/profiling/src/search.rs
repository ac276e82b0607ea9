//! Which rate to try next.

/// Finds the highest rate that passes.
///
/// While nothing failed rates grow, at first by a little where a neighbour's answer is the guess, then by twofold.
/// Then the middle of what passed and what failed, until they are within the tolerance of each other. What failed
/// at the guess is followed downwards by the same growing steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Search {
    /// Highest rate that passed.
    low: f64,
    /// Whether `low` was offered, or is only what requests alone come to.
    is_low_offered: bool,
    /// Lowest rate that failed.
    high: Option<f64>,
    first: f64,
    factor: f64,
    /// Whether `first` was tried; the steps away from it grow.
    is_started: bool,
    tolerance: f64,
    rate_max: f64,
}

impl Search {
    /// Starts at what requests alone come to, or at a guess above it.
    pub(crate) fn new(alone: f64, guess: Option<f64>, tolerance: f64, rate_max: f64) -> Self {
        let guess = guess.filter(|guess| *guess > alone);
        Self {
            low: alone,
            is_low_offered: false,
            high: None,
            first: guess.unwrap_or(alone * FACTOR_MAX).min(rate_max),
            factor: if guess.is_some() { FACTOR_MIN } else { FACTOR_MAX },
            is_started: false,
            tolerance,
            rate_max,
        }
    }

    /// The next rate, in requests a second; `None` when the answer is known.
    pub(crate) fn next(&self) -> Option<f64> {
        let next = match (self.high, self.is_low_offered) {
            (None, false) => self.first,
            (None, true) => (self.low * self.factor).min(self.rate_max),
            (Some(high), _) if high <= self.low * (1.0 + self.tolerance) => return None,
            (Some(high), true) => middle(self.low, high),
            (Some(high), false) => middle(self.low, high).max(high / self.factor),
        };
        // Requests alone may have come to more than can be offered; and at the highest rate there is no next one.
        (next > self.low).then_some(next)
    }

    /// Takes note of what came of a rate.
    pub(crate) fn note(&mut self, rate: f64, passed: bool) {
        let was_open = self.high.is_none() || !self.is_low_offered;
        match passed {
            true => {
                self.low = self.low.max(rate);
                self.is_low_offered = true;
            }
            false => self.high = Some(self.high.map_or(rate, |high| high.min(rate))),
        }
        if was_open && self.is_started {
            self.factor = (self.factor * self.factor).min(FACTOR_MAX);
        }
        self.is_started = true;
    }
}

/// What has the same ratio to both.
fn middle(low: f64, high: f64) -> f64 {
    (low * high).sqrt()
}

/// First step away from a neighbour's answer. Answers of neighbours are mostly within it, after they were scaled.
const FACTOR_MIN: f64 = 1.25;
/// Largest step.
const FACTOR_MAX: f64 = 2.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(mut search: Search, truth: f64) -> (f64, u32) {
        let mut points = 0;
        while let Some(rate) = search.next() {
            search.note(rate, rate <= truth);
            points += 1;
            assert!(points < 100, "{search:?} has no end");
        }
        (search.low, points)
    }

    #[test]
    fn nothing_is_offered_beyond_the_highest_rate() {
        assert_eq!(run(Search::new(2.0, None, 0.1, 10.0), 1e9), (10.0, 3));
        assert_eq!(run(Search::new(20.0, None, 0.1, 10.0), 1e9), (20.0, 0));
    }

    proptest! {
        #[test]
        fn the_answer_is_within_the_tolerance_below_the_truth(
            alone in 0.01_f64..10.0,
            times in 1.0_f64..300.0,
            off in proptest::option::of(0.2_f64..5.0),
            tolerance in 0.02_f64..0.5,
        ) {
            let truth = alone * times;
            let guess = off.map(|off| truth * off);
            let (found, points) = run(Search::new(alone, guess, tolerance, 1e6), truth);
            prop_assert!(found <= truth && truth <= found * (1.0 + tolerance) * 1.000_001, "{found} for {truth}");
            // Doubling to a factor of 300 takes 9, and each halving of a twofold bracket one.
            prop_assert!(f64::from(points) <= 10.0 + (2.0_f64.ln() / (1.0 + tolerance).ln()).log2().ceil());
        }

        #[test]
        fn with_a_guess_a_quarter_off_at_most_five_points_are_needed(
            truth in 1.0_f64..300.0,
            off in 0.8_f64..1.25,
        ) {
            let (_, points) = run(Search::new(truth / 20.0, Some(truth * off), 0.1, 1e6), truth);
            prop_assert!(points <= 5, "{points}");
        }
    }
}
