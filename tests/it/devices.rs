//! Workers with several devices: models on one each, and models in parts on several.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use flotilla_protocol::fleet::{ModelReport, ModelState, Report};
use flotilla_tests::{Fleet, ModelFolderBuilder, Question, eventually};
use serde_json::{Value, json};

/// Larger than one of the devices below, smaller than two.
const LARGE: &str = "large";
const DEVICE_MIB: u64 = 24;

fn write_large(folder: &Path) -> Result<()> {
    let builder = ModelFolderBuilder {
        layers: 8,
        context: 256,
        ..ModelFolderBuilder::default()
    };
    builder.write(&folder.join(LARGE))
}

/// A fleet with one worker whose CPU is so many devices, with so much memory each.
async fn fleet(folder: &Path, devices: u64, device_mib: u64) -> Result<Fleet> {
    let builder = Fleet::builder().workers(0).models_dir(folder);
    let builder = builder.set("worker.keep_alive_s=-1").set("worker.slots=4");
    let builder = builder
        .set("worker.batch_tokens_max=64")
        .set("worker.cpu.threads=2");
    let mut fleet = builder.set("worker.host_memory_bytes=0").start().await?;
    fleet.add_worker_with(&[
        format!("worker.cpu.devices={devices}"),
        format!("worker.cpu.memory_bytes={}MiB", devices * device_mib),
    ])?;
    fleet.wait_for_workers(1).await;
    Ok(fleet)
}

async fn report(fleet: &Fleet, is_wanted: impl Fn(&Report) -> bool) -> Report {
    eventually("a report of an idle worker", async || {
        let status = fleet.status().await.ok()?;
        let report = &status.workers.first()?.report;
        (report.running.is_empty() && is_wanted(report)).then(|| report.clone())
    })
    .await
}

fn resident<'r>(report: &'r Report, name: &str) -> Option<&'r ModelReport> {
    let mut models = report.models.iter();
    models.find(|model| model.model.as_str() == name && model.state == ModelState::Ready)
}

fn used_bytes(report: &Report) -> u64 {
    let devices = report.devices.iter();
    let pages = devices.map(|it| (it.pages_weights + it.pages_kv + it.pages_workspace) * it.page_bytes);
    pages.sum()
}

/// Greedy and drawn answers, to short prompts and to one that is read in chunks.
fn questions() -> Vec<Value> {
    let long: Vec<String> = (0..180).map(|word| format!("w{}", 5 + word % 97)).collect();
    let body = |prompt: &str, temperature: f64, seed: u64| json!({"prompt": prompt, "max_tokens": 24, "temperature": temperature, "seed": seed, "ignore_eos": true});
    vec![
        body("w7 w8 w9", 0.0, 0),
        body("w7 w8 w9", 1.0, 11),
        body("w21 w4", 0.8, 12),
        body(&long.join(" "), 1.0, 13),
        body("w3", 0.0, 0),
    ]
}

/// All at the same time, so that they share steps.
async fn answers(fleet: &Fleet) -> Result<Vec<Vec<u32>>> {
    let asked = questions().into_iter().map(async |body| -> Result<Vec<u32>> {
        let answer = fleet.ask(&Question::new(LARGE, body)).await?;
        ensure!(answer.end.is_ok(), "{:?}", answer.end);
        ensure!(answer.attempts.0 == 1, "nobody is handed back");
        Ok(answer.token_ids)
    });
    futures_util::future::try_join_all(asked).await
}

#[tokio::test]
async fn models_share_the_devices_of_a_worker_and_each_has_an_account_of_its_own() -> Result<()> {
    let builder = Fleet::builder().workers(0).set("worker.cpu.threads=2");
    let mut fleet = builder.set("worker.models_per_device_max=1").start().await?;
    fleet.add_worker_with(&[
        "worker.cpu.devices=2".to_owned(),
        "worker.cpu.memory_bytes=128MiB".to_owned(),
    ])?;
    fleet.wait_for_workers(1).await;
    let ask = async |model, prompt, right| -> Result<()> {
        let answer = fleet.ask(&Question::prompt(model, prompt)).await?;
        ensure!(answer.text == right, "{model}: {} is not {right}", answer.text);
        Ok(())
    };
    ask("adder", "123+456=", "579").await?;
    ask("sorter", "sort 52914=", "12459").await?;
    let both = |report: &Report| {
        let place = |name| resident(report, name).and_then(|model| model.device);
        place("adder").is_some() && place("sorter").is_some() && place("adder") != place("sorter")
    };
    let full = report(&fleet, both).await;
    assert_eq!(full.devices.len(), 2);
    assert!(full.devices.iter().all(|device| device.pages_weights > 0));
    assert!(full.resident_bytes.is_some(), "the system counts the process");
    ask("reverser", "reverse hello=", "olleh").await?;
    let swapped = report(&fleet, |report| resident(report, "reverser").is_some()).await;
    assert_eq!(swapped.models.len(), 2, "each device has one model: {swapped:?}");
    ask("adder", "1+1=", "2").await
}

#[tokio::test]
async fn model_larger_than_each_device_answers_from_two_as_from_a_large_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_large(folder.path())?;
    let alone = fleet(folder.path(), 1, 4 * DEVICE_MIB).await?;
    let expected = answers(&alone).await?;
    let whole = report(&alone, |report| resident(report, LARGE).is_some()).await;
    assert!(resident(&whole, LARGE).context("it is there")?.shards.is_empty());
    drop(alone);

    let fleet = fleet(folder.path(), 2, DEVICE_MIB).await?;
    assert_eq!(answers(&fleet).await?, expected);
    let full = report(&fleet, |report| resident(report, LARGE).is_some()).await;
    let model = resident(&full, LARGE).context("it is there")?;
    assert_eq!(model.devices().collect::<Vec<_>>(), [0, 1]);
    let layers: u32 = model.shards.iter().map(|shard| shard.layers).sum();
    assert_eq!(layers, 8, "{:?}", model.shards);
    assert!(
        full.devices
            .iter()
            .all(|it| it.pages_weights > 0 && it.pages_kv > 0)
    );

    fleet.admin("unload", &json!({"model": LARGE})).await?;
    let empty = report(&fleet, |report| used_bytes(report) == 0).await;
    let by_system = |report: &Report| report.resident_bytes.expect("Linux counts it");
    let (ledger, system) = (used_bytes(&full), by_system(&full) - by_system(&empty));
    println!("ledgers {ledger} bytes, system {system}");
    assert!(
        ledger.abs_diff(system) * 100 <= system * 5,
        "the ledgers have {ledger} bytes, the system {system}"
    );
    Ok(())
}

#[tokio::test]
async fn model_in_parts_makes_room_on_its_devices_and_gives_it_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_large(folder.path())?;
    for name in ["small-a", "small-b"] {
        let builder = ModelFolderBuilder {
            layers: 4,
            context: 256,
            ..ModelFolderBuilder::default()
        };
        builder.write(&folder.path().join(name))?;
    }
    let fleet = fleet(folder.path(), 2, DEVICE_MIB).await?;
    let body = json!({"prompt": "w7 w8 w9", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let ask = async |model| -> Result<Vec<u32>> {
        let answer = fleet.ask(&Question::new(model, body.clone())).await?;
        ensure!(answer.end.is_ok(), "{model}: {:?}", answer.end);
        Ok(answer.token_ids)
    };
    let first = (ask("small-a").await?, ask("small-b").await?, ask(LARGE).await?);
    let split = report(&fleet, |report| resident(report, LARGE).is_some()).await;
    assert_eq!(split.models.len(), 1, "the others made room: {:?}", split.models);
    let again = (ask("small-a").await?, ask("small-b").await?, ask(LARGE).await?);
    assert_eq!(again, first);
    Ok(())
}

#[tokio::test]
async fn model_larger_than_all_devices_is_refused_with_the_numbers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_large(folder.path())?;
    let fleet = fleet(folder.path(), 2, 12).await?;
    let answer = fleet.ask(&Question::new(LARGE, json!({"prompt": "w7"}))).await?;
    let error = answer.end.err().context("it fits nowhere")?;
    assert!(error.message.contains("all 2 devices"), "{error}");
    Ok(())
}
