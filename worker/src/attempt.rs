//! One attempt at a request, as a task of its own: from the wait for its model to its last journal entry.
//!
//! What is written next, and whether this attempt may still write, is decided by
//! [`flotilla_worker_core::answer`]; this moves bytes. One append is under way at a time. Tokens are taken
//! from the engine only between appends, so that all that were made meanwhile travel in the next one and
//! the engine pauses the request when its journal lags.

mod generation;
mod journal;
mod opening;
mod vectors;
mod work;
mod writing;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flotilla_client::{Connection, Journal};
use flotilla_protocol::assignment::{Assignment, AttemptEnd};
use flotilla_protocol::event::{ErrorCode, Event, FinishReason, Phase, Progress, RequestError, Usage};
use flotilla_protocol::request::InferenceRequest;
use flotilla_protocol::{RequestId, TraceParent, WorkerId, headers};
use flotilla_telemetry::Histogram;
use flotilla_worker_core::answer::{Answer, Writer};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, error, info, info_span, warn};

use crate::engine::Engine;
use crate::error::chain;
use crate::metrics::AnswerTally;
use crate::model::ModelText;
use crate::owner::FetchesUnderWay;
use journal::{JournalFault, JournalHand};
use opening::Opening;
use writing::Writing;

/// What all attempts of a worker share.
#[derive(Debug)]
pub(crate) struct AttemptContext {
    /// The worker.
    pub(crate) worker: WorkerId,
    /// Which start of it this is.
    pub(crate) incarnation: u64,
    /// NATS.
    pub(crate) connection: Connection,
    /// The journals.
    pub(crate) journal: Journal,
    /// Tokens that a request may be ahead of its journal.
    pub(crate) ahead_tokens_max: usize,
    /// Tokens that one step reads: a longer prompt takes several, which is worth news for who waits.
    pub(crate) step_tokens_max: usize,
    /// Files of models on their way here.
    pub(crate) fetches: FetchesUnderWay,
    /// How long appends take.
    pub(crate) append_seconds: Histogram,
}

/// An attempt to run.
#[derive(Debug)]
pub(crate) struct NewAttempt {
    /// As the dispatcher gave it.
    pub(crate) assignment: Assignment,
    /// Its body, decoded.
    pub(crate) request: Result<InferenceRequest, RequestError>,
    /// The trace that it belongs to, if any.
    pub(crate) trace: Option<TraceParent>,
    /// When the assignment came.
    pub(crate) received: Instant,
    /// Comes when the model is there, or will not be.
    pub(crate) lease: oneshot::Receiver<LeaseAnswer>,
    /// Ends the answer as cancelled.
    pub(crate) cancel: CancellationToken,
    /// Ends the answer as too late.
    pub(crate) expire: CancellationToken,
    /// Stops the attempt and leaves the answer open.
    pub(crate) hand_back: HandBack,
    /// For reports.
    pub(crate) counts: Arc<TokenCounts>,
}

/// A switch that gives an attempt back, and why. Clones share everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct HandBack {
    called: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

impl HandBack {
    /// Gives the attempt back; the first reason counts.
    pub(crate) fn call(&self, reason: &str) {
        self.reason.get_or_init(|| reason.to_owned());
        self.called.cancel();
    }

    /// Waits until it is called. Cancelling loses nothing.
    pub(crate) async fn cancelled(&self) {
        self.called.cancelled().await;
    }

    /// Why; that the worker ends when nobody said.
    fn reason(&self) -> &str {
        self.reason.get().map_or(DRAINS, String::as_str)
    }
}

/// What becomes of a request's wish for its model.
#[derive(Debug)]
pub(crate) enum LeaseAnswer {
    /// It may run.
    Granted(ReadyModel),
    /// The model cannot be loaded.
    ModelFailed {
        /// Why.
        reason: String,
        /// Time until another try makes sense.
        retry_in: Duration,
    },
}

/// A model in device memory, as its requests need it. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct ReadyModel {
    /// What makes prompts and text.
    pub(crate) text: Arc<ModelText>,
    /// What runs it.
    pub(crate) engine: Engine,
}

/// How far an attempt is. Written by its task and read for reports, where a stale number does no harm.
#[derive(Debug, Default)]
pub(crate) struct TokenCounts {
    /// Tokens of the prompt.
    pub(crate) prompt: AtomicU32,
    /// Tokens of the answer, earlier attempts included.
    pub(crate) output: AtomicU32,
}

impl TokenCounts {
    fn set_prompt(&self, tokens: usize) {
        self.prompt.store(count(tokens), Ordering::Relaxed);
    }

    fn set_output(&self, tokens: usize) {
        self.output.store(count(tokens), Ordering::Relaxed);
    }
}

/// Runs an attempt to its end. Cancelling the future leaves the journal open for the next attempt.
pub(crate) async fn run(new: NewAttempt, context: Arc<AttemptContext>) -> AttemptEnd {
    // What is logged of a request is found by its trace.
    let span = new.trace.as_ref().map_or_else(Span::none, |trace| {
        info_span!("request", trace_id = trace.trace_id())
    });
    run_in_trace(new, context).instrument(span).await
}

async fn run_in_trace(new: NewAttempt, context: Arc<AttemptContext>) -> AttemptEnd {
    let request = new.assignment.request.clone();
    let (attempt, received) = (new.assignment.attempt, new.received);
    let counts = Arc::clone(&new.counts);
    let (end, tally) = Attempt::new(new, context).run().await;
    tally.end(&end);
    let tokens = counts.output.load(Ordering::Relaxed);
    let elapsed_ms = millis(received.elapsed());
    if end == AttemptEnd::Terminal {
        debug!(request_id = %request, attempt = attempt.0, tokens, elapsed_ms, "attempt finished");
    } else {
        info!(request_id = %request, attempt = attempt.0, tokens, elapsed_ms, ?end, "attempt ended");
    }
    end
}

struct Attempt {
    new: NewAttempt,
    context: Arc<AttemptContext>,
    /// What the work says of an answer that is left open.
    left_open: Option<AttemptEnd>,
    clock: Clock,
    tally: AnswerTally,
}

/// Where the time went.
#[derive(Debug, Clone, Copy)]
struct Clock {
    received: Instant,
    leased: Option<Instant>,
    joined: Option<Instant>,
    first_token: Option<Instant>,
}

impl Attempt {
    fn new(new: NewAttempt, context: Arc<AttemptContext>) -> Self {
        let queued = Duration::from_millis(new.assignment.queued_ms);
        Self {
            tally: AnswerTally::new(&new.assignment.model, queued, new.received),
            clock: Clock {
                received: new.received,
                leased: None,
                joined: None,
                first_token: None,
            },
            left_open: None,
            new,
            context,
        }
    }

    async fn run(mut self) -> (AttemptEnd, AnswerTally) {
        let opening = match self.open().await {
            Ok(opening) => opening,
            Err(end) => return (end, self.tally),
        };
        let mut hand = JournalHand::new(&self.new, &self.context);
        let view = tokio::select! {
            view = hand.view() => view,
            () = self.new.hand_back.cancelled() => return (self.left_open(), self.tally),
        };
        let begun = view.map(|view| Answer::begin(self.writer(&opening), view));
        match begun {
            Ok(Ok(answer)) => Writing::new(self, answer, opening, hand).run().await,
            Ok(Err(refusal)) => (journal::refused(refusal), self.tally),
            Err(fault) => (self.faulty(&fault), self.tally),
        }
    }

    /// What is told to the dispatcher when the answer is left open.
    fn left_open(&self) -> AttemptEnd {
        let reason = || self.new.hand_back.reason().to_owned();
        let end = self.left_open.clone();
        end.unwrap_or_else(|| AttemptEnd::HandedBack { reason: reason() })
    }

    fn writer(&self, opening: &Opening) -> Writer {
        let assignment = &self.new.assignment;
        let prompt_tokens = match opening {
            Opening::Make { prepared, .. } => count(prepared.prompt_tokens()),
            Opening::Fail(_) | Opening::Cancel => 0,
        };
        Writer {
            attempt: assignment.attempt,
            strikes: assignment.strikes,
            worker: self.context.worker.clone(),
            incarnation: self.context.incarnation,
            request: assignment.request.clone(),
            model: assignment.model.clone(),
            prompt_tokens,
        }
    }

    /// A `finished` event for what was cancelled.
    fn cancelled(&self, usage: Usage) -> Event {
        generation::finished(FinishReason::Cancelled, usage, self.timings())
    }

    /// An answer that was dropped while it was made is made anew, but not for ever: it costs a strike.
    fn faulty(&self, fault: &JournalFault) -> AttemptEnd {
        match fault {
            JournalFault::Dropped { .. } => {
                let (request_id, told) = (&self.new.assignment.request, chain(fault));
                warn!(%request_id, error = told, "an answer was dropped while it was made");
                AttemptEnd::Panicked { message: told }
            }
            JournalFault::Append(_) | JournalFault::Read(_) | JournalFault::Content(_) => self.broken(fault),
        }
    }

    /// Nobody can continue a journal that our writers cannot have made.
    fn broken(&self, broken: &dyn std::error::Error) -> AttemptEnd {
        let (request_id, reason) = (&self.new.assignment.request, chain(broken));
        error!(%request_id, error = reason, "a journal is not one that workers write");
        AttemptEnd::JournalBroken { reason }
    }

    /// News for who waits; never in the journal, so a lost one costs nothing.
    async fn publish_progress(&self, phase: Phase, fraction: Option<f64>) {
        let assignment = &self.new.assignment;
        let event = Event::Progress(Progress {
            phase,
            position: None,
            fraction,
            eta_ms: None,
        });
        let body = match event.encode(assignment.encoding) {
            Ok(body) => body,
            Err(error) => {
                error!(request_id = %assignment.request, %error, "progress cannot be encoded");
                return;
            }
        };
        let mut found = async_nats::HeaderMap::new();
        found.insert(headers::EVENT, event.kind().as_str());
        found.insert(headers::ATTEMPT, assignment.attempt.to_string());
        found.insert(headers::CONTENT_TYPE, assignment.encoding.content_type());
        if let Some(trace) = &self.new.trace {
            found.insert(headers::TRACE_PARENT, trace.as_str());
        }
        let connection = &self.context.connection;
        let subject = connection.subjects.events(&assignment.request);
        let publish = connection.client.publish_with_headers(subject, found, body);
        match timeout(PROGRESS_TIMEOUT, publish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(request_id = %assignment.request, %error, "progress was not published"),
            Err(_) => debug!(request_id = %assignment.request, "progress was not published in time"),
        }
    }

    fn request_id(&self) -> &RequestId {
        &self.new.assignment.request
    }
}

fn deadline_exceeded() -> Event {
    Event::failed(RequestError {
        code: ErrorCode::DeadlineExceeded,
        message: "the request's deadline passed before its answer was complete".to_owned(),
        param: Some("deadline_ms".to_owned()),
    })
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Why a request is given back when nothing else is known.
pub(crate) const DRAINS: &str = "the worker drains";
/// News that cannot be told in this time is stale.
const PROGRESS_TIMEOUT: Duration = Duration::from_millis(500);
