//! Alerts with their real causes: a real Prometheus watches a real fleet to which they happen.
//!
//! Its rules are those of `deploy/prometheus/alerts.yml` with shorter times, see [`shortened`]. What each alert says, and
//! that it is silent otherwise, is tried with made-up series (`alerts_test.yml`).

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use flotilla_client::Catalog;
use flotilla_protocol::Class;
use flotilla_tests::{
    Fleet, ModelFolderBuilder, Prometheus, Question, copy_folder, demo_models_dir, eventually,
    sample_profile, simulated_model,
};
use serde_json::json;
use tokio::time::{Instant, interval};

use crate::alerts::{named, read};
use crate::dashboards::traffic::break_a_journal;
use crate::slow::worker_of;

const OF_A_QUEUE: [&str; 4] = [
    "FlotillaOldestRequestTooOld",
    "FlotillaOldestBatchRequestTooOld",
    "FlotillaNoWorker",
    "FlotillaQueueStreamFull",
];
const OF_A_LEADER_THAT_IS_CUT_OFF: [&str; 2] = ["FlotillaNatsLost", "FlotillaNoLeader"];
const OF_TOO_LITTLE: [&str; 1] = ["FlotillaTooFewWorkers"];
const OF_MISSED_TARGETS: [&str; 2] = ["FlotillaSloBurnFast", "FlotillaSloBurnSlow"];
const OF_WORKERS_AND_WEIGHTS: [&str; 4] = [
    "FlotillaModelFails",
    "FlotillaDeadLetters",
    "FlotillaRelayFull",
    "FlotillaWorkerMissing",
];
const OF_A_PURGE: [&str; 1] = ["FlotillaLostRequests"];
/// Alerts whose causes a test cannot make, and why.
const WITHOUT_A_CAUSE: [(&str, &str); 3] = [
    (
        "FlotillaTwoLeaders",
        "a leader that cannot renew its lease steps down before the lease can be another's",
    ),
    (
        "FlotillaLedgerDrift",
        "the process would have to lose a gigabyte of memory",
    ),
    (
        "FlotillaDeviceFailed",
        "the only devices of this machine are its processor's cores, which do not fail",
    ),
];

/// The rules with every time divided by 360, so that an hour is ten seconds: how long an alert has to hold, the windows of
/// rates (of four scrapes at least), and the ages that are too old.
fn shortened(rules: &str) -> String {
    rules.lines().map(|line| shortened_line(line) + "\n").collect()
}

fn shortened_line(line: &str) -> String {
    if let Some((key, time)) = line.split_once("for: ") {
        let time = parsed(time) / FASTER;
        return format!("{key}for: {}ms", time.as_millis());
    }
    if let Some((left, age)) = line.split_once("_seconds").and(line.rsplit_once("> "))
        && let Ok(age) = age.parse::<f64>()
    {
        return format!("{left}> {}", age / f64::from(FASTER));
    }
    let mut pieces = line.split('[');
    let mut short = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (time, rest) = piece.split_once(']').unwrap_or((piece, ""));
        let time = (parsed(time) / FASTER).max(4 * Prometheus::INTERVAL);
        short += &format!("[{}ms]{rest}", time.as_millis());
    }
    short
}

fn parsed(time: &str) -> Duration {
    humantime::parse_duration(time).expect("the rules have no other brackets")
}

#[test]
fn rules_are_shortened_in_all_their_times() {
    let of = |line| shortened_line(line);
    assert_eq!(of("  for: 15m"), "  for: 2500ms");
    assert_eq!(
        of("max(x_oldest_seconds{a=\"b\"}) > 3600"),
        "max(x_oldest_seconds{a=\"b\"}) > 10"
    );
    assert_eq!(
        of("rate(x[1d]) / rate(y[5m]) > 0.5"),
        "rate(x[240000ms]) / rate(y[4000ms]) > 0.5"
    );
    assert_eq!(
        of("(sum(leader) or vector(0)) < 1"),
        "(sum(leader) or vector(0)) < 1"
    );
}

#[test]
fn every_alert_has_a_cause_here_or_a_reason_why_not() -> Result<()> {
    let rules = read("alerts.yml")?;
    let mut known: Vec<&str> = [
        &OF_A_QUEUE[..],
        &OF_A_LEADER_THAT_IS_CUT_OFF,
        &OF_TOO_LITTLE,
        &OF_MISSED_TARGETS,
    ]
    .concat();
    known.extend(OF_WORKERS_AND_WEIGHTS.into_iter().chain(OF_A_PURGE));
    known.extend(WITHOUT_A_CAUSE.map(|(alert, _)| alert));
    assert_eq!(BTreeSet::from_iter(known), named(&rules, "- alert: "));
    Ok(())
}

/// A Prometheus that watches a fleet.
struct Watch {
    prometheus: Prometheus,
}

impl Watch {
    /// `None` where there is no Prometheus.
    #[expect(clippy::print_stdout, reason = "says what was left out")]
    async fn over(fleet: &Fleet) -> Result<Option<Self>> {
        let Some(prometheus) = Prometheus::start(&shortened(&read("alerts.yml")?)).await? else {
            println!("skipped: there is no prometheus beside FLOTILLA_TEST_PROMTOOL");
            return Ok(None);
        };
        prometheus.watch(fleet).await?;
        // Counters are seen to grow by who has seen them before.
        prometheus
            .wait_until_all_are_up(fleet.dispatchers.len() + fleet.workers.len())
            .await;
        Ok(Some(Self { prometheus }))
    }

    /// Waits until none of these fires, or did a moment ago; tells the time, for [`Watch::fire`].
    async fn silent(&self, alerts: &[&str]) -> Instant {
        eventually(&format!("silence of {alerts:?}"), async || {
            let firing = self.firing(SILENCE).await?;
            alerts.iter().all(|it| !firing.contains(*it)).then_some(())
        })
        .await;
        Instant::now()
    }

    /// Waits until each of these has fired since then.
    async fn fire(&self, alerts: &[&str], since: Instant) {
        for alert in alerts {
            eventually(&format!("{alert} to fire"), async || {
                let firing = self.firing(since.elapsed()).await?;
                firing.contains(*alert).then_some(())
            })
            .await;
        }
    }

    /// What has fired in the last time.
    async fn firing(&self, last: Duration) -> Option<BTreeSet<String>> {
        let last = last.as_secs().max(1);
        let query = format!("max by (alertname) (max_over_time(ALERTS{{alertstate=\"firing\"}}[{last}s]))");
        let series = self.prometheus.query(&query).await.ok()?;
        let name = |it: &serde_json::Value| Some(it.pointer("/metric/alertname")?.as_str()?.to_owned());
        series.iter().map(name).collect()
    }
}

/// Nobody takes what is asked; then nobody even has the queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_that_nobody_empties_is_told() -> Result<()> {
    let fleet = Fleet::builder()
        .workers(0)
        .proxied()
        .set("nats.requests_max_messages=10")
        .start()
        .await?;
    let Some(watch) = Watch::over(&fleet).await? else {
        return Ok(());
    };
    let catalog = Catalog::open(&fleet.connection).await?;
    catalog.add(&simulated_model("wanted", 1 << 20)).await?;
    let since = watch.silent(&OF_A_QUEUE).await;
    let mut waiting = Vec::new();
    for number in 0..9 {
        let mut question = Question::new("wanted", json!({"prompt": [1, 2, 3]}));
        if number % 2 == 0 {
            question.class = Class::Batch;
        }
        waiting.push(fleet.submit(&question).await?);
    }
    watch.fire(&OF_A_QUEUE, since).await;
    let since = watch.silent(&OF_A_LEADER_THAT_IS_CUT_OFF).await;
    fleet.proxies["d0"].cut();
    watch.fire(&OF_A_LEADER_THAT_IS_CUT_OFF, since).await;
    Ok(())
}

/// One device has far more to do than it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_work_than_workers_is_told() -> Result<()> {
    // What waits is to be worked off within this time.
    let builder = Fleet::builder()
        .set("dispatcher.policy.patience_interactive_s=1")
        .set("worker.slots=1");
    let fleet = builder.simulated(&sample_profile(), 1).start().await?;
    let Some(watch) = Watch::over(&fleet).await? else {
        return Ok(());
    };
    let catalog = Catalog::open(&fleet.connection).await?;
    catalog.add(&simulated_model("wanted", 1 << 20)).await?;
    let since = watch.silent(&OF_TOO_LITTLE).await;
    let mut waiting = Vec::new();
    for _ in 0..150 {
        let body = json!({"prompt": [1, 2, 3], "max_tokens": 900, "ignore_eos": true});
        waiting.push(fleet.submit(&Question::new("wanted", body)).await?);
    }
    watch.fire(&OF_TOO_LITTLE, since).await;
    Ok(())
}

/// A model that breaks, answers that are late, a journal that breaks, a relay that somebody fills, a worker that dies, a
/// request stream that is emptied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_in_a_fleet_is_told() -> Result<()> {
    let models = tempfile::tempdir()?;
    ModelFolderBuilder::default().write(&models.path().join("slow"))?;
    for name in ["adder", "rotten"] {
        copy_folder(&demo_models_dir().join("adder"), &models.path().join(name))?;
    }
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        .workers(2)
        // Workers that share weights would look for the model's files elsewhere.
        .set("worker.weights.share=false")
        .set("dispatcher.ack_wait_ms=1000")
        .set("dispatcher.reconcile_interval_ms=200")
        .set("nats.relay_max_bytes=64MiB")
        .start()
        .await?;
    let Some(watch) = Watch::over(&fleet).await? else {
        return Ok(());
    };
    let late = watch.silent(&OF_MISSED_TARGETS).await;
    tokio::select! {
        () = watch.fire(&OF_MISSED_TARGETS, late) => {}
        never = ask_late(&fleet) => never?,
    }
    let since = watch.silent(&OF_WORKERS_AND_WEIGHTS).await;
    fs::remove_dir_all(models.path().join("rotten"))?;
    let answer = fleet.ask(&Question::prompt("rotten", "1+1=")).await?;
    answer.end.err().context("it cannot be loaded")?;
    break_a_journal(&fleet).await?;
    let relay = fleet
        .connection
        .jetstream
        .get_object_store("flotilla_relay")
        .await?;
    let bytes = vec![7; 60 << 20];
    relay.put("by-somebody", &mut bytes.as_slice()).await?;
    fleet.workers[1].kill()?;
    watch.fire(&OF_WORKERS_AND_WEIGHTS, since).await;
    let since = watch.silent(&OF_A_PURGE).await;
    lose_a_request(&mut fleet).await?;
    watch.prometheus.watch(&fleet).await?;
    watch.fire(&OF_A_PURGE, since).await;
    Ok(())
}

/// Asks for ever for what cannot be in time.
async fn ask_late(fleet: &Fleet) -> Result<()> {
    let mut pace = interval(Duration::from_millis(200));
    loop {
        pace.tick().await;
        let body = json!({"prompt": "1+1=", "slo": {"e2e_ms": 0.1}});
        fleet.ask(&Question::new("adder", body)).await?;
    }
}

/// An operator empties the request stream while a request runs, and whoever knows of it dies.
async fn lose_a_request(fleet: &mut Fleet) -> Result<()> {
    let body = json!({"prompt": "w5 w9", "max_tokens": 900, "ignore_eos": true});
    let question = Question::new("slow", body);
    let _events = fleet.submit(&question).await?;
    worker_of(fleet, &question, 1).await;
    let requests = fleet.connection.jetstream.get_stream("FLOTILLA_REQUESTS").await?;
    requests.purge().await?;
    fleet.dispatchers[0].kill()?;
    fleet.workers[0].kill()?;
    fleet.restart_worker(0)?;
    fleet.restart_dispatcher(0)
}

/// By how much times are shorter: an hour is ten seconds.
const FASTER: u32 = 360;
/// An alert that has not fired for this long is silent.
const SILENCE: Duration = Duration::from_secs(3);
