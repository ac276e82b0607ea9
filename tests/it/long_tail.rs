//! Many more models than memory: a worker swaps all day, loses nothing and grows by nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use flotilla_protocol::fleet::Report;
use flotilla_tests::{Fleet, ModelFolderBuilder, Question, eventually};
use serde_json::json;

const MODELS: u32 = 20;
/// What the device holds of them.
const MODELS_RESIDENT: u64 = 5;
const REQUESTS: u32 = 2_000;
const CLIENTS: u32 = 16;
const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_models_with_memory_for_five_answer_two_thousand_requests() -> Result<()> {
    let folder = tempfile::tempdir()?;
    (0..MODELS).try_for_each(|model| write_model(folder.path(), model))?;
    let fleet = Fleet::builder().workers(0).models_dir(folder.path());
    let mut fleet = fleet.set("worker.keep_alive_s=-1").start().await?;
    let memory = format!("worker.cpu.memory_bytes={}MiB", MODELS_RESIDENT * MODEL_MIB);
    fleet.add_worker_with(&[memory])?;
    fleet.wait_for_workers(1).await;

    let first_answers = Mutex::new(BTreeMap::new());
    round(&fleet, 0..REQUESTS / 4, &first_answers).await?;
    let before = fleet.workers[0].resident_bytes()?;
    round(&fleet, REQUESTS / 4..REQUESTS, &first_answers).await?;
    let after = fleet.workers[0].resident_bytes()?;

    let loads = fleet.workers[0].log().matches("model ready").count();
    println!(
        "{loads} loads; the process {} -> {} MiB",
        before / MIB,
        after / MIB
    );
    assert!(loads > usize::try_from(MODELS)?, "{loads} loads are no swaps");
    assert!(
        after < before + 16 * MIB,
        "the worker grew from {before} to {after} bytes"
    );
    let (ledger, system) = freed_bytes(&fleet).await?;
    println!("ledger {} MiB, system {} MiB", ledger / MIB, system / MIB);
    assert!(
        ledger.abs_diff(system) * 100 <= system * 3,
        "the ledger has {ledger} bytes, the system {system}"
    );
    Ok(())
}

/// What a worker gets back when all models leave its device, by its own accounts and by the system.
async fn freed_bytes(fleet: &Fleet) -> Result<(u64, u64)> {
    let full = report(fleet, |_| true).await;
    for model in 0..MODELS {
        fleet.admin("unload", &json!({"model": name(model)})).await?;
    }
    let empty = report(fleet, |report| device_bytes(report) == 0).await;
    let in_use = device_bytes(&full);
    let device = &full.devices[0];
    ensure!(
        in_use > device.pages_total * device.page_bytes / 2,
        "memory is used: {in_use} bytes"
    );
    let by_accounts = |report: &Report| device_bytes(report) + host_bytes(report);
    let by_system = |report: &Report| report.devices[0].resident_bytes.expect("Linux counts it");
    Ok((
        by_accounts(&full) - by_accounts(&empty),
        by_system(&full) - by_system(&empty),
    ))
}

/// The report of the worker once it is idle and as wanted.
async fn report(fleet: &Fleet, is_wanted: impl Fn(&Report) -> bool) -> Report {
    eventually("a report of an idle worker", async || {
        let status = fleet.status().await.ok()?;
        let report = &status.workers.first()?.report;
        (report.running.is_empty() && is_wanted(report)).then(|| report.clone())
    })
    .await
}

fn device_bytes(report: &Report) -> u64 {
    let device = &report.devices[0];
    (device.pages_weights + device.pages_kv + device.pages_workspace) * device.page_bytes
}

fn host_bytes(report: &Report) -> u64 {
    let models = report.host.iter().flat_map(|host| &host.models);
    models.map(|model| model.bytes).sum()
}

/// Requests with these numbers, by clients that ask one after the other.
async fn round(
    fleet: &Fleet,
    requests: std::ops::Range<u32>,
    first_answers: &Mutex<BTreeMap<u32, Vec<u32>>>,
) -> Result<()> {
    let next = AtomicU32::new(requests.start);
    let clients = (0..CLIENTS).map(async |_| -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= requests.end {
                return Ok(());
            }
            let model = model_of(number);
            let body = json!({"prompt": "w7 w8 w9", "max_tokens": 4, "temperature": 0, "ignore_eos": true});
            let answer = fleet.ask(&Question::new(&name(model), body)).await?;
            ensure!(answer.end.is_ok(), "{model}: {:?}", answer.end);
            ensure!(
                answer.attempts.0 == 1,
                "request {number} was taken from a model in use"
            );
            let mut first_answers = first_answers.lock().expect("nobody panics with it");
            let first = first_answers
                .entry(model)
                .or_insert_with(|| answer.token_ids.clone());
            ensure!(
                *first == answer.token_ids,
                "model {model} answers otherwise after a reload"
            );
        }
    });
    futures_util::future::try_join_all(clients).await?;
    Ok(())
}

/// A long tail: half of the requests want three models, a tenth the last ten.
fn model_of(number: u32) -> u32 {
    let random = number.wrapping_mul(2_654_435_761) >> 16;
    let (of, which) = (random % 10, random / 10);
    match of {
        0..5 => which % 3,
        5..9 => 3 + which % 7,
        _ => 10 + which % 10,
    }
}

fn name(model: u32) -> String {
    format!("tail-{model:02}")
}

fn write_model(folder: &Path, model: u32) -> Result<()> {
    let builder = ModelFolderBuilder {
        layers: 3,
        context: 128,
        seed: u64::from(model) + 1,
        ..ModelFolderBuilder::default()
    };
    builder.write(&folder.join(name(model)))
}

/// What one of the models needs on the device.
const MODEL_MIB: u64 = 22;
