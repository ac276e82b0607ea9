//! What is measured: the same pieces of work for the engine and for the peer.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// A piece of work, as the peer's program reads it.
#[derive(Debug, Serialize)]
#[serde(tag = "work", rename_all = "snake_case")]
pub(crate) enum Work {
    /// Brings the weights from files that are in the system's cache into the model's memory.
    Load,
    /// Reads a prompt that nothing is known of yet, to the logits of its last token.
    Prefill {
        /// The prompt.
        prompt: Vec<u32>,
    },
    /// Goes on with all prompts at once, one token each in a step; reading the prompts is not timed.
    Decode {
        /// One for each sequence.
        prompts: Vec<Vec<u32>>,
        /// For each step, the tokens that the sequences are continued with.
        steps: Vec<Vec<u32>>,
    },
}

/// A piece of work, its name, and how much it is.
#[derive(Debug)]
pub(crate) struct Named {
    /// Such as `prefill_128` or `decode_8`.
    pub(crate) name: String,
    /// What to do.
    pub(crate) work: Work,
}

/// How a speed is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// Tokens of all sequences.
    TokensPerS,
    /// Gigabytes (10^9) of weights.
    GbPerS,
}

impl Unit {
    /// For people.
    pub(crate) const fn shown(self) -> &'static str {
        match self {
            Self::TokensPerS => "tokens/s",
            Self::GbPerS => "GB/s",
        }
    }
}

impl Work {
    /// How its speed is counted.
    pub(crate) const fn unit(&self) -> Unit {
        match self {
            Self::Load => Unit::GbPerS,
            Self::Prefill { .. } | Self::Decode { .. } => Unit::TokensPerS,
        }
    }

    /// How often all weights are read, where reading them is what bounds the work: one token needs all of them,
    /// and arithmetic takes over with many.
    pub(crate) fn weight_passes(&self) -> Option<usize> {
        match self {
            Self::Load => Some(1),
            Self::Decode { prompts, steps } if prompts.len() == 1 => Some(steps.len()),
            Self::Prefill { .. } | Self::Decode { .. } => None,
        }
    }

    /// The speed of having done it in this time, with weights of so many bytes.
    pub(crate) fn speed(&self, time: Duration, weights_bytes: usize) -> f64 {
        let tokens = match self {
            Self::Load => return per_s(weights_bytes, time) / 1e9,
            Self::Prefill { prompt } => prompt.len(),
            Self::Decode { prompts, steps } => prompts.len() * steps.len(),
        };
        per_s(tokens, time)
    }
}

/// So many of something in this time.
#[expect(clippy::cast_precision_loss, reason = "bytes and tokens stay far below 2^52")]
pub(crate) fn per_s(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// How large the pieces of work are.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    /// Tokens of each prompt that is read.
    pub(crate) prefills: Vec<usize>,
    /// Sequences of each batch that is continued.
    pub(crate) decodes: Vec<usize>,
    /// Tokens before a continuation.
    pub(crate) context: usize,
    /// Steps of a continuation.
    pub(crate) steps: usize,
}

impl Sizes {
    /// All pieces of work, loading first.
    pub(crate) fn works(&self, vocabulary: u32) -> Vec<Arc<Named>> {
        let load = Named {
            name: "load".to_owned(),
            work: Work::Load,
        };
        let prefills = self.prefills.iter().map(|count| Named {
            name: format!("prefill_{count}"),
            work: Work::Prefill {
                prompt: row(0, *count, vocabulary),
            },
        });
        let decodes = self.decodes.iter().map(|count| Named {
            name: format!("decode_{count}"),
            work: Work::Decode {
                prompts: (0..*count)
                    .map(|sequence| row(sequence, self.context, vocabulary))
                    .collect(),
                steps: (0..self.steps)
                    .map(|step| row(step, *count, vocabulary))
                    .collect(),
            },
        });
        let works = [load].into_iter().chain(prefills).chain(decodes);
        works.map(Arc::new).collect()
    }

    /// The longest sequence, in tokens.
    pub(crate) fn positions_max(&self) -> usize {
        self.prefill_max().max(self.continued_tokens())
    }

    /// The longest prompt that is read for its own sake, in tokens.
    pub(crate) fn prefill_max(&self) -> usize {
        self.prefills.iter().copied().max().unwrap_or(0)
    }

    /// A sequence after its continuation, in tokens.
    pub(crate) const fn continued_tokens(&self) -> usize {
        self.context + self.steps
    }

    /// The most sequences at once.
    pub(crate) fn sequences_max(&self) -> usize {
        self.decodes.iter().copied().max().unwrap_or(1)
    }
}

/// Tokens without a pattern, the same in every run; rows differ.
fn row(row: usize, count: usize, vocabulary: u32) -> Vec<u32> {
    let mut state = (row as u64).wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let high = state >> 33;
        u32::try_from(high % u64::from(vocabulary)).expect("below the vocabulary, which is u32")
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_counts_the_tokens_of_all_sequences() {
        let sizes = Sizes {
            prefills: vec![100],
            decodes: vec![1, 8],
            context: 10,
            steps: 5,
        };
        let works = sizes.works(1_000);
        let names: Vec<&str> = works.iter().map(|work| work.name.as_str()).collect();
        assert_eq!(names, ["load", "prefill_100", "decode_1", "decode_8"]);
        let speeds: Vec<f64> = works
            .iter()
            .map(|work| work.work.speed(Duration::from_millis(500), 3_000_000_000))
            .collect();
        assert_eq!(speeds, [6.0, 200.0, 10.0, 80.0]);
        let passes: Vec<Option<usize>> = works.iter().map(|work| work.work.weight_passes()).collect();
        assert_eq!(passes, [Some(1), None, Some(5), None]);
    }

    #[test]
    fn tokens_are_in_the_vocabulary_and_sequences_differ() {
        let rows = [row(0, 300, 50), row(1, 300, 50)];
        assert!(rows.iter().flatten().all(|token| *token < 50));
        assert_ne!(rows[0], rows[1]);
    }
}
