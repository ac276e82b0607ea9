//! What others say to this worker, decoded.

use async_nats::{Message, Subject, Subscriber};
use flotilla_client::Connection;
use flotilla_protocol::assignment::{Assignment, Cancel, Control};
use flotilla_protocol::codec::decode_internal;
use flotilla_protocol::{DecodeError, TraceParent, WorkerId, headers};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::error::WorkerError;

/// The worker's subscriptions.
#[derive(Debug)]
pub(crate) struct Inbox {
    assign: Subscriber,
    cancel: Subscriber,
    control: Subscriber,
    report_now: Subscriber,
}

/// One message.
#[derive(Debug)]
pub(crate) enum Letter {
    /// A request to run.
    Assign {
        /// The request.
        assignment: Box<Assignment>,
        /// The trace that it belongs to, if any.
        trace: Option<TraceParent>,
        /// Where the answer goes.
        reply: Option<Subject>,
    },
    /// A request to end.
    Cancel(Cancel),
    /// An order.
    Control {
        /// The order; or that it cannot be read, which whoever gave it is told.
        order: Result<Control, DecodeError>,
        /// Where the answer goes.
        reply: Option<Subject>,
    },
    /// A leader wants a report.
    ReportNow,
}

impl Inbox {
    /// Subscribes to everything that concerns this worker.
    ///
    /// # Errors
    /// [`WorkerError::Subscribe`].
    pub(crate) async fn open(connection: &Connection, worker: &WorkerId) -> Result<Self, WorkerError> {
        let subjects = &connection.subjects;
        Ok(Self {
            assign: subscribe(connection, subjects.assign(worker)).await?,
            cancel: subscribe(connection, subjects.worker_cancel(worker)).await?,
            control: subscribe(connection, subjects.control(worker)).await?,
            report_now: subscribe(connection, subjects.report_now()).await?,
        })
    }

    /// The next message; `None` when the connection is closed for good. What cannot be read is logged, and but for orders
    /// skipped: it gets no answer, which the sender takes for a lost one. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Option<Letter> {
        loop {
            // What ends work comes before new work, and an order never overtakes an earlier cancellation.
            let letter = tokio::select! {
                biased;
                message = self.cancel.next() => decoded(&message?).map(Letter::Cancel),
                message = self.control.next() => {
                    let message = message?;
                    let reply = message.reply.clone();
                    Some(Letter::Control { order: read(&message), reply })
                }
                message = self.report_now.next() => {
                    message?;
                    Some(Letter::ReportNow)
                }
                message = self.assign.next() => {
                    let message = message?;
                    let reply = message.reply.clone();
                    let trace = trace(&message);
                    decoded(&message).map(|assignment| Letter::Assign { assignment, trace, reply })
                }
            };
            if letter.is_some() {
                return letter;
            }
        }
    }
}

async fn subscribe(connection: &Connection, subject: String) -> Result<Subscriber, WorkerError> {
    let subscribed = connection.within(connection.client.subscribe(subject.clone()));
    let source = match subscribed.await {
        Ok(Ok(subscriber)) => return Ok(subscriber),
        Ok(Err(error)) => error.into(),
        Err(late) => late.into(),
    };
    Err(WorkerError::Subscribe { subject, source })
}

fn trace(message: &Message) -> Option<TraceParent> {
    TraceParent::parse(message.headers.as_ref()?.get(headers::TRACE_PARENT)?.as_str())
}

fn read<T: DeserializeOwned>(message: &Message) -> Result<T, DecodeError> {
    decode_internal(&message.payload)
        .inspect_err(|error| warn!(subject = %message.subject, %error, "a message cannot be read"))
}

fn decoded<T: DeserializeOwned>(message: &Message) -> Option<T> {
    // Logged; there is nobody else to tell.
    read(message).ok()
}
