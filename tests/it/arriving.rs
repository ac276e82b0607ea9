//! Weights are placed in a device while they are copied, and what goes wrong then.

use anyhow::Result;
use flotilla_protocol::admin::WorkerStatus;
use flotilla_protocol::fleet::{FetchState, ModelState};
use flotilla_tests::copies::copied_bytes;
use flotilla_tests::{Fleet, Signal, eventually};
use serde_json::json;

use crate::weights::{
    MODEL, answer_of, fleet_of, fleet_with, folder_of, give, large, sender, wait_for_a_third, wait_for_state,
    wait_until_offered,
};

async fn status_of(fleet: &Fleet, worker: &str) -> Option<WorkerStatus> {
    let workers = fleet.status().await.ok()?.workers;
    workers
        .into_iter()
        .find(|status| status.report.worker.as_str() == worker)
}

/// Pages of its device that a worker has given to models.
async fn pages_taken(fleet: &Fleet, worker: &str) -> Option<u64> {
    let devices = status_of(fleet, worker).await?.report.devices;
    Some(
        devices
            .iter()
            .map(|device| device.pages_weights + device.pages_workspace)
            .sum(),
    )
}

/// Whether a worker loads the model while its files still come.
async fn loads_what_comes(fleet: &Fleet, worker: &str) -> Option<()> {
    let report = status_of(fleet, worker).await?.report;
    let loads = report
        .models
        .iter()
        .any(|model| model.model.as_str() == MODEL && model.state == ModelState::Loading);
    let comes = report
        .fetches
        .iter()
        .any(|fetch| fetch.model.as_str() == MODEL && fetch.state == FetchState::Running);
    let holds_pages = report.devices.iter().any(|device| device.pages_weights > 0);
    (loads && comes && holds_pages).then_some(())
}

/// Bytes that were in the device when a load ended early, by a worker's log.
fn placed_bytes(log: &str) -> Option<u64> {
    let line = log
        .lines()
        .rev()
        .find(|line| line.contains("gives its memory back"))?;
    let (_, rest) = line.split_once("placed_bytes=")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Case 25: bytes of the model are in the device when its only holder dies. The load ends with who did not send what,
/// its memory comes back, and nothing of it is left in the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_whose_sender_dies_gives_its_memory_back_and_the_next_one_answers_alike() -> Result<()> {
    let mut fleet = fleet_of(2).await?;
    let bytes = give(&fleet, &large(), &["w0"]).await?;
    wait_until_offered(&fleet, 1).await?;
    let original = answer_of(&fleet, "w0").await?;
    let order = json!({"model": MODEL, "worker": "w1"});
    fleet.admin("load", &order).await?;
    wait_for_a_third(&fleet, bytes).await;
    // It stands still for as long as the look at the fleet takes.
    fleet.workers[0].signal(Signal::Stop)?;
    eventually("w1 loads what comes", async || {
        loads_what_comes(&fleet, "w1").await
    })
    .await;
    fleet.workers[0].kill()?;
    let log = eventually("the load has failed", async || {
        let log = fleet.workers[1].log();
        log.contains("a model cannot be served").then_some(log)
    })
    .await;
    let failed = log.lines().find(|line| line.contains("a model cannot be served"));
    let failed = failed.unwrap_or_default();
    assert!(failed.contains("holders of") && failed.contains("w0"), "{failed}");
    let placed = placed_bytes(&log).unwrap_or(0);
    assert!(
        placed > 0 && placed < bytes,
        "{placed} of {bytes} bytes were placed"
    );
    assert!(!log.contains("model ready"), "{log}");
    eventually("its pages are free", async || {
        (pages_taken(&fleet, "w1").await? == 0).then_some(())
    })
    .await;

    fleet.restart_worker(0)?;
    // Until its holder is back and its back-off is over, it is refused.
    let copied = eventually("w1 answers", async || answer_of(&fleet, "w1").await.ok()).await;
    assert_eq!(copied.token_ids, original.token_ids);
    let rest = copied_bytes(&fleet.workers[1].log()).unwrap_or(bytes);
    assert!(rest < bytes, "{rest} of {bytes} bytes came again");
    Ok(())
}

/// The copy goes on from another holder within the same load, which waits for longer than a load may stand still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_goes_on_when_another_holder_takes_over_however_long_that_takes() -> Result<()> {
    let fleet = fleet_with(3, "worker.load_stall_timeout_s=2").await?;
    let bytes = give(&fleet, &large(), &["w0", "w1"]).await?;
    wait_until_offered(&fleet, 2).await?;
    let (copied, killed) = tokio::join!(answer_of(&fleet, "w2"), async {
        wait_for_a_third(&fleet, bytes).await;
        let killed = eventually("one of them sends", async || sender(&fleet).await).await;
        fleet.workers[killed].signal(Signal::Stop)?;
        eventually("w2 loads what comes", async || {
            loads_what_comes(&fleet, "w2").await
        })
        .await;
        fleet.workers[killed].signal(Signal::Kill)?;
        Ok::<usize, anyhow::Error>(killed)
    });
    let other = format!("w{}", 1 - killed?);
    assert_eq!(copied?.token_ids, answer_of(&fleet, &other).await?.token_ids);
    let log = fleet.workers[2].log();
    assert!(!log.contains("a load is cancelled"), "{log}");
    assert_eq!(log.matches("loading").count(), 1, "{log}");
    assert!(log.contains(&format!("from={other}")), "{log}");
    Ok(())
}

/// A load that nobody wants any more gives its pages back while the files go on coming, and the next one takes up
/// with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_that_is_not_wanted_ends_while_its_files_come_and_the_next_goes_on_with_them() -> Result<()> {
    let fleet = fleet_of(2).await?;
    let bytes = give(&fleet, &large(), &["w0"]).await?;
    wait_until_offered(&fleet, 1).await?;
    let original = answer_of(&fleet, "w0").await?;
    let order = json!({"model": MODEL, "worker": "w1"});
    fleet.admin("load", &order).await?;
    wait_for_a_third(&fleet, bytes).await;
    fleet.workers[0].signal(Signal::Stop)?;
    eventually("w1 loads what comes", async || {
        loads_what_comes(&fleet, "w1").await
    })
    .await;
    fleet.admin("unload", &order).await?;
    wait_for_state(&fleet, "w1", None).await;
    let log = fleet.workers[1].log();
    assert!(
        log.contains("a load is cancelled") && copied_bytes(&log).is_none(),
        "{log}"
    );
    eventually("its pages are free", async || {
        (pages_taken(&fleet, "w1").await? == 0).then_some(())
    })
    .await;
    fleet.workers[0].signal(Signal::Continue)?;
    let copied = answer_of(&fleet, "w1").await?;
    assert_eq!(copied.token_ids, original.token_ids);
    let log = fleet.workers[1].log();
    assert_eq!(log.matches("weights were copied").count(), 1, "{log}");
    assert!(folder_of(&fleet, "w0").exists() && !folder_of(&fleet, "w1").exists());
    Ok(())
}
