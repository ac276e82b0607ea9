//! Workers whose engine is simulated, and what real ones make of the same orders.

use std::time::{Duration, Instant};

use flotilla_client::Catalog;
use flotilla_protocol::assignment::{AttemptEnd, Control, ControlReply};
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::fleet::{LoadSource, ModelReport, ModelState};
use flotilla_protocol::{Attempt, ModelName};
use flotilla_tests::{simulated_model, write_profile};
use tempfile::TempDir;

use crate::fleet::{Fleet, answer, assignment, worker_id};

const ORIGIN: Duration = Duration::from_millis(1500);
const HOST: Duration = Duration::from_millis(100);
const GIB: u64 = 1 << 30;

/// A worker with a simulated device of 24 GiB and a catalog with models of 8 GiB.
pub async fn simulated(models: &[&str], settings: &[&str]) -> (Fleet, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profile.json");
    write_profile(&path, ORIGIN, HOST).unwrap();
    let profile = format!("worker.simulated.profile={}", path.display());
    let mut all = vec![
        "worker.engine=simulated",
        "worker.simulated.memory_bytes=24GiB",
        &profile,
    ];
    all.extend(settings);
    let fleet = Fleet::start_with(&all).await;
    let catalog = Catalog::open(&fleet.connection).await.unwrap();
    for model in models {
        catalog.add(&simulated_model(model, 8 * GIB)).await.unwrap();
    }
    (fleet, folder)
}

fn name(model: &str) -> ModelName {
    ModelName::new(model).unwrap()
}

/// Gives the worker an order.
pub async fn order(fleet: &Fleet, order: &Control) -> ControlReply {
    let subject = fleet.connection.subjects.control(&worker_id());
    let body = encode_internal(order).unwrap();
    let message = fleet.connection.client.request(subject, body).await.unwrap();
    decode_internal(&message.payload).unwrap()
}

/// Prefetches a model as soon as the worker has seen it in the catalog.
async fn prefetch(fleet: &mut Fleet, model: &str) {
    loop {
        let reply = order(fleet, &Control::Prefetch { model: name(model) }).await;
        match reply {
            ControlReply::Accepted => return,
            ControlReply::Refused { reason } => assert!(reason.contains("no model"), "{reason}"),
        }
        fleet.report().await;
    }
}

pub async fn load(fleet: &mut Fleet, model: &str) -> ModelReport {
    let load = Control::Load {
        model: name(model),
        keep_alive: None,
    };
    assert_eq!(order(fleet, &load).await, ControlReply::Accepted);
    loop {
        let models = fleet.report().await.models;
        let found = models.into_iter().find(|report| report.model == name(model));
        if let Some(ready) = found.filter(|report| report.state == ModelState::Ready) {
            return ready;
        }
    }
}

fn load_time(report: &ModelReport) -> Duration {
    Duration::from_millis(report.load_ms.unwrap())
}

#[tokio::test]
async fn load_takes_the_time_of_its_origin_or_that_of_host_memory_once_it_is_prefetched() {
    let (mut fleet, _folder) = simulated(&["cold", "warm"], &[]).await;
    let cold = load(&mut fleet, "cold").await;
    assert!(load_time(&cold) >= ORIGIN, "{cold:?}");
    prefetch(&mut fleet, "warm").await;
    let started = Instant::now();
    while started.elapsed() < ORIGIN - HOST {
        fleet.report().await;
    }
    let warm = load(&mut fleet, "warm").await;
    assert!((HOST..ORIGIN).contains(&load_time(&warm)), "{warm:?}");
}

/// 24 GiB, of which all that the model leaves is for keys and values, 128 KiB a token. None are in use yet.
#[tokio::test]
async fn report_of_a_simulated_model_says_what_it_holds_and_takes() {
    let (mut fleet, _folder) = simulated(&["m"], &[]).await;
    let ready = load(&mut fleet, "m").await;
    assert_eq!(ready.weights_bytes, 8 * GIB);
    let report = fleet.report().await;
    let device = &report.devices[0];
    assert_eq!(device.pages_kv, 0);
    let left = device.pages_total - device.pages_weights - device.pages_workspace;
    assert_eq!(ready.kv_tokens_max, Some(left * device.page_bytes / (128 << 10)));
    assert_eq!(device.pages_kv_kept, Some(64), "one context of 1024 tokens stays");
    assert_eq!(device.pages_free(), left - 64);
    assert!(ready.kv_tokens_max >= Some(120 * 1024), "{ready:?}");
}

#[tokio::test]
async fn answer_that_an_earlier_attempt_began_goes_on_as_it_would_have() {
    let body = r#"{"prompt": "one two three", "max_tokens": 30, "seed": 11}"#;
    let (mut fleet, _folder) = simulated(&["m"], &[]).await;
    let whole = assignment("whole", "m", body);
    fleet.assign(&whole).await;
    assert_eq!(fleet.done().await.end, AttemptEnd::Terminal);
    let whole = answer(&fleet.journal(&whole.request).await);
    assert_eq!(whole.1.len(), 30);

    let mut begun = assignment("begun", "m", body);
    fleet.write_begun(&begun, "", &whole.1[..12]).await;
    begun.attempt = Attempt(2);
    fleet.assign(&begun).await;
    assert_eq!(fleet.done().await.end, AttemptEnd::Terminal);
    let tokens = answer(&fleet.journal(&begun.request).await).1;
    assert_eq!(tokens, whole.1);
}

#[tokio::test]
async fn model_with_files_is_simulated_with_its_own_tokens() {
    let (mut fleet, _folder) = simulated(&[], &[]).await;
    let sum = assignment("r1", "adder", r#"{"prompt": "123+456=", "max_tokens": 8}"#);
    fleet.assign(&sum).await;
    let done = fleet.done().await;
    assert_eq!((done.end, done.output_tokens), (AttemptEnd::Terminal, 8));
    assert_eq!(done.prompt_tokens, 9, "as the adder's tokenizer counts");
    assert!(
        answer(&fleet.journal(&sum.request).await)
            .1
            .iter()
            .all(|token| *token < 16)
    );
}

#[tokio::test]
async fn answers_end_by_themselves_where_a_mean_length_is_configured() {
    let (mut fleet, _folder) = simulated(&["m"], &["worker.simulated.answer_tokens_mean=5"]).await;
    let mut lengths = Vec::new();
    for seed in 0..6 {
        let body = format!(r#"{{"prompt": "hello", "max_tokens": 500, "seed": {seed}}}"#);
        fleet.assign(&assignment(&format!("r{seed}"), "m", &body)).await;
        lengths.push(fleet.done().await.output_tokens);
    }
    assert!(
        lengths.iter().all(|length| (1..100).contains(length)),
        "{lengths:?}"
    );
    assert!(lengths.iter().any(|length| *length != lengths[0]), "{lengths:?}");
}

#[tokio::test]
async fn real_engine_refuses_a_simulated_model_and_says_who_serves_it() {
    let mut fleet = Fleet::start().await;
    let catalog = Catalog::open(&fleet.connection).await.unwrap();
    catalog.add(&simulated_model("m", GIB)).await.unwrap();
    fleet
        .assign(&assignment("r1", "m", r#"{"prompt": "hello"}"#))
        .await;
    let AttemptEnd::ModelUnloadable { reason, .. } = fleet.done().await.end else {
        panic!("it cannot be loaded")
    };
    assert!(
        reason.contains("simulated") && reason.contains("worker.engine"),
        "{reason}"
    );
    let prefetch = order(&fleet, &Control::Prefetch { model: name("m") }).await;
    assert!(matches!(prefetch, ControlReply::Refused { .. }), "{prefetch:?}");
}

#[tokio::test]
async fn real_engine_loads_prefetched_weights_from_host_memory() {
    let mut fleet = Fleet::start().await;
    prefetch(&mut fleet, "adder").await;
    let model = name("nobody");
    let refused = order(&fleet, &Control::Prefetch { model }).await;
    assert!(matches!(refused, ControlReply::Refused { .. }), "{refused:?}");
    loop {
        let host = fleet.report().await.host.expect("the worker has a host tier");
        if host.models.iter().any(|copy| copy.model == name("adder")) {
            break;
        }
    }
    let ready = load(&mut fleet, "adder").await;
    assert_eq!(ready.loaded_from, Some(LoadSource::Host));
    assert!(
        ready.kv_tokens_max >= Some(128),
        "room for its context: {ready:?}"
    );
}

#[tokio::test]
async fn profile_of_one_model_leaves_others_unserved_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.json");
    write_profile(&path, HOST, HOST).unwrap();
    let own = format!("worker.simulated.profile=own={}", path.display());
    let (mut fleet, _folder) = simulated(&["own", "other"], &[&own]).await;
    fleet
        .assign(&assignment("r1", "other", r#"{"prompt": "x", "max_tokens": 1}"#))
        .await;
    let AttemptEnd::ModelUnloadable { reason, .. } = fleet.done().await.end else {
        panic!("it has no profile")
    };
    assert!(reason.contains("no profile"), "{reason}");
    load(&mut fleet, "own").await;
}
