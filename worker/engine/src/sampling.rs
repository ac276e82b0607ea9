//! How a token is drawn from logits: parameters and random numbers.
//!
//! The order is that of vLLM's penalties and transformers' cuts: repetition penalty, presence and frequency
//! penalties, logit bias (all of them [`LogitEdits`]), the mask ([`TokenMask`]), then temperature, top-k, top-p
//! and min-p. Each cut counts probabilities among what the cuts before it have left. Log-probabilities are taken
//! between the mask and the temperature.
//!
//! Nothing here depends on what happened before: a draw is a function of the logits, the tokens so far, the
//! parameters, the seed and the position.
//!
//! Random numbers are counter-based: a function of the seed and the drawn token's index alone, so a
//! generation that continues elsewhere draws the same tokens. See [`uniform`].

mod edits;
mod logprobs;
mod mask;

pub use edits::{EDIT_WORDS, LogitBias, LogitEdit, LogitEdits, LogitEditsError, Penalties};
pub use logprobs::{LOGPROB_WORDS, LOGPROBS_MAX, Logprobs, TokenLogprob};
pub use mask::{AllowedTokens, MASKED_LOGIT, TokenMask, mask_words};

/// How one token is drawn.
///
/// At temperature 0 the largest logit wins. Otherwise logits are divided by the temperature, the `top_k`
/// largest are kept, of these the fewest whose probabilities reach `top_p`, of these the ones at least `min_p`
/// times as likely as the likeliest, and one of the rest is drawn. Ties go to the lowest id everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 for greedy; finite and not negative.
    pub temperature: f32,
    /// How many of the largest logits take part; at least 1; all when none.
    pub top_k: Option<u32>,
    /// The probability mass that takes part; above 0, at most 1.
    pub top_p: f32,
    /// The least probability that takes part, as a share of the largest one; 0 to 1, 0 for all.
    pub min_p: f32,
    /// Whether log-probabilities are wanted, and of how many likeliest tokens; at most [`LOGPROBS_MAX`].
    pub logprobs: Option<u8>,
    /// The generation's seed.
    pub seed: u64,
    /// The index in the sequence of the token that is drawn.
    pub position: u64,
}

impl Sampling {
    /// Always the token with the largest logit.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: None,
        top_p: 1.0,
        min_p: 0.0,
        logprobs: None,
        seed: 0,
        position: 0,
    };

    /// Whether all values lie in their documented ranges.
    pub fn is_valid(&self) -> bool {
        self.temperature.is_finite()
            && self.temperature >= 0.0
            && self.top_p > 0.0
            && self.top_p <= 1.0
            && self.top_k != Some(0)
            && (0.0..=1.0).contains(&self.min_p)
            && self
                .logprobs
                .is_none_or(|count| usize::from(count) <= LOGPROBS_MAX)
    }

    /// The form in which devices read it: bits of temperature and top_p, top_k (0 for all), bits of min_p, then
    /// seed and position, each with its low half first, then 1 more than the alternatives wanted (0 for no
    /// log-probabilities), then 1 for a row with a mask (0 for others).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "each half of a u64 is taken on purpose"
    )]
    pub const fn to_words(&self, allowed: AllowedTokens) -> [u32; PARAMETER_WORDS] {
        [
            self.temperature.to_bits(),
            self.top_p.to_bits(),
            match self.top_k {
                Some(top_k) => top_k,
                None => 0,
            },
            self.min_p.to_bits(),
            self.seed as u32,
            (self.seed >> 32) as u32,
            self.position as u32,
            (self.position >> 32) as u32,
            match self.logprobs {
                Some(count) => count as u32 + 1,
                None => 0,
            },
            match allowed {
                AllowedTokens::All => 0,
                AllowedTokens::Masked => 1,
            },
        ]
    }

    /// The inverse of [`Self::to_words`].
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`to_words` wrote a u8 and one more"
    )]
    pub const fn from_words(words: &[u32; PARAMETER_WORDS]) -> (Self, AllowedTokens) {
        let sampling = Self {
            temperature: f32::from_bits(words[0]),
            top_p: f32::from_bits(words[1]),
            top_k: if words[2] == 0 { None } else { Some(words[2]) },
            min_p: f32::from_bits(words[3]),
            logprobs: match words[8] {
                0 => None,
                count => Some((count - 1) as u8),
            },
            seed: words[4] as u64 | (words[5] as u64) << 32,
            position: words[6] as u64 | (words[7] as u64) << 32,
        };
        let allowed = match words[9] {
            0 => AllowedTokens::All,
            _ => AllowedTokens::Masked,
        };
        (sampling, allowed)
    }
}

/// The random number of a draw, uniform in `0..1` with 53 bits.
///
/// Output number `position + 1` of a SplitMix64 generator that starts at `mix(seed + GAMMA)`:
/// `mix(mix(seed + GAMMA) + (position + 1) * GAMMA) >> 11`, times 2^-53, all modulo 2^64, with
/// `GAMMA = 0x9e3779b97f4a7c15` and `mix` the finaliser of Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators" (2014), in Vigna's variant.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
pub const fn uniform(seed: u64, position: u64) -> f64 {
    let stream = mix(seed.wrapping_add(GAMMA));
    let bits = mix(stream.wrapping_add(position.wrapping_add(1).wrapping_mul(GAMMA))) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How many u32 words [`Sampling::to_words`] gives.
pub const PARAMETER_WORDS: usize = 10;

/// The token id that stands for "a logit was not finite, or the mask allows no token"; no vocabulary reaches it.
pub const NO_TOKEN: u32 = u32::MAX;

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_survive_the_way_to_the_device() {
        let sampling = Sampling {
            temperature: 0.7,
            top_k: Some(40),
            top_p: 0.9,
            min_p: 0.05,
            logprobs: Some(0),
            seed: 0x0123_4567_89ab_cdef,
            position: u64::MAX - 5,
        };
        for allowed in [AllowedTokens::All, AllowedTokens::Masked] {
            for sampling in [sampling, Sampling::GREEDY] {
                let words = sampling.to_words(allowed);
                assert_eq!(Sampling::from_words(&words), (sampling, allowed));
            }
        }
    }

    /// Journals hold tokens drawn with this function: a change of it breaks every continuation.
    #[test]
    fn random_numbers_never_change() {
        // Computed by an independent implementation of the formula in the doc of `uniform`.
        assert_eq!(uniform(0, 0), 0.6524484863740322);
        assert_eq!(uniform(42, 7), 0.7347204584623639);
        assert_eq!(uniform(u64::MAX, u64::MAX), 0.2668471864940366);
        // Vigna's published first output of SplitMix64 from state 0.
        assert_eq!(mix(GAMMA), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn random_numbers_fill_the_unit_interval_evenly() {
        let mut counts = [0u32; 10];
        for position in 0..10_000 {
            let drawn = uniform(3, position);
            assert!((0.0..1.0).contains(&drawn));
            let tenth = (1..10).filter(|tenth| drawn >= f64::from(*tenth) / 10.0).count();
            counts[tenth] += 1;
        }
        assert!(
            counts.iter().all(|count| (900..1100).contains(count)),
            "{counts:?}"
        );
    }
}
