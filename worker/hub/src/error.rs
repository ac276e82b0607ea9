//! What goes wrong with a hub.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flotilla_protocol::hub::HubModel;
use thiserror::Error;

/// Why a hub's model is not here.
#[derive(Debug, Error)]
pub enum HubError {
    /// The client cannot be made.
    #[error("no connection to a hub can be made")]
    Client(#[source] reqwest::Error),
    /// The system has no certificate authorities.
    #[error("the system's certificate authorities cannot be read, so that no hub can be trusted: {0}")]
    Authorities(String),
    /// The hub does not tell us, or has no such thing: it says the same of both to strangers.
    #[error("the hub does not let us read {model} (status {status}): {}", advice(*.has_token))]
    Denied {
        /// What was wanted.
        model: HubModel,
        /// 401 or 403.
        status: u16,
        /// Whether we showed one.
        has_token: bool,
    },
    /// There is no such repository or revision.
    #[error("the hub has no {model}: {reason}")]
    NotThere {
        /// What was wanted.
        model: HubModel,
        /// In the hub's own words.
        reason: String,
    },
    /// A file of the list is not there.
    #[error("{model} has no file {path} any more")]
    NoFile {
        /// The model.
        model: HubModel,
        /// The file.
        path: String,
    },
    /// The repository is no model that can be loaded.
    #[error("{model} has no {what}, which a model needs to be loaded")]
    Incomplete {
        /// The model.
        model: HubModel,
        /// What is missing.
        what: &'static str,
    },
    /// The hub says something that cannot be understood.
    #[error("the hub's answer about {model} cannot be understood: {reason}")]
    Answer {
        /// The model.
        model: HubModel,
        /// Why not.
        reason: String,
    },
    /// A file is not what the repository lists.
    #[error("{path} of {model} has other bytes than the hub lists, twice")]
    OtherBytes {
        /// The model.
        model: HubModel,
        /// The file.
        path: String,
    },
    /// It was tried often enough.
    #[error("the hub was asked {tries} times for {path} of {model}, and it did not come")]
    Interrupted {
        /// The model.
        model: HubModel,
        /// The file, or what else was asked for.
        path: String,
        /// How often.
        tries: u32,
        /// What happened the last time.
        #[source]
        source: Interruption,
    },
    /// The disk.
    #[error("cannot {operation} {path}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What may go better the next time.
#[derive(Debug, Error)]
pub enum Interruption {
    /// The connection.
    #[error("the connection to the hub broke or was silent for too long")]
    Connection(#[from] reqwest::Error),
    /// The answer ended early.
    #[error("the hub ended its answer after {bytes} of {expected} bytes")]
    Short {
        /// What came.
        bytes: u64,
        /// What should have.
        expected: u64,
    },
    /// The hub is in trouble, or wants us to wait.
    #[error("the hub answered with status {status}")]
    Status {
        /// Its status.
        status: u16,
        /// How long it wants us to wait.
        retry_after: Option<Duration>,
    },
}

impl HubError {
    /// For `map_err`, with what was tried on which file.
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}

fn advice(has_token: bool) -> &'static str {
    match has_token {
        true => {
            "it is gated, private or not there; the token of worker.hub.token (or HF_TOKEN) must belong to somebody \
             who may read it"
        }
        false => {
            "it is gated, private or not there; set worker.hub.token (or HF_TOKEN) to the token of somebody who may \
             read it"
        }
    }
}
