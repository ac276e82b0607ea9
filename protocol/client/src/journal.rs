//! The journal of a request: the stored events, and the source of truth about its answer.
//!
//! Every append names the sequence that it follows on its subject. The server stores it only if nothing
//! else was stored there since, so two attempts can never interleave: the stale one is refused. An append
//! whose answer is lost may or may not be stored; only reading the journal tells.

use std::time::Duration;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use flotilla_protocol::admin::ReplayRequest;
use flotilla_protocol::codec::{DecodeError, EncodeError};
use flotilla_protocol::event::{Event, EventKind};
use flotilla_protocol::{Attempt, Encoding, RequestId, Strikes, TraceParent, WorkerId, headers};
use futures_util::StreamExt;
use thiserror::Error;
use tokio::time::{sleep, timeout};

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
    /// Whether the attempt has its worker for itself.
    pub alone: bool,
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
    #[error("the server cannot read the journal of {request}: status {status} {description}")]
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

/// All that is stored of a request, as far as it can be read.
#[derive(Debug, Default)]
pub struct Content {
    /// The entries, in order, without messages that are none.
    pub entries: Vec<Entry>,
    /// Sequence of the newest message, whatever it is; 0 for none.
    pub last_sequence: u64,
    /// What is wrong with the first message that is not an entry.
    pub fault: Option<String>,
}

impl Content {
    /// Whether the answer is complete.
    #[must_use]
    pub fn has_end(&self) -> bool {
        self.entries.iter().any(|entry| entry.event.kind().is_terminal())
    }
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
        self.append_traced(entry, None).await
    }

    /// The same for a request that belongs to a trace of its caller.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn append_traced(
        &self,
        entry: NewEntry<'_>,
        trace: Option<&TraceParent>,
    ) -> Result<u64, AppendError> {
        let request = || entry.request.clone();
        let body = entry
            .event
            .encode(entry.encoding)
            .map_err(|source| AppendError::Encode {
                request: request(),
                source,
            })?;
        let mut message = message(&entry, body);
        if let Some(trace) = trace {
            message = message.header(headers::TRACE_PARENT, trace.as_str());
        }
        let subject = self.connection.subjects.journal(entry.request);
        match self.connection.store(subject, message).await {
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
        self.read_messages(request, after, |message| {
            entries.push(Entry::from_message(request, message)?);
            Ok(())
        })
        .await?;
        Ok(entries)
    }

    /// All that is stored of a request, whether we can make something of it or not.
    ///
    /// # Errors
    /// [`ReadError`], but never [`ReadError::NotAnEvent`].
    pub async fn read_all(&self, request: &RequestId) -> Result<Content, ReadError> {
        let mut content = Content::default();
        self.read_messages(request, 0, |message| {
            content.last_sequence = sequence(message);
            match Entry::from_message(request, message) {
                Ok(entry) => content.entries.push(entry),
                Err(fault) => {
                    content.fault.get_or_insert_with(|| fault.to_string());
                }
            }
            Ok(())
        })
        .await?;
        Ok(content)
    }

    async fn read_messages(
        &self,
        request: &RequestId,
        after: u64,
        mut take: impl FnMut(&Message) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let mut after = after;
        loop {
            let limit = self.patience();
            let read = timeout(limit, self.connection.answered(self.read_batch(request, after)));
            let batch = read.await.map_err(|_| ReadError::TimedOut {
                request: request.clone(),
            })?;
            let batch = batch.map_err(|disconnected| ReadError::Request {
                request: request.clone(),
                source: disconnected.into(),
            })??;
            batch.iter().try_for_each(&mut take)?;
            match batch.last() {
                Some(last) if batch.len() == BATCH_MESSAGES_MAX => after = sequence(last),
                Some(_) | None => return Ok(()),
            }
        }
    }

    /// Whether the stream has dropped an entry that was stored, for size or age. Its leader is asked, which knows what a
    /// replica that reads may not know yet.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn has_dropped(&self, request: &RequestId, sequence: u64) -> Result<bool, ReadError> {
        let failed = |source: async_nats::Error| ReadError::Request {
            request: request.clone(),
            source,
        };
        let stream = self.connection.subjects.journal_stream();
        let stream = self
            .connection
            .within(self.connection.jetstream.get_stream(stream));
        let stream = stream.await.map_err(|late| failed(late.into()))?;
        let stream = stream.map_err(|error| failed(error.into()))?;
        Ok(stream.cached_info().state.first_sequence > sequence)
    }

    /// One batched direct get (ADR-31): up to [`BATCH_MESSAGES_MAX`] entries, ended by status 204.
    async fn read_batch(&self, request: &RequestId, after: u64) -> Result<Vec<Message>, ReadError> {
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
        self.ask(request, after, &inbox).await.map_err(failed)?;
        let mut messages: Vec<Message> = Vec::new();
        while let Some(message) = answers.next().await {
            match message.status.map(|status| status.as_u16()) {
                None => {
                    // What a network says twice is no second entry.
                    let is_new = messages
                        .last()
                        .is_none_or(|last| sequence(last) < sequence(&message));
                    messages.extend(is_new.then_some(message));
                }
                Some(STATUS_END_OF_BATCH | STATUS_NOT_FOUND) => break,
                Some(STATUS_NOBODY_THERE) if self.connection.owner.is_some() => {
                    sleep(NEXT_LEADER_AFTER).await;
                    self.ask(request, after, &inbox).await.map_err(failed)?;
                }
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
        Ok(messages)
    }

    /// Asks the server, or the dispatcher where this user may not ask the server.
    async fn ask(&self, request: &RequestId, after: u64, inbox: &str) -> Result<(), async_nats::Error> {
        let inbox = inbox.to_owned();
        if self.connection.owner.is_none() {
            return self.send(request, after, inbox.into()).await;
        }
        let subject = self.connection.subjects.replay(request);
        let ask = Encoding::Json.encode(&ReplayRequest { after })?;
        let asked = self.connection.client.publish_with_reply(subject, inbox, ask);
        Ok(asked.await?)
    }

    /// Has the server send entries of a request after a sequence to an inbox: some hundred of them, each with its sequence
    /// in a header, then a message with status 204, or 404 when there are none (ADR-31). The question alone is sent; nobody
    /// hears whether it arrived.
    ///
    /// # Errors
    /// The connection was closed.
    pub async fn send(
        &self,
        request: &RequestId,
        after: u64,
        inbox: Subject,
    ) -> Result<(), async_nats::Error> {
        let (client, subjects) = (&self.connection.client, &self.connection.subjects);
        let subject = format!("$JS.API.DIRECT.GET.{}", subjects.journal_stream());
        let ask = serde_json::json!({
            "batch": BATCH_MESSAGES_MAX,
            "seq": after + 1,
            "next_by_subj": subjects.journal(request),
        });
        let asked = client.publish_with_reply(subject, inbox, ask.to_string().into());
        Ok(asked.await?)
    }

    /// How long one batch may take; with a dispatcher between, one may have to begin to lead first.
    fn patience(&self) -> Duration {
        let limit = self.connection.request_timeout;
        match &self.connection.owner {
            None => limit,
            Some(_) => limit + LEADERLESS_MAX,
        }
    }
}

fn sequence(message: &Message) -> u64 {
    let found = message.headers.as_ref();
    found
        .and_then(|found| number(found, SEQUENCE_HEADER))
        .unwrap_or(0)
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
        if entry.alone {
            message = message.header(headers::ALONE, "true");
        }
    }
    message
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
/// Nobody serves the subject: no dispatcher leads at this moment.
const STATUS_NOBODY_THERE: u16 = 503;
/// How soon it is looked whether one does.
const NEXT_LEADER_AFTER: Duration = Duration::from_millis(250);
/// As long as another dispatcher may take to lead, with some to spare.
const LEADERLESS_MAX: Duration = Duration::from_secs(10);
