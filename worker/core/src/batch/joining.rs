//! Who may join a batch.

use std::sync::Arc;

use flotilla_protocol::Class;
use thiserror::Error;

use super::{Batch, SequenceId};

/// A sequence that joins a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSequence {
    /// Its name; unused in this batch.
    pub id: SequenceId,
    /// How urgent it is.
    pub class: Class,
    /// The prompt, followed by the tokens of the answer that earlier attempts made.
    pub tokens: Vec<u32>,
    /// How many of `tokens` are the prompt.
    pub prompt_tokens: usize,
    /// Most tokens that may still be made; at least 1.
    pub new_tokens_max: usize,
    /// Tokens that end the answer and are no part of it.
    pub stop_token_ids: Arc<[u32]>,
}

/// Why a sequence cannot join.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddError {
    /// The batch has a sequence of this name, or its open plan has one that was removed meanwhile.
    #[error("sequence {0:?} is in the batch already")]
    Duplicate(SequenceId),
    /// There is no token to start from.
    #[error("the sequence has no prompt token")]
    NoPrompt,
    /// Nothing may be made.
    #[error("no token may be made")]
    NoNewTokens,
    /// No token fits after those that are there.
    #[error("{tokens} tokens leave no room in a context of {context_tokens_max}")]
    ContextFull {
        /// Tokens that are there.
        tokens: usize,
        /// The context.
        context_tokens_max: usize,
    },
}

impl Batch {
    /// Tells the tokens at which a sequence ends.
    ///
    /// # Errors
    /// [`AddError`] when it could never run.
    pub(super) fn check(&self, new: &NewSequence) -> Result<usize, AddError> {
        let (tokens, context_tokens_max) = (new.tokens.len(), self.settings.context_tokens_max);
        let is_planned = self.planned.iter().any(|planned| planned.sequence == new.id);
        if is_planned || self.sequences.contains_key(&new.id) {
            return Err(AddError::Duplicate(new.id));
        }
        if new.prompt_tokens == 0 || new.prompt_tokens > tokens {
            return Err(AddError::NoPrompt);
        }
        if new.new_tokens_max == 0 {
            return Err(AddError::NoNewTokens);
        }
        if tokens >= context_tokens_max {
            return Err(AddError::ContextFull {
                tokens,
                context_tokens_max,
            });
        }
        Ok(tokens.saturating_add(new.new_tokens_max).min(context_tokens_max))
    }
}
