//! Harness: a private nats-server for each test, real processes of ours around it, and model folders.
//!
//! Everything that a test starts is killed and removed when its value is dropped. Tests wait for
//! conditions with a deadline ([`eventually`]); none of them sleeps for a fixed time.

pub mod chaos;
mod cluster;
pub mod copies;
mod exchanges;
mod fleet;
mod gate;
mod hub;
mod known;
mod models;
pub mod pauses;
mod process;
mod prometheus;
mod proxies;
mod proxy;
mod random;
mod scrape;
mod server;
mod simulated;
pub mod soak;

pub use cluster::{Cluster, server_name};
pub use exchanges::{Disturbance, Exchanges, Fault, Refusal, Rule, Side};
pub use fleet::{Fleet, FleetBuilder, Question, admin, ask_worker, connect, connect_as, status};
pub use gate::{Gate, Passing, Verdict, Way};
pub use hub::{HubOptions, HubRequest, HubServer};
pub use models::{ModelFolderBuilder, Spelling, copy_folder, demo_models_dir, golden_encoder, write_encoder};
pub use process::{Process, Signal, flotilla_binary};
pub use prometheus::Prometheus;
pub use proxies::{Proxies, Wire};
pub use proxy::{Flow, Proxy};
pub use scrape::{Scrape, get};
pub use server::{
    Membership, NatsServer, ServerOptions, USERS, deployed_nats_file, free_port, free_ports,
    nats_server_binary, nats_server_configuration, settings_of_user,
};
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
