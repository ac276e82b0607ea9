//! What dispatchers and workers tell over HTTP: metrics, and how they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use flotilla_client::Catalog;
use flotilla_protocol::{Class, ModelName};
use flotilla_telemetry::{Kind, Metric, PROCESS_METRICS};
use flotilla_tests::{
    Fleet, PATIENCE, Process, Question, Scrape, Signal, eventually, sample_profile, simulated_model,
};
use serde_json::json;
use tokio::time::{Instant, interval};

/// The chapters of the table, each with its metrics.
fn chapters() -> [(&'static str, &'static str, Vec<&'static Metric>); 5] {
    [
        (
            "Dispatcher",
            "A dispatcher that stands by tells the first seven, and its counters.",
            flotilla_dispatcher::METRICS.to_vec(),
        ),
        (
            "NATS",
            "From the leading dispatcher, asked of the server at each scrape, under the names, types and labels of the \
             Prometheus NATS exporter's `/jsz` (`-jsz=all`). It sees what our account sees: figures of the server are \
             those of the account, and `meta_leader`, `account` and `account_id` are empty.",
            flotilla_dispatcher::JETSTREAM_METRICS.to_vec(),
        ),
        ("Worker", "", flotilla_worker::METRICS.to_vec()),
        ("Worker: weights", "", flotilla_worker::WEIGHTS_METRICS.to_vec()),
        (
            "Every process",
            "Under the names that Prometheus' own clients use.",
            PROCESS_METRICS.to_vec(),
        ),
    ]
}

fn kind_of(metric: &Metric) -> &'static str {
    match metric.kind {
        Kind::Counter | Kind::Total => "counter",
        Kind::Gauge | Kind::Level => "gauge",
        Kind::Histogram(_) => "histogram",
    }
}

fn table() -> Result<String> {
    let mut text = String::from(INTRODUCTION);
    for (title, word, metrics) in chapters() {
        write!(text, "\n## {title}\n\n")?;
        if !word.is_empty() {
            write!(text, "{word}\n\n")?;
        }
        text.push_str("| name | type | labels | meaning |\n|---|---|---|---|\n");
        for metric in metrics {
            let labels = metric.labels.join(", ");
            let (name, kind) = (metric.name, kind_of(metric));
            writeln!(text, "| `{name}` | {kind} | {labels} | {} |", metric.help)?;
        }
    }
    text.push_str("\n## Buckets\n\n| histogram | upper ends | reason |\n|---|---|---|\n");
    for metric in chapters().into_iter().flat_map(|(_, _, metrics)| metrics) {
        if let Kind::Histogram(buckets) = metric.kind {
            let upper: Vec<String> = buckets.upper.iter().map(ToString::to_string).collect();
            writeln!(
                text,
                "| `{}` | {} | {} |",
                metric.name,
                upper.join(" "),
                buckets.reason
            )?;
        }
    }
    Ok(text)
}

fn table_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/METRICS.md")
}

#[test]
fn table_says_what_the_code_says() -> Result<()> {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(table_path(), table()?)?;
    }
    let found = std::fs::read_to_string(table_path())?;
    assert!(
        found == table()?,
        "deploy/METRICS.md is not what the metrics.rs files say; BLESS=1 cargo test -p flotilla-tests --test it \
         table_says writes it"
    );
    Ok(())
}

#[test]
fn names_labels_and_buckets_follow_the_rules() {
    let closed = BTreeSet::from([
        "model",
        "class",
        "device",
        "outcome",
        "tier",
        "reason",
        "purpose",
        "state",
        "phase",
        "direction",
        "model_name",
        "finished_reason",
        "version",
        "role",
        "stream_name",
    ]);
    let mut seen = BTreeSet::new();
    for (title, _, metrics) in chapters() {
        for metric in metrics {
            let name = metric.name;
            // Roles and theirs share none but one, which adds up.
            assert!(
                seen.insert(name) || name == "vllm:num_requests_waiting",
                "{name} is declared twice"
            );
            let is_ours = name.starts_with("flotilla_");
            let grows = matches!(metric.kind, Kind::Counter | Kind::Total);
            assert_eq!(name.ends_with("_total"), grows, "{name} in {title}");
            assert!(metric.help.ends_with('.'), "{name}: {}", metric.help);
            for label in metric.labels.iter().filter(|_| is_ours) {
                assert!(closed.contains(label), "{name} has the label {label}");
            }
            if let Kind::Histogram(buckets) = metric.kind {
                assert!(buckets.upper.is_sorted_by(|a, b| a < b), "{name}");
                assert!(!buckets.reason.is_empty(), "{name}");
            }
        }
    }
}

/// A question with a target that it cannot miss, which holds up the queue for a while.
fn question(model: &str, number: usize) -> Question {
    let prompt = match model {
        "adder" => format!("{number}+1="),
        _ => "sort 52914=".to_owned(),
    };
    Question::new(
        model,
        json!({"prompt": prompt, "slo": {"e2e_ms": 60_000.0}, "max_tokens": 40, "ignore_eos": true}),
    )
}

/// The metrics of a process that must be there, and those that it told.
#[derive(Debug, Default)]
struct Told {
    types: BTreeMap<String, String>,
    labels: BTreeMap<String, BTreeSet<String>>,
}

impl Told {
    fn add(&mut self, scrape: &Scrape) {
        for (name, kind) in scrape.types() {
            self.types.insert(name.to_owned(), kind.to_owned());
            self.labels.insert(name.to_owned(), scrape.labels(name));
        }
    }

    /// The first metric that was not told, or was told in another way.
    fn check(&self, metrics: &[&Metric]) -> Result<(), String> {
        let wanted: BTreeSet<&str> = metrics.iter().map(|metric| metric.name).collect();
        let unknown = self.types.keys().find(|name| !wanted.contains(name.as_str()));
        if let Some(unknown) = unknown {
            return Err(format!("{unknown} is not in the table"));
        }
        for metric in metrics {
            let kind = self.types.get(metric.name).map(String::as_str);
            if kind != Some(kind_of(metric)) {
                return Err(format!("{} is told as {kind:?}", metric.name));
            }
            let labels: BTreeSet<String> = metric.labels.iter().map(|label| (*label).to_owned()).collect();
            if self.labels[metric.name] != labels {
                return Err(format!(
                    "{} has the labels {:?}",
                    metric.name, self.labels[metric.name]
                ));
            }
        }
        Ok(())
    }
}

/// Scrapes again and again while requests wait and run, and compares all that was told with the table.
#[tokio::test]
async fn table_is_what_a_fleet_under_load_tells() -> Result<()> {
    let fleet = Fleet::builder().set("worker.slots=1").start().await?;
    let [dispatcher, nats, worker, weights, process] = chapters().map(|(_, _, metrics)| metrics);
    let dispatcher = [dispatcher, nats, process.clone()].concat();
    let worker = [worker, weights, process].concat();
    let mut told = [Told::default(), Told::default()];
    let mut number = 0;
    let answers = async {
        let mut under_way = Vec::new();
        loop {
            for model in ["adder", "adder", "sorter"] {
                number += 1;
                under_way.push(fleet.submit(&question(model, number)).await.unwrap());
            }
            let mut oldest = under_way.remove(0);
            while oldest.next().await.is_ok_and(|event| event.is_some()) {}
        }
    };
    let complete = async {
        let mut looks = interval(Duration::from_millis(50));
        let deadline = Instant::now() + PATIENCE;
        loop {
            looks.tick().await;
            told[0].add(&fleet.dispatchers[0].scrape().await.unwrap());
            told[1].add(&fleet.workers[0].scrape().await.unwrap());
            let Err(missing) = told[0].check(&dispatcher).and(told[1].check(&worker)) else {
                break;
            };
            assert!(Instant::now() < deadline, "{missing}");
        }
    };
    tokio::select! {
        () = complete => {}
        () = answers => unreachable!("it goes on for ever"),
    }
    Ok(())
}

#[tokio::test]
async fn metrics_say_what_was_answered() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let mut output_tokens = 0;
    for number in 1..=5 {
        let answer = fleet.ask(&question("adder", number)).await?;
        output_tokens += answer.end.context("an answer")?.usage.completion_tokens;
    }
    let worker = fleet.workers[0].scrape().await?;
    let adder = [("model_name", "adder")];
    assert_eq!(worker.sum("vllm:request_success_total", &adder), Some(5.0));
    assert_eq!(
        worker.sum("vllm:e2e_request_latency_seconds_count", &adder),
        Some(5.0)
    );
    assert_eq!(
        worker.sum("vllm:time_to_first_token_seconds_count", &adder),
        Some(5.0)
    );
    assert_eq!(
        worker.sum("vllm:request_queue_time_seconds_count", &adder),
        Some(5.0)
    );
    let made = worker.sum("vllm:generation_tokens_total", &adder);
    assert_eq!(made, Some(f64::from(output_tokens)));
    let model = [("model", "adder")];
    let decoded = worker.sum(
        "flotilla_worker_step_tokens_total",
        &[("model", "adder"), ("phase", "decode")],
    );
    assert_eq!(decoded, Some(f64::from(output_tokens)));
    assert_eq!(worker.sum("flotilla_worker_attempts_total", &model), Some(5.0));
    assert_eq!(
        worker.sum("flotilla_worker_load_seconds_count", &[("tier", "disk")]),
        Some(1.0)
    );
    let state = [("model", "adder"), ("state", "ready")];
    assert_eq!(worker.sum("flotilla_worker_model_state", &state), Some(1.0));
    // The worker tells the end to the client before it tells the dispatcher.
    let in_time = [("model", "adder"), ("class", "interactive"), ("outcome", "met")];
    let dispatcher = eventually("five answers", async || {
        let scrape = fleet.dispatchers[0].scrape().await.ok()?;
        (scrape.sum("flotilla_dispatcher_answers_total", &in_time) == Some(5.0)).then_some(scrape)
    })
    .await;
    let tokens = dispatcher.sum("flotilla_dispatcher_answer_tokens_total", &in_time);
    assert_eq!(tokens, Some(f64::from(output_tokens)));
    let sent = dispatcher.sum("flotilla_dispatcher_assignments_total", &[("outcome", "sent")]);
    assert_eq!(sent, Some(5.0));
    assert_eq!(
        dispatcher.sum("flotilla_dispatcher_queue_requests", &model),
        Some(0.0)
    );
    assert_eq!(
        dispatcher.sum("flotilla_dispatcher_model_workers", &model),
        Some(1.0)
    );
    assert_eq!(
        dispatcher.sum("flotilla_dispatcher_devices", &[("device", "cpu")]),
        Some(1.0)
    );
    let journal = [("stream_name", "FLOTILLA_JOURNAL")];
    let stored = dispatcher.sum("jetstream_stream_total_messages", &journal);
    assert!(
        stored >= Some(15.0),
        "each has an accepted, tokens and a finished event: {stored:?}"
    );
    Ok(())
}

/// Who waits is counted by class and with its age; without a worker the autoscaler hears that one is wanted.
#[tokio::test]
async fn requests_that_wait_are_counted_and_want_a_worker() -> Result<()> {
    let fleet = Fleet::builder().workers(0).start().await?;
    Catalog::open(&fleet.connection)
        .await?
        .add(&simulated_model("wanted", 1 << 20))
        .await?;
    let mut waiting = Vec::new();
    for class in [Class::Interactive, Class::Interactive, Class::Batch] {
        let mut question = question("wanted", 1);
        question.class = class;
        question.body["prompt"] = json!([1, 2, 3]);
        waiting.push(fleet.submit(&question).await?);
    }
    let dispatcher = &fleet.dispatchers[0];
    let scrape = eventually("three that wait", async || {
        let scrape = dispatcher.scrape().await.ok()?;
        (scrape.sum("vllm:num_requests_waiting", &[("model_name", "wanted")]) == Some(3.0)).then_some(scrape)
    })
    .await;
    let of = |class| [("model", "wanted"), ("class", class)];
    assert_eq!(
        scrape.sum("flotilla_dispatcher_queue_requests", &of("interactive")),
        Some(2.0)
    );
    assert_eq!(
        scrape.sum("flotilla_dispatcher_queue_requests", &of("batch")),
        Some(1.0)
    );
    assert!(scrape.sum("flotilla_dispatcher_queue_oldest_seconds", &of("batch")) > Some(0.0));
    assert!(scrape.sum("flotilla_dispatcher_workers_wanted", &[("device", "unknown")]) >= Some(1.0));
    let pending = scrape.sum(
        "jetstream_consumer_num_ack_pending",
        &[("consumer_name", "interactive")],
    );
    assert_eq!(pending, Some(2.0));
    assert_eq!(scrape.sum("flotilla_dispatcher_workers", &[]), Some(0.0));
    // What is gone from the catalog is gone from what is told.
    let name = ModelName::new("wanted")?;
    Catalog::open(&fleet.connection).await?.remove(&name).await?;
    eventually("a model that is told no more", async || {
        let scrape = dispatcher.scrape().await.ok()?;
        let told = scrape.sum("flotilla_dispatcher_queue_requests", &[("model", "wanted")]);
        told.is_none().then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn one_leads_and_the_others_stand_by_ready_and_alive() -> Result<()> {
    let mut fleet = Fleet::builder().dispatchers(2).start().await?;
    let leads = async |process: &Process| {
        process
            .scrape()
            .await
            .ok()?
            .sum("flotilla_dispatcher_leader", &[])
    };
    let standings = [
        leads(&fleet.dispatchers[0]).await,
        leads(&fleet.dispatchers[1]).await,
    ];
    assert_eq!(standings.iter().flatten().sum::<f64>(), 1.0, "{standings:?}");
    let leader = usize::from(standings[1] == Some(1.0));
    for process in &fleet.dispatchers {
        assert!(process.probe("/livez").await?.0);
        eventually("a dispatcher that is ready", async || {
            process.probe("/readyz").await.ok()?.0.then_some(())
        })
        .await;
    }
    let standby = fleet.dispatchers[1 - leader].scrape().await?;
    assert_eq!(
        standby.sum("jetstream_stream_total_messages", &[]),
        None,
        "the leader tells it"
    );
    assert_eq!(standby.sum("flotilla_dispatcher_nats_connected", &[]), Some(1.0));
    let epoch = fleet.dispatchers[leader]
        .scrape()
        .await?
        .sum("flotilla_dispatcher_epoch", &[]);
    fleet.dispatchers[leader].kill()?;
    let standby = &fleet.dispatchers[1 - leader];
    eventually("another leader", async || {
        (leads(standby).await == Some(1.0)).then_some(())
    })
    .await;
    let scrape = eventually("its term", async || {
        let scrape = standby.scrape().await.ok()?;
        scrape.sum("jetstream_stream_total_messages", &[]).map(|_| scrape)
    })
    .await;
    assert!(scrape.sum("flotilla_dispatcher_epoch", &[]) > epoch);
    assert_eq!(scrape.sum("flotilla_dispatcher_terms_total", &[]), Some(1.0));
    Ok(())
}

/// A worker that drains finishes what it runs, and whoever routes or supervises is told that it takes nothing new. Its
/// device is simulated, so that what it runs takes seconds on any machine.
#[tokio::test]
async fn worker_that_drains_is_alive_and_not_ready() -> Result<()> {
    let mut fleet = Fleet::builder()
        .workers(0)
        .set("worker.drain_timeout_s=60")
        .set("worker.engine=simulated")
        .set(&format!(
            "worker.simulated.profile={}",
            sample_profile().display()
        ))
        .start()
        .await?;
    fleet.add_worker()?;
    fleet.wait_for_workers(1).await;
    let catalog = Catalog::open(&fleet.connection).await?;
    catalog.add(&simulated_model("slow", 1 << 20)).await?;
    let worker = &fleet.workers[0];
    eventually("a ready worker", async || {
        worker.probe("/readyz").await.ok()?.0.then_some(())
    })
    .await;
    let long = json!({"prompt": [1, 2, 3], "max_tokens": 1000, "ignore_eos": true});
    let _running = fleet.submit(&Question::new("slow", long)).await?;
    eventually("a running request", async || {
        let tokens = worker
            .scrape()
            .await
            .ok()?
            .sum("vllm:generation_tokens_total", &[]);
        (tokens > Some(0.0)).then_some(())
    })
    .await;
    worker.signal(Signal::Term)?;
    let told = eventually("a worker that is not ready", async || {
        let (is_ready, told) = worker.probe("/readyz").await.ok()?;
        (!is_ready).then_some(told)
    })
    .await;
    assert!(told.contains("drains"), "{told}");
    assert!(worker.probe("/livez").await?.0);
    let scrape = worker.scrape().await?;
    assert_eq!(scrape.sum("flotilla_worker_draining", &[]), Some(1.0));
    Ok(())
}

/// A server that is gone makes nobody restart a process that waits for it.
#[tokio::test]
async fn without_its_server_a_role_is_alive_and_not_ready() -> Result<()> {
    let fleet = Fleet::builder().proxied().start().await?;
    for process in fleet.dispatchers.iter().chain(&fleet.workers) {
        let name = process.name();
        fleet.proxies[name].cut();
        let told = eventually("a role that is not ready", async || {
            let (is_ready, told) = process.probe("/readyz").await.ok()?;
            (!is_ready).then_some(told)
        })
        .await;
        assert!(told.contains("not connected to NATS"), "{told}");
        assert!(process.probe("/livez").await?.0, "{name}");
        fleet.proxies[name].heal();
        eventually("a role that is ready again", async || {
            process.probe("/readyz").await.ok()?.0.then_some(())
        })
        .await;
    }
    Ok(())
}

const INTRODUCTION: &str = "\
# Metrics

Every dispatcher and every worker answers `GET /metrics` in the text format of Prometheus, `/livez` (its loop turns) and
`/readyz` (a worker is registered, connected and takes work; a dispatcher leads or stands by, with a connection). Where:
`dispatcher.http.listen` and `worker.http.listen`, by default 127.0.0.1 and the first free port from 9470 and 9480 on.

This file is compared with the code and with what a fleet under load tells (`tests/it/metrics.rs`).

- Counters begin with the process; use `rate` and `increase`. What is *now* (gauges) is asked at each scrape.
- Labels have values from closed sets, or are models of the catalog: a model is told from its first request on, and its
  gauges go when it leaves the catalog. A process tells at most 10,000 models apart; all beyond are `_others`.
- `device` is the kind of a device (`cpu`) where a dispatcher tells it, and its number on its worker where a worker does.
- Several simulated workers in one process are told as one.
";
