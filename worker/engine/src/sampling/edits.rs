//! Penalties and biases: what a sequence's own tokens and its request change about its logits.
//!
//! Everything is told as one edit for each token concerned, so that the work of a step grows with the distinct
//! tokens of a sequence and not with the vocabulary. The edits are a function of the tokens so far and of the
//! parameters: a generation that continues elsewhere gets the same ones.

use std::collections::HashMap;

/// How tokens that were there before are held back. Each is applied once a token, in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides a positive logit, multiplies any other, of each token of the prompt or the answer; finite and
    /// above 0, 1 for none. As in transformers and vLLM.
    pub repetition: f32,
    /// Subtracted from the logit of each token of the answer; finite, 0 for none. As in OpenAI's interface.
    pub presence: f32,
    /// Subtracted as often as the token is in the answer; finite, 0 for none. As in OpenAI's interface.
    pub frequency: f32,
}

impl Penalties {
    /// Nothing is held back.
    pub const NONE: Self = Self {
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
    };

    /// Whether all values lie in their documented ranges.
    pub fn is_valid(&self) -> bool {
        self.repetition.is_finite()
            && self.repetition > 0.0
            && self.presence.is_finite()
            && self.frequency.is_finite()
    }
}

/// What a request adds to the logit of one token, after all penalties and before the temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitBias {
    /// The token.
    pub token: u32,
    /// What is added; finite. A hundred is beyond every other difference between logits of real models.
    pub addend: f32,
}

/// A change of one logit: see [`Self::edited`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitEdit {
    /// Whose logit.
    pub token: u32,
    /// The repetition penalty, 1 for none.
    pub divisor: f32,
    /// What is added then.
    pub addend: f32,
}

impl LogitEdit {
    /// The logit after the edit: `divisor` divides a positive logit and multiplies any other, then `addend` is
    /// added. A finite logit stays finite; one that is not is left alone, so that it is still found.
    #[must_use]
    pub fn edited(&self, logit: f32) -> f32 {
        if !logit.is_finite() {
            return logit;
        }
        let repeated = if logit > 0.0 {
            logit / self.divisor
        } else {
            logit * self.divisor
        };
        (repeated + self.addend).clamp(f32::MIN, f32::MAX)
    }

    /// The form in which devices read it: the row of logits, the token, bits of divisor and addend.
    pub const fn to_words(&self, row: u32) -> [u32; EDIT_WORDS] {
        [row, self.token, self.divisor.to_bits(), self.addend.to_bits()]
    }

    /// The inverse of [`Self::to_words`]: the row, and the edit.
    pub const fn from_words(words: &[u32; EDIT_WORDS]) -> (u32, Self) {
        let edit = Self {
            token: words[1],
            divisor: f32::from_bits(words[2]),
            addend: f32::from_bits(words[3]),
        };
        (words[0], edit)
    }
}

/// All edits of one sequence's logits; advanced token by token, so that a step costs what changed.
///
/// It starts with [`Self::new`], reads the prompt and what earlier attempts answered, then each token that is
/// drawn. A value for which no penalty is asked does not look at tokens at all.
#[derive(Clone, Debug)]
pub struct LogitEdits {
    penalties: Penalties,
    seen: Vec<SeenToken>,
    /// Where each token is in `seen`.
    places: HashMap<u32, usize>,
}

#[derive(Clone, Copy, Debug)]
struct SeenToken {
    token: u32,
    bias: f32,
    is_repeated: bool,
    /// How often it is in the answer.
    answered: u32,
}

impl LogitEdits {
    /// The edits before the first token. Of two biases for one token the later counts.
    ///
    /// # Errors
    /// A value is out of its range.
    pub fn new(
        penalties: Penalties,
        biases: impl IntoIterator<Item = LogitBias>,
    ) -> Result<Self, LogitEditsError> {
        if !penalties.is_valid() {
            return Err(LogitEditsError::Penalties { penalties });
        }
        let mut edits = Self {
            penalties,
            seen: Vec::new(),
            places: HashMap::new(),
        };
        for bias in biases {
            if !bias.addend.is_finite() {
                return Err(LogitEditsError::Bias { bias });
            }
            edits.seen(bias.token).bias = bias.addend;
        }
        Ok(edits)
    }

    /// No penalties and no biases.
    #[must_use]
    pub fn none() -> Self {
        Self {
            penalties: Penalties::NONE,
            seen: Vec::new(),
            places: HashMap::new(),
        }
    }

    /// Takes note of tokens of the prompt.
    pub fn read_prompt(&mut self, tokens: &[u32]) {
        if self.penalties.repetition.to_bits() == Penalties::NONE.repetition.to_bits() {
            return;
        }
        for token in tokens {
            self.seen(*token).is_repeated = true;
        }
    }

    /// Takes note of the answer's next token. Allocates at most when the token is new to the sequence.
    pub fn push_answer(&mut self, token: u32) {
        if self.penalties == Penalties::NONE {
            return;
        }
        let seen = self.seen(token);
        seen.is_repeated = true;
        seen.answered = seen.answered.saturating_add(1);
    }

    /// The edits for the next token: each token at most once, in the order in which they were first named.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = LogitEdit> + '_ {
        self.seen.iter().map(|seen| seen.edit(&self.penalties))
    }

    fn seen(&mut self, token: u32) -> &mut SeenToken {
        let next = self.seen.len();
        let place = *self.places.entry(token).or_insert(next);
        if place == next {
            self.seen.push(SeenToken {
                token,
                bias: 0.0,
                is_repeated: false,
                answered: 0,
            });
        }
        &mut self.seen[place]
    }
}

impl SeenToken {
    /// Computed anew from the counts, so that no rounding adds up over the tokens of an answer.
    #[expect(
        clippy::cast_precision_loss,
        reason = "an answer of 2^24 equal tokens is beyond every context"
    )]
    fn edit(&self, penalties: &Penalties) -> LogitEdit {
        let held_back = match self.answered {
            0 => 0.0,
            answered => penalties.presence + penalties.frequency * answered as f32,
        };
        LogitEdit {
            token: self.token,
            divisor: if self.is_repeated {
                penalties.repetition
            } else {
                1.0
            },
            addend: (self.bias - held_back).clamp(f32::MIN, f32::MAX),
        }
    }
}

/// Why edits are refused.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum LogitEditsError {
    /// A penalty is out of its range.
    #[error("penalties out of range: {penalties:?}")]
    Penalties {
        /// The penalties given.
        penalties: Penalties,
    },
    /// A bias is not finite.
    #[error("the bias of token {} is not finite", bias.token)]
    Bias {
        /// The bias given.
        bias: LogitBias,
    },
}

/// How many u32 words [`LogitEdit::to_words`] gives.
pub const EDIT_WORDS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Penalties = Penalties {
        repetition: 2.0,
        presence: 0.5,
        frequency: 0.25,
    };

    fn edits_of(penalties: Penalties, prompt: &[u32], answer: &[u32]) -> Vec<(u32, f32, f32)> {
        let bias = LogitBias {
            token: 9,
            addend: 3.0,
        };
        let mut edits = LogitEdits::new(penalties, [bias]).unwrap();
        edits.read_prompt(prompt);
        answer.iter().for_each(|token| edits.push_answer(*token));
        edits
            .iter()
            .map(|edit| (edit.token, edit.divisor, edit.addend))
            .collect()
    }

    #[test]
    fn repetition_counts_prompt_and_answer_presence_and_frequency_the_answer_only() {
        let found = edits_of(ALL, &[4, 4, 5], &[5, 6, 6]);
        let expected = [(9, 1.0, 3.0), (4, 2.0, 0.0), (5, 2.0, -0.75), (6, 2.0, -1.0)];
        assert_eq!(found, expected);
    }

    #[test]
    fn penalties_come_before_the_bias_and_both_in_one_edit() {
        let edit = |prompt: &[u32], answer: &[u32]| edits_of(ALL, prompt, answer)[0];
        assert_eq!(edit(&[9], &[]), (9, 2.0, 3.0));
        assert_eq!(edit(&[], &[9, 9]), (9, 2.0, 3.0 - 1.0));
    }

    #[test]
    fn repetition_comes_before_what_is_added() {
        let edit = LogitEdit {
            token: 0,
            divisor: 2.0,
            addend: 1.0,
        };
        assert_eq!(edit.edited(4.0), 3.0);
        assert_eq!(edit.edited(-4.0), -7.0);
        assert_eq!(edit.edited(0.0), 1.0);
    }

    #[test]
    fn without_penalties_tokens_leave_no_trace() {
        assert_eq!(edits_of(Penalties::NONE, &[1, 2], &[3, 4]), [(9, 1.0, 3.0)]);
        let answer_only = Penalties {
            repetition: 1.0,
            ..ALL
        };
        assert_eq!(edits_of(answer_only, &[1, 2], &[]), [(9, 1.0, 3.0)]);
    }

    #[test]
    fn finite_logits_stay_finite_and_others_are_left_to_be_found() {
        let wild = LogitEdit {
            token: 0,
            divisor: 1e-38,
            addend: f32::MIN,
        };
        assert!(wild.edited(f32::MAX).is_finite());
        assert!(wild.edited(f32::MIN).is_finite());
        assert_eq!(wild.edited(f32::INFINITY), f32::INFINITY);
        assert!(wild.edited(f32::NAN).is_nan());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for penalties in [
            Penalties {
                repetition: 0.0,
                ..ALL
            },
            Penalties {
                repetition: f32::INFINITY,
                ..ALL
            },
            Penalties {
                presence: f32::NAN,
                ..ALL
            },
            Penalties {
                frequency: f32::INFINITY,
                ..ALL
            },
        ] {
            let refused = LogitEdits::new(penalties, []);
            assert!(
                matches!(refused, Err(LogitEditsError::Penalties { .. })),
                "{penalties:?}"
            );
        }
        let bias = LogitBias {
            token: 1,
            addend: f32::NAN,
        };
        let refused = LogitEdits::new(ALL, [bias]);
        assert!(matches!(refused, Err(LogitEditsError::Bias { .. })));
    }

    #[test]
    fn edits_survive_the_way_to_the_device() {
        let edit = LogitEdit {
            token: 7,
            divisor: 1.3,
            addend: -0.7,
        };
        assert_eq!(LogitEdit::from_words(&edit.to_words(3)), (3, edit));
    }
}
