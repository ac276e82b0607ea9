//! Short runs of chaos; `cargo run -p flotilla-tests --bin chaos` makes long ones.

use anyhow::Result;
use flotilla_tests::chaos::{ChaosOptions, Pace, new_seed, run};

#[expect(clippy::print_stdout, reason = "a seed that fails has to be known")]
async fn short_run(options: ChaosOptions) -> Result<()> {
    println!("chaos with seed {}", options.seed);
    let options = ChaosOptions {
        pace: Pace::Quick,
        ..options
    };
    println!("{}", run(&options).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_doubled_and_nobody_waits_for_ever_under_the_faults_of_a_fixed_seed() -> Result<()>
{
    short_run(ChaosOptions::new(7, 400)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_doubled_and_nobody_waits_for_ever_under_the_faults_of_a_new_seed() -> Result<()> {
    short_run(ChaosOptions::new(new_seed(), 400)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_doubled_and_nobody_waits_for_ever_on_a_cluster_under_faults() -> Result<()> {
    // A seed with a loss of a store, a leader that is killed, and cuts of one server and between two.
    let options = ChaosOptions {
        servers: 3,
        faults: 14,
        ..ChaosOptions::new(9, 150)
    };
    short_run(options).await
}
