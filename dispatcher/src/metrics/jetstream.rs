//! What the dispatcher tells of NATS, under the names, types and labels that the Prometheus NATS exporter uses for `/jsz`, so
//! that its dashboards work and none is needed. It sees what our account sees: server figures are those of the account,
//! and labels that only the server's own monitoring knows are empty.

use flotilla_telemetry::catalogue;

/// Labels of a server.
pub(super) const OF_SERVER: [&str; 6] = [
    "server_id",
    "server_name",
    "cluster",
    "domain",
    "meta_leader",
    "is_meta_leader",
];

/// Labels of a stream: those of the server, and these.
pub(super) const OF_STREAM: [&str; 11] = joined(
    OF_SERVER,
    [
        "account",
        "account_id",
        "stream_name",
        "stream_leader",
        "is_stream_leader",
    ],
);

/// Labels of a consumer: those of its stream, and these.
pub(super) const OF_CONSUMER: [&str; 16] = joined(
    OF_STREAM,
    [
        "consumer_name",
        "consumer_leader",
        "is_consumer_leader",
        "consumer_desc",
        "consumer_created",
    ],
);

const fn joined<const FIRST: usize, const THEN: usize, const ALL: usize>(
    first: [&'static str; FIRST],
    then: [&'static str; THEN],
) -> [&'static str; ALL] {
    assert!(FIRST + THEN == ALL, "all of both");
    let mut all = [""; ALL];
    let mut at = 0;
    while at < ALL {
        all[at] = if at < FIRST { first[at] } else { then[at - FIRST] };
        at += 1;
    }
    all
}

catalogue! {
    JS_DISABLED: gauge "jetstream_server_jetstream_disabled" OF_SERVER
        "0, as the server that we are connected to has JetStream.";
    JS_STREAMS: gauge "jetstream_server_total_streams" OF_SERVER
        "Streams of our account.";
    JS_CONSUMERS: gauge "jetstream_server_total_consumers" OF_SERVER
        "Consumers of our account.";
    JS_MESSAGES: gauge "jetstream_server_total_messages" OF_SERVER
        "Messages in our streams.";
    JS_BYTES: gauge "jetstream_server_total_message_bytes" OF_SERVER
        "Bytes that our account has stored.";
    JS_MAX_MEMORY: gauge "jetstream_server_max_memory" OF_SERVER
        "Bytes of memory that our account may store; -1 without a limit of its own.";
    JS_MAX_STORAGE: gauge "jetstream_server_max_storage" OF_SERVER
        "Bytes of disk that our account may store; -1 without a limit of its own.";
    STREAM_MESSAGES: gauge "jetstream_stream_total_messages" OF_STREAM
        "Messages in a stream of ours.";
    STREAM_BYTES: gauge "jetstream_stream_total_bytes" OF_STREAM
        "Bytes in a stream of ours.";
    STREAM_FIRST: gauge "jetstream_stream_first_seq" OF_STREAM
        "Sequence of the oldest message of a stream.";
    STREAM_LAST: gauge "jetstream_stream_last_seq" OF_STREAM
        "Sequence of the newest message of a stream.";
    STREAM_CONSUMERS: gauge "jetstream_stream_consumer_count" OF_STREAM
        "Consumers of a stream.";
    CONSUMER_DELIVERED: gauge "jetstream_consumer_delivered_consumer_seq" OF_CONSUMER
        "Deliveries of a consumer of the request stream.";
    CONSUMER_DELIVERED_STREAM: gauge "jetstream_consumer_delivered_stream_seq" OF_CONSUMER
        "Sequence of the newest message that a consumer delivered.";
    CONSUMER_ACK_PENDING: gauge "jetstream_consumer_num_ack_pending" OF_CONSUMER
        "Messages that a consumer delivered and nobody has acknowledged yet.";
    CONSUMER_REDELIVERED: gauge "jetstream_consumer_num_redelivered" OF_CONSUMER
        "Messages not yet acknowledged that a consumer delivered more than once.";
    CONSUMER_WAITING: gauge "jetstream_consumer_num_waiting" OF_CONSUMER
        "Pulls that wait at a consumer for messages.";
    CONSUMER_PENDING: gauge "jetstream_consumer_num_pending" OF_CONSUMER
        "Messages that a consumer has not delivered yet.";
    CONSUMER_ACK_FLOOR: gauge "jetstream_consumer_ack_floor_consumer_seq" OF_CONSUMER
        "Delivery of a consumer below which all are acknowledged.";
    CONSUMER_ACK_FLOOR_STREAM: gauge "jetstream_consumer_ack_floor_stream_seq" OF_CONSUMER
        "Message of the stream below which a consumer has all acknowledged.";
    STREAM_LIMIT_BYTES: gauge "flotilla_dispatcher_stream_limit_bytes" ["stream_name"]
        "Bytes that a stream of ours may hold; absent without a limit.";
    STREAM_LIMIT_MESSAGES: gauge "flotilla_dispatcher_stream_limit_messages" ["stream_name"]
        "Messages that a stream of ours may hold; absent without a limit.";
}
