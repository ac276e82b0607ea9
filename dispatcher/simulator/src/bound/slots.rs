//! Time cut into slots, and the cheapest slot of a window.

use std::ops::RangeInclusive;

/// Slots of equal length, and a last one for all the rest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slots {
    slot_s: f64,
    count: usize,
    until_s: f64,
}

impl Slots {
    /// From 0 to `until_s`, cut evenly up to `even_until_s`.
    pub(super) fn new(even_until_s: f64, until_s: f64) -> Self {
        let slot_s = SLOT_MIN_S.max(even_until_s / SLOTS_MAX as f64);
        let count = (1..=SLOTS_MAX).find(|&count| count as f64 * slot_s >= even_until_s);
        Self {
            slot_s,
            count: count.unwrap_or(SLOTS_MAX) + 1,
            until_s: until_s.max(even_until_s + slot_s),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Seconds of a slot.
    pub(super) fn length_s(&self, slot: usize) -> f64 {
        let begins_s = self.slot_s * slot as f64;
        if slot + 1 == self.count {
            self.until_s - begins_s
        } else {
            self.slot_s
        }
    }

    /// Every slot that has some time of a window.
    pub(super) fn window(&self, (from_s, until_s): (f64, f64)) -> RangeInclusive<usize> {
        let from = self.at(from_s);
        from..=self.at(until_s).max(from)
    }

    fn at(&self, time_s: f64) -> usize {
        // A cast to an integer saturates, at 0 below and beyond the last slot above.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "see above"
        )]
        let slot = (time_s / self.slot_s) as usize;
        slot.min(self.count - 1)
    }
}

/// The least of any window of a row of prices, at once: the least of every run of 1, 2, 4, ... slots.
#[derive(Debug)]
pub(super) struct Cheapest {
    rows: Vec<Vec<f64>>,
}

impl Cheapest {
    pub(super) fn of(prices: &[f64]) -> Self {
        let mut rows = vec![prices.to_vec()];
        let mut run = 1;
        while 2 * run <= prices.len() {
            let below = &rows[rows.len() - 1];
            let next = (0..=prices.len() - 2 * run).map(|slot| below[slot].min(below[slot + run]));
            let next = next.collect();
            rows.push(next);
            run *= 2;
        }
        Self { rows }
    }

    /// The least price of a window.
    pub(super) fn in_window(&self, window: &RangeInclusive<usize>) -> f64 {
        let (from, count) = (*window.start(), window.end() - window.start() + 1);
        let level = count.ilog2();
        let row = &self.rows[level as usize];
        row[from].min(row[from + count - (1 << level)])
    }
}

/// Shortest slot: below the shortest window that matters, a few tokens.
const SLOT_MIN_S: f64 = 0.25;
/// Most slots of equal length; more would hardly change the bound and cost time.
const SLOTS_MAX: usize = 2_048;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_cover_all_time_once() {
        for (even_until_s, until_s) in [(10.0, 100.0), (10_000.0, 13_600.0), (0.1, 0.1)] {
            let slots = Slots::new(even_until_s, until_s);
            let total_s: f64 = (0..slots.count()).map(|slot| slots.length_s(slot)).sum();
            assert!((total_s - slots.until_s).abs() < 1e-6, "{total_s}");
            assert_eq!(slots.window((0.0, slots.until_s * 2.0)), 0..=slots.count() - 1);
            assert_eq!(slots.window((-1.0, 0.0)), 0..=0);
        }
    }

    proptest! {
        #[test]
        fn the_cheapest_slot_of_a_window_is_found(
            prices in proptest::collection::vec(0.0_f64..1.0, 1..40),
            ends in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let [one, other] = [ends.0, ends.1].map(|end| end.index(prices.len()));
            let window = one.min(other)..=one.max(other);
            let least = prices[window.clone()].iter().copied().fold(f64::INFINITY, f64::min);
            prop_assert_eq!(Cheapest::of(&prices).in_window(&window), least);
        }
    }
}
