//! Streams and buckets: made where they are missing, compared where they exist.
//!
//! What an operator added to an object is left alone; only the fields that Flotilla relies on are compared.
//! A difference that the server can change is changed and logged; one that it cannot is an error, because
//! to go on with another retention or storage would break what the design promises.

mod error;

use std::time::Duration;

use async_nats::jetstream::consumer;
use async_nats::jetstream::stream::{
    Config as StreamConfig, DiscardPolicy, Republish, RetentionPolicy, StorageType,
};
use flotilla_client::{Connection, Unanswered, is_missing_stream};
use flotilla_config::{Config, Nats, Storage};
use flotilla_protocol::Class;
use flotilla_protocol::subject::Subjects;
use serde_json::Value;
use tokio::time::sleep;
use tracing::{debug, info, warn};

pub use error::TopologyError;
use error::{refusal, unreadable};

use crate::error::chain;

/// Makes every stream and bucket of the namespace and checks those that exist. May be called at any time
/// by any number of dispatchers with the same settings.
///
/// The relay may be missing afterwards: it has one copy, and the server that keeps it may be away.
///
/// # Errors
/// [`TopologyError`].
pub async fn ensure_topology(connection: &Connection, config: &Config) -> Result<(), TopologyError> {
    for wanted in replicated(&connection.subjects, config) {
        ensure(connection, wanted).await?;
    }
    match ensure_relay(connection, config).await {
        Err(error) if error.may_pass() => {
            warn!(error = chain(&error), "weights cannot be copied yet");
            Ok(())
        }
        ensured => ensured,
    }
}

/// Names of all streams of the namespace, those of buckets included.
pub(crate) fn stream_names(subjects: &Subjects, config: &Config) -> Vec<String> {
    everything(subjects, config).map(|stream| stream.name).collect()
}

fn everything(subjects: &Subjects, config: &Config) -> impl Iterator<Item = StreamConfig> {
    replicated(subjects, config).chain([relay(subjects, &config.nats)])
}

fn replicated(subjects: &Subjects, config: &Config) -> impl Iterator<Item = StreamConfig> {
    let streams = streams(subjects, config).into_iter();
    streams.chain(buckets(subjects, config))
}

/// Makes the relay again where it has gone: it lies in memory, so a server that starts again has none. The other objects
/// are on disk; one of them that is missing was removed, which is told before it is made again.
///
/// # Errors
/// [`TopologyError`].
pub(crate) async fn ensure_relay(connection: &Connection, config: &Config) -> Result<(), TopologyError> {
    ensure(connection, relay(&connection.subjects, &config.nats)).await
}

/// Makes the relay anew on servers that run: it has one copy, and its server may never come back. What it held is sent again.
///
/// # Errors
/// [`TopologyError`].
pub(crate) async fn replace_relay(connection: &Connection, config: &Config) -> Result<(), TopologyError> {
    let wanted = relay(&connection.subjects, &config.nats);
    // Nobody may be there to say that it is gone; whether it is shows when it is made.
    if let Err(error) = connection.jetstream.delete_stream(&wanted.name).await {
        debug!(
            object = wanted.name,
            error = chain(&error),
            "the relay may not be removed"
        );
    }
    create(connection, wanted).await
}

/// The consumer that delivers one class.
pub(crate) fn class_consumer(subjects: &Subjects, config: &Config, class: Class) -> consumer::pull::Config {
    consumer::pull::Config {
        durable_name: Some(class.as_str().to_owned()),
        ack_policy: consumer::AckPolicy::Explicit,
        ack_wait: config.dispatcher.ack_wait,
        // More than this is never unacknowledged: it bounds what a leader holds of the class.
        max_ack_pending: i64::try_from(config.dispatcher.queue_max).unwrap_or(i64::MAX),
        filter_subject: subjects.requests_of(class),
        ..Default::default()
    }
}

async fn ensure(connection: &Connection, wanted: StreamConfig) -> Result<(), TopologyError> {
    if let Some(found) = look(connection, &wanted.name).await? {
        return adapt(connection, found, &wanted).await;
    }
    let made = create(connection, wanted.clone()).await;
    if !matches!(made, Err(TopologyError::NoRoom { .. })) {
        return made;
    }
    // Another dispatcher that starts beside this one may have taken the room, for the same object.
    for _ in 0..LOOKS_MAX {
        if let Some(found) = look(connection, &wanted.name).await? {
            return adapt(connection, found, &wanted).await;
        }
        sleep(LOOK_AGAIN_AFTER).await;
    }
    made
}

/// What is there; `None` when nothing is.
async fn look(connection: &Connection, object: &str) -> Result<Option<StreamConfig>, TopologyError> {
    let object = object.to_owned();
    let asked = connection.within(connection.jetstream.get_stream(&object));
    match asked.await.map_err(|late| unanswered(&object, late))? {
        Ok(stream) => Ok(Some(stream.cached_info().config.clone())),
        Err(error) if is_missing_stream(&error) => Ok(None),
        Err(error) => Err(unreadable(object, error)),
    }
}

/// Changes what is there and not as wanted.
async fn adapt(
    connection: &Connection,
    found: StreamConfig,
    wanted: &StreamConfig,
) -> Result<(), TopologyError> {
    let object = wanted.name.clone();
    let differences = differences(&found, wanted);
    if differences.is_empty() {
        return Ok(());
    }
    for difference in &differences {
        if !difference.can_change {
            let Difference {
                field, found, wanted, ..
            } = difference.clone();
            return Err(TopologyError::Mismatch {
                object,
                field,
                found,
                wanted,
            });
        }
        info!(object, field = difference.field, from = %difference.found, to = %difference.wanted, "stream updated");
    }
    let changed = updated(found, wanted);
    let replicas = wanted.num_replicas;
    let outcome = connection
        .within(connection.jetstream.update_stream(&changed))
        .await;
    outcome
        .map_err(|late| unanswered(&object, late))?
        .map(drop)
        .map_err(|source| refusal(object, changed.max_bytes, replicas, source))
}

async fn create(connection: &Connection, wanted: StreamConfig) -> Result<(), TopologyError> {
    let (object, bytes_max, replicas) = (wanted.name.clone(), wanted.max_bytes, wanted.num_replicas);
    let created = connection
        .within(connection.jetstream.create_stream(wanted))
        .await;
    match created.map_err(|late| unanswered(&object, late))? {
        Ok(_) => {
            info!(object, "stream created");
            Ok(())
        }
        Err(source) => Err(refusal(object, bytes_max, replicas, source)),
    }
}

fn unanswered(object: &str, late: Unanswered) -> TopologyError {
    TopologyError::Unanswered {
        object: object.to_owned(),
        source: late.into(),
    }
}

fn streams(subjects: &Subjects, config: &Config) -> [StreamConfig; 3] {
    let nats = &config.nats;
    [
        requests(subjects, nats),
        journal(subjects, nats),
        dead(subjects, nats),
    ]
}

fn requests(subjects: &Subjects, nats: &Nats) -> StreamConfig {
    StreamConfig {
        name: subjects.requests_stream(),
        subjects: vec![subjects.requests_all()],
        retention: RetentionPolicy::WorkQueue,
        // A full queue refuses: that is the busy signal.
        discard: DiscardPolicy::New,
        max_bytes: signed(nats.requests_max_bytes),
        max_messages: signed(nats.requests_max_messages),
        duplicate_window: nats.dedupe_window,
        storage: storage(nats),
        ..unlimited(nats)
    }
}

fn journal(subjects: &Subjects, nats: &Nats) -> StreamConfig {
    StreamConfig {
        name: subjects.journal_stream(),
        subjects: vec![subjects.journal_all()],
        max_bytes: signed(nats.journal_max_bytes),
        max_age: nats.journal_max_age,
        allow_direct: true,
        republish: Some(Republish {
            source: subjects.journal_all(),
            destination: subjects.events_all(),
            headers_only: false,
        }),
        storage: storage(nats),
        ..unlimited(nats)
    }
}

/// Always on disk: a copy for people, which must outlive the queue that it came from.
fn dead(subjects: &Subjects, nats: &Nats) -> StreamConfig {
    StreamConfig {
        name: subjects.dead_stream(),
        subjects: vec![subjects.dead_all()],
        max_bytes: signed(DEAD_BYTES_MAX),
        max_age: nats.dead_max_age,
        ..unlimited(nats)
    }
}

/// A stream without limits, spelt as the server spells them.
fn unlimited(nats: &Nats) -> StreamConfig {
    StreamConfig {
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        num_replicas: nats.replicas,
        ..Default::default()
    }
}

fn storage(nats: &Nats) -> StorageType {
    match nats.storage {
        Storage::File => StorageType::File,
        Storage::Memory => StorageType::Memory,
    }
}

fn signed(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// KV buckets, which are streams of a fixed shape (ADR-8). All are on disk: a lease whose revisions began
/// again after a restart of the server would be older than what the workers have seen.
fn buckets(subjects: &Subjects, config: &Config) -> [StreamConfig; 6] {
    let forever = Duration::ZERO;
    [
        ("lease", config.dispatcher.lease_ttl),
        ("models", forever),
        ("profiles", forever),
        ("workers", WORKERS_TTL),
        ("holders", WEIGHTS_TTL),
        ("claims", WEIGHTS_TTL),
    ]
    .map(|(name, max_age)| {
        let bucket = subjects.bucket(name);
        StreamConfig {
            name: format!("KV_{bucket}"),
            subjects: vec![format!("$KV.{bucket}.>")],
            max_age,
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            ..unlimited(&config.nats)
        }
    })
}

/// The object store through which weights pass (ADR-20). In memory and once, as nothing in it is worth more than sending
/// it again; when it is full, senders wait.
fn relay(subjects: &Subjects, nats: &Nats) -> StreamConfig {
    let bucket = subjects.bucket("relay");
    StreamConfig {
        name: format!("OBJ_{bucket}"),
        subjects: vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
        max_bytes: signed(nats.relay_max_bytes),
        discard: DiscardPolicy::New,
        storage: StorageType::Memory,
        allow_rollup: true,
        allow_direct: true,
        num_replicas: 1,
        ..unlimited(nats)
    }
}

/// One field that is not as wanted.
#[derive(Debug, Clone, PartialEq)]
struct Difference {
    field: &'static str,
    found: Value,
    wanted: Value,
    can_change: bool,
}

/// Compares the fields that Flotilla relies on, in the form in which they travel, so that names and values
/// are those that `nats stream info --json` shows. A field that `wanted` leaves to the server is not compared.
fn differences(found: &StreamConfig, wanted: &StreamConfig) -> Vec<Difference> {
    let (found, wanted) = (as_json(found), as_json(wanted));
    FIELDS
        .iter()
        .filter_map(|&(field, can_change)| {
            let wanted = wanted.get(field)?.clone();
            let found = found.get(field).cloned().unwrap_or(Value::Null);
            (found != wanted).then_some(Difference {
                field,
                found,
                wanted,
                can_change,
            })
        })
        .collect()
}

/// What is there, with the fields that Flotilla relies on as wanted.
fn updated(found: StreamConfig, wanted: &StreamConfig) -> StreamConfig {
    let (mut changed, wanted) = (as_json(&found), as_json(wanted));
    for (field, _) in FIELDS {
        if let Some(value) = wanted.get(field) {
            changed[field] = value.clone();
        }
    }
    serde_json::from_value(changed).expect("a configuration that was written can be read")
}

fn as_json(config: &StreamConfig) -> Value {
    serde_json::to_value(config).expect("a stream's configuration is plain data")
}

/// Fields that are compared, and whether the server can change them.
const FIELDS: [(&str, bool); 13] = [
    ("retention", false),
    ("storage", false),
    ("subjects", true),
    ("discard", true),
    ("max_bytes", true),
    ("max_msgs", true),
    ("max_msgs_per_subject", true),
    ("max_age", true),
    ("duplicate_window", true),
    ("allow_direct", true),
    ("allow_rollup_hdrs", true),
    ("republish", true),
    ("num_replicas", true),
];

/// The server takes the room for an object some milliseconds before it tells anybody of it.
const LOOKS_MAX: usize = 5;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How long a worker's registration outlives its last refresh.
const WORKERS_TTL: Duration = Duration::from_secs(10);
/// How long the entry of a holder or of a sender of weights outlives its last renewal: another sender begins at the
/// latest then, and a worker whose network hiccups for some seconds keeps its place.
const WEIGHTS_TTL: Duration = Duration::from_secs(15);
/// Bytes of the dead letters; the oldest go first. A few hundred letters of the largest size.
const DEAD_BYTES_MAX: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use flotilla_protocol::Namespace;

    use super::*;

    fn requests() -> StreamConfig {
        let subjects = Subjects::new(Namespace::new("flotilla").unwrap());
        super::requests(&subjects, &Config::default().nats)
    }

    #[test]
    fn equal_configurations_have_no_difference() {
        assert_eq!(differences(&requests(), &requests()), []);
    }

    #[test]
    fn what_an_operator_added_is_no_difference_and_is_kept() {
        let found = StreamConfig {
            description: Some("ours".to_owned()),
            duplicate_window: Duration::from_secs(7),
            ..requests()
        };
        let wanted = StreamConfig {
            duplicate_window: Duration::ZERO,
            ..requests()
        };
        assert_eq!(differences(&found, &wanted), []);
        assert_eq!(updated(found.clone(), &wanted), found);
    }

    #[test]
    fn size_can_change_and_storage_cannot() {
        let found = StreamConfig {
            max_bytes: 5,
            storage: StorageType::Memory,
            ..requests()
        };
        let found = differences(&found, &requests());
        let fields: Vec<_> = found.iter().map(|d| (d.field, d.can_change)).collect();
        assert_eq!(fields, [("storage", false), ("max_bytes", true)]);
    }

    #[test]
    fn update_takes_every_wanted_field() {
        let found = StreamConfig {
            max_age: Duration::from_secs(3),
            max_messages: 1,
            ..requests()
        };
        assert_eq!(differences(&updated(found, &requests()), &requests()), []);
    }

    #[test]
    fn a_mismatch_names_object_field_and_both_values() {
        let error = TopologyError::Mismatch {
            object: "FLOTILLA_REQUESTS".to_owned(),
            field: "retention",
            found: "limits".into(),
            wanted: "workqueue".into(),
        };
        let text = error.to_string();
        for part in [
            "FLOTILLA_REQUESTS",
            "retention",
            "limits",
            "workqueue",
            "nats stream rm",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
