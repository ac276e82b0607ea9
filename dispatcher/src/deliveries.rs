//! Messages that this leader answers for: where each is acknowledged, and the signs of life about them.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Subject};
use flotilla_dispatcher_core::StreamSequence;
use tokio::time::timeout;
use tracing::warn;

/// How a message leaves the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// By an acknowledgement, sent there.
    Ack(Subject),
    /// By its removal, as no consumer delivers it any more.
    Removal(StreamSequence),
}

/// Every message that was pulled and not yet acknowledged, by its place in the stream.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    receipts: HashMap<StreamSequence, Receipt>,
}

impl Deliveries {
    /// Remembers how a message leaves the stream; of several deliveries of one message the newest counts.
    pub(crate) fn insert(&mut self, sequence: StreamSequence, receipt: Receipt) {
        self.receipts.insert(sequence, receipt);
    }

    pub(crate) fn contains(&self, sequence: StreamSequence) -> bool {
        self.receipts.contains_key(&sequence)
    }

    /// Every message, by its place.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = StreamSequence> {
        self.receipts.keys().copied()
    }

    /// Forgets a message. `None` when it was acknowledged since and delivered again in between: the
    /// acknowledgement counts for both.
    pub(crate) fn remove(&mut self, sequence: StreamSequence) -> Option<Receipt> {
        self.receipts.remove(&sequence)
    }

    pub(crate) fn len(&self) -> usize {
        self.receipts.len()
    }

    /// Where messages are acknowledged.
    pub(crate) fn acks(&self) -> Vec<Subject> {
        let acks = self.receipts.values().filter_map(|receipt| match receipt {
            Receipt::Ack(subject) => Some(subject.clone()),
            Receipt::Removal(_) => None,
        });
        acks.collect()
    }
}

/// Tells the server that messages are being worked on. Unconfirmed: what is lost costs a redelivery that
/// the core recognises.
pub(crate) async fn extend(client: Client, acks: Vec<Subject>, patience: Duration) {
    let count = acks.len();
    let told = timeout(patience, async {
        for ack in acks {
            client.publish(ack, AckKind::Progress.into()).await?;
        }
        Ok::<(), async_nats::PublishError>(())
    });
    match told.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(count, %error, "cannot extend the ack wait"),
        Err(_) => warn!(
            count,
            "the connection does not take signs of life; messages will be redelivered"
        ),
    }
}
