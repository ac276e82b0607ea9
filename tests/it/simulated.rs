//! Fleets of simulated devices behind a real dispatcher and a real server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_nats::Subscriber;
use flotilla_client::{Catalog, new_request_id};
use flotilla_profile::{DeviceProfile, Signature, StepTimes};
use flotilla_protocol::codec::decode_internal;
use flotilla_protocol::event::FinishReason;
use flotilla_protocol::fleet::{ModelState, Report};
use flotilla_tests::{
    Fleet, PATIENCE, Process, Question, flotilla_binary, sample_profile, simulated_model, write_profile,
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;

const GIB: u64 = 1 << 30;
const ORIGIN: Duration = Duration::from_millis(1000);
const HOST: Duration = Duration::from_millis(100);

/// A dispatcher and, in one process, so many simulated workers; the catalog has simulated models of 10 GiB.
async fn fleet(workers: usize, models: &[&str], settings: &[&str]) -> Result<(Fleet, TempDir)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("profile.json");
    write_profile(&path, ORIGIN, HOST)?;
    let mut builder = Fleet::builder()
        .workers(0)
        .set("worker.engine=simulated")
        .set(&format!("worker.simulated.profile={}", path.display()))
        .set(&format!("worker.simulated.count={workers}"));
    for setting in settings {
        builder = builder.set(setting);
    }
    let mut fleet = builder.start().await?;
    fleet.add_worker()?;
    fleet.wait_for_workers(workers).await;
    let catalog = Catalog::open(&fleet.connection).await?;
    for model in models {
        catalog.add(&simulated_model(model, 10 * GIB)).await?;
    }
    Ok((fleet, folder))
}

fn completion(model: &str, prompt_tokens: usize, answer_tokens: usize, seed: u64) -> Question {
    let prompt: Vec<u64> = (0..prompt_tokens as u64)
        .map(|n| 1 + (seed * 1000 + n) % 30_000)
        .collect();
    let body = json!({"prompt": prompt, "max_tokens": answer_tokens, "seed": seed});
    Question::new(model, body)
}

/// The time that a profile says for a request that is alone: a step for each piece of its prompt, and one for
/// each further token of its answer.
fn alone(profile: &Path, prompt_tokens: u32, answer_tokens: u32) -> Result<Duration> {
    let profile = DeviceProfile::from_json(&std::fs::read(profile)?, None)?;
    let steps = StepTimes::from_profile(&profile);
    let pieces = (0..prompt_tokens)
        .step_by(512)
        .map(|start| (prompt_tokens - start).min(512));
    let prefill: Duration = pieces.map(|tokens| steps.step(tokens, 0)).sum();
    Ok(prefill + steps.step(0, 1) * (answer_tokens - 1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_has_the_tokens_that_were_asked_for_in_the_time_that_the_profile_says() -> Result<()> {
    const PROMPT: u32 = 700;
    const ANSWER: u32 = 60;
    let (fleet, _folder) = fleet(1, &["m"], &[]).await?;
    // The load is no part of what is timed.
    fleet.ask(&completion("m", 2, 1, 0)).await?;
    let question = completion("m", PROMPT as usize, ANSWER as usize, 1);
    let asked = Instant::now();
    let first = fleet.ask(&question).await?;
    let took = asked.elapsed();
    let finished = first.end.clone().expect("it is complete");
    assert_eq!(finished.finish_reason, FinishReason::Length);
    assert_eq!(first.token_ids.len(), ANSWER as usize);
    assert_eq!(finished.usage.prompt_tokens, PROMPT);
    assert_eq!(
        first.text.split(' ').count(),
        ANSWER as usize,
        "a word for each token"
    );
    let expected = alone(&sample_profile(), PROMPT, ANSWER)?;
    let made = Duration::from_secs_f64((finished.timings.prefill_ms + finished.timings.decode_ms) / 1e3);
    assert!(
        took >= expected && made >= expected,
        "{made:?} of {took:?}, the profile says {expected:?}"
    );
    assert!(made < expected * 4, "{made:?}, the profile says {expected:?}");

    let again = Question {
        request: new_request_id(),
        ..question
    };
    let second = fleet.ask(&again).await?;
    assert_eq!((second.token_ids, second.text), (first.token_ids, first.text));
    let usage = second.end.expect("it is complete").usage;
    let cached = usage.prompt_tokens_details.map(|details| details.cached_tokens);
    assert_eq!(
        cached,
        Some((PROMPT - 1) / 16 * 16),
        "what was read is not read again"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_workers_of_one_process_serve_five_hundred_requests_without_an_error() -> Result<()> {
    const WORKERS: usize = 50;
    const REQUESTS: usize = 500;
    let (fleet, _folder) = fleet(WORKERS, &["a", "b", "c"], &[]).await?;
    let ask = async |number: usize| -> Result<()> {
        let (prompt_tokens, answer_tokens) = (5 + number % 40, 1 + number % 30);
        let model = ["a", "b", "c"][number % 3];
        let answer = fleet
            .ask(&completion(model, prompt_tokens, answer_tokens, number as u64))
            .await?;
        assert!(answer.end.is_ok(), "{:?}", answer.end);
        assert_eq!(answer.token_ids.len(), answer_tokens);
        Ok(())
    };
    let answers = futures_util::stream::iter(0..REQUESTS)
        .map(ask)
        .buffer_unordered(64);
    let answers: Vec<Result<()>> = answers.collect().await;
    answers.into_iter().collect::<Result<()>>()?;

    let status = fleet.status().await?;
    let ids: BTreeSet<&str> = status
        .workers
        .iter()
        .map(|worker| worker.report.worker.as_str())
        .collect();
    assert_eq!(ids.len(), WORKERS);
    assert!(ids.contains("w0-000") && ids.contains("w0-049"), "{ids:?}");
    for worker in &status.workers {
        let registration = worker.registration.as_ref().context("it has registered")?;
        let device = &registration.devices[0];
        assert_eq!((device.kind.as_str(), device.cost), ("sim-fast", Some(1.0)));
    }
    println!(
        "{WORKERS} workers, {REQUESTS} requests: {} MiB",
        fleet.workers[0].resident_bytes()? >> 20
    );
    Ok(())
}

/// What the reports of a worker say of its models' comings and goings.
#[derive(Debug, Default)]
struct Traffic {
    loads: BTreeMap<String, usize>,
    evictions: usize,
    ready_max: usize,
    ready: BTreeMap<String, Option<u64>>,
}

impl Traffic {
    fn take(&mut self, report: &Report) {
        let ready = report
            .models
            .iter()
            .filter(|model| model.state == ModelState::Ready);
        let ready: BTreeMap<String, Option<u64>> = ready
            .map(|model| (model.model.to_string(), model.load_ms))
            .collect();
        for model in ready.keys().filter(|model| !self.ready.contains_key(*model)) {
            *self.loads.entry(model.clone()).or_default() += 1;
        }
        self.evictions += self
            .ready
            .keys()
            .filter(|model| !ready.contains_key(*model))
            .count();
        self.ready_max = self.ready_max.max(ready.len());
        self.ready = ready;
    }

    /// Takes reports up to one that lists a model as ready.
    async fn until_ready(&mut self, reports: &mut Subscriber, model: &str) -> Result<()> {
        while !self.ready.contains_key(model) {
            let report = tokio::time::timeout(PATIENCE, reports.next()).await?;
            self.take(&decode_internal(&report.context("reports go on")?.payload)?);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn device_with_room_for_two_models_serves_three() -> Result<()> {
    let models = ["a", "b", "c"];
    let (fleet, _folder) = fleet(1, &models, &["worker.simulated.memory_bytes=26GiB"]).await?;
    let subject = fleet.connection.subjects.reports_all();
    let mut reports = fleet.connection.client.subscribe(subject).await?;
    let mut traffic = Traffic::default();
    for round in 0..2 {
        for model in models {
            let answer = fleet.ask(&completion(model, 10, 5, round)).await?;
            assert_eq!(answer.token_ids.len(), 5, "{:?}", answer.end);
            traffic.until_ready(&mut reports, model).await?;
        }
    }
    println!("{traffic:?}");
    assert_eq!(traffic.ready_max, 2);
    let loads: usize = traffic.loads.values().sum();
    assert_eq!(loads, traffic.evictions + traffic.ready.len());
    // Whoever leaves for the third model of a round, the best choice leads to one more load in the next.
    assert!(loads > models.len(), "{traffic:?}");
    for (model, load_ms) in &traffic.ready {
        let time = Duration::from_millis(load_ms.context("it was loaded")?);
        if traffic.loads[model] > 1 {
            assert!(
                (HOST..ORIGIN).contains(&time),
                "{model} came back from host memory: {traffic:?}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn bad_profile_is_told_with_its_file_and_field_before_anybody_is_asked() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut profile: Value = serde_json::from_slice(&std::fs::read(sample_profile())?)?;
    profile["tputs"][1][2] = json!(-3.0);
    std::fs::write(folder.path().join("bad.json"), profile.to_string())?;
    let nobody = format!("nats://127.0.0.1:{}", flotilla_tests::free_port());
    let start = async |profile: &str| -> Result<(Option<i32>, String)> {
        let arguments = [
            "worker",
            "--engine",
            "simulated",
            "--profile",
            profile,
            "--nats",
            &nobody,
        ];
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        let mut process = Process::flotilla(profile, folder.path(), &arguments)?;
        Ok((process.wait().await?.code(), process.log()))
    };
    let (code, log) = start("bad.json").await?;
    assert_eq!(code, Some(2), "{log}");
    assert!(
        log.contains("bad.json") && log.contains("tputs[1][2]") && log.contains("-3"),
        "{log}"
    );
    let (code, log) = start("missing.json").await?;
    assert_eq!(code, Some(2), "{log}");
    assert!(
        log.contains("missing.json") && log.contains("No such file"),
        "{log}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_simulated_worker_is_found_to_do_what_its_profile_says() -> Result<()> {
    let (fleet, _folder) = fleet(1, &["m"], &[]).await?;
    let arguments = [
        "profile",
        "run",
        "m",
        "--inputs",
        "64",
        "--outputs",
        "16",
        "-o",
        "found.json",
    ];
    let run = Command::new(flotilla_binary())
        .args(fleet.arguments(&arguments))
        .current_dir(fleet.folder())
        .output()?;
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{told}");
    let read = |path: &Path| Ok::<_, anyhow::Error>(DeviceProfile::from_json(&std::fs::read(path)?, None)?);
    let (truth, found) = (
        read(&sample_profile())?,
        read(&fleet.folder().join("found.json"))?,
    );
    let length = Signature {
        prompt_tokens: 64,
        output_tokens: 16,
    };
    let times = |profile: &DeviceProfile| [profile.work(length), profile.e2e(length).value];
    for (truth, found) in times(&truth).into_iter().zip(times(&found)) {
        let ratio = found.as_secs_f64() / truth.as_secs_f64();
        assert!((ratio - 1.0).abs() < 0.15, "{found:?}, truth {truth:?}: {told}");
    }
    Ok(())
}
