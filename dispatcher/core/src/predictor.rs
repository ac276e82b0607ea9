//! How many tokens an answer will have, from those of the last minutes.
//!
//! A histogram of finished requests, prompt length x answer length in powers of two, over a sliding window. It
//! decides nothing about a request; whoever admits one asks once and keeps the answer, so that rank, admission and
//! booking use the same number.

mod buckets;

use std::collections::VecDeque;
use std::time::Duration;

use flotilla_protocol::Moment;
use serde::{Deserialize, Serialize};

use buckets::{Buckets, quantile};

/// What a [`Predictor`] remembers and how it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictorSettings {
    /// How long a finished request counts, and at most one slot longer. Four minutes hold some hundred
    /// answers of a busy model, and forget what a prompt template of this morning led to.
    pub window: Duration,
    /// The step in which the window moves; above zero. Ten seconds make 25 slots of it, and nobody sees a step.
    pub slot: Duration,
    /// Prompts of more tokens count as this many; no context that is served today is longer.
    pub prompt_tokens_max: u32,
    /// Answers of more tokens count as this many.
    pub output_tokens_max: u32,
    /// The part of the answers that are shorter than `low`, from 0 to `quantile_high`. At 0.3, one answer in three is
    /// shorter and a little tighter in its time for each token; a lower one would take nearly all requests for urgent.
    pub quantile_low: f64,
    /// The part of the answers that are shorter than `high`, up to 1. At 0.7 the bookings of a device, where the
    /// errors of many requests even out, are rather too large than too small.
    pub quantile_high: f64,
    /// What an answer counts whose prompt was twice or half as long, against one of the same length, from 0 to 1; at
    /// the next power of two its square, and so on. With a quarter a handful of answers of the same length outweighs
    /// many of others, and where there are none the nearest ones answer.
    pub neighbour_weight: f64,
    /// As how many answers the expectation without any history counts, when there is some. With a half, a single
    /// answer moves only the low end, and two rule.
    pub prior_weight: f64,
}

impl Default for PredictorSettings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(240),
            slot: Duration::from_secs(10),
            prompt_tokens_max: 1 << 20,
            output_tokens_max: 1 << 20,
            quantile_low: 0.3,
            quantile_high: 0.7,
            neighbour_weight: 0.25,
            prior_weight: 0.5,
        }
    }
}

/// Tokens of an answer that has not begun; each at least 1 and at most what the request allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// Most answers are longer: a target for each token is tightest for the short ones.
    pub low: u32,
    /// Most answers are shorter: for what a device is booked with.
    pub high: u32,
}

/// Predicts the answers of one model.
#[derive(Debug, Clone)]
pub struct Predictor {
    settings: PredictorSettings,
    prior: Option<u32>,
    prompts: Buckets,
    outputs: Buckets,
    /// Slots in which something finished, oldest first: at most as many as the window has.
    slots: VecDeque<Slot>,
    /// Sums of the slots, `[prompt bucket x output buckets + output bucket]`; empty before the first answer, since
    /// most models of a long catalog have none.
    sums: Vec<u64>,
}

impl Predictor {
    /// A predictor without history; `prior` is what the catalog expects of an answer, in tokens.
    ///
    /// # Panics
    /// When the slot is zero or a quantile or weight is out of its range: a fault of the program.
    #[must_use]
    pub fn new(settings: PredictorSettings, prior: Option<u32>) -> Self {
        let PredictorSettings {
            slot,
            quantile_low,
            quantile_high,
            neighbour_weight,
            prior_weight,
            ..
        } = settings;
        assert!(slot > Duration::ZERO, "a slot takes time");
        assert!(
            0.0 <= quantile_low && quantile_low <= quantile_high && quantile_high <= 1.0,
            "quantiles {quantile_low} and {quantile_high} are parts of the answers, the low one first"
        );
        assert!(
            (0.0..=1.0).contains(&neighbour_weight) && prior_weight >= 0.0,
            "weights {neighbour_weight} and {prior_weight} are not negative, a neighbour's at most 1"
        );
        Self {
            prompts: Buckets::up_to(settings.prompt_tokens_max),
            outputs: Buckets::up_to(settings.output_tokens_max),
            slots: VecDeque::new(),
            sums: Vec::new(),
            prior,
            settings,
        }
    }

    /// Takes another expectation from the catalog.
    pub fn set_prior(&mut self, prior: Option<u32>) {
        self.prior = prior;
    }

    /// A request has finished.
    pub fn handle_finished(&mut self, now: Moment, prompt_tokens: u32, output_tokens: u32) {
        let current = self.expire(now);
        let cell = self.prompts.of(prompt_tokens) * self.outputs.count + self.outputs.of(output_tokens);
        if self.sums.is_empty() {
            self.sums = vec![0; self.prompts.count * self.outputs.count];
        }
        if self.slots.back().is_none_or(|slot| slot.index < current) {
            self.slots.push_back(Slot {
                index: current,
                counts: Vec::new(),
            });
        }
        if let Some(slot) = self.slots.back_mut() {
            slot.add(cell);
            self.sums[cell] += 1;
        }
    }

    /// Tokens that the answer to a prompt will have. The same state gives the same answer, however often it is
    /// asked; without history it is the prior, else all that the request allows.
    #[must_use]
    pub fn predict(&mut self, now: Moment, prompt_tokens: u32, output_tokens_max: u32) -> Prediction {
        self.expire(now);
        let allowed = output_tokens_max.max(1);
        let expected = self.prior.unwrap_or(allowed).clamp(1, allowed);
        if self.slots.is_empty() {
            let (low, high) = (expected, expected);
            return Prediction { low, high };
        }
        let mut weights = self.weights(self.prompts.of(prompt_tokens));
        weights[self.outputs.of(expected)] += self.settings.prior_weight;
        let quantile = |part: f64| quantile(&weights, part).clamp(1, allowed);
        Prediction {
            low: quantile(self.settings.quantile_low),
            high: quantile(self.settings.quantile_high),
        }
    }

    /// Finished requests within the window.
    #[must_use]
    pub fn samples(&mut self, now: Moment) -> u64 {
        self.expire(now);
        self.sums.iter().sum()
    }

    /// Drops what is older than the window; the index of the slot that is now. Time does not run backwards here:
    /// an earlier moment counts as the latest one.
    fn expire(&mut self, now: Moment) -> u128 {
        let current = now.since(Moment::default()).as_nanos() / self.settings.slot.as_nanos();
        while self
            .slots
            .front()
            .is_some_and(|slot| slot.index + self.full_slots() < current)
        {
            for (cell, count) in self.slots.pop_front().into_iter().flat_map(|slot| slot.counts) {
                self.sums[cell] -= count;
            }
        }
        self.slots.back().map_or(current, |slot| slot.index.max(current))
    }

    /// Slots before the current one that still count: all that began within the window and the one that it cuts.
    fn full_slots(&self) -> u128 {
        let slot = self.settings.slot.as_nanos();
        self.settings.window.as_nanos().div_ceil(slot)
    }

    /// What the answers count by output bucket, seen from one prompt bucket.
    fn weights(&self, prompt: usize) -> Vec<f64> {
        let mut weights = vec![0.0; self.outputs.count];
        for (other, row) in self.sums.chunks(self.outputs.count).enumerate() {
            let mut distance = 1.0;
            for _ in 0..other.abs_diff(prompt) {
                distance *= self.settings.neighbour_weight;
            }
            for (weight, &count) in weights.iter_mut().zip(row) {
                *weight += distance * as_figure(count);
            }
        }
        weights
    }
}

/// What finished within one step of the window; only cells with a count, so that memory grows with what happened,
/// and at most with the number of cells.
#[derive(Debug, Clone)]
struct Slot {
    index: u128,
    counts: Vec<(usize, u64)>,
}

impl Slot {
    fn add(&mut self, cell: usize) {
        match self.counts.binary_search_by_key(&cell, |&(cell, _)| cell) {
            Ok(found) => self.counts[found].1 += 1,
            Err(place) => self.counts.insert(place, (cell, 1)),
        }
    }
}

/// A count as a figure; exact up to 2^53, which no window holds.
#[allow(clippy::cast_precision_loss)]
fn as_figure(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(seconds))
    }

    fn with_window(seconds: u64) -> Predictor {
        let settings = PredictorSettings {
            window: Duration::from_secs(seconds),
            ..PredictorSettings::default()
        };
        Predictor::new(settings, None)
    }

    fn default() -> Predictor {
        Predictor::new(PredictorSettings::default(), None)
    }

    /// AIBrix case 9.
    #[test]
    fn buckets_and_slots_are_as_many_as_sizes_and_window_need() {
        let counts = [8, 16, 1 << 20].map(|max| Buckets::up_to(max).count);
        assert_eq!(counts, [4, 5, 21]);
        // The current slot is one more.
        assert_eq!(with_window(60).full_slots() + 1, 7);
        assert_eq!(with_window(65).full_slots() + 1, 8);
    }

    /// AIBrix case 11: their first answer is 1 token.
    #[test]
    fn without_history_the_prior_or_all_that_is_allowed_is_expected() {
        let both = |low, high| Prediction { low, high };
        assert_eq!(default().predict(at(0), 100, 4096), both(4096, 4096));
        let mut with_prior = Predictor::new(PredictorSettings::default(), Some(300));
        assert_eq!(with_prior.predict(at(0), 100, 4096), both(300, 300));
        assert_eq!(with_prior.predict(at(0), 100, 64), both(64, 64));
        with_prior.set_prior(Some(0));
        assert_eq!(with_prior.predict(at(0), 100, 0), both(1, 1));
    }

    /// AIBrix case 12: theirs answers 4; one answer says as much here of the low end alone.
    #[test]
    fn one_answer_is_remembered_and_two_are_believed() {
        let mut predictor = default();
        predictor.handle_finished(at(0), 2, 3);
        for now in [0, 10, 20] {
            let prediction = predictor.predict(at(now), 2, 4096);
            assert!((3..=5).contains(&prediction.low), "{prediction:?}");
            assert!(prediction.high > 2000, "{prediction:?}");
        }
        predictor.handle_finished(at(20), 2, 3);
        assert!((4..=6).contains(&predictor.predict(at(30), 2, 4096).high));
    }

    /// AIBrix case 13: theirs draws anew each time; here each part of the answers has its part of the quantiles.
    #[test]
    fn weights_of_two_to_one_divide_the_quantiles_two_to_one() {
        for part in 1..100 {
            let quantile = f64::from(part) / 100.0;
            let settings = PredictorSettings {
                quantile_low: quantile,
                quantile_high: quantile,
                prior_weight: 0.0,
                ..PredictorSettings::default()
            };
            let mut predictor = Predictor::new(settings, None);
            for output_tokens in [16, 16, 256] {
                predictor.handle_finished(at(0), 100, output_tokens);
            }
            let predicted = predictor.predict(at(0), 100, 4096).low;
            let bucket = Buckets::up_to(4096).of(predicted);
            assert!(
                (4 - usize::from(part == 1)..=8 + usize::from(part == 99)).contains(&bucket),
                "{part}: {predicted}"
            );
            assert_eq!(predicted < 64, part <= 66, "{part}: {predicted}");
        }
    }

    /// AIBrix case 14: theirs forgets nothing until something finishes again.
    #[test]
    fn what_finished_is_forgotten_slot_by_slot_also_in_silence() {
        let mut predictor = with_window(30);
        for second in [0, 11, 21] {
            for _ in 0..5 {
                predictor.handle_finished(at(second), 8, 8);
            }
        }
        let sums = [35, 45, 55, 65].map(|second| predictor.samples(at(second)));
        assert_eq!(sums, [15, 10, 5, 0]);
        assert_eq!(predictor.predict(at(65), 8, 500).high, 500);
    }

    /// AIBrix case 15: theirs ranks, admits and books the same request with different draws.
    #[test]
    fn the_same_question_has_the_same_answer_a_hundred_times() {
        let mut predictor = default();
        for output_tokens in [3, 80, 9, 700, 41] {
            predictor.handle_finished(at(1), 100, output_tokens);
        }
        let first = predictor.predict(at(2), 100, 4096);
        for _ in 0..100 {
            assert_eq!(predictor.predict(at(2), 100, 4096), first);
        }
    }

    #[test]
    fn a_prompt_without_answers_of_its_length_borrows_from_the_nearest() {
        let mut predictor = default();
        for _ in 0..10 {
            predictor.handle_finished(at(0), 64, 16);
            predictor.handle_finished(at(0), 4096, 1024);
        }
        let near = |tokens| predictor.clone().predict(at(0), tokens, 1 << 20);
        assert!(near(150).high < 32, "{:?}", near(150));
        assert!(near(2000).low > 512, "{:?}", near(2000));
        assert!(near(1 << 20).low > 512);
    }

    #[test]
    fn a_gap_of_any_length_leaves_nothing_behind() {
        let mut predictor = default();
        for second in 0..300 {
            predictor.handle_finished(at(second), 100, 100);
        }
        assert_eq!(
            predictor.samples(at(299)),
            300 - 50,
            "slots of 240 s and the current one"
        );
        predictor.handle_finished(at(1_000_000_000), 100, 100);
        assert_eq!(predictor.samples(at(1_000_000_000)), 1);
        assert_eq!(predictor.slots.len(), 1);
    }

    #[test]
    fn a_moment_before_the_latest_counts_as_the_latest() {
        let mut predictor = default();
        predictor.handle_finished(at(500), 100, 100);
        predictor.handle_finished(at(1), 100, 100);
        assert_eq!(predictor.samples(at(1)), 2);
        assert_eq!(predictor.slots.len(), 1);
    }

    #[test]
    fn memory_grows_with_cells_and_not_with_requests() {
        let mut predictor = default();
        for number in 0..10_000 {
            predictor.handle_finished(at(number / 100), 100, 100);
        }
        assert!(predictor.slots.iter().all(|slot| slot.counts.len() == 1));
        assert!(predictor.slots.len() <= 25);
    }

    #[test]
    #[should_panic(expected = "the low one first")]
    fn quantiles_that_cross_are_a_fault() {
        let settings = PredictorSettings {
            quantile_low: 0.8,
            ..PredictorSettings::default()
        };
        drop(Predictor::new(settings, None));
    }

    proptest! {
        #[test]
        fn a_prediction_is_within_what_is_allowed_and_in_order(
            finished in proptest::collection::vec((0_u64..600, any::<u32>(), any::<u32>()), 0..60),
            prompt_tokens: u32,
            output_tokens_max: u32,
            prior: Option<u32>,
            later in 0_u64..600,
        ) {
            let mut predictor = Predictor::new(PredictorSettings::default(), prior);
            for (second, prompt, output) in finished {
                predictor.handle_finished(at(second), prompt, output);
            }
            let Prediction { low, high } = predictor.predict(at(later), prompt_tokens, output_tokens_max);
            prop_assert!(1 <= low && low <= high && high <= output_tokens_max.max(1));
        }

        /// The sums are those of a list of everything, filtered by its slots.
        #[test]
        fn the_window_holds_exactly_what_its_slots_hold(
            gaps in proptest::collection::vec(prop_oneof![0_u64..20, 0_u64..400], 1..60),
            window in 10_u64..300,
        ) {
            let mut predictor = with_window(window);
            let (mut now, mut finished) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                predictor.handle_finished(at(now), 100, 100);
                finished.push(now);
                let lives = |second: &&u64| now / 10 - *second / 10 <= window.div_ceil(10);
                let expected = finished.iter().filter(lives).count();
                prop_assert_eq!(predictor.samples(at(now)), expected as u64);
            }
        }

        /// With answers of one length only, both quantiles are that length up to its bucket.
        #[test]
        fn answers_of_one_length_are_predicted_as_that_length(output in 1_u32..100_000, prompt in 0_u32..100_000) {
            let mut predictor = default();
            for _ in 0..100 {
                predictor.handle_finished(at(0), prompt, output);
            }
            let Prediction { low, high } = predictor.predict(at(0), prompt, u32::MAX);
            let ratio = |tokens: u32| (f64::from(tokens) / f64::from(output)).log2().abs();
            prop_assert!(ratio(low) <= 1.0 && ratio(high) <= 1.0, "{low} {high}");
        }
    }
}
