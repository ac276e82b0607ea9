//! Keys and values that share a device's pages with weights, as models come and go.

use flotilla_client::Catalog;
use flotilla_protocol::ModelName;
use flotilla_protocol::assignment::{AssignReply, AttemptEnd, Control, ControlReply};
use flotilla_protocol::catalog::ModelSource;
use flotilla_protocol::fleet::{ModelReport, ModelState, Report};
use flotilla_tests::simulated_model;

use crate::fleet::{Fleet, answer, assignment};
use crate::simulated::{load, order, simulated};

const REQUESTS: usize = 8;
const ANSWER_TOKENS: usize = 200;

/// Gives each model [`REQUESTS`] requests, waits for all of them, and tells the largest part of the device that was
/// in use meanwhile.
async fn serve(fleet: &mut Fleet, phase: &str, models: &[&str]) -> f64 {
    for index in 0..REQUESTS {
        for model in models {
            let body = format!(r#"{{"prompt": "hello", "max_tokens": {ANSWER_TOKENS}, "seed": {index}}}"#);
            let request = assignment(&format!("{phase}-{model}-{index}"), model, &body);
            let reply = fleet.assign(&request).await;
            assert!(matches!(reply, AssignReply::Accepted { .. }), "{reply:?}");
        }
    }
    let (mut most, mut is_busy) = (0.0_f64, true);
    while is_busy {
        let report = fleet.report().await;
        most = most.max(used(&report));
        is_busy = !report.running.is_empty();
    }
    for _ in 0..REQUESTS * models.len() {
        let done = fleet.done().await;
        assert_eq!(
            (done.end, done.output_tokens as usize),
            (AttemptEnd::Terminal, ANSWER_TOKENS)
        );
    }
    most
}

/// The part of the device that is in use, cached keys and values included.
fn used(report: &Report) -> f64 {
    let device = &report.devices[0];
    let used = device.pages_weights + device.pages_workspace + device.pages_kv;
    assert!(used <= device.pages_total, "{device:?}");
    used as f64 / device.pages_total as f64
}

async fn model(fleet: &mut Fleet, name: &str) -> Option<ModelReport> {
    let report = fleet.report().await;
    report
        .models
        .into_iter()
        .find(|model| model.model.as_str() == name)
}

/// Two models of 8 GiB on a device of 24 GiB. The keys and values of eight answers need 26 GiB, so that only some
/// can run at a time, beside one model as beside two.
#[tokio::test]
async fn device_serves_one_model_with_all_its_pages_then_two_and_then_one_again() {
    let settings = ["worker.report_interval_ms=100", "worker.slots=16"];
    let (mut fleet, _folder) = simulated(&[], &settings).await;
    let catalog = Catalog::open(&fleet.connection).await.unwrap();
    for name in ["m", "n"] {
        let mut entry = simulated_model(name, 8 << 30);
        entry.facts.context_tokens_max = 256;
        entry.source = ModelSource::Simulated {
            kv_bytes_per_token: 16 << 20,
        };
        catalog.add(&entry).await.unwrap();
    }

    let alone = load(&mut fleet, "m").await.kv_tokens_max.unwrap();
    let most = serve(&mut fleet, "one", &["m"]).await;
    assert!(most > 0.9, "{most} of the device was in use");

    let shared = load(&mut fleet, "n").await.kv_tokens_max.unwrap();
    assert!(
        shared * 3 < alone * 2,
        "{shared} of {alone} tokens are left for both"
    );
    let most = serve(&mut fleet, "two", &["m", "n"]).await;
    assert!(most > 0.9, "{most} of the device was in use");
    assert_eq!(
        model(&mut fleet, "m").await.unwrap().state,
        ModelState::Ready,
        "it was never evicted"
    );

    let unload = Control::Unload {
        model: ModelName::new("n").unwrap(),
    };
    assert_eq!(order(&fleet, &unload).await, ControlReply::Accepted);
    while model(&mut fleet, "n").await.is_some() {}
    assert_eq!(model(&mut fleet, "m").await.unwrap().kv_tokens_max, Some(alone));
    let most = serve(&mut fleet, "again", &["m"]).await;
    assert!(most > 0.9, "{most} of the device was in use");

    for index in 0..REQUESTS {
        let mut answers = Vec::new();
        for phase in ["one", "two", "again"] {
            let request = assignment(&format!("{phase}-m-{index}"), "m", "").request;
            answers.push(answer(&fleet.journal(&request).await).1);
        }
        assert_eq!(answers[0].len(), ANSWER_TOKENS);
        assert!(
            answers.iter().all(|tokens| *tokens == answers[0]),
            "whoever was preempted"
        );
    }
}
