//! One step of a model: what goes in, what comes out, and what is refused before anything runs.

use std::sync::OnceLock;

use crate::backend::{Backend, DeviceError};
use crate::decoder::{DecoderModel, KvMemory};
use crate::{BLOCK_TOKENS, LogitEdits, Logprobs, MemoryPlan, Sampling, TokenMask};

/// The sequences that advance together; each brings one token (decode) or several (prefill, whole or a chunk).
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// At most `sequences_max`, with at most `batch_tokens_max` tokens together.
    pub sequences: &'a [SequenceStep<'a>],
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct SequenceStep<'a> {
    /// The tokens to read, at least one; positions before them are in the KV blocks already.
    pub tokens: &'a [u32],
    /// The position of the first of them.
    pub position: usize,
    /// The sequence's KV blocks from position 0 on, at least as many as its tokens need; the blocks that this
    /// step writes to belong to no other sequence.
    pub block_table: &'a [u32],
    /// How to draw the token after the last one, if one is wanted.
    pub sample: Option<Sampling>,
    /// What changes the logits before that; none without penalties and biases.
    pub edits: Option<&'a LogitEdits>,
    /// Which tokens may be drawn; all of them when none. It is waited for when the logits are there and not
    /// before, so that it can be made while the step runs: whoever makes it has to set it in any case.
    pub mask: Option<&'a OnceLock<TokenMask>>,
}

/// What a step gave; it lies in buffers of the model, until the next step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutput<'m> {
    /// One for each sequence, in the step's order.
    pub sequences: &'m [SequenceOutput],
    logprobs: &'m [Option<Logprobs>],
}

impl<'m> StepOutput<'m> {
    pub(crate) const fn new(sequences: &'m [SequenceOutput], logprobs: &'m [Option<Logprobs>]) -> Self {
        Self { sequences, logprobs }
    }

    /// How likely the token of a sequence was, if there is one and [`Sampling::logprobs`] asked for it.
    ///
    /// # Panics
    /// The step had no such sequence.
    pub fn logprobs(&self, sequence: usize) -> Option<&'m Logprobs> {
        self.logprobs[sequence].as_ref()
    }
}

/// What a step gave to one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceOutput {
    /// Its tokens were read; none was asked for.
    Read,
    /// The token drawn.
    Token(u32),
    /// A logit was NaN or infinite, or the mask allows no token, so none can be drawn; other sequences are not
    /// touched by it.
    NoToken,
}

impl SequenceOutput {
    /// The token drawn, if there is one.
    pub const fn token(self) -> Option<u32> {
        match self {
            Self::Token(token) => Some(token),
            Self::Read | Self::NoToken => None,
        }
    }
}

/// A step under way on the device.
///
/// Dropping it leaves the step to finish unseen: KV blocks are written, drawn tokens are lost.
#[must_use = "tokens are lost unless somebody waits for them"]
#[derive(Debug)]
pub struct PendingStep<'m, B: Backend> {
    pub(crate) model: &'m mut DecoderModel<B>,
}

impl<'m, B: Backend> PendingStep<'m, B> {
    /// Waits for the device and reads the drawn tokens. Allocates nothing.
    ///
    /// # Errors
    /// The device failed.
    pub fn wait(self) -> Result<StepOutput<'m>, StepError> {
        Ok(self.model.drawn()?)
    }

    /// Waits for the device and reads the drawn tokens, and the logits that each was drawn from, edits and masks
    /// included (f32 \[vocab_size], one for each sequence that draws).
    ///
    /// # Errors
    /// The device failed.
    pub fn wait_with_logits(self) -> Result<(StepOutput<'m>, Vec<Vec<f32>>), StepError> {
        let logits = self.model.logits()?;
        Ok((self.model.drawn()?, logits))
    }
}

impl Step<'_> {
    /// Checks everything that a caller could get wrong, before anything is launched.
    pub(crate) fn check(&self, plan: &MemoryPlan, kv: &KvMemory) -> Result<(), StepError> {
        let limits = plan.limits();
        let sequences = self.sequences.len();
        if sequences > limits.sequences_max {
            return Err(StepError::TooManySequences {
                found: sequences,
                max: limits.sequences_max,
            });
        }
        let tokens = self.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        if tokens > limits.batch_tokens_max {
            return Err(StepError::TooManyTokens {
                found: tokens,
                max: limits.batch_tokens_max,
            });
        }
        self.sequences
            .iter()
            .enumerate()
            .try_for_each(|(sequence, part)| part.check(sequence, plan, kv))
    }
}

impl SequenceStep<'_> {
    fn check(&self, sequence: usize, plan: &MemoryPlan, kv: &KvMemory) -> Result<(), StepError> {
        let config = plan.config();
        if self.tokens.is_empty() {
            return Err(StepError::NoTokens { sequence });
        }
        let end = self.position.saturating_add(self.tokens.len());
        if end > config.context_tokens_max {
            return Err(StepError::BeyondContext {
                sequence,
                end,
                max: config.context_tokens_max,
            });
        }
        let edited = self.edits.into_iter().flat_map(LogitEdits::iter);
        let mut named = self.tokens.iter().copied().chain(edited.map(|edit| edit.token));
        let vocab_size = config.vocab_size;
        if let Some(token) = named.find(|token| *token as usize >= vocab_size) {
            return Err(StepError::TokenOutOfVocabulary {
                sequence,
                token,
                vocab_size,
            });
        }
        self.check_table(sequence, end.div_ceil(BLOCK_TOKENS), kv)?;
        match self.sample {
            Some(sampling) if !sampling.is_valid() => Err(StepError::InvalidSampling { sequence, sampling }),
            _ => Ok(()),
        }
    }

    fn check_table(&self, sequence: usize, needed: usize, kv: &KvMemory) -> Result<(), StepError> {
        let Some(table) = self.block_table.get(..needed) else {
            return Err(StepError::TableTooShort {
                sequence,
                found: self.block_table.len(),
                needed,
            });
        };
        match table.iter().find(|block| kv.start(**block).is_none()) {
            Some(block) => Err(StepError::BlockWithoutMemory {
                sequence,
                block: *block,
            }),
            None => Ok(()),
        }
    }
}

/// Why a step was refused or failed; `sequence` is an index into the step's sequences.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// More sequences than the plan has room for.
    #[error("{found} sequences in a step, at most {max} are planned")]
    TooManySequences {
        /// The sequences given.
        found: usize,
        /// The plan's limit.
        max: usize,
    },
    /// More tokens than the plan has room for.
    #[error("{found} tokens in a step, at most {max} are planned")]
    TooManyTokens {
        /// The tokens given, all sequences together.
        found: usize,
        /// The plan's limit.
        max: usize,
    },
    /// A sequence brings no token.
    #[error("sequence {sequence} brings no tokens")]
    NoTokens {
        /// Which one.
        sequence: usize,
    },
    /// A token to read, or one whose logit is edited, is not in the vocabulary.
    #[error("sequence {sequence}: token {token} is not below the vocabulary's {vocab_size}")]
    TokenOutOfVocabulary {
        /// Which sequence.
        sequence: usize,
        /// The token.
        token: u32,
        /// How many there are.
        vocab_size: usize,
    },
    /// A sequence grows beyond the model's context.
    #[error("sequence {sequence}: {end} tokens exceed the context of {max}")]
    BeyondContext {
        /// Which sequence.
        sequence: usize,
        /// Its length after the step.
        end: usize,
        /// The model's context.
        max: usize,
    },
    /// A block table does not reach the sequence's last token.
    #[error("sequence {sequence}: {found} KV blocks in its table, {needed} needed")]
    TableTooShort {
        /// Which sequence.
        sequence: usize,
        /// The table's length.
        found: usize,
        /// The blocks needed.
        needed: usize,
    },
    /// A block table names a block that has no memory.
    #[error("sequence {sequence}: KV block {block} has no memory")]
    BlockWithoutMemory {
        /// Which sequence.
        sequence: usize,
        /// The block.
        block: u32,
    },
    /// Sampling parameters lie outside their ranges.
    #[error("sequence {sequence}: sampling parameters out of range: {sampling:?}")]
    InvalidSampling {
        /// Which sequence.
        sequence: usize,
        /// The parameters.
        sampling: Sampling,
    },
    /// The device failed.
    #[error("the device failed")]
    Device(#[from] DeviceError),
}
