//! The NATS micro service `flotilla`: whole answers by request-reply, and what operators ask.
//!
//! It exists while this process leads. Answers that are under way when leadership ends are still given.

mod admin;
mod infer;
mod orders;
mod replay;
mod reply;
mod residency;
mod standing;

use async_nats::Subject;
use async_nats::service::{Request, Service, ServiceExt};
use flotilla_config::INBOX_PREFIX;
use flotilla_protocol::admin::{
    CancelReply, Explanation, FleetStatus, ProfileStatuses, QueueStatus, Reconciliation,
};
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::{Encoding, RequestId};
use futures_util::StreamExt;
use futures_util::future::ready;
use futures_util::stream::{BoxStream, SelectAll, select_all};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::error::TermError;
use crate::ground::Ground;

/// A question to the owner of the core.
#[derive(Debug)]
pub(crate) enum Query {
    /// What waits and what runs; the messages still in the stream are left at 0.
    Queue(oneshot::Sender<QueueStatus>),
    /// The workers.
    Fleet(oneshot::Sender<FleetStatus>),
    /// Why a request stands where it stands; `None` when it is not held.
    Why(RequestId, oneshot::Sender<Option<Box<Explanation>>>),
    /// Whether a request is held.
    Holds(RequestId, oneshot::Sender<bool>),
    /// The profiles in use.
    Profiles(oneshot::Sender<ProfileStatuses>),
    /// What was accepted against what is answered.
    Reconciliation(oneshot::Sender<Reconciliation>),
    /// End a request.
    Cancel(RequestId, oneshot::Sender<CancelReply>),
}

/// What operators can ask for.
#[derive(Debug, Clone, Copy)]
enum Verb {
    Queue,
    Workers,
    Why,
    Profiles,
    Reconciliation,
    Cancel,
    Load,
    Unload,
    Fetch,
    Drain,
}

/// The service of one term.
pub(crate) struct Services {
    service: Service,
    infer: BoxStream<'static, Request>,
    replay: BoxStream<'static, Request>,
    standing: BoxStream<'static, Request>,
    admin: SelectAll<BoxStream<'static, (Verb, Request)>>,
}

/// When a service ends.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    /// This process does not lead any more: nothing new is taken.
    pub(crate) term: CancellationToken,
    /// The process ends: nothing is waited for.
    pub(crate) process: CancellationToken,
}

impl Verb {
    const ALL: [Self; 10] = [
        Self::Queue,
        Self::Workers,
        Self::Why,
        Self::Profiles,
        Self::Reconciliation,
        Self::Cancel,
        Self::Load,
        Self::Unload,
        Self::Fetch,
        Self::Drain,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Workers => "workers",
            Self::Why => "why",
            Self::Profiles => "profiles",
            Self::Reconciliation => "reconciliation",
            Self::Cancel => "cancel",
            Self::Load => "load",
            Self::Unload => "unload",
            Self::Fetch => "fetch",
            Self::Drain => "drain",
        }
    }
}

impl Services {
    /// Registers the endpoints.
    ///
    /// # Errors
    /// [`TermError::Service`].
    pub(crate) async fn start(ground: &Ground) -> Result<Self, TermError> {
        let subjects = &ground.connection.subjects;
        let service = ground
            .connection
            .client
            .service_builder()
            .description("Whole answers of language models, and the queue's administration.")
            .start(SERVICE, env!("CARGO_PKG_VERSION"))
            .await
            .map_err(|source| TermError::Service {
                subject: SERVICE.to_owned(),
                source,
            })?;
        let infer = endpoint(&service, "infer", subjects.infer_all()).await?;
        let replay = endpoint(&service, "replay", subjects.replay_all()).await?;
        let standing = endpoint(&service, "standing", subjects.standing_all()).await?;
        let mut admin = Vec::new();
        for verb in Verb::ALL {
            let endpoint = endpoint(&service, verb.as_str(), subjects.admin(verb.as_str())).await?;
            admin.push(endpoint.map(move |request| (verb, request)).boxed());
        }
        Ok(Self {
            service,
            infer,
            replay,
            standing,
            admin: select_all(admin),
        })
    }

    /// Serves until the term ends and everything taken is answered.
    pub(crate) async fn serve(mut self, ground: Ground, owner: mpsc::Sender<Query>, ends: Ends) {
        let mut answers = JoinSet::new();
        let mut orders = JoinSet::new();
        let mut replays = JoinSet::new();
        loop {
            tokio::select! {
                () = ends.term.cancelled() => break,
                Some(request) = self.infer.next() => {
                    if answers.len() < INFER_AT_ONCE_MAX {
                        answers.spawn(infer::answer(ground.clone(), request, ends.process.clone()));
                    } else {
                        reply::refuse(&request, Encoding::Json, &busy()).await;
                    }
                }
                Some(request) = self.replay.next(), if replays.len() < REPLAYS_AT_ONCE_MAX => {
                    replays.spawn(replay::answer(ground.clone(), request));
                }
                Some(request) = self.standing.next(), if replays.len() < REPLAYS_AT_ONCE_MAX => {
                    replays.spawn(standing::answer(ground.clone(), request, owner.clone()));
                }
                Some((verb, request)) = self.admin.next(), if orders.len() < ORDERS_AT_ONCE_MAX => {
                    orders.spawn(admin::answer(ground.clone(), verb, request, owner.clone()));
                }
                Some(done) = answers.join_next() => note(done),
                Some(done) = orders.join_next() => note(done),
                Some(done) = replays.join_next() => note(done),
            }
        }
        if let Err(error) = self.service.stop().await {
            warn!(%error, "the service was not stopped cleanly");
        }
        drop((self.infer, self.replay, self.standing, self.admin));
        for mut handlers in [answers, orders, replays] {
            while let Some(done) = handlers.join_next().await {
                note(done);
            }
        }
    }
}

/// Questions to a subject whose answers go to an inbox.
async fn endpoint(
    service: &Service,
    name: &str,
    subject: String,
) -> Result<BoxStream<'static, Request>, TermError> {
    let added = service.endpoint_builder().name(name).add(subject.clone()).await;
    let questions = added.map_err(|source| TermError::Service { subject, source })?;
    Ok(questions.filter(|request| ready(has_inbox(request))).boxed())
}

/// Whether the answer goes to an inbox. The server lets a client name any subject for it, also one to which this
/// process may publish and the client may not, such as the deletion of a stream.
fn has_inbox(request: &Request) -> bool {
    let reply = request.message.reply.as_ref();
    let is_inbox = reply.is_some_and(|reply| reply.starts_with(INBOX_PREFIX));
    if !is_inbox {
        let (subject, reply) = (&request.message.subject, reply.map(Subject::as_str));
        warn!(%subject, reply, "ignored a question whose answer would not go to an inbox");
    }
    is_inbox
}

/// A handler that panicked costs its own asker the answer and nobody else's.
fn note(done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done {
        error!(%error, "a handler of the service panicked");
    }
}

fn busy() -> RequestError {
    RequestError {
        code: ErrorCode::QueueFull,
        message: format!("{INFER_AT_ONCE_MAX} requests wait for whole answers; try again later"),
        param: None,
    }
}

const SERVICE: &str = "flotilla";
/// Whole answers that are waited for at once: each holds a subscription and the text so far.
const INFER_AT_ONCE_MAX: usize = 1024;
/// Journals and standings that the server is asked for at once; further questions wait in their subscription.
const REPLAYS_AT_ONCE_MAX: usize = 64;
/// Orders of operators at once; further ones wait in their subscription.
const ORDERS_AT_ONCE_MAX: usize = 64;
