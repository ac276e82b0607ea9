//! The journal's bytes: appends and reads with a limit on time, and a growing pause after those that failed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use flotilla_client::{AppendError, Entry, Journal, NewEntry, ReadError};
use flotilla_protocol::assignment::AttemptEnd;
use flotilla_protocol::event::Event;
use flotilla_protocol::{Attempt, Encoding, RequestId, Strikes, TraceParent, WorkerId};
use flotilla_telemetry::Histogram;
use flotilla_worker_core::answer::{Answer, Append, BeginError, JournalError, JournalView, Record};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::{AttemptContext, NewAttempt};
use crate::error::chain;
use crate::metrics::APPENDS_FAILED;

/// An append or a read under way.
pub(super) type Io = Pin<Box<dyn Future<Output = Result<Settled, JournalFault>> + Send>>;

/// What became of an append or a read.
#[derive(Debug)]
pub(super) enum Settled {
    /// The append is stored, as this sequence.
    Stored(u64),
    /// Another entry is in its place: somebody else's, or its own from before.
    Conflict,
    /// Nobody knows, or the server refused; it has to be looked up.
    NotStored,
    /// The journal was read.
    Read(Vec<Entry>),
    /// It was not.
    NotRead,
}

/// Why a journal cannot be continued, now or later.
#[derive(Debug, Error)]
pub(super) enum JournalFault {
    /// An event of ours has no encoding.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// What is stored is not an event of ours.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What was stored is not there any more.
    #[error(
        "its entry {sequence} is gone: the journal stream has dropped it for size or age while the request ran; raise \
         nats.journal_max_bytes"
    )]
    Dropped {
        /// The last entry of ours.
        sequence: u64,
    },
    /// What is stored is not an answer that our writers make.
    #[error(transparent)]
    Content(#[from] JournalError),
}

/// One attempt's way to its journal.
#[derive(Debug)]
pub(super) struct JournalHand {
    hand: Arc<Hand>,
    /// Waited before the next try; zero after a success.
    pause: Duration,
    /// Refusals by another entry since the last success.
    conflicts: usize,
}

/// What an append needs, owned.
#[derive(Debug)]
struct Hand {
    journal: Journal,
    request: RequestId,
    attempt: Attempt,
    worker: WorkerId,
    incarnation: u64,
    strikes: Strikes,
    alone: bool,
    encoding: Encoding,
    timeout: Duration,
    trace: Option<TraceParent>,
    append_seconds: Histogram,
}

impl JournalHand {
    pub(super) fn new(new: &NewAttempt, context: &AttemptContext) -> Self {
        let assignment = &new.assignment;
        Self {
            hand: Arc::new(Hand {
                journal: context.journal.clone(),
                request: assignment.request.clone(),
                attempt: assignment.attempt,
                worker: context.worker.clone(),
                incarnation: context.incarnation,
                strikes: assignment.strikes,
                alone: assignment.alone,
                encoding: assignment.encoding,
                // The client has a limit of its own, which does not count a send queue that is full.
                timeout: context.connection.request_timeout * 2,
                trace: new.trace.clone(),
                append_seconds: context.append_seconds.clone(),
            }),
            pause: Duration::ZERO,
            conflicts: 0,
        }
    }

    /// The journal as it is. A first attempt takes it for empty: if it is not, its first append is refused.
    /// Tries until it is read; cancelling loses nothing.
    ///
    /// # Errors
    /// [`JournalFault`] when it cannot be continued.
    pub(super) async fn view(&mut self) -> Result<JournalView, JournalFault> {
        if self.hand.attempt <= FIRST_ATTEMPT {
            return Ok(JournalView::default());
        }
        loop {
            rest(self.pause).await;
            if let Settled::Read(entries) = self.hand.read(0).await? {
                self.pause = Duration::ZERO;
                return Ok(JournalView::from_records(entries.into_iter().map(record))?);
            }
            self.slow_down();
        }
    }

    /// Begins an append.
    pub(super) fn append(&self, append: Append) -> Io {
        let (hand, pause) = (Arc::clone(&self.hand), self.pause);
        Box::pin(async move {
            rest(pause).await;
            hand.append(append.expected_last_sequence, &append.event).await
        })
    }

    /// Begins a read of everything after a sequence.
    pub(super) fn read(&self, after_sequence: u64) -> Io {
        let (hand, pause) = (Arc::clone(&self.hand), self.pause);
        // Refused again, although nothing was found that is newer.
        let doubts = self.conflicts > 1 && after_sequence > 0;
        Box::pin(async move {
            rest(pause).await;
            match hand.read(after_sequence).await? {
                Settled::Read(entries) if doubts && entries.is_empty() => hand.look_for(after_sequence).await,
                settled => Ok(settled),
            }
        })
    }

    /// Tells the answer what became of its append or read.
    pub(super) fn settle(&mut self, answer: &mut Answer, settled: Settled) {
        match settled {
            Settled::Stored(sequence) => {
                self.pause = Duration::ZERO;
                self.conflicts = 0;
                answer.handle_appended(sequence);
            }
            Settled::Conflict => {
                self.conflicts += 1;
                // The read after the first one tells why. Only a replica that lags behind leaves it open.
                if self.conflicts > 1 {
                    self.slow_down();
                }
                answer.handle_append_unknown();
            }
            Settled::NotStored => {
                self.slow_down();
                answer.handle_append_unknown();
            }
            Settled::Read(entries) => answer.handle_journal(entries.into_iter().map(record)),
            Settled::NotRead => {
                self.slow_down();
                answer.handle_journal_unread();
            }
        }
    }

    fn slow_down(&mut self) {
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
    }
}

impl Hand {
    async fn append(&self, expected_last_sequence: u64, event: &Event) -> Result<Settled, JournalFault> {
        let entry = NewEntry {
            request: &self.request,
            expected_last_sequence,
            attempt: self.attempt,
            worker: Some(&self.worker),
            incarnation: Some(self.incarnation),
            strikes: self.strikes,
            alone: self.alone,
            encoding: self.encoding,
            event,
        };
        let (request_id, attempt) = (&self.request, self.attempt.0);
        let begun = Instant::now();
        let appended = self.journal.append_traced(entry, self.trace.as_ref());
        match timeout(self.timeout, appended).await {
            Ok(Ok(sequence)) => {
                self.append_seconds.record(begun.elapsed().as_secs_f64());
                Ok(Settled::Stored(sequence))
            }
            Ok(Err(error @ AppendError::Conflict { .. })) => {
                APPENDS_FAILED.increment(&["conflict"], 1);
                debug!(%request_id, attempt, %error, "an append met another entry; reading the journal");
                Ok(Settled::Conflict)
            }
            Ok(Err(error @ AppendError::Encode { .. })) => Err(error.into()),
            Ok(Err(error @ (AppendError::Unknown { .. } | AppendError::Refused { .. }))) => {
                let error = chain(&error);
                APPENDS_FAILED.increment(&["unconfirmed"], 1);
                warn!(%request_id, attempt, error, "an append is not confirmed; looking it up");
                Ok(Settled::NotStored)
            }
            Err(_) => {
                APPENDS_FAILED.increment(&["unconfirmed"], 1);
                warn!(%request_id, attempt, "an append was not answered; looking it up");
                Ok(Settled::NotStored)
            }
        }
    }

    /// Finds out why an append is refused as if there were another entry, where none is newer than our last one: that one may
    /// be gone.
    async fn look_for(&self, sequence: u64) -> Result<Settled, JournalFault> {
        match self.journal.has_dropped(&self.request, sequence).await {
            Ok(true) => Err(JournalFault::Dropped { sequence }),
            Ok(false) => Ok(Settled::Read(Vec::new())),
            Err(error) => {
                let (request_id, error) = (&self.request, chain(&error));
                warn!(%request_id, error, "nobody can say what the journal stream holds; trying again");
                Ok(Settled::NotRead)
            }
        }
    }

    async fn read(&self, after_sequence: u64) -> Result<Settled, JournalFault> {
        let (request_id, attempt) = (&self.request, self.attempt.0);
        match timeout(self.timeout, self.journal.read(&self.request, after_sequence)).await {
            Ok(Ok(entries)) => Ok(Settled::Read(entries)),
            Ok(Err(error @ ReadError::NotAnEvent { .. })) => Err(error.into()),
            Ok(Err(
                error @ (ReadError::Request { .. } | ReadError::TimedOut { .. } | ReadError::Server { .. }),
            )) => {
                let error = chain(&error);
                warn!(%request_id, attempt, error, "the journal cannot be read; trying again");
                Ok(Settled::NotRead)
            }
            Err(_) => {
                warn!(%request_id, attempt, "reading the journal was not answered; trying again");
                Ok(Settled::NotRead)
            }
        }
    }
}

/// Sleeps, and does not even yield for no time: a sleep of zero takes the timer's whole millisecond.
async fn rest(pause: Duration) {
    if !pause.is_zero() {
        sleep(pause).await;
    }
}

/// How an attempt ends that may not begin.
pub(super) fn refused(refusal: BeginError) -> AttemptEnd {
    match refusal {
        BeginError::AlreadyTerminal => AttemptEnd::Terminal,
        BeginError::Fenced { attempt, strikes } => AttemptEnd::Fenced { attempt, strikes },
    }
}

fn record(entry: Entry) -> Record {
    Record {
        sequence: entry.sequence,
        attempt: entry.attempt,
        worker: entry.worker,
        incarnation: entry.incarnation,
        strikes: entry.strikes,
        event: entry.event,
    }
}

/// Nobody has written a journal before it.
pub(super) const FIRST_ATTEMPT: Attempt = Attempt(1);
/// First pause after a failure: a new stream leader is chosen within some of these.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause: a connection that is back is used within this.
const PAUSE_MAX: Duration = Duration::from_secs(2);
