//! Messages on their way out, so that the owner never waits for NATS.
//!
//! What does not fit is dropped and logged: reports are made good by the next one, the ends of attempts by
//! the next report, and an assignment without an answer is tried again.

use std::time::Duration;

use async_nats::{Client, Subject};
use bytes::Bytes;
use flotilla_protocol::codec::encode_internal;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, warn};

/// The owner's end of the queue; a task sends what is in it, in order.
#[derive(Debug)]
pub(crate) struct Outbox {
    letters: mpsc::Sender<Letter>,
    sender: AbortOnDropHandle<()>,
    timeout: Duration,
}

#[derive(Debug)]
struct Letter {
    subject: Subject,
    body: Bytes,
}

impl Outbox {
    /// Opens a queue; each message may take `timeout` to be handed to the connection.
    pub(crate) fn open(client: Client, timeout: Duration) -> Self {
        let (letters, queue) = mpsc::channel(LETTERS_MAX);
        let sender = AbortOnDropHandle::new(tokio::spawn(send_all(client, queue, timeout)));
        Self {
            letters,
            sender,
            timeout,
        }
    }

    /// Queues a message of ours.
    pub(crate) fn send(&self, subject: impl Into<Subject>, message: &impl Serialize) {
        let subject = subject.into();
        let body = match encode_internal(message) {
            Ok(body) => body,
            Err(error) => {
                error!(%subject, %error, "a message cannot be encoded");
                return;
            }
        };
        if let Err(error) = self.letters.try_send(Letter { subject, body }) {
            debug!(%error, "the outbox is full, a message is dropped");
        }
    }

    /// Sends what is queued and waits until the server has it, but not for ever.
    pub(crate) async fn close(self) {
        drop(self.letters);
        match timeout(self.timeout * 2, self.sender).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the outbox broke"),
            Err(_) => warn!("the last messages were not sent in time"),
        }
    }
}

async fn send_all(client: Client, mut queue: mpsc::Receiver<Letter>, limit: Duration) {
    while let Some(Letter { subject, body }) = queue.recv().await {
        match timeout(limit, client.publish(subject, body)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "a message was not sent"),
            Err(_) => debug!("a message was not sent in time"),
        }
    }
    match timeout(limit, client.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "the last messages may be lost"),
        Err(_) => warn!("the last messages were not confirmed in time"),
    }
}

/// Messages that wait: some seconds of a busy worker's.
const LETTERS_MAX: usize = 1024;
