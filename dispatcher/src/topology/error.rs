//! What servers say against streams and buckets.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind,
};
use serde_json::Value;
use thiserror::Error;

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
    /// The servers of a cluster choose who leads, or too few of them run.
    #[error("the servers cannot tell of {object} now; do enough of them run, and do they reach each other?")]
    Unavailable {
        /// Which.
        object: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// Every server that keeps it is away.
    #[error("all servers that keep {object} are away")]
    Offline {
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

impl TopologyError {
    /// Whether it may pass without anybody's doing: servers start, or elect a leader.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unanswered { .. } | Self::Unavailable { .. } | Self::Offline { .. } => true,
            // A cluster says so as long as some of its servers are away.
            Self::Replicas { source, .. } => {
                matches!(source.kind(), CreateStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::CLUSTER_NO_PEERS)
            }
            Self::Mismatch { .. }
            | Self::NotEnabled { .. }
            | Self::NoRoom { .. }
            | Self::Store { .. }
            | Self::Refused { .. }
            | Self::Unreadable { .. } => false,
        }
    }
}

/// What a stream that cannot be looked at means.
pub(super) fn unreadable(object: String, error: GetStreamError) -> TopologyError {
    let kind = error.kind();
    let source = error.into();
    match kind {
        GetStreamErrorKind::Request => TopologyError::Unanswered { object, source },
        GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_OFFLINE => {
            TopologyError::Offline { object, source }
        }
        GetStreamErrorKind::JetStream(error) if is_of_elections(error.error_code()) => {
            TopologyError::Unavailable { object, source }
        }
        GetStreamErrorKind::JetStream(_)
        | GetStreamErrorKind::EmptyName
        | GetStreamErrorKind::InvalidStreamName => TopologyError::Unreadable { object, source },
    }
}

/// What servers of a cluster say while nobody leads.
fn is_of_elections(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::CLUSTER_NOT_AVAILABLE
            | ErrorCode::CLUSTER_NOT_LEADER
            | ErrorCode::CLUSTER_NOT_ASSIGNED
            | ErrorCode::CLUSTER_INCOMPLETE
            | ErrorCode::RAFT_GENERAL
    )
}

/// What a stream that cannot be made or changed means.
pub(super) fn refusal(
    object: String,
    bytes_max: i64,
    replicas: usize,
    source: CreateStreamError,
) -> TopologyError {
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
        ErrorCode::STREAM_OFFLINE => {
            let source = source.into();
            TopologyError::Offline { object, source }
        }
        code if is_of_elections(code) => {
            let source = source.into();
            TopologyError::Unavailable { object, source }
        }
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
