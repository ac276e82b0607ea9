//! The peer: the least that a durable queue over JetStream costs. A request is published to a work queue,
//! a durable consumer pulls it, its result is published to a second stream, the request is acked, and the
//! client reads the result from a core subscription.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use flotilla_client::{Connection, new_request_id};
use futures_util::StreamExt;
use tokio::task::JoinHandle;

/// Two streams and a task that answers.
pub(super) struct Peer {
    client: Connection,
    answering: JoinHandle<anyhow::Result<()>>,
}

impl Peer {
    /// Creates the streams and starts to answer, over a connection of its own.
    ///
    /// # Errors
    /// When the server refuses.
    pub(super) async fn start(
        client: Connection,
        server: &Connection,
        concurrency: u32,
    ) -> anyhow::Result<Self> {
        let context = server.jetstream.clone();
        let requests = context
            .create_stream(stream(REQUESTS, RetentionPolicy::WorkQueue))
            .await?;
        context
            .create_stream(stream(RESULTS, RetentionPolicy::Limits))
            .await?;
        let consumer = requests
            .create_consumer(pull::Config {
                durable_name: Some("bench".to_owned()),
                ack_policy: AckPolicy::Explicit,
                max_ack_pending: i64::from(concurrency) * 2,
                ..Default::default()
            })
            .await?;
        let at_once = usize::try_from(concurrency)?;
        Ok(Self {
            client,
            answering: tokio::spawn(answer(context, consumer, at_once)),
        })
    }

    /// One request, to its result.
    ///
    /// # Errors
    /// When it is not stored, or nobody answers.
    pub(super) async fn ask(&self, body: Bytes) -> anyhow::Result<()> {
        let id = new_request_id();
        let mut results = self.client.client.subscribe(format!("{RESULTS}.{id}")).await?;
        let message = PublishMessage::build().payload(body).message_id(id.as_str());
        let stored = self
            .client
            .jetstream
            .send_publish(format!("{REQUESTS}.{id}"), message);
        stored.await?.await?;
        results.next().await.context("the subscription ended")?;
        Ok(())
    }

    /// Stops to answer and removes the streams.
    ///
    /// # Errors
    /// When answering had failed before.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.answering.abort();
        match self.answering.await {
            Ok(ended) => ended?,
            Err(error) if error.is_cancelled() => {}
            Err(error) => return Err(error.into()),
        }
        for stream in [REQUESTS, RESULTS] {
            self.client.jetstream.delete_stream(stream).await?;
        }
        Ok(())
    }
}

fn stream(name: &str, retention: RetentionPolicy) -> Config {
    Config {
        name: name.to_owned(),
        subjects: vec![format!("{name}.*")],
        retention,
        max_bytes: STREAM_BYTES_MAX,
        duplicate_window: Duration::from_secs(120),
        ..Default::default()
    }
}

async fn answer(context: jetstream::Context, consumer: PullConsumer, at_once: usize) -> anyhow::Result<()> {
    let messages = consumer.messages().await?;
    let answered = messages.map(|message| {
        let context = &context;
        async move {
            let message = message?;
            let id = message.subject.rsplit('.').next().unwrap_or_default();
            let stored = context
                .publish(format!("{RESULTS}.{id}"), message.payload.clone())
                .await?;
            stored.await?;
            message
                .ack_with(AckKind::Ack)
                .await
                .map_err(|error| anyhow::anyhow!(error))
        }
    });
    let mut answered = std::pin::pin!(answered.buffer_unordered(at_once));
    while let Some(ended) = answered.next().await {
        ended?;
    }
    Ok(())
}

const REQUESTS: &str = "BENCH_REQUESTS";
const RESULTS: &str = "BENCH_RESULTS";
const STREAM_BYTES_MAX: i64 = 1 << 30;
