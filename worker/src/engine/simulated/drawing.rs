//! The tokens of simulated answers: functions of seeds and positions, so that an answer that goes on elsewhere
//! is the same answer.

/// How a simulated model draws its tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawing {
    /// The fleet's seed.
    pub(crate) seed: u64,
    /// Tokens are below this number.
    pub(crate) vocabulary_size: u32,
    /// The token that ends an answer; drawn for nothing else.
    pub(crate) end: Option<u32>,
    /// Mean length of an answer; `None` for answers that go on for as long as they may.
    pub(crate) answer_tokens_mean: Option<u32>,
}

impl Drawing {
    /// The token of a request at a position of its sequence, which is one of its answer from 0 on.
    pub(super) fn draw(&self, request_seed: u64, position: u64, index: usize) -> u32 {
        match self.end {
            Some(end) if index as u64 == self.answer_tokens(request_seed) => end,
            Some(_) | None => self.token(request_seed, position),
        }
    }

    /// Any token but the end.
    fn token(&self, request_seed: u64, position: u64) -> u32 {
        let number = mixed(mixed(self.seed ^ mixed(request_seed)) ^ position);
        let others = match self.end {
            Some(end) if end < self.vocabulary_size => self.vocabulary_size - 1,
            Some(_) | None => self.vocabulary_size,
        };
        let drawn = number % u64::from(others.max(1));
        let drawn = u32::try_from(drawn).expect("the remainder is below a u32");
        match self.end {
            Some(end) if drawn >= end => drawn + 1,
            Some(_) | None => drawn,
        }
    }

    /// Tokens after which the model ends a request's answer, at least 1, exponentially distributed.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the mean is at most a million and the logarithm of 53 bits below 37"
    )]
    fn answer_tokens(&self, request_seed: u64) -> u64 {
        let Some(mean) = self.answer_tokens_mean else {
            return u64::MAX;
        };
        let bits = mixed(self.seed ^ mixed(request_seed ^ LENGTH)) >> 11;
        // In (0, 1], so that its logarithm is finite.
        let part = (bits + 1) as f64 / (1_u64 << 53) as f64;
        let tokens = -part.ln() * f64::from(mean);
        (tokens.ceil() as u64).max(1)
    }
}

/// The finaliser of SplitMix64: every bit depends on every other.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Keeps the length of an answer apart from its tokens.
const LENGTH: u64 = 0x6c65_6e67_7468;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DRAWING: Drawing = Drawing {
        seed: 0,
        vocabulary_size: 32_000,
        end: Some(0),
        answer_tokens_mean: Some(200),
    };

    /// The tokens of a request, up to its end.
    fn answer(drawing: &Drawing, seed: u64, prompt_tokens: u64) -> Vec<u32> {
        let tokens = (0..).map(|index| drawing.draw(seed, prompt_tokens + index as u64, index));
        tokens.take_while(|token| Some(*token) != drawing.end).collect()
    }

    proptest! {
        #[test]
        fn tokens_are_words_of_the_vocabulary_and_the_end_comes_at_the_answers_length_alone(
            seed in any::<u64>(), vocabulary_size in 2..300_u32, end in prop::option::of(0..400_u32),
        ) {
            let drawing = Drawing { vocabulary_size, end, answer_tokens_mean: Some(20), ..DRAWING };
            let length = drawing.answer_tokens(seed);
            prop_assert!(length >= 1);
            for index in 0..300 {
                let token = drawing.draw(seed, index as u64, index);
                let is_end = end.is_some() && index as u64 == length;
                prop_assert_eq!(Some(token) == end, is_end);
                prop_assert!(is_end || token < vocabulary_size, "{}", token);
            }
        }
    }

    #[test]
    fn answers_are_as_long_on_the_mean_as_configured_and_differ() {
        let lengths = (0..20_000).map(|seed| DRAWING.answer_tokens(seed));
        let mean = lengths.sum::<u64>() as f64 / 20_000.0;
        assert!(
            (mean - 200.0).abs() < 6.0,
            "{mean} is four standard errors from 200"
        );
        assert_ne!(answer(&DRAWING, 1, 8), answer(&DRAWING, 2, 8));
        let other = Drawing { seed: 1, ..DRAWING };
        assert_ne!(answer(&DRAWING, 1, 8), answer(&other, 1, 8));
    }

    #[test]
    fn without_a_mean_length_no_answer_ends_by_itself() {
        let endless = Drawing {
            answer_tokens_mean: None,
            ..DRAWING
        };
        assert!((0..10_000).all(|index| endless.draw(3, index as u64, index) != 0));
    }
}
