//! Short runs of chaos; `cargo run -p flotilla-tests --bin chaos` makes long ones.

use anyhow::Result;
use flotilla_tests::chaos::{ChaosOptions, Pace, new_seed, run};

#[expect(clippy::print_stdout, reason = "a seed that fails has to be known")]
async fn short_run(seed: u64) -> Result<()> {
    println!("chaos with seed {seed}");
    let options = ChaosOptions {
        pace: Pace::Quick,
        ..ChaosOptions::new(seed, 400)
    };
    println!("{}", run(&options).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_doubled_and_nobody_waits_for_ever_under_the_faults_of_a_fixed_seed() -> Result<()>
{
    short_run(7).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_doubled_and_nobody_waits_for_ever_under_the_faults_of_a_new_seed() -> Result<()> {
    short_run(new_seed()).await
}
