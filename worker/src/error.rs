//! Why a worker could not start, or had to end.

use std::error::Error;
use std::io;
use std::time::Duration;

use flotilla_client::CatalogError;
use flotilla_protocol::IdError;
use thiserror::Error;

use crate::engine::EngineEnded;
use crate::memory::MemoryError;
use crate::simulated::SimulationError;

/// Why a worker could not start, or had to end.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The configured id is none.
    #[error("worker.id")]
    Id(#[from] IdError),
    /// No device is configured.
    #[error("the worker has no device; set worker.cpu.enabled")]
    NoDevice,
    /// The size of the CPU device is not known.
    #[error("the memory of the CPU device is not known")]
    Memory(#[from] MemoryError),
    /// A simulated device cannot be made.
    #[error(transparent)]
    Simulation(#[from] SimulationError),
    /// The system gives no thread for a device.
    #[error("cannot start the engine's thread")]
    Thread(#[source] io::Error),
    /// The streams and buckets were not made in time.
    #[error("{missing} is missing after {waited:?}; is a dispatcher running in this namespace?")]
    NotReady {
        /// The first object that is missing.
        missing: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The catalog cannot be used.
    #[error("the catalog cannot be used")]
    Catalog(#[from] CatalogError),
    /// A subscription was refused.
    #[error("cannot subscribe to {subject}")]
    Subscribe {
        /// The subject.
        subject: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The connection was closed for good.
    #[error("the connection to NATS was closed")]
    ConnectionClosed,
    /// The only device is broken.
    #[error("the device has failed: {reason}")]
    DeviceFailed {
        /// What broke.
        reason: String,
    },
    /// The engine is gone.
    #[error(transparent)]
    Engine(#[from] EngineEnded),
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
