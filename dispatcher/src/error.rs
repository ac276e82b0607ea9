//! Why a dispatcher ends, and why a term could not begin.

use std::time::Duration;

use flotilla_client::CatalogError;
use thiserror::Error;

use crate::lease::LeaseError;
use crate::topology::TopologyError;

/// Why a dispatcher ended other than by being asked to.
#[derive(Debug, Error)]
pub enum DispatcherError {
    /// Streams and buckets are not as wanted.
    #[error(transparent)]
    Topology(#[from] Box<TopologyError>),
    /// The lease's bucket cannot be used.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The NATS client was closed.
    #[error("the connection to nats was closed")]
    Closed,
    /// A task of ours panicked, which is a bug.
    #[error("a task of the dispatcher panicked while it {doing}")]
    Panicked {
        /// What it did.
        doing: &'static str,
        /// The panic.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// Why a term of leadership could not begin; another try follows.
#[derive(Debug, Error)]
pub enum TermError {
    /// A subscription could not be made.
    #[error("cannot subscribe to {subject}")]
    Subscribe {
        /// To what.
        subject: String,
        /// What the client says.
        #[source]
        source: async_nats::SubscribeError,
    },
    /// A consumer could not be made anew.
    #[error("cannot create the consumer {consumer} of {stream}")]
    Consumer {
        /// The stream.
        stream: String,
        /// The consumer.
        consumer: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The request stream does not answer.
    #[error("cannot read the state of {stream}")]
    Stream {
        /// The stream.
        stream: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The service could not be started.
    #[error("cannot serve {subject}")]
    Service {
        /// Subject of the endpoint.
        subject: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The catalog cannot be opened.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// NATS was too slow.
    #[error("the term was not prepared within {} s", limit.as_secs())]
    TimedOut {
        /// How long it might take.
        limit: Duration,
    },
    /// The workers could not be asked for reports.
    #[error("cannot publish to {subject}")]
    Publish {
        /// Where.
        subject: String,
        /// What the client says.
        #[source]
        source: async_nats::PublishError,
    },
}

/// An error and everything behind it, in one line for a log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
