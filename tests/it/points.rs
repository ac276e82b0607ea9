//! A part is killed, or asked to stop, at every point of a request's life, and the answer is the undisturbed one.
//!
//! Where that happens is no luck: a gate holds back the message that would be the next step, and the part is ended
//! once it has been held.

mod drain;
mod leader;
mod worker;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use flotilla_client::{Answer, Entry, Events, Journal};
use flotilla_protocol::RequestId;
use flotilla_protocol::assignment::Done;
use flotilla_protocol::codec::decode_internal;
use flotilla_protocol::event::{FinishReason, Tokens, Usage};
use flotilla_protocol::headers;
use flotilla_tests::{Fleet, Gate, Passing, Question, Verdict, Way, eventually};
use tokio::task::JoinHandle;

/// The settings of `chaos --quick`: what is silent is given up after a third of the default time.
pub const QUICK: [&str; 4] = [
    "dispatcher.worker_lost_after_ms=1500",
    "dispatcher.lease_ttl_ms=1200",
    "dispatcher.ack_wait_ms=5000",
    "worker.report_interval_ms=300",
];

/// Tokens of every answer.
const TOKENS: usize = 64;

/// A step of an answer that its worker tells the server, in their order: `accepted`, each token, the end, and that the
/// dispatcher may forget the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Step(usize);

impl Step {
    const ACCEPTED: Self = Self(0);
    const END: Self = Self(1 + TOKENS);
    const TOLD: Self = Self(2 + TOKENS);

    fn all() -> impl Iterator<Item = Self> {
        (0..=Self::TOLD.0).map(Self)
    }

    fn token(index: usize) -> Self {
        Self(1 + index)
    }

    /// Tokens that the journal holds when this is the first step that is not made.
    fn tokens_before(self) -> usize {
        self.0.saturating_sub(1).min(TOKENS)
    }

    /// The step that a worker's message is.
    fn of(message: &Passing<'_>) -> Option<(RequestId, Self)> {
        if message.way != Way::ToServer {
            return None;
        }
        if message.subject == "flotilla.done" {
            let done: Done = decode_internal(message.payload).ok()?;
            return Some((done.request, Self::TOLD));
        }
        let request = message.subject.strip_prefix("flotilla.journal.")?;
        let step = match message.header(headers::EVENT)? {
            "accepted" => Self::ACCEPTED,
            "tokens" => {
                let tokens: Tokens = serde_json::from_slice(message.payload).ok()?;
                Self::token(tokens.offset as usize)
            }
            _ => Self::END,
        };
        Some((RequestId::new(request).ok()?, step))
    }
}

/// How far each request may get, and which of them have got there.
#[derive(Debug, Default)]
struct Limits {
    /// The first step that is held.
    limits: HashMap<RequestId, Step>,
    reached: HashSet<RequestId>,
}

/// A worker's gate that holds each request at its limit.
#[derive(Debug, Clone, Default)]
struct Limiter {
    /// Guards what the gate's rule and the test both know.
    limits: Arc<Mutex<Limits>>,
}

impl Limiter {
    fn gate(&self) -> Gate {
        let limits = Arc::clone(&self.limits);
        Gate::new(move |message| {
            let Some((request, step)) = Step::of(message) else {
                return Verdict::Pass;
            };
            let mut limits = limits.lock().expect("nobody panics with it");
            if limits.limits.get(&request).is_none_or(|limit| step < *limit) {
                return Verdict::Pass;
            }
            limits.reached.insert(request);
            Verdict::Hold
        })
    }

    fn limit(&self, request: &RequestId, limit: Step) {
        let mut limits = self.limits.lock().expect("nobody panics with it");
        limits.limits.insert(request.clone(), limit);
    }

    /// Waits until every request has been held.
    async fn all_reached(&self) {
        eventually("every request to be at its limit", async || {
            let limits = self.limits.lock().expect("nobody panics with it");
            (limits.reached.len() == limits.limits.len()).then_some(())
        })
        .await;
    }
}

/// What must be the same however often an answer was interrupted.
#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    token_ids: Vec<u32>,
    text: String,
    finish_reason: FinishReason,
    usage: Usage,
}

/// What of an answer must be the undisturbed one's: how much of its prompt a worker had read before is not.
fn outcome(answer: &Answer) -> Result<Outcome> {
    let end = answer.end.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(Outcome {
        token_ids: answer.token_ids.clone(),
        text: answer.text.clone(),
        finish_reason: end.finish_reason,
        usage: end.usage.with_cached_tokens(0),
    })
}

/// Asks a question and follows it.
async fn ask(fleet: &Fleet, question: &Question) -> Result<JoinHandle<Result<Answer>>> {
    Ok(follow(fleet.submit(question).await?))
}

fn follow(mut events: Events) -> JoinHandle<Result<Answer>> {
    tokio::spawn(async move { Ok(Answer::collect(&mut events).await?) })
}

/// The answer that is followed.
async fn answered(question: &Question, answer: JoinHandle<Result<Answer>>) -> Result<Answer> {
    let answer = tokio::time::timeout(flotilla_tests::PATIENCE, answer).await;
    answer.with_context(|| format!("{} has no end", question.request))??
}

async fn journal(fleet: &Fleet, question: &Question) -> Result<Vec<Entry>> {
    Ok(Journal::new(&fleet.connection).read(&question.request, 0).await?)
}
