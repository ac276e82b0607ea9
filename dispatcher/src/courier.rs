//! Carries out what the core decides: each order as one future, to be run in its request's lane.

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::AckKind;
use async_nats::{HeaderMap, Request, Subject};
use bytes::Bytes;
use flotilla_client::{AppendError, Connection, Entry, Journal, NewEntry};
use flotilla_dispatcher_core::{AssignOutcome, JournalState};
use flotilla_protocol::assignment::{Assignment, Cancel, Control};
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::event::{Event, Progress};
use flotilla_protocol::{Attempt, Encoding, ModelName, RequestId, Strikes, WorkerId, headers};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::dead::{self, Letter};
use crate::error::chain;
use crate::ground::Ground;
use crate::journal_state::journal_state;

/// What came of an order.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Of an assignment.
    Assigned {
        worker: WorkerId,
        attempt: Attempt,
        outcome: AssignOutcome,
    },
    /// The journal was read.
    Journal(JournalState),
    /// The journal is terminal.
    Ended,
    /// Nothing that the core must hear.
    Done,
}

/// Carries out orders. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Courier {
    connection: Connection,
    journal: Journal,
    assign_timeout: Duration,
    /// Bounds the journals that are read at once: a new leader has thousands to read.
    journal_permits: Arc<Semaphore>,
}

impl Courier {
    pub(crate) fn new(ground: &Ground) -> Self {
        Self {
            connection: ground.connection.clone(),
            journal: Journal::new(&ground.connection),
            assign_timeout: ground.config.dispatcher.assign_timeout,
            journal_permits: Arc::new(Semaphore::new(JOURNALS_AT_ONCE_MAX)),
        }
    }

    pub(crate) async fn assign(self, worker: WorkerId, assignment: Assignment) -> Outcome {
        let attempt = assignment.attempt;
        let outcome = self.ask(&worker, &assignment).await;
        Outcome::Assigned {
            worker,
            attempt,
            outcome,
        }
    }

    async fn ask(&self, worker: &WorkerId, assignment: &Assignment) -> AssignOutcome {
        let body = encode_internal(assignment).expect("an assignment can be written");
        let request = Request::new().payload(body).timeout(Some(self.assign_timeout));
        let subject = self.connection.subjects.assign(worker);
        let (request_id, attempt) = (&assignment.request, assignment.attempt.0);
        match self.connection.client.send_request(subject, request).await {
            Ok(message) => match decode_internal(&message.payload) {
                Ok(reply) => return AssignOutcome::Replied(reply),
                Err(error) => {
                    warn!(%request_id, attempt, worker_id = %worker, %error, "an answer to an assignment cannot be read");
                }
            },
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                info!(%request_id, attempt, worker_id = %worker, "the worker is not there");
            }
            Err(error) => {
                warn!(%request_id, attempt, worker_id = %worker, %error, "no answer to an assignment");
            }
        }
        AssignOutcome::NoAnswer
    }

    pub(crate) async fn read_journal(self, request: RequestId) -> Outcome {
        Outcome::Journal(journal_state(&self.entries(&request).await))
    }

    /// Reads until it succeeds.
    async fn entries(&self, request: &RequestId) -> Vec<Entry> {
        let mut backoff = Backoff::new();
        loop {
            let permit = self.journal_permits.acquire().await;
            let read = self.journal.read(request, 0).await;
            drop(permit.expect("the permits are never closed"));
            match read {
                Ok(entries) => return entries,
                Err(error) => {
                    let error = chain(&error);
                    warn!(request_id = %request, error, "a journal cannot be read yet");
                    backoff.pause().await;
                }
            }
        }
    }

    /// Makes a journal terminal; tries until it is.
    pub(crate) async fn end(self, request: RequestId, encoding: Encoding, event: Event) -> Outcome {
        let mut backoff = Backoff::new();
        loop {
            let entries = self.entries(&request).await;
            if journal_state(&entries) == JournalState::Terminal {
                return Outcome::Ended;
            }
            let appended = self.journal.append(NewEntry {
                request: &request,
                expected_last_sequence: entries.last().map_or(0, |last| last.sequence),
                attempt: Attempt(0),
                worker: None,
                incarnation: None,
                strikes: Strikes(0),
                encoding,
                event: &event,
            });
            match appended.await {
                Ok(_) => {
                    info!(request_id = %request, event = %event.kind(), "request ended by the dispatcher");
                    return Outcome::Ended;
                }
                // A worker that is still writing: behind what it wrote.
                Err(AppendError::Conflict { .. }) => {}
                Err(error) => {
                    let error = chain(&error);
                    warn!(request_id = %request, error, "a request cannot be ended yet");
                    backoff.pause().await;
                }
            }
        }
    }

    pub(crate) async fn dead_letter(self, letter: Letter) -> Outcome {
        dead::store(&self.connection, &letter).await;
        Outcome::Done
    }

    /// Keeps a message that is nobody's request as a dead letter, then takes it out of the stream.
    pub(crate) async fn discard(self, letter: Letter, ack: Subject) {
        dead::store(&self.connection, &letter).await;
        let confirmed = self.connection.client.request(ack, AckKind::Term.into());
        if let Err(error) = confirmed.await {
            warn!(stream_seq = letter.sequence.0, %error, "the end of a message is not confirmed");
        }
    }

    /// Gives a message back to the stream, to come again when there is room.
    pub(crate) async fn give_back(self, ack: Subject) -> Outcome {
        let body = AckKind::Nak(Some(GIVEN_BACK_FOR)).into();
        self.publish(ack.to_string(), HeaderMap::new(), body).await;
        Outcome::Done
    }

    /// Acknowledges; a failure is only logged, because a redelivery finds the journal terminal.
    pub(crate) async fn ack(self, request: RequestId, acks: Vec<Subject>) -> Outcome {
        let confirmed = acks.into_iter().map(|ack| {
            let asked = self.connection.client.request(ack, AckKind::Ack.into());
            self.connection.answered(asked)
        });
        for answer in join_all(confirmed).await {
            match answer {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => warn!(request_id = %request, %error, "an acknowledgement is not confirmed"),
                Err(error) => warn!(request_id = %request, %error, "an acknowledgement is not confirmed"),
            }
        }
        Outcome::Done
    }

    pub(crate) async fn cancel(self, worker: WorkerId, request: RequestId) -> Outcome {
        let body = encode_internal(&Cancel { request }).expect("a cancellation can be written");
        let subject = self.connection.subjects.worker_cancel(&worker);
        self.publish(subject, HeaderMap::new(), body).await;
        Outcome::Done
    }

    /// Asks for a model in host memory. A worker that does not hear it loads the model from farther away.
    pub(crate) async fn prefetch(self, worker: WorkerId, model: ModelName) {
        let body = encode_internal(&Control::Prefetch { model }).expect("an order can be written");
        let subject = self.connection.subjects.control(&worker);
        self.publish(subject, HeaderMap::new(), body).await;
    }

    pub(crate) async fn progress(
        self,
        request: RequestId,
        encoding: Encoding,
        progress: Progress,
    ) -> Outcome {
        let event = Event::Progress(progress);
        let body = event.encode(encoding).expect("progress can be written");
        let mut found = HeaderMap::new();
        found.insert(headers::EVENT, event.kind().as_str());
        found.insert(headers::ATTEMPT, "0");
        found.insert(headers::CONTENT_TYPE, encoding.content_type());
        self.publish(self.connection.subjects.events(&request), found, body)
            .await;
        Outcome::Done
    }

    /// Sends without confirmation: what is lost is told again, or not missed.
    async fn publish(&self, subject: String, found: HeaderMap, body: Bytes) {
        let sent = self
            .connection
            .client
            .publish_with_headers(subject.clone(), found, body);
        match timeout(self.connection.request_timeout, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(subject, %error, "cannot publish"),
            Err(_) => warn!(subject, "the connection takes no message"),
        }
    }
}

/// Journals read at once: fills a connection with small requests, without thousands of
/// subscriptions.
const JOURNALS_AT_ONCE_MAX: usize = 128;
/// How long a message stays away for which there was no room.
const GIVEN_BACK_FOR: Duration = Duration::from_secs(1);
