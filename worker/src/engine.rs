//! The engine's thread: one for a device. It owns every loaded model of the device and a batch for each. In the
//! place of a simulated device's thread stands a task ([`simulated`]), behind the same handle.
//!
//! The thread never waits for NATS, a disk or a request. Commands come through a bounded channel; each
//! request has a bounded channel of its own for what was made. A request whose channel is full is left out of
//! the steps until its task has caught up, and holds up nobody else. With nothing to run the thread sleeps in
//! its command channel.
//!
//! A model in parts on several devices has a thread of its own, behind the same handle, which has turns on the
//! devices ([`turns`]).
//!
//! Loading is not the thread's business: a model on the CPU device owns its memory, so [`load`] fills it on
//! a blocking thread and hands the finished model over, between two steps. Unloading drops it here.

mod health;
mod load;
mod model;
mod pool;
mod round;
mod runs;
mod shape;
mod simulated;
mod texts;
mod thread;
mod turns;
mod vectors;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_protocol::{Class, ModelName};
use flotilla_text::{AnswerGrammar, GrammarError};
use flotilla_worker_core::batch::{AddError, NewSequence, SequenceId};
use flotilla_worker_core::kv::{KvBudget, KvReport};
use flotilla_worker_core::residency::Keep;
use flotilla_worker_engine::{CpuImage, CpuThreads, LogitEdits, Logprobs, Sampling};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error};

pub(crate) use load::{LoadFault, LoadWatch, LoadedModel, PartPlace, fetch, load, load_parts};
use pool::Pool;
use shape::{MaskThreads, Shape};
pub(crate) use simulated::{Drawing, LoadedSimulated};
use texts::{JoiningTexts, VectorsReply};
pub(crate) use texts::{NewTexts, TextsRun, VectorsEnd};
use thread::{Site, Thread};
pub(crate) use turns::SharedDevice;
use turns::Turn;

/// The thread is gone: it panicked outside of a step, or its device is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the engine's thread has ended")]
pub struct EngineEnded;

/// A way to the engine's thread. Cheap to clone; the thread ends when all clones are gone.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    commands: mpsc::Sender<Command>,
    next_sequence: Arc<AtomicU64>,
    kv: watch::Receiver<KvReport>,
    /// None of a simulated device, whose tokens are made up.
    masks: Option<MaskThreads>,
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
    /// The answer's shape, before any token was drawn; never for a simulated device.
    pub(crate) grammar: Option<Box<AnswerGrammar>>,
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
    /// The answer cannot go on in the shape that it must have.
    Shapeless(GrammarError),
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
        keep: Keep,
        done: oneshot::Sender<Option<Vec<CpuImage>>>,
    },
    ResizeKv {
        pages: u64,
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
    /// Somebody wants a turn on the device.
    StandAside {
        turn: oneshot::Sender<Turn>,
    },
    /// Somebody who had a turn found the device broken.
    Break {
        fault: String,
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
    shape: Option<Shape>,
    made: mpsc::Sender<Made>,
    reused: oneshot::Sender<usize>,
}

impl Engine {
    /// Starts the thread of a device, whose operations run on `threads` besides. The receiver gets what broke the
    /// device, or is closed when the thread ends for whatever other reason.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        device: u32,
        threads: Arc<CpuThreads>,
    ) -> io::Result<(Self, oneshot::Receiver<String>)> {
        let (mut handle, inbox, pool) = Self::with_inbox(Pool::new());
        handle.masks = Some(MaskThreads::start(device)?);
        let engine = Thread::new(inbox, pool, Site::Device(threads));
        let ended = spawn(format!("engine-{device}"), engine)?;
        Ok((handle, ended))
    }

    /// Starts the thread of a model in parts, which has so many blocks for its keys and values on each of these
    /// devices. It shares what makes masks with `self`. The receiver is closed when the thread ends.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start_parts(
        &self,
        devices: Vec<SharedDevice>,
        kv_blocks: u64,
    ) -> io::Result<(Self, oneshot::Receiver<String>)> {
        let (mut handle, inbox, pool) = Self::with_inbox(Pool::of(KvBudget::new(kv_blocks)));
        handle.masks = self.masks.clone();
        let engine = Thread::new(inbox, pool, Site::Shared(devices));
        let ended = spawn("engine-parts".to_owned(), engine)?;
        Ok((handle, ended))
    }

    /// The device as a model in parts uses it, which runs its operations on these threads.
    pub(crate) fn share(&self, threads: Arc<CpuThreads>) -> SharedDevice {
        let commands = self.commands.clone();
        SharedDevice { commands, threads }
    }

    /// Whether its thread is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.commands.is_closed()
    }

    /// A handle, what comes through it, and the pool that it tells of.
    fn with_inbox((pool, kv): (Pool, watch::Receiver<KvReport>)) -> (Self, mpsc::Receiver<Command>, Pool) {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let next_sequence = Arc::new(AtomicU64::new(0));
        let handle = Self {
            commands,
            next_sequence,
            kv,
            masks: None,
        };
        (handle, inbox, pool)
    }

    /// How the pool for keys and values stands: the newest word, whenever it changes.
    pub(crate) fn kv(&self) -> watch::Receiver<KvReport> {
        self.kv.clone()
    }

    /// Lets the device's batches share so many pages. How much is in use beyond them is told by [`Self::kv`]. When
    /// cancelled, the pool may be resized all the same.
    ///
    /// # Errors
    /// [`EngineEnded`].
    pub(crate) async fn resize_kv(&self, pages: u64) -> Result<(), EngineEnded> {
        self.command(Command::ResizeKv { pages }).await
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

    /// Takes a model out and gives its memory back, but for the images that are to be kept, one of each of its parts,
    /// if they could be made.
    /// Whatever still runs on it ends with [`RunEnd::ModelGone`].
    ///
    /// # Errors
    /// [`EngineEnded`].
    pub(crate) async fn unload(
        &self,
        model: ModelName,
        keep: Keep,
    ) -> Result<Option<Vec<CpuImage>>, EngineEnded> {
        let (done, reply) = oneshot::channel();
        self.command(Command::Unload { model, keep, done }).await?;
        reply.await.map_err(|_| EngineEnded)
    }

    /// Puts a request into the batch of its model. When cancelled, the request is taken out again.
    ///
    /// # Errors
    /// [`EngineEnded`].
    pub(crate) async fn join(&self, mut new: NewRun) -> Result<Run, EngineEnded> {
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
            shape: new.grammar.take().map(|grammar| self.shape(*grammar, &new)),
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

    fn shape(&self, grammar: AnswerGrammar, new: &NewRun) -> Shape {
        let masks = self.masks.as_ref();
        let masks = masks.expect("requests for a shape are refused where tokens are made up");
        masks.begin(grammar, new.answered(), self.commands.downgrade())
    }

    async fn command(&self, command: Command) -> Result<(), EngineEnded> {
        self.commands.send(command).await.map_err(|_| EngineEnded)
    }
}

impl NewRun {
    /// What earlier attempts answered; a run with fewer tokens than its prompt is refused by the batch.
    fn answered(&self) -> &[u32] {
        &self.tokens[self.prompt_tokens.min(self.tokens.len())..]
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

/// Starts a thread. The receiver gets what broke its device, or is closed when it ends for whatever other reason.
fn spawn(name: String, engine: Thread) -> io::Result<oneshot::Receiver<String>> {
    let (alive, ended) = oneshot::channel();
    std::thread::Builder::new().name(name).spawn(move || {
        // Dropped when the thread ends, by a panic too: that is the notice.
        let alive = alive;
        if let Err(fault) = engine.run() {
            error!(error = fault, "the device is broken");
            // The worker may have ended by itself.
            let _ = alive.send(fault);
        }
    })?;
    Ok(ended)
}

/// A run's edits before its first new token, computed here so that the engine's thread need not.
fn edits(new: &NewRun) -> LogitEdits {
    let mut edits = new.edits.clone();
    let answer = new.answered();
    edits.read_prompt(&new.tokens[..new.tokens.len() - answer.len()]);
    answer.iter().for_each(|token| edits.push_answer(*token));
    edits
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
