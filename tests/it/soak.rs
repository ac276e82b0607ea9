//! Under load for some seconds; `cargo run -p flotilla-tests --bin soak` does it for half an hour.

use std::time::Duration;

use anyhow::Result;
use flotilla_tests::soak::{SoakOptions, soak};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_grows_under_load_that_every_kind_of_client_makes() -> Result<()> {
    let options = SoakOptions {
        seed: 7,
        duration: Duration::from_secs(20),
        share: 0.8,
        capacity_requests: 100,
        read_every: Duration::from_millis(250),
    };
    let summary = soak(&options).await?;
    let tally = summary.tally;
    for (what, count) in [
        ("followed", tally.followed),
        ("inferred", tally.inferred),
        ("cancelled", tally.cancelled),
        ("refused", tally.refused),
    ] {
        assert!(count > 0, "nobody was {what}: {tally}");
    }
    for what in [
        "d0 tasks",
        "w0 descriptors",
        "server subscriptions",
        "server consumers",
    ] {
        assert!(
            summary.slopes.iter().any(|slope| slope.name == what),
            "{what} was not read"
        );
    }
    Ok(())
}
