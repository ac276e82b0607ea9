//! The engine's thread: one for a device. It owns every loaded model of the device and a batch for each. In the
//! place of a simulated device's thread stands a task ([`simulated`]), behind the same handle.
//!
//! The thread never waits for NATS, a disk or a request. Commands come through a bounded channel; each
//! request has a bounded channel of its own for what was made. A request whose channel is full is left out of
//! the steps until its task has caught up, and holds up nobody else. With nothing to run the thread sleeps in
//! its command channel.
//!
//! Loading is not the thread's business: a model on the CPU device owns its memory, so [`load`] fills it on
//! a blocking thread and hands the finished model over, between two steps. Unloading drops it here.

mod load;
mod model;
mod round;
mod runs;
mod simulated;
mod texts;
mod vectors;

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use flotilla_protocol::{Class, ModelName};
use flotilla_worker_core::batch::{AddError, NewSequence, SequenceId};
use flotilla_worker_engine::{LogitEdits, Logprobs, Sampling};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info};

pub(crate) use load::{LoadFault, LoadLimits, LoadedModel, load};
use model::EngineModel;
pub(crate) use simulated::{Drawing, LoadedSimulated};
use texts::{JoiningTexts, VectorsReply};
pub(crate) use texts::{NewTexts, TextsRun, VectorsEnd};
use vectors::VectorsModel;

/// The thread is gone: it panicked outside of a step. The worker ends then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the engine's thread has ended")]
pub struct EngineEnded;

/// A way to the engine's thread. Cheap to clone; the thread ends when all clones are gone.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    commands: mpsc::Sender<Command>,
    next_sequence: Arc<AtomicU64>,
}

/// A request that joins the batch of its model.
#[derive(Debug)]
pub(crate) struct NewRun {
    /// The model; it must be loaded.
    pub(crate) model: ModelName,
    /// How urgent it is.
    pub(crate) class: Class,
    /// The prompt, followed by what earlier attempts made.
    pub(crate) tokens: Vec<u32>,
    /// How many of `tokens` are the prompt.
    pub(crate) prompt_tokens: usize,
    /// Most tokens that may still be made; at least 1.
    pub(crate) new_tokens_max: usize,
    /// Tokens that end the answer.
    pub(crate) stop_token_ids: Arc<[u32]>,
    /// How tokens are drawn; the position is the engine's.
    pub(crate) sampling: Sampling,
    /// The request's penalties and biases, before any token was read.
    pub(crate) edits: LogitEdits,
    /// Tokens that may be made before their reader has taken any; at least 1.
    pub(crate) ahead_tokens_max: usize,
}

/// What the engine made for a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Made {
    /// The next token.
    Token {
        /// The token.
        id: u32,
        /// How likely it was, if [`Sampling::logprobs`] asked for it.
        logprobs: Option<Box<Logprobs>>,
    },
    /// Nothing more. Last.
    Ended(RunEnd),
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunEnd {
    /// The model made an end token.
    Stop,
    /// All allowed tokens are made.
    Length,
    /// The model's numbers are not finite.
    NoToken,
    /// The run could not join.
    Refused(AddError),
    /// The model is not loaded, or was taken out.
    ModelGone,
    /// The request makes the engine panic, alone.
    Panicked {
        /// The panic's message.
        message: String,
    },
}

/// A request in the engine. Dropping it takes the request out.
#[derive(Debug)]
pub(crate) struct Run {
    model: ModelName,
    sequence: SequenceId,
    made: mpsc::Receiver<Made>,
    reused: oneshot::Receiver<usize>,
    commands: mpsc::Sender<Command>,
    /// Tokens taken since the thread was last told.
    taken: usize,
    /// After this many the thread is told that there is room.
    notice_tokens: usize,
}

#[derive(Debug)]
enum Command {
    Install {
        model: ModelName,
        loaded: Box<LoadedModel>,
        done: oneshot::Sender<()>,
    },
    Unload {
        model: ModelName,
        done: oneshot::Sender<()>,
    },
    Join {
        new: Box<Joining>,
    },
    Embed {
        model: ModelName,
        new: JoiningTexts,
    },
    Leave {
        model: ModelName,
        sequence: SequenceId,
    },
    /// A channel has room again. Waking the thread is all there is to it: it looks at every channel.
    Drained,
}

#[derive(Debug)]
struct Joining {
    model: ModelName,
    sequence: NewSequence,
    sampling: Sampling,
    /// They know the prompt and what earlier attempts answered.
    edits: LogitEdits,
    made: mpsc::Sender<Made>,
    reused: oneshot::Sender<usize>,
}

impl Engine {
    /// Starts the thread of a device. The receiver is closed when the thread ends, for whatever reason.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(device: u32) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let (handle, inbox) = Self::with_inbox();
        let (alive, ended) = oneshot::channel();
        let engine = Thread {
            inbox,
            models: BTreeMap::new(),
        };
        thread::Builder::new()
            .name(format!("engine-{device}"))
            .spawn(move || {
                // Dropped when the thread ends, by a panic too: that is the notice.
                let _alive = alive;
                engine.run();
            })?;
        Ok((handle, ended))
    }

    /// A handle, and what comes through it.
    fn with_inbox() -> (Self, mpsc::Receiver<Command>) {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let next_sequence = Arc::new(AtomicU64::new(0));
        let handle = Self {
            commands,
            next_sequence,
        };
        (handle, inbox)
    }

    /// Hands a loaded model to the thread. When cancelled, it may be handed over all the same.
    ///
    /// # Errors
    /// [`EngineEnded`].
    pub(crate) async fn install(&self, model: ModelName, loaded: LoadedModel) -> Result<(), EngineEnded> {
        let (done, reply) = oneshot::channel();
        let loaded = Box::new(loaded);
        self.command(Command::Install { model, loaded, done }).await?;
        reply.await.map_err(|_| EngineEnded)
    }

    /// Takes a model out and gives its memory back. Whatever still runs on it ends with
    /// [`RunEnd::ModelGone`].
    ///
    /// # Errors
    /// [`EngineEnded`].
    pub(crate) async fn unload(&self, model: ModelName) -> Result<(), EngineEnded> {
        let (done, reply) = oneshot::channel();
        self.command(Command::Unload { model, done }).await?;
        reply.await.map_err(|_| EngineEnded)
    }

    /// Puts a request into the batch of its model. When cancelled, the request is taken out again.
    ///
    /// # Errors
    /// [`EngineEnded`].
    pub(crate) async fn join(&self, new: NewRun) -> Result<Run, EngineEnded> {
        // Beside the tokens there is room for the end, so that a step never waits to tell it.
        let (made, receiver) = mpsc::channel(new.ahead_tokens_max + 1);
        let (reused, reused_receiver) = oneshot::channel();
        let sequence = SequenceId(self.next_sequence.fetch_add(1, Ordering::Relaxed));
        let run = Run {
            model: new.model.clone(),
            sequence,
            made: receiver,
            reused: reused_receiver,
            commands: self.commands.clone(),
            taken: 0,
            notice_tokens: new.ahead_tokens_max.div_ceil(2),
        };
        let joining = Joining {
            edits: edits(&new),
            model: new.model,
            sequence: NewSequence {
                id: sequence,
                class: new.class,
                tokens: new.tokens,
                prompt_tokens: new.prompt_tokens,
                new_tokens_max: new.new_tokens_max,
                stop_token_ids: new.stop_token_ids,
            },
            sampling: new.sampling,
            made,
            reused,
        };
        self.command(Command::Join {
            new: Box::new(joining),
        })
        .await?;
        Ok(run)
    }

    async fn command(&self, command: Command) -> Result<(), EngineEnded> {
        self.commands.send(command).await.map_err(|_| EngineEnded)
    }
}

impl Run {
    /// Waits for what was made and moves all that is there to `into`. Adds nothing when the thread is gone.
    /// Cancelling loses nothing.
    pub(crate) async fn take(&mut self, into: &mut Vec<Made>) {
        self.taken += self.made.recv_many(into, TAKEN_AT_ONCE_MAX).await;
        if self.taken < self.notice_tokens {
            return;
        }
        self.taken = 0;
        // A full command channel keeps the thread awake by itself, and it looks at every channel.
        if let Err(error) = self.commands.try_send(Command::Drained) {
            debug!(sequence = self.sequence.0, %error, "the engine was not told of a drained channel");
        }
    }

    /// How many of the first tokens the engine did not have to read. Told once, at the latest with the first
    /// token; `None` before, after, and when it read them all.
    pub(crate) fn take_reused_tokens(&mut self) -> Option<usize> {
        // Not sent yet, taken already and never sent are all the same here.
        self.reused.try_recv().ok()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.made.close();
        let leave = Command::Leave {
            model: self.model.clone(),
            sequence: self.sequence,
        };
        // As with `Drained`: a thread that has commands to read finds the closed channel by itself.
        if let Err(error) = self.commands.try_send(leave) {
            debug!(sequence = self.sequence.0, %error, "the engine was not told of a request that left");
        }
    }
}

/// A run's edits before its first new token, computed here so that the engine's thread need not.
fn edits(new: &NewRun) -> LogitEdits {
    let mut edits = new.edits.clone();
    // A run with fewer tokens than its prompt is refused by the batch.
    let (prompt, answer) = new.tokens.split_at(new.prompt_tokens.min(new.tokens.len()));
    edits.read_prompt(prompt);
    answer.iter().for_each(|token| edits.push_answer(*token));
    edits
}

/// What lives on the thread.
struct Thread {
    inbox: mpsc::Receiver<Command>,
    models: BTreeMap<ModelName, Resident>,
}

/// A loaded model.
#[derive(Debug)]
enum Resident {
    Text(Box<EngineModel>),
    Vectors(Box<VectorsModel>),
}

impl Resident {
    fn new(loaded: LoadedModel) -> Self {
        match loaded {
            LoadedModel::Text(loaded) => Self::Text(Box::new(EngineModel::new(*loaded))),
            LoadedModel::Vectors(loaded) => Self::Vectors(Box::new(VectorsModel::new(*loaded))),
            LoadedModel::Simulated(_) => {
                unreachable!("who has this engine refuses simulated models when they are inspected")
            }
        }
    }

    /// Runs one step; tells whether there was one.
    fn advance(&mut self) -> bool {
        match self {
            Self::Text(model) => model.advance(),
            Self::Vectors(model) => model.advance(),
        }
    }
}

impl Thread {
    fn run(mut self) {
        let mut has_work = false;
        while self.obey(has_work).is_continue() {
            has_work = false;
            for model in self.models.values_mut() {
                has_work |= model.advance();
            }
        }
        info!("the engine's thread ends");
    }

    /// Carries out the commands that are there; with nothing to run it waits for one.
    fn obey(&mut self, has_work: bool) -> ControlFlow<()> {
        if !has_work {
            match self.inbox.blocking_recv() {
                Some(command) => self.carry_out(command),
                None => return ControlFlow::Break(()),
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.carry_out(command),
                Err(mpsc::error::TryRecvError::Empty) => return ControlFlow::Continue(()),
                Err(mpsc::error::TryRecvError::Disconnected) => return ControlFlow::Break(()),
            }
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Install { model, loaded, done } => {
                self.models.insert(model, Resident::new(*loaded));
                // Who asked and left finds the model loaded all the same.
                let _ = done.send(());
            }
            Command::Unload { model, done } => {
                self.models.remove(&model);
                // As above.
                let _ = done.send(());
            }
            Command::Join { new } => match self.models.get_mut(&new.model) {
                Some(Resident::Text(model)) => model.join(*new),
                // The model of that name became another kind of model since the lease was granted.
                Some(Resident::Vectors(_)) | None => end(&new.made, RunEnd::ModelGone),
            },
            Command::Embed { model, new } => match self.models.get_mut(&model) {
                Some(Resident::Vectors(model)) => model.join(new),
                // As above.
                Some(Resident::Text(_)) | None => vectors::answer(new.reply, Err(VectorsEnd::ModelGone)),
            },
            Command::Leave { model, sequence } => {
                if let Some(Resident::Text(model)) = self.models.get_mut(&model) {
                    model.leave(sequence);
                }
            }
            Command::Drained => {}
        }
    }
}

/// Tells a request's task that nothing more comes. There is room for it, or nobody reads any more.
fn end(made: &mpsc::Sender<Made>, end: RunEnd) {
    if let Err(error) = made.try_send(Made::Ended(end)) {
        debug!(%error, "a request left before it ended");
    }
}

/// Commands on their way to the thread; senders wait when there are more. Several for each of the 4096
/// requests that a configuration may allow would still be read within one step.
const COMMANDS_MAX: usize = 1024;
/// Most tokens taken from a channel at once: what one journal append can carry without being large.
const TAKEN_AT_ONCE_MAX: usize = 4096;

#[cfg(test)]
mod tests;
