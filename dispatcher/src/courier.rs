//! Carries out what the core decides: each order as one future, to be run in its request's lane.

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::AckKind;
use async_nats::{HeaderMap, Request};
use bytes::Bytes;
use flotilla_client::{AppendError, Connection, Content, Journal, NewEntry};
use flotilla_dispatcher_core::{AssignOutcome, JournalState, StreamSequence};
use flotilla_protocol::assignment::{Assignment, Cancel, Control};
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::event::{Event, Progress};
use flotilla_protocol::{Attempt, Encoding, ModelName, RequestId, Strikes, TraceParent, WorkerId, headers};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::dead::{self, Letter};
use crate::deliveries::Receipt;
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

/// What came of an order that is no request's.
#[derive(Debug)]
pub(crate) enum Errand {
    /// Nothing that the core must hear.
    Done,
    /// Nobody listens where this worker would.
    Absent(WorkerId),
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

    pub(crate) async fn assign(
        self,
        worker: WorkerId,
        assignment: Assignment,
        trace: Option<TraceParent>,
    ) -> Outcome {
        let attempt = assignment.attempt;
        let outcome = self.ask(&worker, &assignment, trace.as_ref()).await;
        Outcome::Assigned {
            worker,
            attempt,
            outcome,
        }
    }

    async fn ask(
        &self,
        worker: &WorkerId,
        assignment: &Assignment,
        trace: Option<&TraceParent>,
    ) -> AssignOutcome {
        let body = encode_internal(assignment).expect("an assignment can be written");
        let mut request = Request::new().payload(body).timeout(Some(self.assign_timeout));
        if let Some(trace) = trace {
            let mut found = HeaderMap::new();
            found.insert(headers::TRACE_PARENT, trace.as_str());
            request = request.headers(found);
        }
        let subject = self.connection.subjects.assign(worker);
        let (request_id, attempt) = (&assignment.request, assignment.attempt.0);
        let asked = self.connection.client.send_request(subject, request);
        // The request's own limit begins when it has left the client's queue.
        let Ok(answer) = timeout(self.assign_timeout * 2, asked).await else {
            warn!(%request_id, attempt, worker_id = %worker, "the connection takes no assignment");
            return AssignOutcome::NoAnswer;
        };
        match answer {
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
        Outcome::Journal(journal_state(&self.content(&request).await))
    }

    /// Reads until it succeeds.
    async fn content(&self, request: &RequestId) -> Content {
        let mut backoff = Backoff::new();
        loop {
            let permit = self.journal_permits.acquire().await;
            let read = self.journal.read_all(request).await;
            drop(permit.expect("the permits are never closed"));
            match read {
                Ok(content) => return content,
                Err(error) => {
                    let error = chain(&error);
                    warn!(request_id = %request, error, "a journal cannot be read yet");
                    backoff.pause().await;
                }
            }
        }
    }

    /// Makes a journal terminal; tries until it is.
    pub(crate) async fn end(
        self,
        request: RequestId,
        encoding: Encoding,
        event: Event,
        trace: Option<TraceParent>,
    ) -> Outcome {
        let mut backoff = Backoff::new();
        loop {
            let content = self.content(&request).await;
            if journal_state(&content) == JournalState::Terminal {
                return Outcome::Ended;
            }
            let entry = NewEntry {
                request: &request,
                expected_last_sequence: content.last_sequence,
                attempt: Attempt(0),
                worker: None,
                incarnation: None,
                strikes: Strikes(0),
                alone: false,
                encoding,
                event: &event,
            };
            match self.journal.append_traced(entry, trace.as_ref()).await {
                Ok(_) => {
                    info!(request_id = %request, event = %event.kind(), "request ended by the dispatcher");
                    return Outcome::Ended;
                }
                // A worker that is still writing: behind what it wrote. A copy of the journal may lack that for a while.
                Err(AppendError::Conflict { .. }) => backoff.pause().await,
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
    pub(crate) async fn discard(self, letter: Letter, receipt: Receipt) {
        dead::store(&self.connection, &letter).await;
        let confirmed = async {
            match receipt {
                Receipt::Ack(subject) => {
                    let terminated = format!("+TERM {KEPT}").into();
                    let confirmed = self.connection.client.request(subject, terminated).await;
                    confirmed.map(drop).map_err(async_nats::Error::from)
                }
                Receipt::Removal(sequence) => self.remove(sequence).await,
            }
        };
        let fault: async_nats::Error = match self.connection.within(confirmed).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(late) => late.into(),
        };
        warn!(stream_seq = letter.sequence.0, error = %fault, "the end of a message is not confirmed");
    }

    /// Gives a message back to the stream, to come again when there is room. One that no consumer delivers is found
    /// again by the next looks at the stream.
    pub(crate) async fn give_back(self, receipt: Receipt) -> Outcome {
        if let Receipt::Ack(subject) = receipt {
            let body = AckKind::Nak(Some(GIVEN_BACK_FOR)).into();
            self.publish(subject.to_string(), HeaderMap::new(), body).await;
        }
        Outcome::Done
    }

    async fn remove(&self, sequence: StreamSequence) -> Result<(), async_nats::Error> {
        let jetstream = &self.connection.jetstream;
        let name = self.connection.subjects.requests_stream();
        let stream = jetstream.get_stream_no_info(name).await?;
        stream.delete_message(sequence.0).await?;
        Ok(())
    }

    /// Acknowledges; a failure is only logged, because a redelivery finds the journal terminal.
    pub(crate) async fn ack(self, request: RequestId, receipts: Vec<Receipt>) -> Outcome {
        let confirmed = receipts.into_iter().map(|receipt| {
            let settled = self.settle(receipt);
            self.connection.within(self.connection.answered(settled))
        });
        for answer in join_all(confirmed).await {
            let fault: async_nats::Error = match answer {
                Ok(Ok(Ok(()))) => continue,
                Ok(Ok(Err(error))) => error,
                Ok(Err(disconnected)) => disconnected.into(),
                Err(late) => late.into(),
            };
            warn!(request_id = %request, error = %fault, "an acknowledgement is not confirmed");
        }
        Outcome::Done
    }

    async fn settle(&self, receipt: Receipt) -> Result<(), async_nats::Error> {
        match receipt {
            Receipt::Ack(subject) => {
                let confirmed = self.connection.client.request(subject, AckKind::Ack.into());
                confirmed.await.map(drop).map_err(async_nats::Error::from)
            }
            Receipt::Removal(sequence) => self.remove(sequence).await,
        }
    }

    pub(crate) async fn cancel(self, worker: WorkerId, request: RequestId) -> Outcome {
        let body = encode_internal(&Cancel { request }).expect("a cancellation can be written");
        let subject = self.connection.subjects.worker_cancel(&worker);
        self.publish(subject, HeaderMap::new(), body).await;
        Outcome::Done
    }

    /// Asks for a model in host memory. A worker that does not hear it loads the model from farther away.
    pub(crate) async fn prefetch(self, worker: WorkerId, model: ModelName) -> Errand {
        let body = encode_internal(&Control::Prefetch { model }).expect("an order can be written");
        let subject = self.connection.subjects.control(&worker);
        self.publish(subject, HeaderMap::new(), body).await;
        Errand::Done
    }

    /// Asks for a report, which comes as every report does. What the server knows is whether anybody listens there.
    pub(crate) async fn ask_for_report(self, worker: WorkerId) -> Errand {
        let body = encode_internal(&Control::Report).expect("an order can be written");
        let request = Request::new().payload(body).timeout(Some(self.assign_timeout));
        let subject = self.connection.subjects.control(&worker);
        let asked = self.connection.client.send_request(subject, request);
        match self.connection.within(asked).await {
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                info!(worker_id = %worker, "a worker that is late with its report has no connection");
                Errand::Absent(worker)
            }
            Ok(_) | Err(_) => Errand::Done,
        }
    }

    pub(crate) async fn progress(
        self,
        request: RequestId,
        encoding: Encoding,
        progress: Progress,
        trace: Option<TraceParent>,
    ) -> Outcome {
        let event = Event::Progress(progress);
        let body = event.encode(encoding).expect("progress can be written");
        let mut found = HeaderMap::new();
        found.insert(headers::EVENT, event.kind().as_str());
        found.insert(headers::ATTEMPT, "0");
        found.insert(headers::CONTENT_TYPE, encoding.content_type());
        if let Some(trace) = trace {
            found.insert(headers::TRACE_PARENT, trace.as_str());
        }
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

/// Why we take a message out of the stream that is nobody's request, in the server's advisory.
pub(crate) const KEPT: &str = "kept as a dead letter";
/// Journals read at once: fills a connection with small requests, without thousands of
/// subscriptions.
const JOURNALS_AT_ONCE_MAX: usize = 128;
/// How long a message stays away for which there was no room.
const GIVEN_BACK_FOR: Duration = Duration::from_secs(1);
