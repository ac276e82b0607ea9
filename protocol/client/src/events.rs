//! Following one request's answer.
//!
//! Live events come by core NATS, which may lose them (a reconnect, a slow reader). Each republished event
//! says which sequence it follows, so that a gap is seen and read from the journal. When nothing comes for a
//! while, or the connection came back, the journal is asked as well: the lost message may have been the last.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subscriber};
use flotilla_protocol::event::{Event, EventKind};
use flotilla_protocol::{Attempt, RequestId};
use futures_util::StreamExt;
use thiserror::Error;
use tokio::time::timeout;
use tracing::warn;

use crate::connection::{Connection, Reconnects};
use crate::journal::{Entry, Journal, ReadError, SEQUENCE_HEADER, decode_event, number};

/// One event as a client gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivered {
    /// Its place in the journal; `None` for progress, which is not stored.
    pub sequence: Option<u64>,
    /// The attempt that wrote it; 0 when the dispatcher did.
    pub attempt: Attempt,
    /// The event.
    pub event: Event,
}

/// Why the events of a request cannot be followed.
#[derive(Debug, Error)]
pub enum EventsError {
    /// The subscription could not be made.
    #[error("cannot subscribe to the events of {request}")]
    Subscribe {
        /// The request.
        request: RequestId,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The client was closed.
    #[error("the connection was closed before {request} ended")]
    Closed {
        /// The request.
        request: RequestId,
    },
    /// A gap could not be repaired.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The journal no longer holds the whole answer: the stream has dropped its beginning for age or size.
    #[error(
        "the journal of {request} goes on at token {offset}, after {seen} tokens: the stream has dropped a part of it for size \
         or age (nats.journal_max_bytes, nats.journal_max_age_s); `flotilla journal {request}` shows what it holds"
    )]
    Incomplete {
        /// The request.
        request: RequestId,
        /// Tokens delivered before.
        seen: u32,
        /// Offset of the next tokens.
        offset: u32,
    },
}

/// The events of one request, each stored one exactly once and in order.
#[derive(Debug)]
pub struct Events {
    request: RequestId,
    journal: Journal,
    live: Subscriber,
    reconnects: Reconnects,
    /// Sequence of the newest stored event that was delivered or lies in `repaired`.
    last_sequence: u64,
    repaired: VecDeque<Entry>,
    /// Newest sequence that a live event told of.
    heard_sequence: u64,
    /// Tokens delivered.
    tokens: u32,
    ended: bool,
}

impl Events {
    /// Subscribes. Events stored before are not delivered until a gap or a silence makes them missed; use
    /// [`Events::from_start`] for a request that may have begun.
    ///
    /// # Errors
    /// [`EventsError::Subscribe`].
    pub async fn subscribe(connection: &Connection, request: RequestId) -> Result<Self, EventsError> {
        let reconnects = connection.reconnects();
        let failed = |source| EventsError::Subscribe {
            request: request.clone(),
            source,
        };
        let subject = connection.subjects.events(&request);
        let live = connection.within(connection.client.subscribe(subject)).await;
        let live = live.map_err(|late| failed(late.into()))?;
        let live = live.map_err(|error| failed(error.into()))?;
        let journal = Journal::new(connection);
        Ok(Self {
            request,
            journal,
            live,
            reconnects,
            last_sequence: 0,
            repaired: VecDeque::new(),
            heard_sequence: 0,
            tokens: 0,
            ended: false,
        })
    }

    /// Subscribes and delivers what is stored already first.
    ///
    /// # Errors
    /// [`EventsError`].
    pub async fn from_start(connection: &Connection, request: RequestId) -> Result<Self, EventsError> {
        let mut events = Self::subscribe(connection, request).await?;
        events.repair().await?;
        Ok(events)
    }

    /// The next event; `None` after the terminal one. Waits as long as the request takes: a caller with less
    /// patience wraps it in a timeout, which loses nothing.
    ///
    /// # Errors
    /// [`EventsError`]; a read that failed may be tried again by calling once more.
    pub async fn next(&mut self) -> Result<Option<Delivered>, EventsError> {
        loop {
            if let Some(entry) = self.repaired.pop_front() {
                let Entry {
                    sequence,
                    attempt,
                    event,
                    ..
                } = entry;
                return self.deliver(sequence, attempt, event).map(Some);
            }
            if self.ended {
                return Ok(None);
            }
            match self.hear().await? {
                None => self.repair().await?,
                Some(message) => {
                    if let Some(delivered) = self.take(&message).await? {
                        return Ok(Some(delivered));
                    }
                }
            }
        }
    }

    /// The next live message; `None` when something may be missing.
    async fn hear(&mut self) -> Result<Option<Message>, EventsError> {
        // The journal is read from any of its copies, and one of several servers may lag behind the one that told of it.
        let silence_max = match self.heard_sequence > self.last_sequence {
            true => REPAIR_AGAIN_AFTER,
            false => SILENCE_MAX,
        };
        tokio::select! {
            heard = timeout(silence_max, self.live.next()) => match heard {
                Err(_) => Ok(None),
                Ok(Some(message)) => Ok(Some(message)),
                Ok(None) => Err(EventsError::Closed {
                    request: self.request.clone(),
                }),
            },
            () = self.reconnects.next() => Ok(None),
        }
    }

    async fn take(&mut self, message: &Message) -> Result<Option<Delivered>, EventsError> {
        let empty = HeaderMap::new();
        let found = message.headers.as_ref().unwrap_or(&empty);
        let sequence = number(found, SEQUENCE_HEADER);
        if let Some(sequence) = sequence {
            self.heard_sequence = self.heard_sequence.max(sequence);
            if sequence <= self.last_sequence {
                return Ok(None);
            }
            if number(found, LAST_SEQUENCE_HEADER) != Some(self.last_sequence) {
                self.repair().await?;
                return Ok(None);
            }
        }
        let (attempt, _, event) = match decode_event(found, &message.payload) {
            Ok(decoded) => decoded,
            Err(fault) => {
                warn!(request_id = %self.request, error = %fault, "ignored a message that is not an event");
                return Ok(None);
            }
        };
        match sequence {
            Some(sequence) => {
                self.last_sequence = sequence;
                self.deliver(sequence, attempt, event).map(Some)
            }
            None if event.kind() == EventKind::Progress => Ok(Some(Delivered {
                sequence: None,
                attempt,
                event,
            })),
            None => {
                warn!(request_id = %self.request, event = %event.kind(), "ignored an event that is not stored");
                Ok(None)
            }
        }
    }

    /// Counts what is delivered: the answer has every token once, and one end.
    fn deliver(&mut self, sequence: u64, attempt: Attempt, event: Event) -> Result<Delivered, EventsError> {
        if let Event::Tokens(tokens) = &event {
            if tokens.offset != self.tokens {
                return Err(EventsError::Incomplete {
                    request: self.request.clone(),
                    seen: self.tokens,
                    offset: tokens.offset,
                });
            }
            let count = u32::try_from(tokens.token_ids.len()).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(count);
        }
        self.ended = event.kind().is_terminal();
        Ok(Delivered {
            sequence: Some(sequence),
            attempt,
            event,
        })
    }

    /// Reads what is stored beyond the last delivered event.
    async fn repair(&mut self) -> Result<(), EventsError> {
        let missed = self.journal.read(&self.request, self.last_sequence).await?;
        if let Some(last) = missed.last() {
            self.last_sequence = last.sequence;
        }
        self.repaired.extend(missed);
        Ok(())
    }
}

/// Silence after which the journal is asked. Long enough that a loaded fleet is not asked by every waiting
/// client, short enough that a lost last event does not look like a hang.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How soon the journal is asked again that does not hold yet what is known to be stored.
const REPAIR_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// On a republished message: the sequence before it on the same subject.
const LAST_SEQUENCE_HEADER: &str = "Nats-Last-Sequence";
