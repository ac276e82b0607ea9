//! The worker's decisions as sans-IO state machines: residency, ledger, batching, answers.
//!
//! A machine takes inputs by `handle_*`, gives actions by `poll_*` (call until `None`) and learns the time
//! as an argument. [`worker::Desk`] is the front: it takes assignments and owns [`residency::Residency`],
//! which owns each device's [`ledger::Ledger`]. Beside them stand, one for each loaded model, a
//! [`batch::Batch`] or, of a model that makes vectors, a [`texts::TextQueue`] on the engine's thread, and, one
//! for each attempt, an [`answer::Answer`] that writes
//! the journal.

pub mod answer;
pub mod batch;
pub mod isolate;
pub mod kv;
pub mod ledger;
pub mod residency;
pub mod texts;
pub mod worker;
