//! Clients: each asks one request after the other, follows its answer as any client would, and tells how it was.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flotilla_client::{AnswerBuilder, Connection, Events, EventsError, submit};
use flotilla_protocol::event::{Event, EventKind};
use flotilla_protocol::{Attempt, RequestId};
use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::questions::Questions;
use super::{ChaosOptions, journals};
use crate::Question;

/// What must not happen.
#[derive(Debug, Clone)]
pub enum Problem {
    /// Something that was accepted has no answer, or not a whole one.
    Lost(String),
    /// A token or an end came twice.
    Doubled(String),
    /// No end came in time.
    Hung(String),
    /// An answer is not the undisturbed one.
    Wrong(String),
    /// Requests stayed in their stream.
    Stuck(String),
    /// A process ended other than by a fault or for want of a server.
    Ended(String),
}

/// How one request went.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) number: usize,
    pub(super) request: RequestId,
    /// When it was accepted, and again by each later attempt.
    pub(super) accepted: Vec<SystemTime>,
    /// The longest time between two events after the first.
    pub(super) pause: Duration,
    /// When that was over.
    pub(super) paused_until: SystemTime,
    pub(super) attempts: Attempt,
    /// Publishes that had to be repeated.
    pub(super) repeats: usize,
    pub(super) problem: Option<Problem>,
}

/// All clients; they share one connection.
#[derive(Debug)]
pub(super) struct Clients {
    connection: Connection,
    observer: Connection,
    questions: Questions,
    requests: usize,
    at_once: usize,
    /// Tokens that came.
    tokens: watch::Sender<u64>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(what) => write!(f, "lost: {what}"),
            Self::Doubled(what) => write!(f, "doubled: {what}"),
            Self::Hung(what) => write!(f, "hung: {what}"),
            Self::Wrong(what) => write!(f, "wrong: {what}"),
            Self::Stuck(what) => write!(f, "stuck: {what}"),
            Self::Ended(what) => write!(f, "ended: {what}"),
        }
    }
}

impl Told {
    fn pause_for(&mut self, pause: Duration) {
        if pause > self.pause {
            self.pause = pause;
            self.paused_until = SystemTime::now();
        }
    }
}

impl Clients {
    pub(super) fn new(
        connection: Connection,
        observer: Connection,
        questions: Questions,
        options: &ChaosOptions,
    ) -> Self {
        Self {
            connection,
            observer,
            questions,
            requests: options.requests,
            at_once: options.clients,
            tokens: watch::Sender::new(0),
        }
    }

    /// Follows how many tokens came.
    pub(super) fn tokens(&self) -> watch::Receiver<u64> {
        self.tokens.subscribe()
    }

    /// Asks everything.
    pub(super) async fn run(self) -> (Vec<Told>, Arc<Questions>) {
        let asked = stream::iter(0..self.requests).map(|number| self.ask(number));
        let told = asked.buffer_unordered(self.at_once).collect().await;
        (told, Arc::new(self.questions))
    }

    async fn ask(&self, number: usize) -> Told {
        let question = self.questions.of(number).again();
        let mut told = Told {
            number,
            request: question.request.clone(),
            accepted: Vec::new(),
            pause: Duration::ZERO,
            paused_until: SystemTime::UNIX_EPOCH,
            attempts: Attempt(0),
            repeats: 0,
            problem: None,
        };
        let followed = timeout(PATIENCE_WITH_ONE, self.follow(&question, &mut told)).await;
        let ended = followed.unwrap_or_else(|_| {
            let seen = format!("after {} attempts, {:?}", told.attempts, told.accepted);
            Err(Problem::Hung(format!("{} {seen}", told.request)))
        });
        told.problem = ended.err();
        if told.problem.is_none() {
            let known = self.questions.of(number);
            told.problem = journals::check(&self.observer, &told.request, known).await.err();
        }
        told
    }

    async fn follow(&self, question: &Question, told: &mut Told) -> Result<(), Problem> {
        let request = &question.request;
        let lost = |error: EventsError| Problem::Lost(format!("{request}: {error}"));
        let mut events = Events::subscribe(&self.connection, request.clone())
            .await
            .map_err(lost)?;
        self.submit(question, told).await;
        let mut answer = AnswerBuilder::default();
        let mut last: Option<Instant> = None;
        loop {
            let delivered = match events.next().await {
                Ok(Some(delivered)) => delivered,
                Ok(None) => return Err(Problem::Lost(format!("{request}: its events end without an end"))),
                // A journal that cannot be read now is read later.
                Err(EventsError::Read(_)) => {
                    sleep(AGAIN_AFTER).await;
                    continue;
                }
                Err(error) => return Err(lost(error)),
            };
            let kind = delivered.event.kind();
            if kind == EventKind::Progress {
                continue;
            }
            if let Some(last) = last.replace(Instant::now()) {
                told.pause_for(last.elapsed());
            }
            if kind == EventKind::Accepted {
                told.accepted.push(SystemTime::now());
            }
            if let Event::Tokens(tokens) = &delivered.event {
                let count = tokens.token_ids.len() as u64;
                self.tokens.send_modify(|seen| *seen += count);
            }
            told.attempts = told.attempts.max(delivered.attempt);
            if let Some(answer) = answer.push(delivered) {
                return self.compare(told, &answer);
            }
        }
    }

    /// Publishes until the server confirms it: an id that is there already changes nothing.
    async fn submit(&self, question: &Question, told: &mut Told) {
        while submit(&self.connection, question.as_new()).await.is_err() {
            told.repeats += 1;
            sleep(AGAIN_AFTER).await;
        }
    }

    fn compare(&self, told: &Told, answer: &flotilla_client::Answer) -> Result<(), Problem> {
        let (known, request) = (self.questions.of(told.number), &told.request);
        if let Err(error) = &answer.end {
            return Err(Problem::Wrong(format!("{request} failed: {error}")));
        }
        if answer.token_ids != known.token_ids || answer.text != known.text {
            let (found, expected) = (&answer.token_ids, &known.token_ids);
            return Err(Problem::Wrong(format!(
                "{request} is {found:?}, undisturbed it is {expected:?}"
            )));
        }
        Ok(())
    }
}

/// No fault is as long, nor several in a row: who waits longer is forgotten.
const PATIENCE_WITH_ONE: Duration = Duration::from_secs(150);
/// How soon a client tries again what failed.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
