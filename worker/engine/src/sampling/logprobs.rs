//! Log-probabilities of a drawn token and of the likeliest tokens beside it.

/// A token and its log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Its natural log-probability, at most 0.
    pub logprob: f32,
}

/// How likely a drawn token was, and which tokens were likeliest.
///
/// Of the distribution after penalties and biases, and before temperature, top-k, top-p and min-p: what the
/// model thinks of the text, whatever is drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logprobs {
    drawn: f32,
    top: [TokenLogprob; LOGPROBS_MAX],
    top_count: usize,
}

impl Logprobs {
    /// The drawn token's natural log-probability, at most 0.
    pub const fn drawn(&self) -> f32 {
        self.drawn
    }

    /// The likeliest tokens, as many as were asked for and the vocabulary has; likeliest first, ties by id.
    pub fn top(&self) -> &[TokenLogprob] {
        &self.top[..self.top_count]
    }

    /// Reads what a device wrote for one token; see [`crate::Sample::logprobs`].
    pub(crate) fn from_words(words: &[u32; LOGPROB_WORDS]) -> Self {
        let (head, pairs) = words.split_at(2);
        let mut top = [TokenLogprob {
            token: 0,
            logprob: 0.0,
        }; LOGPROBS_MAX];
        for (entry, pair) in top.iter_mut().zip(pairs.chunks_exact(2)) {
            *entry = TokenLogprob {
                token: pair[0],
                logprob: f32::from_bits(pair[1]),
            };
        }
        Self {
            drawn: f32::from_bits(head[0]),
            top,
            top_count: (head[1] as usize).min(LOGPROBS_MAX),
        }
    }
}

/// Most alternatives that can be asked for beside a drawn token: what OpenAI's interface allows.
pub const LOGPROBS_MAX: usize = 20;

/// How many u32 words a device writes for the log-probabilities of one token: bits of the drawn token's, the
/// number of alternatives, then for each of [`LOGPROBS_MAX`] its id and bits of its log-probability.
pub const LOGPROB_WORDS: usize = 2 + 2 * LOGPROBS_MAX;
