//! What a role tells of itself over HTTP: `/metrics`, `/livez` and `/readyz`.
//!
//! A role declares its metrics with [`catalogue!`], each a constant with its help, labels and, for a histogram, its
//! buckets and their reason. What happens is counted and timed where it happens ([`Metric::increment`],
//! [`Metric::record`]); what *is* (a queue's length, the pages of a ledger) is asked of its owner by each scrape
//! ([`Telemetry::source`]), so that it costs nothing between scrapes and a series goes with the thing it tells of.
//!
//! What a role says of its health goes through a [`Part`]. What the numbers mean is the role's business.

mod exposition;
mod health;
mod listen;
mod metric;
mod models;
mod process;
mod readings;
mod server;
mod telemetry;

pub use health::Part;
pub use listen::{Listen, ListenError};
#[doc(hidden)]
pub use metric::Declared;
pub use metric::{Buckets, Kind, Metric, SECONDS};
pub use metrics::{Counter, Histogram};
pub use process::METRICS as PROCESS_METRICS;
pub use readings::Readings;
pub use server::{Server, StartError};
pub use telemetry::{Ask, InstallError, Source, Telemetry};
