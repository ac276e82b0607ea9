//! Models of a hub: a fleet reads each of them once, goes on where it was cut off, and says what it may not or cannot do.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use flotilla_client::{Answer, Events};
use flotilla_protocol::WorkerId;
use flotilla_protocol::event::{Event, Phase, Progress};
use flotilla_tests::{
    Fleet, HubOptions, HubServer, ModelFolderBuilder, Question, eventually, flotilla_binary,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const MODEL: &str = "org/name";
const WEIGHTS: &str = "model.safetensors";
/// A part of the weights.
const SOME: usize = 1 << 20;

/// A fleet and a hub with one model.
struct World {
    fleet: Fleet,
    hub: Arc<HubServer>,
    _origin: TempDir,
    _empty: TempDir,
}

impl World {
    async fn start(options: HubOptions) -> Result<Self> {
        let (origin, empty) = (tempfile::tempdir()?, tempfile::tempdir()?);
        ModelFolderBuilder::default().write(origin.path())?;
        let hub = HubServer::start(origin.path(), options).await?;
        let fleet = Fleet::builder()
            .workers(0)
            .models_dir(empty.path())
            .set("nats.relay_max_bytes=256MiB")
            .set(&format!("worker.hub.endpoint={}", hub.url()))
            .start()
            .await?;
        Ok(Self {
            fleet,
            hub: Arc::new(hub),
            _origin: origin,
            _empty: empty,
        })
    }

    /// A worker that may download, or may not.
    async fn add_worker(&mut self, settings: &[&str]) -> Result<()> {
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        self.fleet.add_worker_with(&settings)?;
        self.fleet.wait_for_workers(self.fleet.workers.len()).await;
        Ok(())
    }

    /// Runs a command of ours against both.
    async fn command(&self, command: &[&str]) -> Result<Output> {
        let mut arguments = self.fleet.arguments(command);
        arguments.extend([
            "--set".to_owned(),
            format!("worker.hub.endpoint={}", self.hub.url()),
        ]);
        let folder = self.fleet.folder().to_owned();
        let run = move || {
            Command::new(flotilla_binary())
                .args(arguments)
                .current_dir(folder)
                .stdin(Stdio::null())
                .output()
        };
        Ok(tokio::task::spawn_blocking(run).await??)
    }

    /// Adds the model and returns how often its weights were asked for by that.
    async fn add_model(&self) -> Result<usize> {
        let added = told(&self.command(&["models", "add", "hf:org/name"]).await?)?;
        assert!(added.contains(HubServer::COMMIT), "{added}");
        Ok(self.hub.requests_of(WEIGHTS).len())
    }

    async fn answer_of(&self, worker: &str) -> Result<Answer> {
        let body =
            json!({"prompt": "w2 w3 w5", "max_tokens": 12, "ignore_eos": true, "deadline_ms": 100_000});
        let question = Question::new(MODEL, body);
        let answer = self.fleet.ask_worker(&question, &WorkerId::new(worker)?).await?;
        anyhow::ensure!(answer.end.is_ok(), "{worker} has no answer: {answer:?}");
        Ok(answer)
    }
}

fn told(output: &Output) -> Result<String> {
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout.clone())?)
}

fn refused(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const ALLOW: &str = "worker.hub.allow=org/*";

/// The next news that a client gets of files on their way.
async fn fetching(events: &mut Events) -> Result<Progress> {
    loop {
        let delivered = events.next().await?.context("the request has not ended")?;
        match delivered.event {
            Event::Progress(progress) if progress.phase == Phase::Fetching => return Ok(progress),
            Event::Progress(_) | Event::Accepted(_) => {}
            event => anyhow::bail!("{event:?} comes before the files"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_fleet_downloads_a_model_once_and_tells_how_far_it_is() -> Result<()> {
    let mut world = World::start(HubOptions {
        hold_after: Some(SOME),
        ..HubOptions::default()
    })
    .await?;
    world.add_worker(&[ALLOW]).await?;
    world.add_worker(&[ALLOW]).await?;
    let before = world.add_model().await?;
    let question = Question::prompt(MODEL, "w2 w3");
    let mut events = world.fleet.submit(&question).await?;
    let progress = tokio::time::timeout(flotilla_tests::PATIENCE, fetching(&mut events)).await??;
    let fraction = progress.fraction.context("a part of it is there")?;
    assert!(fraction < 1.0, "{fraction}");
    let (first, second, ()) = tokio::join!(world.answer_of("w0"), world.answer_of("w1"), async {
        // Both workers want it, and one has it from the hub.
        eventually("both have a request", async || {
            let fleet = world.fleet.status().await.ok()?;
            let mut reports = fleet.workers.iter().map(|status| &status.report);
            reports.all(|report| !report.running.is_empty()).then_some(())
        })
        .await;
        world.hub.release();
    });
    assert_eq!(first?.token_ids, second?.token_ids);
    assert_eq!(world.hub.requests_of(WEIGHTS).len() - before, 1);
    let answer = Answer::collect(&mut events).await?;
    assert!(answer.end.is_ok(), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_is_killed_in_a_download_goes_on_where_it_was() -> Result<()> {
    let mut world = World::start(HubOptions {
        hold_after: Some(SOME),
        ..HubOptions::default()
    })
    .await?;
    world.add_worker(&[ALLOW]).await?;
    let before = world.add_model().await?;
    world
        .fleet
        .admin("load", &json!({"model": MODEL, "worker": "w0"}))
        .await?;
    let store = world.fleet.home("w0").join("models");
    eventually("a part on disk", async || {
        let folders = fs::read_dir(&store).ok()?;
        let mut parts = folders.filter_map(|folder| {
            let part = folder.ok()?.path().join(format!("{WEIGHTS}.part"));
            Some(fs::metadata(part).ok()?.len())
        });
        parts.any(|bytes| bytes >= SOME as u64).then_some(())
    })
    .await;
    world.fleet.workers[0].kill()?;
    world.hub.release();
    world.fleet.restart_worker_with(0, &[ALLOW.to_owned()])?;
    world.answer_of("w0").await?;
    let froms: Vec<usize> = world.hub.requests_of(WEIGHTS)[before..]
        .iter()
        .map(|request| request.from)
        .collect();
    assert_eq!(froms, [0, SOME]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_downloads_only_what_it_may_and_copies_what_others_have() -> Result<()> {
    let mut world = World::start(HubOptions::default()).await?;
    world.add_worker(&[]).await?;
    world.add_model().await?;
    let told_no = refused(&world.command(&["models", "pull", MODEL]).await?);
    assert!(
        told_no.contains("worker.hub.allow") && told_no.contains("org/*"),
        "{told_no}"
    );
    assert!(
        world.hub.requests_of("tokenizer.json").len() == 1,
        "the command alone has read it"
    );

    world.add_worker(&[ALLOW]).await?;
    let pulled = told(
        &world
            .command(&["models", "pull", MODEL, "--worker", "w1", "--json"])
            .await?,
    )?;
    let pulled: Value = serde_json::from_str(&pulled)?;
    assert_eq!(pulled["worker"], "w1");
    assert!(pulled["bytes"].as_u64() > Some(SOME as u64), "{pulled}");
    let before = world.hub.requests().len();
    told(
        &world
            .command(&["models", "pull", MODEL, "--worker", "w0"])
            .await?,
    )?;
    world.answer_of("w0").await?;
    assert_eq!(
        world.hub.requests().len(),
        before,
        "it came from the other worker"
    );

    // The same commit under another name is there already.
    told(
        &world
            .command(&["models", "add", "hf:org/name", "--name", "again"])
            .await?,
    )?;
    let before = world.hub.requests().len();
    told(
        &world
            .command(&["models", "pull", "again", "--worker", "w1"])
            .await?,
    )?;
    assert_eq!(world.hub.requests().len(), before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_hub_does_not_give_is_told_by_name() -> Result<()> {
    let mut world = World::start(HubOptions {
        token: Some("sesame".to_owned()),
        ..HubOptions::default()
    })
    .await?;
    world.add_worker(&[ALLOW]).await?;
    let gated = refused(&world.command(&["models", "add", "hf:org/name"]).await?);
    assert!(gated.contains("worker.hub.token"), "{gated}");
    let token = ["--set", "worker.hub.token=sesame"];
    let add = |name: &'static str| [&["models", "add", name][..], &token].concat();
    let unknown = refused(&world.command(&add("hf:org/name@v9")).await?);
    assert!(
        unknown.contains("hf:org/name@v9") && unknown.contains("no such revision"),
        "{unknown}"
    );
    told(&world.command(&add("hf:org/name")).await?)?;
    // The one who adds it may read it, and the worker may not.
    let denied = refused(&world.command(&["models", "pull", MODEL]).await?);
    assert!(
        denied.contains("worker.hub.token") && !denied.contains("sesame"),
        "{denied}"
    );
    let wrong = world.command(&["models", "add", "hf:org/na me"]).await?;
    assert_eq!(wrong.status.code(), Some(2));
    Ok(())
}
