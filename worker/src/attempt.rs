//! One attempt at a request, as a task of its own: from the wait for its model to its last journal entry.
//!
//! What is written next, and whether this attempt may still write, is decided by
//! [`flotilla_worker_core::answer`]; this moves bytes. One append is under way at a time. Tokens are taken
//! from the engine only between appends, so that all that were made meanwhile travel in the next one and
//! the engine pauses the request when its journal lags.

mod generation;
mod journal;
mod opening;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flotilla_client::{Connection, Journal};
use flotilla_protocol::assignment::{Assignment, AttemptEnd};
use flotilla_protocol::event::{ErrorCode, Event, FinishReason, Phase, Progress, RequestError};
use flotilla_protocol::request::InferenceRequest;
use flotilla_protocol::{RequestId, WorkerId, headers};
use flotilla_worker_core::answer::{Action, Answer, Ended, Writer};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::engine::Engine;
use crate::error::chain;
use crate::model::ModelText;
use generation::{Generation, Taken};
use journal::{Io, JournalFault, JournalHand, Settled};
use opening::Opening;

/// What all attempts of a worker share.
#[derive(Debug)]
pub(crate) struct AttemptContext {
    /// The worker.
    pub(crate) worker: WorkerId,
    /// NATS.
    pub(crate) connection: Connection,
    /// The journals.
    pub(crate) journal: Journal,
    /// The device's thread.
    pub(crate) engine: Engine,
    /// Tokens that a request may be ahead of its journal.
    pub(crate) ahead_tokens_max: usize,
}

/// An attempt to run.
#[derive(Debug)]
pub(crate) struct NewAttempt {
    /// As the dispatcher gave it.
    pub(crate) assignment: Assignment,
    /// Its body, decoded.
    pub(crate) request: Result<InferenceRequest, RequestError>,
    /// When the assignment came.
    pub(crate) received: Instant,
    /// Comes when the model is there, or will not be.
    pub(crate) lease: oneshot::Receiver<LeaseAnswer>,
    /// Ends the answer as cancelled.
    pub(crate) cancel: CancellationToken,
    /// Ends the answer as too late.
    pub(crate) expire: CancellationToken,
    /// Stops the attempt and leaves the answer open.
    pub(crate) hand_back: CancellationToken,
    /// For reports.
    pub(crate) counts: Arc<TokenCounts>,
}

/// What becomes of a request's wish for its model.
#[derive(Debug)]
pub(crate) enum LeaseAnswer {
    /// It may run.
    Granted(Arc<ModelText>),
    /// The model cannot be loaded.
    ModelFailed {
        /// Why.
        reason: String,
        /// Time until another try makes sense.
        retry_in: Duration,
    },
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
    let request = new.assignment.request.clone();
    let (attempt, received) = (new.assignment.attempt, new.received);
    let counts = Arc::clone(&new.counts);
    let end = Attempt::new(new, context).run().await;
    let tokens = counts.output.load(Ordering::Relaxed);
    let elapsed_ms = millis(received.elapsed());
    info!(request_id = %request, attempt = attempt.0, tokens, elapsed_ms, ?end, "attempt ended");
    end
}

struct Attempt {
    new: NewAttempt,
    context: Arc<AttemptContext>,
    /// What is told to the dispatcher when the answer is left open.
    left_open: AttemptEnd,
    clock: Clock,
}

/// Where the time went.
#[derive(Debug, Clone, Copy)]
struct Clock {
    received: Instant,
    leased: Option<Instant>,
    joined: Option<Instant>,
    first_token: Option<Instant>,
}

/// What the loop learned while it waited.
enum Happened {
    Settled(Result<Settled, JournalFault>),
    Made(Taken),
    /// With the tokens of the prompt and of the answer so far.
    Cancelled((usize, usize)),
    HandBack,
    Expired,
    GraceOver,
}

impl Attempt {
    fn new(new: NewAttempt, context: Arc<AttemptContext>) -> Self {
        Self {
            clock: Clock {
                received: new.received,
                leased: None,
                joined: None,
                first_token: None,
            },
            left_open: AttemptEnd::HandedBack {
                reason: DRAINS.to_owned(),
            },
            new,
            context,
        }
    }

    async fn run(mut self) -> AttemptEnd {
        let opening = match self.open().await {
            Ok(opening) => opening,
            Err(end) => return end,
        };
        let mut hand = JournalHand::new(&self.new.assignment, &self.context);
        let view = tokio::select! {
            view = hand.view() => view,
            () = self.new.hand_back.cancelled() => return self.left_open,
        };
        let begun = view.map(|view| Answer::begin(self.writer(&opening), view));
        match begun {
            Ok(Ok(answer)) => self.write(answer, opening, hand).await,
            Ok(Err(refusal)) => journal::refused(refusal),
            Err(broken) => self.broken(&broken),
        }
    }

    fn writer(&self, opening: &Opening) -> Writer {
        let assignment = &self.new.assignment;
        let prompt_tokens = match opening {
            Opening::Generate { prompt, .. } => count(prompt.tokens.len()),
            Opening::Fail(_) | Opening::Cancel => 0,
        };
        Writer {
            attempt: assignment.attempt,
            strikes: assignment.strikes,
            worker: self.context.worker.clone(),
            request: assignment.request.clone(),
            model: assignment.model.clone(),
            prompt_tokens,
        }
    }

    /// Writes the answer until nothing more may or need be written.
    async fn write(mut self, mut answer: Answer, opening: Opening, mut hand: JournalHand) -> AttemptEnd {
        let mut generation = match opening {
            Opening::Generate { prompt, text } => Some(Generation::new(prompt, text)),
            Opening::Fail(event) => {
                answer.handle_end(event);
                None
            }
            Opening::Cancel => {
                let end = self.cancelled((0, answer.stored_tokens()));
                answer.handle_end(end);
                None
            }
        };
        let mut io: Option<Io> = None;
        let mut grace: Option<Instant> = None;
        loop {
            while let Some(action) = answer.poll_action() {
                match action {
                    Action::Append(append) => io = Some(hand.append(append)),
                    Action::ReadJournal { after_sequence } => io = Some(hand.read(after_sequence)),
                    Action::Started(start) => {
                        if let Some(mut waiting) = generation.take() {
                            let taken = waiting.start(start, &mut self).await;
                            generation = self.absorb(&mut answer, waiting, taken);
                        }
                    }
                    Action::Ended(ended) => return self.ended(ended),
                }
            }
            match self.wait(&mut io, &mut generation, grace).await {
                Happened::Settled(Ok(settled)) => {
                    io = None;
                    hand.settle(&mut answer, settled);
                }
                Happened::Settled(Err(fault)) => return self.broken(&fault),
                Happened::Made(taken) => {
                    let making = generation.take().expect("what was made was made by a generation");
                    generation = self.absorb(&mut answer, making, taken);
                }
                Happened::Cancelled(counts) => {
                    let end = self.cancelled(counts);
                    conclude(&mut answer, &mut generation, end);
                }
                Happened::Expired => conclude(&mut answer, &mut generation, deadline_exceeded()),
                Happened::HandBack => {
                    generation = None;
                    answer.handle_stop();
                    grace = Some(Instant::now() + HAND_BACK_GRACE);
                }
                Happened::GraceOver => return self.left_open,
            }
        }
    }

    /// Waits for the next thing that concerns this attempt.
    async fn wait(
        &self,
        io: &mut Option<Io>,
        generation: &mut Option<Generation>,
        grace: Option<Instant>,
    ) -> Happened {
        let is_open = generation.is_some();
        // Before the start it is not known how many tokens the answer has that is to be cancelled.
        let started = generation.as_ref().filter(|generation| generation.has_started());
        let counts = started.map(Generation::counts);
        let may_take = io.is_none();
        let settled = async {
            match io {
                Some(io) => io.await,
                None => std::future::pending().await,
            }
        };
        let made = async {
            match generation {
                Some(generation) if may_take => generation.take().await,
                Some(_) | None => std::future::pending().await,
            }
        };
        // A word from outside counts before what was made meanwhile; each comes once.
        tokio::select! {
            biased;
            () = self.new.hand_back.cancelled(), if grace.is_none() => Happened::HandBack,
            () = self.new.cancel.cancelled(), if counts.is_some() => {
                Happened::Cancelled(counts.unwrap_or_default())
            }
            () = self.new.expire.cancelled(), if is_open => Happened::Expired,
            settled = settled => Happened::Settled(settled),
            made = made => Happened::Made(made),
            () = at(grace) => Happened::GraceOver,
        }
    }

    /// Hands what was made to the answer; the generation goes on unless it ended.
    fn absorb(&mut self, answer: &mut Answer, mut making: Generation, taken: Taken) -> Option<Generation> {
        answer.handle_tokens(&taken.token_ids, &taken.text);
        if !taken.token_ids.is_empty() {
            self.clock.first_token.get_or_insert_with(Instant::now);
        }
        self.new.counts.set_output(making.output_tokens());
        let Some(end) = taken.end else {
            return Some(making);
        };
        match end {
            generation::End::Finished(reason) => {
                answer.handle_tokens(&[], &making.held_back_text());
                let finished = making.finished(reason, self.timings());
                answer.handle_end(finished);
            }
            generation::End::Failed(event) => answer.handle_end(event),
            generation::End::LeftOpen(end) => {
                self.left_open = end;
                answer.handle_stop();
            }
        }
        None
    }

    /// A `finished` event for what was cancelled; `counts` are the tokens of the prompt and of the answer.
    fn cancelled(&self, counts: (usize, usize)) -> Event {
        generation::finished(FinishReason::Cancelled, counts, self.timings())
    }

    fn ended(self, ended: Ended) -> AttemptEnd {
        match ended {
            Ended::Terminal | Ended::AlreadyTerminal => AttemptEnd::Terminal,
            Ended::Fenced { attempt, strikes } => AttemptEnd::Fenced { attempt, strikes },
            Ended::LeftOpen => self.left_open,
            Ended::Corrupt(broken) => self.broken(&broken),
        }
    }

    /// Nobody can continue a journal that our writers cannot have made: a strike leads it to the dead letters.
    fn broken(&self, broken: &dyn std::error::Error) -> AttemptEnd {
        let request_id = &self.new.assignment.request;
        error!(%request_id, error = chain(broken), "a journal is not one that workers write");
        AttemptEnd::Panicked {
            message: format!("the journal cannot be continued: {}", chain(broken)),
        }
    }

    /// News for who waits; never in the journal, so a lost one costs nothing.
    async fn publish_progress(&self, phase: Phase) {
        let assignment = &self.new.assignment;
        let event = Event::Progress(Progress {
            phase,
            position: None,
            fraction: None,
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

/// Ends the answer before its generation did.
fn conclude(answer: &mut Answer, generation: &mut Option<Generation>, event: Event) {
    if let Some(mut making) = generation.take()
        && making.has_started()
    {
        answer.handle_tokens(&[], &making.held_back_text());
    }
    answer.handle_end(event);
}

fn deadline_exceeded() -> Event {
    Event::failed(RequestError {
        code: ErrorCode::DeadlineExceeded,
        message: "the request's deadline passed before its answer was complete".to_owned(),
        param: Some("deadline_ms".to_owned()),
    })
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Why a request is given back when nothing else is known.
const DRAINS: &str = "the worker drains";
/// How long an attempt that is handed back may take to store what it has: the next one makes the rest again.
const HAND_BACK_GRACE: Duration = Duration::from_secs(1);
/// News that cannot be told in this time is stale.
const PROGRESS_TIMEOUT: Duration = Duration::from_millis(500);
