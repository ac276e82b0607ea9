//! The dispatcher's shell: JetStream, leader lease, admission, services.
//!
//! [`run`] stands by until it holds the lease, then leads: one task owns the core
//! (`flotilla_dispatcher_core`) and a single `select!` around it. Everything slow is a child task that
//! hands typed results back. What happens to a request is decided in the core; this crate pulls, counts
//! prompt tokens, reads and ends journals, talks to workers and answers services.

mod admission;
mod advisory;
mod backoff;
mod courier;
mod dead;
mod deliveries;
mod error;
mod ground;
mod intake;
mod journal_room;
mod journal_state;
mod lanes;
mod lease;
mod listen;
mod listeners;
mod metrics;
mod models;
mod policy;
mod prompt;
mod run;
mod scout;
mod services;
mod term;
mod topology;

pub use advisory::{Advisory, Said};
pub use error::{DispatcherError, TermError};
pub use lease::{Candidate, Kept, Lease, LeaseError};
pub use metrics::{JETSTREAM_METRICS, METRICS};
pub use policy::policy_settings;
pub use run::run;
pub use topology::{TopologyError, ensure_topology};
