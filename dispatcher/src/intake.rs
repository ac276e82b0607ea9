//! Pulls one class's messages and hands them to the owner, who takes them as fast as it has room.

use std::time::{Duration, SystemTime};

use async_nats::Message;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::MessagesError;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::ConsumerError;
use async_nats::jetstream::{self};
use flotilla_dispatcher_core::{Origin, StreamSequence};
use flotilla_protocol::{Class, TraceParent, headers};
use futures_util::StreamExt;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use crate::backoff::Backoff;
use crate::deliveries::Receipt;
use crate::error::chain;
use crate::ground::Ground;
use crate::topology::class_consumer;

/// A message of the request stream.
#[derive(Debug)]
pub(crate) struct Pulled {
    pub(crate) sequence: StreamSequence,
    /// How it leaves the stream.
    pub(crate) receipt: Receipt,
    /// How often it was delivered, this time included.
    deliveries: i64,
    published_ns: i128,
    pub(crate) message: Message,
}

/// Why pulling has to begin anew.
#[derive(Debug, Error)]
enum PullFault {
    #[error("the consumer cannot be opened")]
    Consumer(#[source] ConsumerError),
    #[error("the stream of messages cannot be opened")]
    Open(#[source] async_nats::Error),
    #[error("the stream of messages broke")]
    Broke(#[source] MessagesError),
    #[error("no answer when opening the consumer")]
    TimedOut,
    #[error("the stream of messages ended")]
    Ended,
}

impl Pulled {
    /// `None` when the message does not come from JetStream.
    fn new(message: jetstream::Message) -> Option<Self> {
        let info = message.info().ok()?;
        let (sequence, deliveries) = (StreamSequence(info.stream_sequence), info.delivered);
        let published_ns = info.published.unix_timestamp_nanos();
        let mut message = Message::from(message);
        let receipt = Receipt::Ack(message.reply.take()?);
        Some(Self {
            sequence,
            receipt,
            deliveries,
            published_ns,
            message,
        })
    }

    /// A message that was got out of the stream, since no consumer delivers it any more.
    pub(crate) fn swept(stored: StreamMessage) -> Self {
        let sequence = StreamSequence(stored.sequence);
        let length = stored.payload.len();
        Self {
            sequence,
            receipt: Receipt::Removal(sequence),
            deliveries: SWEPT_DELIVERIES,
            published_ns: stored.time.unix_timestamp_nanos(),
            message: Message {
                subject: stored.subject,
                reply: None,
                payload: stored.payload,
                headers: Some(stored.headers),
                status: None,
                description: None,
                length,
            },
        }
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        Some(self.message.headers.as_ref()?.get(name)?.as_str())
    }

    /// The trace that it belongs to, if any.
    pub(crate) fn trace(&self) -> Option<TraceParent> {
        TraceParent::parse(self.header(headers::TRACE_PARENT)?)
    }

    /// Whether anybody may have seen it: delivered before, or published before this term began, when the
    /// stream's newest message was `last_before_term`.
    pub(crate) fn origin(&self, last_before_term: StreamSequence) -> Origin {
        if self.deliveries > 1 || self.sequence <= last_before_term {
            Origin::MaybeSeen
        } else {
            Origin::Fresh
        }
    }

    /// Time since the server stored it, by this machine's clock; zero when that clock is behind.
    pub(crate) fn age(&self) -> Duration {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now_ns = now.map_or(0, |now| i128::try_from(now.as_nanos()).unwrap_or(i128::MAX));
        Duration::from_nanos(u64::try_from(now_ns - self.published_ns).unwrap_or(0))
    }
}

/// Pulls until the owner is gone. Whatever breaks is begun anew; messages that were under way come again.
pub(crate) async fn pull(ground: Ground, class: Class, owner: mpsc::Sender<Pulled>) {
    let mut backoff = Backoff::new();
    let mut restarts = 0_u64;
    while !owner.is_closed() {
        let fault = pull_until_fault(&ground, class, &owner, &mut backoff).await;
        if let Err(fault) = fault {
            restarts += 1;
            let error = chain(&fault);
            warn!(%class, restarts, error, "pulling requests begins anew");
            backoff.pause().await;
        }
    }
}

async fn pull_until_fault(
    ground: &Ground,
    class: Class,
    owner: &mpsc::Sender<Pulled>,
    backoff: &mut Backoff,
) -> Result<(), PullFault> {
    let consumer = open(ground, class).await?;
    let messages = consumer
        .stream()
        .max_messages_per_batch(ground.config.dispatcher.pull_batch_max)
        .expires(PULL_EXPIRES)
        .heartbeat(PULL_HEARTBEAT)
        .messages();
    let messages = ground.connection.within(messages).await;
    let mut messages = messages
        .map_err(|_| PullFault::TimedOut)?
        .map_err(|error| PullFault::Open(error.into()))?;
    while let Some(message) = messages.next().await {
        let message = message.map_err(PullFault::Broke)?;
        backoff.reset();
        let Some(pulled) = Pulled::new(message) else {
            warn!(%class, "ignored a message that does not come from the stream");
            continue;
        };
        if owner.send(pulled).await.is_err() {
            return Ok(());
        }
    }
    Err(PullFault::Ended)
}

/// Opens the class's consumer, and makes it where somebody has removed it.
async fn open(ground: &Ground, class: Class) -> Result<PullConsumer, PullFault> {
    let connection = &ground.connection;
    let made = connection.jetstream.create_consumer_on_stream(
        class_consumer(&connection.subjects, &ground.config, class),
        connection.subjects.requests_stream(),
    );
    let made = timeout(connection.request_timeout, made).await;
    made.map_err(|_| PullFault::TimedOut)?
        .map_err(PullFault::Consumer)
}

/// Somebody has seen a message that is swept.
const SWEPT_DELIVERIES: i64 = 2;
/// How long one pull waits at the server.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// Silence of twice this means that the pull is lost.
const PULL_HEARTBEAT: Duration = Duration::from_secs(2);
