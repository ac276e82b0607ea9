//! Weights come from a neighbour: workers without a model's files copy them from one that has them.
//!
//! The workers of these tests have machines of their own in one respect: the catalog's folder lies under
//! `/proc/self/cwd`, which is another place for every process.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use flotilla_client::{Answer, Catalog};
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_protocol::fleet::ModelState;
use flotilla_protocol::{ModelName, WorkerId};
use flotilla_tests::copies::{self, copied_bytes};
use flotilla_tests::{Fleet, ModelFolderBuilder, Question, Signal, copy_folder, eventually};
use flotilla_worker::describe;
use futures_util::StreamExt;
use serde_json::json;

pub(crate) const MODEL: &str = "travels";

/// Where the model is, for whoever has it.
fn source() -> ModelSource {
    ModelSource::Folder(PathBuf::from("/proc/self/cwd/weights").join(MODEL))
}

pub(crate) fn folder_of(fleet: &Fleet, worker: &str) -> PathBuf {
    fleet.home(worker).join("weights").join(MODEL)
}

/// A dispatcher and as many workers without any models as are told, none of which has been asked for anything.
pub(crate) async fn fleet_of(workers: usize) -> Result<Fleet> {
    fleet_with(workers, "worker.cpu.memory_bytes=1GiB").await
}

/// The same with a setting more.
pub(crate) async fn fleet_with(workers: usize, setting: &str) -> Result<Fleet> {
    let empty = tempfile::tempdir()?;
    let fleet = Fleet::builder()
        .workers(workers)
        .models_dir(empty.path())
        .set("nats.relay_max_bytes=256MiB")
        .set(setting)
        .start()
        .await?;
    // The folder of models is looked at once, at the start.
    drop(empty);
    Ok(fleet)
}

/// Writes a model for these workers and adds it to the catalog; returns the bytes of its weights.
pub(crate) async fn give(fleet: &Fleet, model: &ModelFolderBuilder, workers: &[&str]) -> Result<u64> {
    let first = folder_of(fleet, workers[0]);
    model.write(&first)?;
    for worker in &workers[1..] {
        copy_folder(&first, &folder_of(fleet, worker))?;
    }
    let entry = CatalogEntry {
        source: source(),
        ..describe(ModelName::new(MODEL)?, &first)?
    };
    Catalog::open(&fleet.connection).await?.add(&entry).await?;
    Ok(entry.facts.weights_bytes)
}

pub(crate) async fn wait_until_offered(fleet: &Fleet, holders: usize) -> Result<()> {
    copies::wait_until_offered(&fleet.connection, &ModelName::new(MODEL)?, holders).await
}

/// What one worker answers.
pub(crate) async fn answer_of(fleet: &Fleet, worker: &str) -> Result<Answer> {
    let body = json!({"prompt": "w2 w3 w5", "max_tokens": 12, "ignore_eos": true, "deadline_ms": 100_000});
    let question = Question::new(MODEL, body);
    let answer = fleet.ask_worker(&question, &WorkerId::new(worker)?).await?;
    anyhow::ensure!(answer.end.is_ok(), "{worker} has no answer: {answer:?}");
    Ok(answer)
}

/// Messages that ever went into the relay.
async fn relayed(fleet: &Fleet) -> Result<u64> {
    copies::relayed_messages(&fleet.connection).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_without_the_files_has_them_from_a_peer_and_answers_alike() -> Result<()> {
    let mut fleet = fleet_of(3).await?;
    give(&fleet, &ModelFolderBuilder::default(), &["w0"]).await?;
    wait_until_offered(&fleet, 1).await?;
    let original = answer_of(&fleet, "w0").await?;
    let copied = answer_of(&fleet, "w1").await?;
    assert_eq!(copied.token_ids, original.token_ids);
    assert!(
        copied_bytes(&fleet.workers[1].log()).is_some(),
        "{}",
        fleet.workers[1].log()
    );
    assert!(!folder_of(&fleet, "w1").exists(), "it never had the folder");

    // Neither the origin nor its worker is needed any more, and on one machine nothing travels.
    fleet.workers[0].kill()?;
    fs::remove_dir_all(folder_of(&fleet, "w0"))?;
    let before = relayed(&fleet).await?;
    let shared = answer_of(&fleet, "w2").await?;
    assert_eq!(shared.token_ids, original.token_ids);
    assert_eq!(relayed(&fleet).await?, before);
    Ok(())
}

/// The only files of the model are those of its peer: where they come from is gone, and the worker's own disk is empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_with_an_empty_disk_answers_from_a_gibibyte_that_a_peer_sent() -> Result<()> {
    let fleet = fleet_with(2, "worker.cpu.memory_bytes=3GiB").await?;
    let model = ModelFolderBuilder {
        hidden: 1536,
        layers: 20,
        drawn_max: (1 << 16) + 1,
        ..ModelFolderBuilder::default()
    };
    let bytes = give(&fleet, &model, &["w0"]).await?;
    assert!(bytes > 1 << 30, "{bytes}");
    wait_until_offered(&fleet, 1).await?;
    let copied = answer_of(&fleet, "w1").await?;
    let log = fleet.workers[1].log();
    assert!(copied_bytes(&log).is_some_and(|copied| copied >= bytes), "{log}");
    assert!(!folder_of(&fleet, "w1").exists(), "it never had the folder");
    assert_eq!(copied.token_ids, answer_of(&fleet, "w0").await?.token_ids);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_files_under_the_same_path_are_never_taken_for_the_models() -> Result<()> {
    let fleet = fleet_of(2).await?;
    give(&fleet, &ModelFolderBuilder::default(), &["w0"]).await?;
    wait_until_offered(&fleet, 1).await?;
    // Same name, same shapes, other weights: a fine-tune.
    let tuned = ModelFolderBuilder {
        seed: 2,
        ..ModelFolderBuilder::default()
    };
    tuned.write(&folder_of(&fleet, "w1"))?;
    let original = answer_of(&fleet, "w0").await?;
    let other = answer_of(&fleet, "w1").await?;
    assert_eq!(other.token_ids, original.token_ids);
    let log = fleet.workers[1].log();
    assert!(
        log.contains("the folder has other files than the catalog's model"),
        "{log}"
    );
    Ok(())
}

/// Some 200 MB: long enough on the way to be interrupted.
pub(crate) fn large() -> ModelFolderBuilder {
    ModelFolderBuilder {
        hidden: 1536,
        layers: 6,
        drawn_max: (1 << 16) + 1,
        ..ModelFolderBuilder::default()
    }
}

pub(crate) async fn wait_for_a_third(fleet: &Fleet, bytes: u64) {
    let messages = bytes / (1 << 20) / 3;
    eventually("a third of it has been sent", async || {
        (relayed(fleet).await.ok()? > messages).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sender_that_is_killed_is_replaced_by_another_holder() -> Result<()> {
    let fleet = fleet_of(3).await?;
    let bytes = give(&fleet, &large(), &["w0", "w1"]).await?;
    wait_until_offered(&fleet, 2).await?;
    let (copied, killed) = tokio::join!(answer_of(&fleet, "w2"), async {
        wait_for_a_third(&fleet, bytes).await;
        let killed = eventually("one of them sends", async || sender(&fleet).await).await;
        fleet.workers[killed].signal(Signal::Kill)?;
        Ok::<usize, anyhow::Error>(killed)
    });
    let other = format!("w{}", 1 - killed?);
    assert_eq!(copied?.token_ids, answer_of(&fleet, &other).await?.token_ids);
    let log = fleet.workers[2].log();
    assert!(log.contains(&format!("from={other}")), "{log}");
    Ok(())
}

/// Which worker has the claim of the only copy.
pub(crate) async fn sender(fleet: &Fleet) -> Option<usize> {
    let sender = copies::sender(&fleet.connection).await?;
    sender.as_str().strip_prefix('w')?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receiver_that_is_killed_goes_on_where_it_was() -> Result<()> {
    let mut fleet = fleet_of(2).await?;
    let bytes = give(&fleet, &large(), &["w0"]).await?;
    wait_until_offered(&fleet, 1).await?;
    let original = answer_of(&fleet, "w0").await?;
    let load = json!({"model": MODEL, "worker": "w1"});
    fleet.admin("load", &load).await?;
    wait_for_a_third(&fleet, bytes).await;
    fleet.workers[1].kill()?;
    fleet.restart_worker(1)?;
    let copied = answer_of(&fleet, "w1").await?;
    assert_eq!(copied.token_ids, original.token_ids);
    let rest = copied_bytes(&fleet.workers[1].log()).context("the rest was copied")?;
    assert!(rest < bytes * 9 / 10, "{rest} of {bytes} bytes came again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_outlives_a_server_that_forgets_the_relay() -> Result<()> {
    let mut fleet = fleet_of(2).await?;
    let bytes = give(&fleet, &large(), &["w0"]).await?;
    wait_until_offered(&fleet, 1).await?;
    fleet
        .admin("load", &json!({"model": MODEL, "worker": "w1"}))
        .await?;
    wait_for_a_third(&fleet, bytes).await;
    fleet.server().kill()?;
    fleet.server().restart()?;
    assert_eq!(
        answer_of(&fleet, "w1").await?.token_ids,
        answer_of(&fleet, "w0").await?.token_ids
    );
    Ok(())
}

/// Open files and threads of a process.
fn held(process: u32) -> Result<(usize, usize)> {
    let count =
        |what: &str| -> Result<usize> { Ok(fs::read_dir(format!("/proc/{process}/{what}"))?.count()) };
    Ok((count("fd")?, count("task")?))
}

/// Consumers of all streams and buckets.
async fn consumers(fleet: &Fleet) -> Result<usize> {
    let mut streams = fleet.connection.jetstream.streams();
    let mut count = 0;
    while let Some(stream) = streams.next().await {
        count += stream?.state.consumer_count;
    }
    Ok(count)
}

pub(crate) async fn wait_for_state(fleet: &Fleet, worker: &str, wanted: Option<&ModelState>) {
    eventually(&format!("{MODEL} is {wanted:?} on {worker}"), async || {
        let workers = fleet.status().await.ok()?.workers;
        let found = workers
            .iter()
            .find(|status| status.report.worker.as_str() == worker)?;
        let models = &found.report.models;
        let state = models
            .iter()
            .find(|model| model.model.as_str() == MODEL)
            .map(|model| &model.state);
        (state == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_loads_and_unloads_of_a_copied_model_leave_nothing_open() -> Result<()> {
    let fleet = fleet_of(2).await?;
    give(
        &fleet,
        &ModelFolderBuilder {
            layers: 1,
            ..ModelFolderBuilder::default()
        },
        &["w0"],
    )
    .await?;
    wait_until_offered(&fleet, 1).await?;
    let order = json!({"model": MODEL, "worker": "w1"});
    let mut before = None;
    for cycle in 0..100 {
        fleet.admin("load", &order).await?;
        wait_for_state(&fleet, "w1", Some(&ModelState::Ready)).await;
        fleet.admin("unload", &order).await?;
        wait_for_state(&fleet, "w1", None).await;
        if cycle == 9 {
            before = Some((held(fleet.workers[1].id())?, consumers(&fleet).await?));
        }
    }
    let ((files, threads), consumers_before) = before.context("the tenth cycle was there")?;
    let (files_now, threads_now) = held(fleet.workers[1].id())?;
    // Threads of the pool for blocking work come and go.
    assert!(files_now <= files + 2, "{files_now} open files, {files} before");
    assert!(
        threads_now <= threads + 8,
        "{threads_now} threads, {threads} before"
    );
    assert_eq!(consumers(&fleet).await?, consumers_before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receiver_that_is_stopped_holds_up_nobody_and_gets_the_rest_later() -> Result<()> {
    let fleet = fleet_of(3).await?;
    let bytes = give(&fleet, &large(), &["w0"]).await?;
    wait_until_offered(&fleet, 1).await?;
    for worker in ["w1", "w2"] {
        fleet
            .admin("load", &json!({"model": MODEL, "worker": worker}))
            .await?;
    }
    wait_for_a_third(&fleet, bytes).await;
    fleet.workers[1].signal(Signal::Stop)?;
    let other = answer_of(&fleet, "w2").await?;
    fleet.workers[1].signal(Signal::Continue)?;
    assert_eq!(answer_of(&fleet, "w1").await?.token_ids, other.token_ids);
    Ok(())
}
