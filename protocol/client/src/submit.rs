//! Publishing a request.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use flotilla_protocol::{Class, Encoding, ModelName, RequestId, TraceParent, WorkerId, headers};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use crate::connection::Connection;

/// A request to publish.
#[derive(Debug, Clone)]
pub struct NewRequest {
    /// Its id; publishing the same id again within the dedupe window changes nothing.
    pub request: RequestId,
    /// Class.
    pub class: Class,
    /// Model.
    pub model: ModelName,
    /// Encoding of the body, and of the answer.
    pub encoding: Encoding,
    /// The body.
    pub body: Bytes,
}

/// Where a request lies that the server has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    /// Place of its message in the request stream, which it leaves when the request is answered.
    pub stream_seq: u64,
    /// It was there before, under the same id.
    pub is_double: bool,
}

/// Why a request is not in the queue, or may not be.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// The queue has no room: the busy signal.
    #[error("the queue is full ({reason}); try again later")]
    Busy {
        /// Which limit it is at, in the server's words.
        reason: String,
    },
    /// The server takes no message of this size.
    #[error("the request has {bytes} bytes, the server takes at most {bytes_max} (max_payload)")]
    TooLarge {
        /// Length of the body.
        bytes: usize,
        /// The server's limit.
        bytes_max: usize,
    },
    /// Nobody has created the request stream, or its servers have elected no leader in time. Nothing is queued.
    #[error(
        "no stream takes {subject}; has a dispatcher been started in this namespace, has the server JetStream, and do \
         enough servers of a cluster run?"
    )]
    NoQueue {
        /// Where it was published.
        subject: String,
    },
    /// It may or may not be queued; publishing the same id again is safe.
    #[error("the server did not confirm the request on {subject}{}", advice(*.silence))]
    Unconfirmed {
        /// Where it was published.
        subject: String,
        /// What else it answers.
        silence: Silence,
        /// What the client says.
        #[source]
        source: PublishError,
    },
}

/// Who is silent when a publish is not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// The server, or the way to it.
    Server,
    /// What stores messages: the server answers other questions. One that could not write to its disk is so until it is
    /// started again, whether there is room by then or not.
    Store,
}

/// 128 random bits, of nobody in particular.
///
/// # Panics
/// When the operating system gives no random bytes, which it does from boot on.
#[must_use]
pub fn new_request_id() -> RequestId {
    RequestId::from_random(random_bits())
}

/// 128 random bits, of the connection's owner where it has one.
///
/// # Panics
/// As [`new_request_id`].
#[must_use]
pub fn new_request_id_of(connection: &Connection) -> RequestId {
    match &connection.owner {
        Some(owner) => RequestId::from_random_of(owner, random_bits()),
        None => new_request_id(),
    }
}

fn random_bits() -> u128 {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).expect("the operating system gives random bytes");
    u128::from_ne_bytes(bits)
}

/// Publishes a request and waits until the server has stored it.
///
/// # Errors
/// [`SubmitError`].
pub async fn submit(connection: &Connection, new: NewRequest) -> Result<Submitted, SubmitError> {
    submit_traced(connection, new, None).await
}

/// The same for a request that belongs to a trace of its caller, which its events then carry.
///
/// # Errors
/// As [`submit`].
pub async fn submit_traced(
    connection: &Connection,
    new: NewRequest,
    trace: Option<&TraceParent>,
) -> Result<Submitted, SubmitError> {
    let extra = trace.map(|trace| (headers::TRACE_PARENT, trace.as_str()));
    publish(connection, new, extra).await
}

/// Publishes a request that only one worker may have, whatever profiles say of its load, and waits until the server
/// has stored it: for measurements. Its body must have a `deadline_ms`, since that worker may never come.
///
/// # Errors
/// [`SubmitError`].
pub async fn submit_to(
    connection: &Connection,
    new: NewRequest,
    worker: &WorkerId,
) -> Result<Submitted, SubmitError> {
    publish(connection, new, Some((headers::WORKER, worker.as_str()))).await
}

async fn publish(
    connection: &Connection,
    new: NewRequest,
    extra: Option<(&str, &str)>,
) -> Result<Submitted, SubmitError> {
    let subject = connection.subjects.request(new.class, &new.model);
    let begun = Instant::now();
    loop {
        match publish_once(connection, &new, extra, &subject).await {
            // It is stored nowhere, and its id makes it one request however often it is published.
            Err(SubmitError::NoQueue { .. }) if begun.elapsed() < ELECTION_MAX => sleep(AGAIN_AFTER).await,
            published => return published,
        }
    }
}

async fn publish_once(
    connection: &Connection,
    new: &NewRequest,
    extra: Option<(&str, &str)>,
    subject: &str,
) -> Result<Submitted, SubmitError> {
    let (subject, bytes) = (subject.to_owned(), new.body.len());
    let mut message = PublishMessage::build()
        .payload(new.body.clone())
        .message_id(new.request.as_str())
        .header(headers::CONTENT_TYPE, new.encoding.content_type());
    if let Some((name, value)) = extra {
        message = message.header(name, value);
    }
    match connection.store(subject.clone(), message).await {
        Ok(ack) => Ok(Submitted {
            stream_seq: ack.sequence,
            is_double: ack.duplicate,
        }),
        Err(error) if is_full(&error) => Err(SubmitError::Busy {
            reason: std::error::Error::source(&error).map_or_else(String::new, ToString::to_string),
        }),
        Err(error) => Err(match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => SubmitError::TooLarge {
                bytes,
                bytes_max: connection.client.max_payload(),
            },
            PublishErrorKind::StreamNotFound => SubmitError::NoQueue { subject },
            PublishErrorKind::WrongLastMessageId
            | PublishErrorKind::WrongLastSequence
            | PublishErrorKind::TimedOut
            | PublishErrorKind::BrokenPipe
            | PublishErrorKind::MaxAckPending
            | PublishErrorKind::Other => SubmitError::Unconfirmed {
                subject,
                silence: silence(connection, &error).await,
                source: error,
            },
        }),
    }
}

/// Finds out who is silent.
async fn silence(connection: &Connection, error: &PublishError) -> Silence {
    if error.kind() != PublishErrorKind::TimedOut {
        return Silence::Server;
    }
    let stream = connection.subjects.requests_stream();
    match connection.within(connection.jetstream.get_stream(stream)).await {
        Ok(Ok(_)) => Silence::Store,
        Ok(Err(_)) | Err(_) => Silence::Server,
    }
}

fn advice(silence: Silence) -> &'static str {
    match silence {
        Silence::Server => "",
        Silence::Store => {
            ", and answers otherwise; if that goes on, its disk is full or broken, which its log says: make room, and \
             start nats-server again"
        }
    }
}

/// Whether the server refused because the stream is at a limit (`discard new`) or its disk is.
#[must_use]
pub fn is_full(error: &PublishError) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>())
        .is_some_and(|refusal| {
            matches!(
                refusal.error_code(),
                ErrorCode::STREAM_STORE_FAILED
                    | ErrorCode::STORAGE_RESOURCES_EXCEEDED
                    | ErrorCode::MEMORY_RESOURCES_EXCEEDED
                    | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
                    | ErrorCode::INSUFFICIENT_RESOURCES
            )
        })
}

/// Servers that miss a stream's leader have elected another one by then; a fleet without a queue is told after it.
const ELECTION_MAX: Duration = Duration::from_secs(10);
/// Between two tries, short against an election.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
