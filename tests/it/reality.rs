//! The simulator against reality: what it says of a trace is what a fleet makes of the same trace.
//!
//! The fleet is real but for the time that steps and loads take: server, dispatcher, two processes of workers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use flotilla_client::{Answer, Catalog, Profiles};
use flotilla_profile::DeviceProfile;
use flotilla_protocol::catalog::Policy;
use flotilla_protocol::event::FinishReason;
use flotilla_protocol::fleet::ModelState;
use flotilla_protocol::{Moment, WorkerId};
use flotilla_simulator::fleet::{DeviceSpec, FleetSpec, Start};
use flotilla_simulator::outcome::{Figures, Outcome, RequestEnd};
use flotilla_simulator::policy::PolicyName;
use flotilla_simulator::run::Scenario;
use flotilla_simulator::trace::{BuiltinTrace, Recipe, Trace, TraceRequest};
use flotilla_tests::{Fleet, PATIENCE, Question, eventually};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep_until, timeout};

/// Short chats and long prompts, at a pace that leaves the five devices a part of their time, with answers that
/// end soon after the last publish. Requests say how long their answers are, so that both dispatchers know alike.
fn trace() -> Trace {
    let recipe = Recipe {
        seed: 1,
        rate: RATE,
        duration: PUBLISHED_FOR,
    };
    let mut trace = BuiltinTrace::Composite.make(&recipe);
    for request in &mut trace.requests {
        request.output_tokens = request.output_tokens.min(ANSWER_TOKENS_MAX);
        request.output_tokens_max = request.output_tokens;
    }
    trace
}

/// The fleet of the trace, its workers called as those of the real one, its profiles with short loads.
fn fleet_spec(folder: &Path) -> Result<FleetSpec> {
    let mut spec = BuiltinTrace::Composite.fleet();
    for model in &mut spec.models {
        assert_eq!(model.start, Start::Warm, "the real fleet is warmed up too");
        model.policy = Some(Policy::Slo);
    }
    let mut profiles = BTreeMap::new();
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    let counts = counts(&spec);
    for device in &mut spec.devices {
        let index = groups.entry(device.kind.clone()).or_default();
        let position = counts.iter().position(|(kind, _)| *kind == device.kind);
        let process = position.context("every device has a kind")?;
        let name = match counts[process].1 {
            1 => format!("w{process}"),
            _ => format!("w{process}-{index:03}"),
        };
        *index += 1;
        device.worker = WorkerId::new(name)?;
        if !profiles.contains_key(&device.kind) {
            let profile = profile(folder, &device.kind)?;
            profiles.insert(device.kind.clone(), Arc::new(profile));
        }
        device.profile = Arc::clone(&profiles[&device.kind]);
    }
    Ok(spec)
}

/// The kinds of devices and how many there are of each; each kind is a process of workers.
fn counts(spec: &FleetSpec) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for device in &spec.devices {
        match counts.iter_mut().find(|(kind, _)| *kind == device.kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((device.kind.clone(), 1)),
        }
    }
    counts
}

fn profile_path(folder: &Path, kind: &str) -> PathBuf {
    folder.join(format!("{kind}.json"))
}

/// A profile of the simulator, with short loads, as a file for workers too.
fn profile(folder: &Path, kind: &str) -> Result<DeviceProfile> {
    let name = format!("{}.json", kind.trim_start_matches("sim-"));
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dispatcher/simulator/profiles");
    let mut profile: serde_json::Value = serde_json::from_slice(&std::fs::read(kept.join(name))?)?;
    profile["load_seconds_by_tier"] = json!({"origin": 0.1, "host": 0.1});
    let text = profile.to_string();
    std::fs::write(profile_path(folder, kind), &text)?;
    Ok(DeviceProfile::from_json(text.as_bytes(), None)?)
}

/// The same fleet in reality, with its model on every device.
async fn real_fleet(spec: &FleetSpec, folder: &Path) -> Result<Fleet> {
    let mut fleet = Fleet::builder().workers(0).start().await?;
    let catalog = Catalog::open(&fleet.connection).await?;
    let profiles = Profiles::open(&fleet.connection).await?;
    for model in &spec.models {
        catalog.add(&model.entry()).await?;
        for device in &spec.devices {
            profiles.put(&model.name, &device.profile).await?;
        }
    }
    for (kind, count) in counts(spec) {
        let device = spec.devices.iter().find(|device| device.kind == kind);
        let device = device.context("kinds are those of devices")?;
        fleet.add_worker_with(&settings(device, count, folder))?;
    }
    fleet.wait_for_workers(spec.devices.len()).await;
    warm_up(&fleet, spec).await?;
    Ok(fleet)
}

fn settings(device: &DeviceSpec, count: usize, folder: &Path) -> Vec<String> {
    vec![
        "worker.engine=simulated".to_owned(),
        format!(
            "worker.simulated.profile={}",
            profile_path(folder, &device.kind).display()
        ),
        format!("worker.simulated.count={count}"),
        format!("worker.simulated.memory_bytes={}", device.memory_bytes),
        format!("worker.slots={}", device.slots),
        format!("worker.batch_tokens_max={}", device.batch_tokens_max),
    ]
}

/// Orders every model onto every device: requests would teach the dispatcher lengths of answers.
async fn warm_up(fleet: &Fleet, spec: &FleetSpec) -> Result<()> {
    for model in &spec.models {
        for device in &spec.devices {
            let order = json!({"model": model.name, "worker": device.worker});
            fleet.admin("load", &order).await?;
        }
    }
    eventually("every model on every device", async || {
        let workers = fleet.status().await.ok()?.workers;
        let ready = workers.iter().flat_map(|worker| &worker.report.models);
        let ready = ready.filter(|model| model.state == ModelState::Ready).count();
        (ready == spec.devices.len() * spec.models.len()).then_some(())
    })
    .await;
    Ok(())
}

/// What a real answer took.
#[derive(Debug, Clone, Copy)]
struct Taken {
    published: Moment,
    ended: Moment,
    output_tokens: u32,
}

/// Publishes a request at its time and follows it to its end.
async fn ask(fleet: &Fleet, start: Instant, number: usize, request: &TraceRequest) -> Result<Taken> {
    // No prompt begins as another one: what one has read is of no use to others.
    let prompt = vec![number + 1; usize::try_from(request.prompt_tokens)?];
    let body = json!({"prompt": prompt, "max_tokens": request.output_tokens});
    let question = Question {
        class: request.class,
        ..Question::new(request.model.as_str(), body)
    };
    // The trace says when: this waits for nobody.
    sleep_until(start + request.at).await;
    let published = start.elapsed();
    let mut events = fleet.submit(&question).await?;
    let answer = timeout(PATIENCE, Answer::collect(&mut events)).await;
    let ended = start.elapsed();
    let answer = answer.with_context(|| format!("{} has no end", request.id))??;
    let finished = answer.end.context("every request can be served")?;
    assert_eq!(finished.finish_reason, FinishReason::Length);
    assert_eq!(finished.usage.prompt_tokens, request.prompt_tokens);
    assert_eq!(finished.usage.completion_tokens, request.output_tokens);
    Ok(Taken {
        published: Moment::after_origin(published),
        ended: Moment::after_origin(ended),
        output_tokens: request.output_tokens,
    })
}

/// What the real fleet makes of a scenario: the times of its requests in the place of the simulated ones.
async fn real_outcome(fleet: &Fleet, scenario: &Scenario, simulated: &Outcome) -> Result<Outcome> {
    let start = Instant::now();
    let requests = scenario.trace().requests.iter().enumerate();
    let asked = requests.map(|(number, request)| ask(fleet, start, number, request));
    let taken = futures_util::future::try_join_all(asked).await?;
    let mut outcome = simulated.clone();
    for (record, taken) in outcome.requests.iter_mut().zip(taken) {
        record.published = taken.published;
        record.ended = Some(taken.ended);
        record.output_tokens = taken.output_tokens;
        record.end = RequestEnd::Finished;
    }
    Ok(outcome)
}

/// A trace, simulated and in reality: the figures of both, in seconds, each with its name.
async fn compared(spec: &FleetSpec, folder: &Path) -> Result<Vec<(String, f64, f64)>> {
    let scenario = Scenario::new(trace(), spec.clone())?;
    let simulated = PolicyName::Slo.simulate(&scenario, 1);
    let fleet = real_fleet(spec, folder).await?;
    let real = real_outcome(&fleet, &scenario, &simulated).await?;
    let (simulated, real) = (Figures::of(&scenario, &simulated), Figures::of(&scenario, &real));
    assert_eq!(simulated.finished, scenario.trace().requests.len());
    let mut compared = Vec::new();
    for (what, simulated, real) in [
        ("end to end", simulated.e2e_s, real.e2e_s),
        ("for each token", simulated.s_per_token, real.s_per_token),
    ] {
        for (percentile, simulated, real) in
            [("p50", simulated.p50, real.p50), ("p99", simulated.p99, real.p99)]
        {
            let (simulated, real) = simulated.zip(real).context("requests have finished")?;
            compared.push((format!("{what}, {percentile}"), simulated, real));
        }
    }
    Ok(compared)
}

/// A machine that had other things to do at one moment makes real times late, and says nothing of the simulator:
/// one run of a few that agrees in all figures is enough. A simulator that is wrong agrees in none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simulated_times_of_a_trace_are_those_of_a_real_fleet_within_a_tenth() -> Result<()> {
    let folder: TempDir = tempfile::tempdir()?;
    let spec = fleet_spec(folder.path())?;
    let mut apart = Vec::new();
    for _ in 0..RUNS_MAX {
        apart = compared(&spec, folder.path()).await?;
        println!("simulated and real seconds: {apart:?}");
        apart.retain(|(_, simulated, real)| (real - simulated).abs() > simulated * TOLERANCE);
        if apart.is_empty() {
            return Ok(());
        }
    }
    panic!("simulated and real seconds in {RUNS_MAX} runs, the last one: {apart:?}");
}

/// Runs of the fleet before the simulator is called wrong.
const RUNS_MAX: usize = 3;
/// Times the trace's own rate: the devices are busy for half of the time, and a machine of two cores stores some 500
/// tokens a second with time to spare.
const RATE: f64 = 0.6;
/// Long enough for a hundred requests, so that the 99th percentile is not the slowest one.
const PUBLISHED_FOR: Duration = Duration::from_secs(25);
/// So that the last answers end within seconds of the last publish.
const ANSWER_TOKENS_MAX: u32 = 256;
/// How far reality may be from what is simulated, as a share of it. Beside the chance that late timers give it, this
/// holds what is not simulated: the client's way to the server and back, admission and the journal, milliseconds
/// of answers that take seconds.
const TOLERANCE: f64 = 0.1;
