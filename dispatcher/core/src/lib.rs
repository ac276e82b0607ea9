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
mod dispatch;
mod dispatcher;
mod exclusions;
mod fleet;
mod input;
mod isolation;
mod micros;
mod models;
mod observation;
mod orders;
mod overview;
mod pace;
mod policy;
mod predictor;
mod price;
mod queue;
mod reconciler;
mod request;
mod settings;
mod share;
mod stats;
mod swap;
mod target;
mod timers;
mod triage;

pub use action::Action;
pub use correction::{Correction, CorrectionSettings, Drift};
pub use dispatcher::Dispatcher;
pub use input::{Admission, Arrival, AssignOutcome, JournalState, Origin, PromptCount, StreamSequence};
pub use observation::{Observation, TargetOutcome};
pub use orders::{worker_to_load, workers_to_unload};
pub use overview::{KindOverview, ModelOverview, Overview, ProfileOverview, Waiting};
pub use predictor::{Prediction, Predictor, PredictorSettings};
pub use queue::Weights;
pub use reconciler::{Order, Reconciler, Round};
pub use settings::{PolicySettings, Settings};
pub use stats::Stats;
