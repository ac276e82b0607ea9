//! The way of an embedding request's texts to the engine's thread, and of their vectors back.

use std::sync::atomic::Ordering;

use flotilla_protocol::{Class, ModelName};
use flotilla_worker_core::texts::{TextsError, TextsId};
use tokio::sync::oneshot;

use super::{Command, Engine, EngineEnded};

/// Texts whose vectors are wanted.
#[derive(Debug)]
pub(crate) struct NewTexts {
    /// The model; it must be loaded.
    pub(crate) model: ModelName,
    /// How urgent they are.
    pub(crate) class: Class,
    /// The tokens of each.
    pub(crate) texts: Vec<Vec<u32>>,
}

/// Why there are no vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VectorsEnd {
    /// The model's numbers are not finite.
    NotFinite,
    /// The texts could not be queued.
    Refused(TextsError),
    /// The model is not loaded, or was taken out.
    ModelGone,
    /// The thread is gone.
    EngineEnded,
    /// A text makes the engine panic, alone.
    Panicked {
        /// The panic's message.
        message: String,
    },
}

/// One vector for each text.
pub(super) type VectorsReply = Result<Vec<Vec<f32>>, VectorsEnd>;

/// Texts in the engine. Dropping it takes them out, after the step under way.
#[derive(Debug)]
pub(crate) struct TextsRun {
    reply: oneshot::Receiver<VectorsReply>,
}

#[derive(Debug)]
pub(super) struct JoiningTexts {
    pub(super) id: TextsId,
    pub(super) class: Class,
    pub(super) texts: Vec<Vec<u32>>,
    pub(super) reply: oneshot::Sender<VectorsReply>,
}

impl Engine {
    /// Queues the texts of a request. When cancelled, they are taken out again.
    ///
    /// # Errors
    /// [`EngineEnded`].
    pub(crate) async fn embed(&self, new: NewTexts) -> Result<TextsRun, EngineEnded> {
        let (reply, receiver) = oneshot::channel();
        let id = TextsId(self.next_sequence.fetch_add(1, Ordering::Relaxed));
        let joining = JoiningTexts {
            id,
            class: new.class,
            texts: new.texts,
            reply,
        };
        self.command(Command::Embed {
            model: new.model,
            new: joining,
        })
        .await?;
        Ok(TextsRun { reply: receiver })
    }
}

impl TextsRun {
    /// Waits for the vectors, in the texts' order. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`VectorsEnd`].
    ///
    /// # Panics
    /// They were taken before.
    pub(crate) async fn vectors(&mut self) -> VectorsReply {
        (&mut self.reply).await.unwrap_or(Err(VectorsEnd::EngineEnded))
    }
}
