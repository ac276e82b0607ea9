//! Typed settings of every Flotilla role.
//!
//! Layers, weakest first: compiled defaults, one TOML file, `FLOTILLA__SECTION__KEY` variables, flags.
//! [`Config::load`] merges them, reports every fault at once, and remembers where each value came
//! from for [`Config::show`]. This crate decides what a valid setting is; what it is used for is left
//! to the role that reads it.

mod config;
mod fault;
mod layer;
mod relation;
mod report;
mod rule;
mod schema;
mod secret;
mod section;
mod source;

pub use config::{Config, ConfigFile, LoadOptions};
pub use fault::{ConfigErrors, Fault, Problem};
pub use report::{Report, ReportedSetting, ReportedValue};
pub use rule::{
    INBOX_PREFIX, KeepAlive, LogFormat, LogLevel, ProfileFile, RepoPattern, Storage, WorkerEngine,
    parse_bytes,
};
pub use secret::Secret;
pub use section::{
    Dispatcher, DispatcherCorrection, DispatcherHttp, DispatcherPolicy, DispatcherPredictor, Log, Nats,
    NatsTls, Worker, WorkerCpu, WorkerHttp, WorkerHub, WorkerSimulated, WorkerWeights,
};
pub use source::Source;
