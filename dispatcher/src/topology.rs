//! Streams and buckets: made where they are missing, compared where they exist.
//!
//! What an operator added to an object is left alone; only the fields that Flotilla relies on are compared.
//! A difference that the server can change is changed and logged; one that it cannot is an error, because
//! to go on with another retention or storage would break what the design promises.

use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config as StreamConfig, DiscardPolicy, Republish, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{ErrorCode, consumer};
use flotilla_client::Connection;
use flotilla_config::{Config, Nats, Storage};
use flotilla_protocol::Class;
use flotilla_protocol::subject::Subjects;
use serde_json::Value;
use thiserror::Error;
use tracing::info;

/// Why streams and buckets are not as wanted.
#[derive(Debug, Error)]
pub enum TopologyError {
    /// A field that cannot be changed is different.
    #[error(
        "{object} has {field} {found}, wanted is {wanted}, and the server cannot change it: \
         set the configuration to what is there, or save what it holds and remove it (`nats stream rm {object}`)"
    )]
    Mismatch {
        /// Name of the stream; a bucket's begins with `KV_`.
        object: String,
        /// The field, as `nats stream info --json` names it.
        field: &'static str,
        /// Its value.
        found: Value,
        /// What it should be.
        wanted: Value,
    },
    /// JetStream is off, for the server or for the account.
    #[error(
        "JetStream is not enabled, so {object} cannot be made; enable it in the server and for the account"
    )]
    NotEnabled {
        /// What was wanted.
        object: String,
        /// What the server says.
        #[source]
        source: CreateStreamError,
    },
    /// The server's or the account's limit is too small.
    #[error(
        "there is no room for {object} of {bytes_max} bytes; lower nats.requests_max_bytes and \
         nats.journal_max_bytes, or raise the server's max_file_store; for weights, nats.relay_max_bytes and \
         max_memory_store"
    )]
    NoRoom {
        /// What was wanted.
        object: String,
        /// Its largest size; -1 is without limit.
        bytes_max: i64,
        /// What the server says.
        #[source]
        source: CreateStreamError,
    },
    /// The server cannot write its store.
    #[error(
        "the server cannot write the store of {object}; is its store_dir writable and its disk not full?"
    )]
    Store {
        /// What was wanted.
        object: String,
        /// What the server says.
        #[source]
        source: CreateStreamError,
    },
    /// There are fewer servers than replicas.
    #[error(
        "{object} cannot have {replicas} replicas here; set nats.replicas to at most the number of servers"
    )]
    Replicas {
        /// What was wanted.
        object: String,
        /// How many.
        replicas: usize,
        /// What the server says.
        #[source]
        source: CreateStreamError,
    },
    /// The server does not answer: it starts, or the connection to it broke.
    #[error("no answer about {object}")]
    Unanswered {
        /// Which.
        object: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The server refuses for another reason.
    #[error("cannot make or change {object}")]
    Refused {
        /// What was wanted.
        object: String,
        /// What the server says.
        #[source]
        source: CreateStreamError,
    },
    /// The server does not tell what is there.
    #[error("cannot read the configuration of {object}")]
    Unreadable {
        /// Which.
        object: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
}

/// Makes every stream and bucket of the namespace and checks those that exist. May be called at any time
/// by any number of dispatchers with the same settings.
///
/// # Errors
/// [`TopologyError`].
pub async fn ensure_topology(connection: &Connection, config: &Config) -> Result<(), TopologyError> {
    for wanted in streams(&connection.subjects, config)
        .into_iter()
        .chain(buckets(&connection.subjects, config))
        .chain([relay(&connection.subjects, &config.nats)])
    {
        ensure(connection, wanted).await?;
    }
    Ok(())
}

/// Makes the relay again where it has gone: it lies in memory, so a server that starts again has none. The other objects
/// are on disk; one of them that is missing was removed, and to make it again would hide that.
///
/// # Errors
/// [`TopologyError`].
pub(crate) async fn ensure_relay(connection: &Connection, config: &Config) -> Result<(), TopologyError> {
    ensure(connection, relay(&connection.subjects, &config.nats)).await
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
    let object = wanted.name.clone();
    let found = match connection.jetstream.get_stream(&object).await {
        Ok(stream) => stream.cached_info().config.clone(),
        Err(error) if is_missing(&error.kind()) => return create(connection, wanted).await,
        Err(error) if error.kind() == GetStreamErrorKind::Request => {
            let source = error.into();
            return Err(TopologyError::Unanswered { object, source });
        }
        Err(error) => {
            let source = error.into();
            return Err(TopologyError::Unreadable { object, source });
        }
    };
    let differences = differences(&found, &wanted);
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
    let changed = updated(found, &wanted);
    let replicas = wanted.num_replicas;
    let outcome = connection.jetstream.update_stream(&changed).await;
    outcome
        .map(drop)
        .map_err(|source| refusal(object, changed.max_bytes, replicas, source))
}

async fn create(connection: &Connection, wanted: StreamConfig) -> Result<(), TopologyError> {
    let (object, bytes_max, replicas) = (wanted.name.clone(), wanted.max_bytes, wanted.num_replicas);
    match connection.jetstream.create_stream(wanted).await {
        Ok(_) => {
            info!(object, "stream created");
            Ok(())
        }
        Err(source) => Err(refusal(object, bytes_max, replicas, source)),
    }
}

fn is_missing(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn refusal(object: String, bytes_max: i64, replicas: usize, source: CreateStreamError) -> TopologyError {
    let code = match source.kind() {
        CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::Response => {
            let source = source.into();
            return TopologyError::Unanswered { object, source };
        }
        CreateStreamErrorKind::JetStreamUnavailable => ErrorCode::JETSTREAM_NOT_ENABLED,
        CreateStreamErrorKind::JetStream(error) => error.error_code(),
        CreateStreamErrorKind::EmptyStreamName
        | CreateStreamErrorKind::InvalidStreamName
        | CreateStreamErrorKind::DomainAndExternalSet
        | CreateStreamErrorKind::NotFound
        | CreateStreamErrorKind::ResponseParse => return TopologyError::Refused { object, source },
    };
    match code {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            TopologyError::NotEnabled { object, source }
        }
        ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES => TopologyError::NoRoom {
            object,
            bytes_max,
            source,
        },
        ErrorCode::STREAM_CREATE | ErrorCode::STREAM_STORE_FAILED => TopologyError::Store { object, source },
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED | ErrorCode::CLUSTER_NO_PEERS => TopologyError::Replicas {
            object,
            replicas,
            source,
        },
        _ => TopologyError::Refused { object, source },
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
            destination: subjects.events_template(),
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
