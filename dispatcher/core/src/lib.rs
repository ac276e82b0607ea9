//! The dispatcher's decisions as a sans-IO state machine.
//!
//! It decides which request runs on which worker, when an attempt is over and what follows, which
//! requests are ended here, and when a message is acknowledged. It leaves to its shell the stream, the
//! journal, the connections to workers, the clock, and admission (decoding, catalog, tokenizer).
//!
//! The promise it keeps together with the journal: a request is acknowledged only when its journal is
//! terminal, and every request that is held gets there. No attempt needs to be the only one: the journal
//! fences, and the numbers given here only grow.

mod action;
mod cancelled;
mod correction;
mod dispatcher;
mod exclusions;
mod fleet;
mod input;
mod orders;
mod policy;
mod predictor;
mod queue;
mod request;
mod settings;
mod stats;
mod timers;

pub use action::Action;
pub use correction::{Correction, CorrectionSettings, Drift};
pub use dispatcher::Dispatcher;
pub use input::{Admission, Arrival, AssignOutcome, JournalState, Origin, StreamSequence};
pub use orders::{worker_to_load, workers_to_unload};
pub use predictor::{Prediction, Predictor, PredictorSettings};
pub use settings::Settings;
pub use stats::Stats;
