//! Publishing a request.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use flotilla_protocol::{Class, Encoding, ModelName, RequestId, WorkerId, headers};
use thiserror::Error;

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

/// Why a request is not in the queue, or may not be.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// The queue has no room: the busy signal.
    #[error("the queue is full; try again later")]
    Busy,
    /// The server takes no message of this size.
    #[error("the request has {bytes} bytes, the server takes at most {bytes_max} (max_payload)")]
    TooLarge {
        /// Length of the body.
        bytes: usize,
        /// The server's limit.
        bytes_max: usize,
    },
    /// Nobody has created the request stream.
    #[error("no stream takes {subject}; has a dispatcher been started in this namespace?")]
    NoQueue {
        /// Where it was published.
        subject: String,
    },
    /// It may or may not be queued; publishing the same id again is safe.
    #[error("the server did not confirm the request on {subject}")]
    Unconfirmed {
        /// Where it was published.
        subject: String,
        /// What the client says.
        #[source]
        source: PublishError,
    },
}

/// 128 random bits.
///
/// # Panics
/// When the operating system gives no random bytes, which it does from boot on.
#[must_use]
pub fn new_request_id() -> RequestId {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).expect("the operating system gives random bytes");
    RequestId::from_random(u128::from_ne_bytes(bits))
}

/// Publishes a request and waits until the server has stored it.
///
/// # Errors
/// [`SubmitError`].
pub async fn submit(connection: &Connection, new: NewRequest) -> Result<(), SubmitError> {
    publish(connection, new, None).await
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
) -> Result<(), SubmitError> {
    publish(connection, new, Some(worker)).await
}

async fn publish(
    connection: &Connection,
    new: NewRequest,
    worker: Option<&WorkerId>,
) -> Result<(), SubmitError> {
    let subject = connection.subjects.request(new.class, &new.model);
    let bytes = new.body.len();
    let mut message = PublishMessage::build()
        .payload(new.body)
        .message_id(new.request.as_str())
        .header(headers::CONTENT_TYPE, new.encoding.content_type());
    if let Some(worker) = worker {
        message = message.header(headers::WORKER, worker.as_str());
    }
    let stored = connection.answered(async {
        let sent = connection.jetstream.send_publish(subject.clone(), message).await;
        sent?.await
    });
    let stored = stored.await.unwrap_or_else(|disconnected| {
        Err(PublishError::with_source(
            PublishErrorKind::BrokenPipe,
            disconnected,
        ))
    });
    match stored {
        Ok(_) => Ok(()),
        Err(error) if is_full(&error) => Err(SubmitError::Busy),
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
                source: error,
            },
        }),
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
