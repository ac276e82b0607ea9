//! What an attempt makes: text or vectors.

use flotilla_protocol::event::{Event, FinishReason, Timings, Usage};
use flotilla_worker_core::answer::Start;

use super::generation::{Generation, Taken};
use super::vectors::Vectors;
use super::{Attempt, ReadyModel};
use crate::prompt::Prepared;

/// Something in the making.
#[derive(Debug)]
pub(super) enum Work {
    /// An answer.
    Text(Box<Generation>),
    /// The vectors of texts.
    Vectors(Vectors),
}

impl Work {
    pub(super) fn new(prepared: Prepared, model: ReadyModel) -> Self {
        match prepared {
            Prepared::Generate(prompt) => Self::Text(Box::new(Generation::new(*prompt, model))),
            Prepared::Embed(texts) => Self::Vectors(Vectors::new(texts, model.engine)),
        }
    }

    /// Starts, or continues what the journal holds.
    pub(super) async fn start(&mut self, start: Start, attempt: &mut Attempt) -> Taken {
        match self {
            Self::Text(generation) => generation.start(start, attempt).await,
            Self::Vectors(vectors) => vectors.start(attempt).await,
        }
    }

    /// Waits for something that was made and takes all that is there. Cancelling loses nothing.
    pub(super) async fn take(&mut self) -> Taken {
        match self {
            Self::Text(generation) => generation.take().await,
            Self::Vectors(vectors) => vectors.take().await,
        }
    }

    /// Ends the text: what was held back because more might have changed it.
    pub(super) fn held_back_text(&mut self) -> String {
        match self {
            Self::Text(generation) => generation.held_back_text(),
            Self::Vectors(_) => String::new(),
        }
    }

    /// Whether the journal is open for what is made.
    pub(super) fn has_started(&self) -> bool {
        match self {
            Self::Text(generation) => generation.has_started(),
            Self::Vectors(vectors) => vectors.has_started(),
        }
    }

    pub(super) fn output_tokens(&self) -> usize {
        match self {
            Self::Text(generation) => generation.output_tokens(),
            Self::Vectors(_) => 0,
        }
    }

    /// Tokens read and made.
    pub(super) fn usage(&self) -> Usage {
        match self {
            Self::Text(generation) => generation.usage(),
            Self::Vectors(vectors) => vectors.usage(),
        }
    }

    /// The last event of what is complete.
    pub(super) fn finished(&mut self, reason: FinishReason, timings: Timings) -> Event {
        match self {
            Self::Text(generation) => generation.finished(reason, timings),
            Self::Vectors(vectors) => vectors.finished(reason, timings),
        }
    }
}
