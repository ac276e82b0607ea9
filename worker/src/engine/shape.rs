//! Answers that must have a shape: which tokens may be drawn next, found out while the step before them runs.
//!
//! A mask takes microseconds, now and then milliseconds, and for hostile schemas up to a second. So it is made on
//! threads beside the engine's, from the moment that a token is drawn; the next step waits for it only when its
//! logits are there. A request whose last mask was slow is left out of the steps until it has the next one, so
//! that it holds up nobody else.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{io, mem};

use flotilla_text::{AnswerGrammar, GrammarError};
use flotilla_worker_engine::TokenMask;
use tokio::sync::mpsc::WeakSender;
use tracing::debug;

use super::{Command, RunEnd};

/// The threads that make masks. Cheap to clone; they end when all clones are gone.
#[derive(Debug, Clone)]
pub(super) struct MaskThreads {
    jobs: SyncSender<Job>,
}

/// The shape of one answer, as far as it is drawn.
#[derive(Debug)]
pub(super) struct Shape {
    work: Arc<Work>,
    next: Arc<NextMask>,
    threads: MaskThreads,
}

/// What an answer's jobs have in common; there is at most one at a time.
#[derive(Debug)]
struct Work {
    /// Guards what the thread of a job changes and the engine's thread reads when the answer has ended; not a
    /// channel, because a grammar would travel there and back for each token.
    progress: Mutex<Progress>,
    /// The last mask took long.
    is_slow: AtomicBool,
    /// Wakes the engine's thread.
    commands: WeakSender<Command>,
}

#[derive(Debug)]
struct Progress {
    grammar: AnswerGrammar,
    error: Option<GrammarError>,
}

/// The mask of the next draw.
#[derive(Debug)]
struct NextMask {
    mask: OnceLock<TokenMask>,
    /// It is waited for outside of the steps.
    is_slow: bool,
}

/// Tokens to take in, and the mask after them.
#[derive(Debug)]
struct Job {
    work: Arc<Work>,
    tokens: Vec<u32>,
    next: Arc<NextMask>,
}

impl MaskThreads {
    /// Starts the threads of a device.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(device: u32) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::sync_channel(JOBS_MAX);
        // Guards who takes the next job: this channel has one receiver, and its threads are alike.
        let inbox = Arc::new(Mutex::new(inbox));
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        for index in 0..(processors / PROCESSORS_PER_THREAD).clamp(1, THREADS_MAX) {
            let inbox = Arc::clone(&inbox);
            thread::Builder::new()
                .name(format!("masks-{device}-{index}"))
                .spawn(move || work_off(&inbox))?;
        }
        Ok(Self { jobs })
    }

    /// The shape of an answer of which these tokens are drawn; its next mask is made from now on.
    pub(super) fn begin(
        &self,
        grammar: AnswerGrammar,
        drawn: &[u32],
        commands: WeakSender<Command>,
    ) -> Shape {
        let progress = Progress { grammar, error: None };
        let work = Arc::new(Work {
            progress: Mutex::new(progress),
            is_slow: AtomicBool::new(drawn.len() > TOKENS_AT_ONCE_MAX),
            commands,
        });
        let next = work.next();
        let shape = Shape {
            work,
            next,
            threads: self.clone(),
        };
        shape.make(drawn.to_vec());
        shape
    }
}

impl Shape {
    /// Takes note of the token that was drawn.
    pub(super) fn push(&mut self, token: u32) {
        self.next = self.work.next();
        self.make(vec![token]);
    }

    /// Whether a step may count on the next mask.
    pub(super) fn is_ready(&self) -> bool {
        !self.next.is_slow || self.next.mask.get().is_some()
    }

    /// The mask of the next draw; it will be set in any case.
    pub(super) fn mask(&self) -> &OnceLock<TokenMask> {
        &self.next.mask
    }

    /// Why no token could be drawn.
    pub(super) fn no_token(&self) -> RunEnd {
        let progress = self.work.progress();
        match &progress.error {
            Some(error) => RunEnd::Shapeless(error.clone()),
            // Of a model without end tokens, which could not draw one.
            None if progress.grammar.is_complete() => RunEnd::Stop,
            None => RunEnd::NoToken,
        }
    }

    fn make(&self, tokens: Vec<u32>) {
        let job = Job {
            work: Arc::clone(&self.work),
            tokens,
            next: Arc::clone(&self.next),
        };
        // With more jobs than there is room for, or no threads, it is made here.
        if let Err(mpsc::TrySendError::Full(job) | mpsc::TrySendError::Disconnected(job)) =
            self.threads.jobs.try_send(job)
        {
            job.run();
        }
    }
}

impl Work {
    fn next(&self) -> Arc<NextMask> {
        Arc::new(NextMask {
            mask: OnceLock::new(),
            is_slow: self.is_slow.load(Ordering::Relaxed),
        })
    }

    /// A panic while it was held leaves a grammar that refuses what comes.
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn mask_after(&mut self, tokens: &[u32]) -> Result<TokenMask, GrammarError> {
        tokens.iter().try_for_each(|token| self.grammar.push(*token))?;
        self.grammar.mask().map(TokenMask::from_words)
    }
}

impl Job {
    fn run(mut self) {
        let started = Instant::now();
        let tokens = mem::take(&mut self.tokens);
        let mut progress = self.work.progress();
        let mask = progress.mask_after(&tokens).unwrap_or_else(|error| {
            progress.error = Some(error);
            TokenMask::none()
        });
        drop(progress);
        self.work
            .is_slow
            .store(started.elapsed() > SLOW, Ordering::Relaxed);
        self.set(mask);
    }

    fn set(&self, mask: TokenMask) {
        if self.next.mask.set(mask).is_err() || !self.next.is_slow {
            return;
        }
        let Some(commands) = self.work.commands.upgrade() else {
            return;
        };
        // A full command channel keeps the thread awake by itself.
        if let Err(error) = commands.try_send(Command::Drained) {
            debug!(%error, "the engine was not told of a mask");
        }
    }
}

impl Drop for Job {
    /// Who waits for a mask gets one, even if the job came to nothing.
    fn drop(&mut self) {
        self.set(TokenMask::none());
    }
}

fn work_off(inbox: &Mutex<Receiver<Job>>) {
    loop {
        let job = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job.run(),
            Err(mpsc::RecvError) => return,
        }
    }
}

/// Jobs that wait for a thread. A request has one at a time, so this many requests would have to draw at once.
const JOBS_MAX: usize = 1024;
/// Masks of a batch are made at the same time, but the kernels need the processors more.
const PROCESSORS_PER_THREAD: usize = 4;
/// Four threads make the masks of a hundred requests in a millisecond or two.
const THREADS_MAX: usize = 4;
/// A mask that takes longer would hold up a step that waits for it: a decode step takes some milliseconds.
const SLOW: Duration = Duration::from_millis(5);
/// Tokens of a resumed answer that are taken in while its prompt is read; ten microseconds each.
const TOKENS_AT_ONCE_MAX: usize = 256;
