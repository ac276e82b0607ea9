//! Harness: a private nats-server for each test, real processes of ours around it, and model folders.
//!
//! Everything that a test starts is killed and removed when its value is dropped. Tests wait for
//! conditions with a deadline ([`eventually`]); none of them sleeps for a fixed time.

pub mod chaos;
pub mod copies;
mod fleet;
mod hub;
mod models;
mod process;
mod proxy;
mod server;
mod simulated;

pub use fleet::{Fleet, FleetBuilder, Question, admin, ask_worker, connect, status};
pub use hub::{HubOptions, HubRequest, HubServer};
pub use models::{ModelFolderBuilder, Spelling, demo_models_dir, golden_encoder, write_encoder};
pub use process::{Process, Signal, flotilla_binary};
pub use proxy::{Flow, Proxy};
pub use server::{NatsServer, ServerOptions, free_port, nats_server_binary, nats_server_configuration};
pub use simulated::{sample_profile, simulated_model, write_profile};

use std::future::Future;
use std::time::{Duration, Instant};

/// Time limit of a condition in tests: generous, since two cores run many tests at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `probe` again and again until it gives a value.
///
/// # Panics
/// When [`PATIENCE`] is over; the message names what was waited for.
pub async fn eventually<T, F, Fut>(what: &str, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    loop {
        pause.tick().await;
        if let Some(value) = probe().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
    }
}
