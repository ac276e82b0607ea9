//! How our streams and consumers stand on the server, asked when somebody scrapes.

use std::time::Duration;

use async_nats::ServerInfo;
use async_nats::jetstream::account::Account;
use async_nats::jetstream::consumer;
use async_nats::jetstream::stream::{self, ClusterInfo};
use flotilla_client::Connection;
use flotilla_protocol::Class;
use flotilla_telemetry::{Metric, Readings, Source};
use futures_util::future::{join, join_all};
use tokio::time::timeout;
use tracing::debug;

use super::jetstream::{
    CONSUMER_ACK_FLOOR, CONSUMER_ACK_FLOOR_STREAM, CONSUMER_ACK_PENDING, CONSUMER_DELIVERED,
    CONSUMER_DELIVERED_STREAM, CONSUMER_PENDING, CONSUMER_REDELIVERED, CONSUMER_WAITING, JS_BYTES,
    JS_CONSUMERS, JS_DISABLED, JS_MAX_MEMORY, JS_MAX_STORAGE, JS_MESSAGES, JS_STREAMS, STREAM_BYTES,
    STREAM_CONSUMERS, STREAM_FIRST, STREAM_LAST, STREAM_LIMIT_BYTES, STREAM_LIMIT_MESSAGES, STREAM_MESSAGES,
};
use crate::error::chain;
use crate::ground::Ground;
use crate::topology::stream_names;

/// What the server said.
struct Found {
    server: ServerInfo,
    account: Option<Account>,
    streams: Vec<stream::Info>,
    consumers: Vec<consumer::Info>,
}

/// Answers scrapes for as long as it is left running.
pub(crate) async fn tell_server_state(mut source: Source, ground: Ground) {
    loop {
        let ask = source.asked().await;
        match timeout(LOOK_MAX, look(&ground)).await {
            Ok(found) => ask.answer(move |readings| found.publish(readings)),
            Err(_) => debug!("the server did not tell how its streams stand in time"),
        }
    }
}

async fn look(ground: &Ground) -> Found {
    let connection = &ground.connection;
    let streams = stream_names(&connection.subjects, &ground.config).into_iter();
    let streams = join_all(streams.map(|name| stream_info(connection, name)));
    let consumers = join_all(Class::ALL.map(|class| consumer_info(connection, class)));
    let (account, (streams, consumers)) =
        join(connection.jetstream.query_account(), join(streams, consumers)).await;
    Found {
        server: connection.client.server_info(),
        account: account
            .inspect_err(|error| debug!(error = chain(error), "the account was not told"))
            .ok(),
        streams: streams.into_iter().flatten().collect(),
        consumers: consumers.into_iter().flatten().collect(),
    }
}

async fn stream_info(connection: &Connection, name: String) -> Option<stream::Info> {
    match connection.jetstream.get_stream(&name).await {
        Ok(stream) => Some(stream.cached_info().clone()),
        Err(error) => {
            debug!(stream = name, error = chain(&error), "a stream was not told");
            None
        }
    }
}

async fn consumer_info(connection: &Connection, class: Class) -> Option<consumer::Info> {
    let name = connection.subjects.requests_stream();
    let told = match connection.jetstream.get_stream_no_info(&name).await {
        Ok(stream) => stream
            .consumer_info(class.as_str())
            .await
            .map_err(|error| chain(&error)),
        Err(error) => Err(chain(&error)),
    };
    told.inspect_err(|error| debug!(consumer = class.as_str(), error, "a consumer was not told"))
        .ok()
}

impl Found {
    fn publish(&self, readings: &mut Readings) {
        let cluster = self
            .streams
            .iter()
            .find_map(|info| info.cluster.as_ref()?.name.clone());
        let domain = self.account.as_ref().and_then(|account| account.domain.clone());
        let server = Server {
            id: &self.server.server_id,
            name: &self.server.server_name,
            cluster: cluster.as_deref().unwrap_or_default(),
            domain: domain.as_deref().unwrap_or_default(),
        };
        if let Some(account) = &self.account {
            self.publish_account(readings, &server, account);
        }
        for info in &self.streams {
            publish_stream(readings, &server, info);
        }
        for info in &self.consumers {
            let of_stream = self
                .streams
                .iter()
                .find(|stream| stream.config.name == info.stream_name);
            let of_stream = of_stream.and_then(|stream| stream.cluster.as_ref());
            publish_consumer(readings, &server, of_stream, info);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
    fn publish_account(&self, readings: &mut Readings, server: &Server<'_>, account: &Account) {
        let labels = server.labels();
        let messages: u64 = self.streams.iter().map(|info| info.state.messages).sum();
        readings.count(&JS_DISABLED, &labels, 0);
        readings.count(&JS_STREAMS, &labels, account.streams as u64);
        readings.count(&JS_CONSUMERS, &labels, account.consumers as u64);
        readings.count(&JS_MESSAGES, &labels, messages);
        readings.count(&JS_BYTES, &labels, account.memory + account.storage);
        readings.read(
            &JS_MAX_MEMORY,
            &labels,
            account.limits.max_memory.unwrap_or(-1) as f64,
        );
        readings.read(
            &JS_MAX_STORAGE,
            &labels,
            account.limits.max_storage.unwrap_or(-1) as f64,
        );
    }
}

/// The labels that everything has.
struct Server<'a> {
    id: &'a str,
    name: &'a str,
    cluster: &'a str,
    domain: &'a str,
}

impl<'a> Server<'a> {
    /// Who leads the cluster's own group is told to its monitoring alone.
    fn labels(&self) -> [&'a str; 6] {
        let is_meta_leader = if self.cluster.is_empty() { "true" } else { "" };
        [self.id, self.name, self.cluster, self.domain, "", is_meta_leader]
    }

    /// The leader of a group of servers, and whether it is this one: a server alone leads.
    fn leads<'b>(&self, group: Option<&'b ClusterInfo>) -> (&'b str, &'static str) {
        match group {
            None => ("", "true"),
            Some(group) => {
                let leader = group.leader.as_deref().unwrap_or_default();
                (
                    leader,
                    if leader == self.name || leader.is_empty() {
                        "true"
                    } else {
                        "false"
                    },
                )
            }
        }
    }

    fn of_stream<'b>(&self, name: &'b str, group: Option<&'b ClusterInfo>) -> [&'b str; 11]
    where
        'a: 'b,
    {
        let [id, server, cluster, domain, meta_leader, is_meta_leader] = self.labels();
        let (leader, is_leader) = self.leads(group);
        [
            id,
            server,
            cluster,
            domain,
            meta_leader,
            is_meta_leader,
            "",
            "",
            name,
            leader,
            is_leader,
        ]
    }
}

fn publish_stream(readings: &mut Readings, server: &Server<'_>, info: &stream::Info) {
    let (config, state) = (&info.config, &info.state);
    let labels = server.of_stream(&config.name, info.cluster.as_ref());
    readings.count(&STREAM_MESSAGES, &labels, state.messages);
    readings.count(&STREAM_BYTES, &labels, state.bytes);
    readings.count(&STREAM_FIRST, &labels, state.first_sequence);
    readings.count(&STREAM_LAST, &labels, state.last_sequence);
    readings.count(&STREAM_CONSUMERS, &labels, state.consumer_count as u64);
    let limit = |readings: &mut Readings, metric: &Metric, limit: i64| {
        if let Some(limit) = u64::try_from(limit).ok().filter(|limit| *limit > 0) {
            readings.count(metric, &[&config.name], limit);
        }
    };
    limit(readings, &STREAM_LIMIT_BYTES, config.max_bytes);
    limit(readings, &STREAM_LIMIT_MESSAGES, config.max_messages);
}

fn publish_consumer(
    readings: &mut Readings,
    server: &Server<'_>,
    stream_group: Option<&ClusterInfo>,
    info: &consumer::Info,
) {
    let created = info.created.to_string();
    let description = info.config.description.as_deref().unwrap_or_default();
    let (leader, is_leader) = server.leads(info.cluster.as_ref());
    let of_consumer = [info.name.as_str(), leader, is_leader, description, &created];
    let of_stream = server.of_stream(&info.stream_name, stream_group);
    let labels: Vec<&str> = of_stream.into_iter().chain(of_consumer).collect();
    readings.count(&CONSUMER_DELIVERED, &labels, info.delivered.consumer_sequence);
    readings.count(
        &CONSUMER_DELIVERED_STREAM,
        &labels,
        info.delivered.stream_sequence,
    );
    readings.count(&CONSUMER_ACK_FLOOR, &labels, info.ack_floor.consumer_sequence);
    readings.count(
        &CONSUMER_ACK_FLOOR_STREAM,
        &labels,
        info.ack_floor.stream_sequence,
    );
    readings.count(&CONSUMER_ACK_PENDING, &labels, info.num_ack_pending as u64);
    readings.count(&CONSUMER_REDELIVERED, &labels, info.num_redelivered as u64);
    readings.count(&CONSUMER_WAITING, &labels, info.num_waiting as u64);
    readings.count(&CONSUMER_PENDING, &labels, info.num_pending);
}

/// How long the server may take: less than a scrape waits.
const LOOK_MAX: Duration = Duration::from_millis(1500);
