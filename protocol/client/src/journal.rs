//! The journal of a request: the stored events, and the source of truth about its answer.
//!
//! Every append names the sequence that it follows on its subject. The server stores it only if nothing
//! else was stored there since, so two attempts can never interleave: the stale one is refused. An append
//! whose answer is lost may or may not be stored; only reading the journal tells.

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use flotilla_protocol::codec::{DecodeError, EncodeError};
use flotilla_protocol::event::{Event, EventKind};
use flotilla_protocol::{Attempt, Encoding, RequestId, Strikes, WorkerId, headers};
use futures_util::StreamExt;
use thiserror::Error;
use tokio::time::timeout;

use crate::connection::Connection;

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
    /// Encoding of the body.
    pub encoding: Encoding,
    /// The event.
    pub event: Event,
}

/// One event to store.
#[derive(Debug)]
pub struct NewEntry<'a> {
    /// The request.
    pub request: &'a RequestId,
    /// Sequence of the newest entry of this request; 0 when there must be none.
    pub expected_last_sequence: u64,
    /// The attempt that writes; 0 for the dispatcher.
    pub attempt: Attempt,
    /// The worker that writes; `None` for the dispatcher.
    pub worker: Option<&'a WorkerId>,
    /// Which start of the worker writes; `None` for the dispatcher. Stored with `accepted` alone: what follows is by
    /// the same or refused.
    pub incarnation: Option<u64>,
    /// Strikes before the attempt.
    pub strikes: Strikes,
    /// Encoding of the body.
    pub encoding: Encoding,
    /// The event.
    pub event: &'a Event,
}

/// Why an append did not happen, or may not have.
#[derive(Debug, Error)]
pub enum AppendError {
    /// Something else was stored since; nothing was written.
    #[error("the journal of {request} holds more than sequence {expected_last_sequence}")]
    Conflict {
        /// The request.
        request: RequestId,
        /// What the append expected.
        expected_last_sequence: u64,
    },
    /// It may or may not be stored: the connection broke, or no answer came in time.
    #[error("no answer to an append to the journal of {request}")]
    Unknown {
        /// The request.
        request: RequestId,
        /// What the client says.
        #[source]
        source: PublishError,
    },
    /// The server refused it for another reason, such as a full disk; nothing was written.
    #[error("the server refuses an append to the journal of {request}")]
    Refused {
        /// The request.
        request: RequestId,
        /// What the server says.
        #[source]
        source: PublishError,
    },
    /// The event cannot be encoded.
    #[error("an event of {request} cannot be encoded")]
    Encode {
        /// The request.
        request: RequestId,
        /// Why.
        #[source]
        source: EncodeError,
    },
}

/// Why a journal could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The connection broke.
    #[error("cannot ask for the journal of {request}")]
    Request {
        /// The request.
        request: RequestId,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// No answer in time.
    #[error("no answer when reading the journal of {request}")]
    TimedOut {
        /// The request.
        request: RequestId,
    },
    /// The server answered with an error.
    #[error("the server cannot read the journal of {request}: {status} {description}")]
    Server {
        /// The request.
        request: RequestId,
        /// Status of the answer.
        status: u16,
        /// Its description.
        description: String,
    },
    /// A stored message is not an event of ours.
    #[error("message {sequence} of the journal of {request} is not an event: {problem}")]
    NotAnEvent {
        /// The request.
        request: RequestId,
        /// Its place in the stream.
        sequence: u64,
        /// What is wrong with it.
        problem: String,
    },
}

/// Reads and appends journals. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal {
    connection: Connection,
}

impl Journal {
    /// The journals of a connection's namespace.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        Self {
            connection: connection.clone(),
        }
    }

    /// Stores one event and returns its sequence. Cancelling the future leaves open whether it is stored.
    ///
    /// # Errors
    /// [`AppendError`]; after `Unknown` the journal must be read before anything else is appended.
    pub async fn append(&self, entry: NewEntry<'_>) -> Result<u64, AppendError> {
        let request = || entry.request.clone();
        let body = entry
            .event
            .encode(entry.encoding)
            .map_err(|source| AppendError::Encode {
                request: request(),
                source,
            })?;
        let message = message(&entry, body);
        let subject = self.connection.subjects.journal(entry.request);
        let stored = self.connection.answered(async {
            let sent = self.connection.jetstream.send_publish(subject, message).await;
            sent?.await
        });
        let stored = stored.await.unwrap_or_else(|disconnected| {
            Err(PublishError::with_source(
                PublishErrorKind::BrokenPipe,
                disconnected,
            ))
        });
        match stored {
            Ok(ack) => Ok(ack.sequence),
            Err(error) => Err(match error.kind() {
                PublishErrorKind::WrongLastSequence => AppendError::Conflict {
                    request: request(),
                    expected_last_sequence: entry.expected_last_sequence,
                },
                PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => AppendError::Unknown {
                    request: request(),
                    source: error,
                },
                PublishErrorKind::StreamNotFound
                | PublishErrorKind::WrongLastMessageId
                | PublishErrorKind::MaxAckPending
                | PublishErrorKind::MaxPayloadExceeded
                | PublishErrorKind::Other => AppendError::Refused {
                    request: request(),
                    source: error,
                },
            }),
        }
    }

    /// Every entry of a request after a sequence, in order; all of them after 0.
    ///
    /// # Errors
    /// [`ReadError`]; reading changes nothing, so it may be tried again.
    pub async fn read(&self, request: &RequestId, after: u64) -> Result<Vec<Entry>, ReadError> {
        let mut entries = Vec::new();
        let mut after = after;
        loop {
            let limit = self.connection.request_timeout;
            let read = timeout(limit, self.connection.answered(self.read_batch(request, after)));
            let batch = read.await.map_err(|_| ReadError::TimedOut {
                request: request.clone(),
            })?;
            let batch = batch.map_err(|disconnected| ReadError::Request {
                request: request.clone(),
                source: disconnected.into(),
            })??;
            let Some(last) = batch.last() else {
                return Ok(entries);
            };
            after = last.sequence;
            let complete = batch.len() < BATCH_MESSAGES_MAX;
            entries.extend(batch);
            if complete {
                return Ok(entries);
            }
        }
    }

    /// One batched direct get (ADR-31): up to [`BATCH_MESSAGES_MAX`] entries, ended by status 204.
    async fn read_batch(&self, request: &RequestId, after: u64) -> Result<Vec<Entry>, ReadError> {
        let client = &self.connection.client;
        let failed = |source: async_nats::Error| ReadError::Request {
            request: request.clone(),
            source,
        };
        let inbox = client.new_inbox();
        let mut answers = client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| failed(error.into()))?;
        let subject = format!("$JS.API.DIRECT.GET.{}", self.connection.subjects.journal_stream());
        let ask = serde_json::json!({
            "batch": BATCH_MESSAGES_MAX,
            "seq": after + 1,
            "next_by_subj": self.connection.subjects.journal(request),
        });
        client
            .publish_with_reply(subject, inbox, ask.to_string().into())
            .await
            .map_err(|error| failed(error.into()))?;
        let mut entries = Vec::new();
        while let Some(message) = answers.next().await {
            match message.status.map(|status| status.as_u16()) {
                None => entries.push(entry(request, &message)?),
                Some(STATUS_END_OF_BATCH | STATUS_NOT_FOUND) => break,
                Some(status) => {
                    let description = message.description.unwrap_or_default();
                    return Err(ReadError::Server {
                        request: request.clone(),
                        status,
                        description,
                    });
                }
            }
        }
        Ok(entries)
    }
}

fn message(entry: &NewEntry<'_>, body: Bytes) -> PublishMessage {
    let mut message = PublishMessage::build()
        .payload(body)
        .header(headers::EVENT, entry.event.kind().as_str())
        .header(headers::ATTEMPT, entry.attempt.to_string())
        .header(headers::CONTENT_TYPE, entry.encoding.content_type())
        .expected_last_subject_sequence(entry.expected_last_sequence);
    if let Some(worker) = entry.worker {
        message = message.header(headers::WORKER, worker.as_str());
    }
    if entry.event.kind() == EventKind::Accepted {
        message = message.header(headers::STRIKES, entry.strikes.to_string());
        if let Some(incarnation) = entry.incarnation {
            message = message.header(headers::INCARNATION, incarnation.to_string());
        }
    }
    message
}

fn entry(request: &RequestId, message: &async_nats::Message) -> Result<Entry, ReadError> {
    let empty = HeaderMap::new();
    let found = message.headers.as_ref().unwrap_or(&empty);
    let sequence = number(found, SEQUENCE_HEADER).unwrap_or(0);
    let (attempt, encoding, event) =
        decode_event(found, &message.payload).map_err(|problem| ReadError::NotAnEvent {
            request: request.clone(),
            sequence,
            problem: problem.to_string(),
        })?;
    Ok(Entry {
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
        encoding,
        event,
    })
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

/// Place in the stream, on messages that the server read back or republished.
pub(crate) const SEQUENCE_HEADER: &str = "Nats-Sequence";
/// Messages of one batched read: small enough that a reader's buffers hold it, large enough that a usual
/// journal needs one round trip.
const BATCH_MESSAGES_MAX: usize = 256;
const STATUS_END_OF_BATCH: u16 = 204;
const STATUS_NOT_FOUND: u16 = 404;
