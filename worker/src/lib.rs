//! The worker's shell: NATS, engine threads, model folders.
//!
//! [`run`] is a worker's life, and [`run_all`] that of many whose devices are simulated. One task, the owner,
//! feeds the decisions of [`flotilla_worker_core`] with what happens and carries out what they say; each attempt
//! at a request is a task of its own; each device has one OS thread that runs its models, or a task where it is
//! simulated. [`describe`] opens a model folder and says what the catalog should know of it.

mod attempt;
mod engine;
mod error;
mod files;
#[cfg(test)]
mod fixture;
mod hardware;
mod identity;
mod incoming;
mod jobs;
mod memory;
mod metrics;
mod model;
mod outbox;
mod owner;
mod prompt;
mod registration;
mod run;
mod scan;
mod simulated;
mod start;
mod stop;
mod watch;
mod weights;

pub use engine::EngineEnded;
pub use error::WorkerError;
pub use flotilla_weights::METRICS as WEIGHTS_METRICS;
pub use hardware::Hardware;
pub use memory::MemoryError;
pub use metrics::METRICS;
pub use model::{OpenError, describe};
pub use run::{run, run_all};
pub use simulated::SimulationError;
pub use stop::Stop;
