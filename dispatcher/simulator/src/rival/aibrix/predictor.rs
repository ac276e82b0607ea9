//! How many tokens an answer will have: a draw from what answers to prompts of this length had lately.

use std::collections::VecDeque;
use std::time::Duration;

use flotilla_protocol::Moment;

use crate::random::Random;

/// A histogram over a sliding window. It is brought up to date when an answer ends, and at no other time.
#[derive(Debug)]
pub(super) struct Predictor {
    /// The slots of the window, the newest last, each with the number of its time.
    slots: VecDeque<(u128, Vec<Count>)>,
    /// What all slots have together, `[input bucket][output bucket]`.
    sums: [[u64; BUCKETS]; BUCKETS],
}

/// Answers of one length to prompts of one length.
#[derive(Debug, Clone, Copy)]
struct Count {
    input: usize,
    output: usize,
}

impl Predictor {
    pub(super) fn new() -> Self {
        Self {
            slots: VecDeque::new(),
            sums: [[0; BUCKETS]; BUCKETS],
        }
    }

    /// An answer ended.
    pub(super) fn learn(&mut self, now: Moment, prompt_tokens: u32, output_tokens: u32) {
        let slot = now.since(Moment::default()).as_nanos() / SLOT.as_nanos();
        let oldest = (slot + 1).saturating_sub(SLOTS);
        while self.slots.front().is_some_and(|(at, _)| *at < oldest) {
            let gone = self.slots.pop_front();
            for count in gone.into_iter().flat_map(|(_, counts)| counts) {
                self.sums[count.input][count.output] -= 1;
            }
        }
        let count = Count {
            input: bucket(prompt_tokens),
            output: bucket(output_tokens),
        };
        self.sums[count.input][count.output] += 1;
        match self.slots.back_mut() {
            Some((at, counts)) if *at == slot => counts.push(count),
            _ => self.slots.push_back((slot, vec![count])),
        }
    }

    /// Tokens of the answer to a prompt: drawn anew at each call.
    pub(super) fn predict(&self, random: &mut Random, prompt_tokens: u32) -> u32 {
        let counts = &self.sums[bucket(prompt_tokens)];
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return COLD_ANSWER;
        }
        let mut drawn = random.next() % total;
        let output = counts.iter().position(|&count| match drawn.checked_sub(count) {
            Some(left) => {
                drawn = left;
                false
            }
            None => true,
        });
        1 << output.expect("what is drawn is below the sum of all")
    }
}

/// The nearest power of two.
pub(super) fn bucket(tokens: u32) -> usize {
    // A number is nearer to the next power in log space when its square is beyond the square in the middle.
    let Some(log) = tokens.checked_ilog2() else {
        return 0;
    };
    let squared = u64::from(tokens) * u64::from(tokens);
    let rounded = log + u32::from(squared >= 1_u64 << (2 * log + 1));
    usize::try_from(rounded).map_or(BUCKETS - 1, |rounded| rounded.min(BUCKETS - 1))
}

/// Lengths up to 2^20 tokens.
const BUCKETS: usize = 21;
/// Time of one slot.
const SLOT: Duration = Duration::from_secs(10);
/// Slots of the window of 240 s.
const SLOTS: u128 = 24;
/// Its answer as long as there is no history, which its authors call optimistic.
const COLD_ANSWER: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn buckets_are_rounded_powers_of_two() {
        assert_eq!([0, 1, 4, 5, 6, 7].map(bucket), [0, 0, 2, 2, 3, 3]);
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
        for tokens in 1..5_000_u32 {
            assert_eq!(
                bucket(tokens) as f64,
                f64::from(tokens).log2().round(),
                "{tokens}"
            );
        }
    }

    #[test]
    fn without_history_of_such_prompts_the_answer_is_one_token() {
        let mut predictor = Predictor::new();
        let mut random = Random::new(1, 1);
        assert_eq!(predictor.predict(&mut random, 100), 1);
        predictor.learn(at(0), 1_000, 300);
        assert_eq!(predictor.predict(&mut random, 100), 1);
        assert_eq!(predictor.predict(&mut random, 1_000), 256);
    }

    #[test]
    fn draws_are_fresh_and_follow_the_weights() {
        let mut predictor = Predictor::new();
        for output in [16, 16, 256] {
            predictor.learn(at(0), 64, output);
        }
        let mut random = Random::new(3, 0);
        let drawn = (0..1_000).map(|_| predictor.predict(&mut random, 64));
        let short = drawn.filter(|&tokens| tokens == 16).count();
        assert!((600..734).contains(&short), "{short} of 1000 are short");
    }

    #[test]
    fn what_is_older_than_the_window_goes_when_the_next_answer_ends() {
        let mut predictor = Predictor::new();
        let mut random = Random::new(3, 0);
        predictor.learn(at(5), 64, 512);
        assert_eq!(
            predictor.predict(&mut random, 64),
            512,
            "no answer has ended since"
        );
        predictor.learn(at(235), 4_096, 8);
        assert_eq!(predictor.predict(&mut random, 64), 512);
        predictor.learn(at(245), 4_096, 8);
        assert_eq!(predictor.predict(&mut random, 64), 1);
        assert_eq!(predictor.predict(&mut random, 4_096), 8);
    }
}
