//! What a stored message says.

use async_nats::{HeaderMap, Message};
use flotilla_protocol::codec::DecodeError;
use flotilla_protocol::event::{Event, EventKind};
use flotilla_protocol::{Attempt, Encoding, RequestId, Strikes, WorkerId, headers};
use thiserror::Error;

use super::{ReadError, SEQUENCE_HEADER};

/// One stored event.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its place in the stream; what the next append must expect.
    pub sequence: u64,
    /// The attempt that wrote it; 0 when the dispatcher did.
    pub attempt: Attempt,
    /// The worker that wrote it; `None` when the dispatcher did.
    pub worker: Option<WorkerId>,
    /// Which start of the worker wrote it; on `accepted`.
    pub incarnation: Option<u64>,
    /// Strikes that the request had; on `accepted`.
    pub strikes: Strikes,
    /// Whether the attempt has its worker for itself; on `accepted`.
    pub alone: bool,
    /// Encoding of the body.
    pub encoding: Encoding,
    /// The event.
    pub event: Event,
}

impl Entry {
    /// Reads a message of a request's journal, as the server reads it back.
    ///
    /// # Errors
    /// [`ReadError::NotAnEvent`].
    pub fn from_message(request: &RequestId, message: &Message) -> Result<Self, ReadError> {
        let empty = HeaderMap::new();
        let found = message.headers.as_ref().unwrap_or(&empty);
        let sequence = sequence(message);
        let (attempt, encoding, event) =
            decode_event(found, &message.payload).map_err(|problem| ReadError::NotAnEvent {
                request: request.clone(),
                sequence,
                problem: problem.to_string(),
            })?;
        Ok(Self {
            sequence,
            attempt,
            worker: found
                .get(headers::WORKER)
                .and_then(|worker| WorkerId::new(worker.as_str()).ok()),
            incarnation: number(found, headers::INCARNATION),
            strikes: Strikes(
                number(found, headers::STRIKES)
                    .and_then(|n| u32::try_from(n).ok())
                    .unwrap_or(0),
            ),
            alone: found
                .get(headers::ALONE)
                .is_some_and(|alone| alone.as_str() == "true"),
            encoding,
            event,
        })
    }
}

pub(super) fn sequence(message: &Message) -> u64 {
    let found = message.headers.as_ref();
    found
        .and_then(|found| number(found, SEQUENCE_HEADER))
        .unwrap_or(0)
}

/// What can be wrong with the headers and the body of an event.
#[derive(Debug, Error)]
pub(crate) enum EventFault {
    #[error("it has no header {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Kind(#[from] flotilla_protocol::IdError),
    #[error(transparent)]
    Body(#[from] DecodeError),
}

/// Reads an event that travels under headers of ours, stored or republished.
pub(crate) fn decode_event(found: &HeaderMap, body: &[u8]) -> Result<(Attempt, Encoding, Event), EventFault> {
    let kind: EventKind = found
        .get(headers::EVENT)
        .ok_or(EventFault::Missing(headers::EVENT))?
        .as_str()
        .parse()?;
    let encoding = Encoding::from_content_type(found.get(headers::CONTENT_TYPE).map(|value| value.as_str()))?;
    let attempt = number(found, headers::ATTEMPT)
        .and_then(|n| u32::try_from(n).ok())
        .unwrap_or(0);
    Ok((Attempt(attempt), encoding, Event::decode(kind, encoding, body)?))
}

/// A header that holds a decimal number.
pub(crate) fn number(found: &HeaderMap, name: &str) -> Option<u64> {
    found.get(name)?.as_str().parse().ok()
}
