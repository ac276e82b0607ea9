//! Many requests: no error, flat memory, small idle processes.

use anyhow::Result;
use flotilla_tests::{Fleet, Question};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_processes_are_small() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let dispatcher = fleet.dispatchers[0].resident_bytes()?;
    let worker = fleet.workers[0].resident_bytes()?;
    println!(
        "idle: dispatcher {} MiB, worker {} MiB",
        dispatcher / MIB,
        worker / MIB
    );
    assert!(dispatcher < 50 * MIB, "an idle dispatcher has {dispatcher} bytes");
    assert!(worker < 60 * MIB, "an idle worker has {worker} bytes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_requests_of_eight_clients_all_succeed_and_memory_stays_flat() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    round(&fleet, 500).await?;
    let before = (
        fleet.dispatchers[0].resident_bytes()?,
        fleet.workers[0].resident_bytes()?,
    );
    round(&fleet, 500).await?;
    let after = (
        fleet.dispatchers[0].resident_bytes()?,
        fleet.workers[0].resident_bytes()?,
    );
    println!(
        "dispatcher {} -> {}, worker {} -> {}",
        before.0, after.0, before.1, after.1
    );
    assert!(
        after.0 < before.0 + 8 * MIB,
        "the dispatcher grew from {} to {}",
        before.0,
        after.0
    );
    assert!(
        after.1 < before.1 + 8 * MIB,
        "the worker grew from {} to {}",
        before.1,
        after.1
    );
    Ok(())
}

/// `count` sums, asked by eight clients at once.
async fn round(fleet: &Fleet, count: u32) -> Result<()> {
    const CLIENTS: u32 = 8;
    let clients = (0..CLIENTS).map(async |client| -> Result<()> {
        for n in (client..count).step_by(usize::try_from(CLIENTS)?) {
            let (a, b) = (n, 999 - n);
            let answer = fleet
                .ask(&Question::prompt("adder", &format!("{a}+{b}=")))
                .await?;
            assert!(answer.end.is_ok(), "{:?}", answer.end);
            assert_eq!(answer.text, "999", "{a}+{b}");
        }
        Ok(())
    });
    futures_util::future::try_join_all(clients).await?;
    Ok(())
}
