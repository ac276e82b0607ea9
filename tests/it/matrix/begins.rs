//! Rows of beginnings: a dispatcher and a worker that start while the server, or the way to it, fails each of their first
//! questions once, and a leader whose lease is disturbed.

use anyhow::Result;
use flotilla_tests::{Disturbance, Exchanges, Fault, Fleet, Question, Refusal, Rule, Side, eventually};
use serde_json::json;

use super::{LATE, MODEL, SLOW, assert_at_rest, start};

/// What a dispatcher asks before and when it leads.
const OF_DISPATCHER: [&str; 8] = [
    "$JS.API.STREAM.INFO.FLOTILLA_REQUESTS",
    "$JS.API.STREAM.INFO.KV_flotilla_lease",
    "$KV.flotilla_lease.>",
    "$JS.API.CONSUMER.DELETE.FLOTILLA_REQUESTS.interactive",
    "$JS.API.CONSUMER.CREATE.FLOTILLA_REQUESTS.interactive.>",
    "$JS.API.CONSUMER.MSG.NEXT.FLOTILLA_REQUESTS.interactive",
    "$JS.API.CONSUMER.CREATE.KV_flotilla_models",
    "$JS.API.CONSUMER.CREATE.KV_flotilla_workers",
];
/// What a worker asks before it works.
const OF_WORKER: [&str; 6] = [
    "$JS.API.STREAM.INFO.FLOTILLA_JOURNAL",
    "$JS.API.STREAM.INFO.KV_flotilla_models",
    "$JS.API.STREAM.INFO.KV_flotilla_workers",
    "$JS.API.STREAM.INFO.OBJ_flotilla_relay",
    "$KV.flotilla_workers.>",
    "$JS.API.CONSUMER.CREATE.KV_flotilla_models",
];

fn question() -> Question {
    Question::new(MODEL, json!({"prompt": [2, 7], "max_tokens": 8, "seed": 1}))
}

/// Disturbs each subject once.
fn disturb(proxy: &Exchanges, subjects: &[&str], side: Side, fault: &Fault) -> Vec<Disturbance> {
    let rules = subjects
        .iter()
        .map(|subject| Rule::new(subject, side, fault.clone()).times(1));
    rules.map(|rule| proxy.disturb(rule)).collect()
}

async fn both_start(fault: &'static str, side: Side, what: Fault) -> Result<()> {
    let (mut fleet, _folder) = start(1).await?;
    let known = fleet.ask(&question()).await?.token_ids;
    for process in fleet.dispatchers.iter_mut().chain(&mut fleet.workers) {
        process.kill()?;
    }
    let mut disturbed = disturb(&fleet.exchanges["d0"], &OF_DISPATCHER, side, &what);
    disturbed.extend(disturb(&fleet.exchanges["w0"], &OF_WORKER, side, &what));
    fleet.restart_dispatcher(0)?;
    fleet.restart_worker(0)?;
    let answer = fleet.ask(&question()).await?;
    assert_eq!(answer.token_ids, known, "{fault}");
    let subjects = OF_DISPATCHER.iter().chain(&OF_WORKER);
    for (disturbance, subject) in disturbed.iter_mut().zip(subjects) {
        let met = disturbance.wait_until_met(1).await;
        assert!(met.is_ok(), "{fault}: {subject} was never asked");
    }
    assert_at_rest(&mut fleet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatcher_and_worker_start_although_each_first_question_is_lost() -> Result<()> {
    both_start("silent", Side::Question, Fault::Silent).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatcher_and_worker_start_although_each_first_answer_comes_too_late() -> Result<()> {
    both_start("late", Side::Answer, Fault::Late(LATE)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatcher_and_worker_start_although_each_first_answer_is_slow_or_comes_twice() -> Result<()> {
    both_start("twice", Side::Answer, Fault::Twice).await?;
    both_start("slow", Side::Answer, Fault::Late(SLOW)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatcher_and_worker_start_although_each_first_question_is_refused() -> Result<()> {
    let away = Refusal::JetStream(10008, "JetStream system temporarily unavailable");
    both_start("refused", Side::Question, Fault::Refused(away)).await
}

/// The name of the leader and its epoch.
async fn leader(fleet: &Fleet) -> Option<(String, u64)> {
    let message = fleet.admin("queue", &json!({})).await.ok()?;
    let status: serde_json::Value = serde_json::from_slice(&message.payload).ok()?;
    Some((
        status["dispatcher"].as_str()?.to_owned(),
        status["epoch"].as_u64()?,
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_outlives_what_its_lease_meets_once_and_leads_again_after_what_lasts() -> Result<()> {
    let (mut fleet, _folder) = start(1).await?;
    let (_, before) = eventually("a leader", async || leader(&fleet).await).await;
    let lease = "$KV.flotilla_lease.>";
    let renewals = |side, fault| fleet.exchanges["d0"].disturb(Rule::new(lease, side, fault).times(1));
    for (side, fault) in [
        (Side::Question, Fault::Silent),
        (Side::Answer, Fault::Silent),
        (Side::Answer, Fault::Late(SLOW)),
        (Side::Question, Fault::Twice),
        (Side::Answer, Fault::Twice),
        (Side::Question, Fault::Refused(Refusal::NoResponders)),
    ] {
        renewals(side, fault).wait_until_met(1).await?;
        assert!(fleet.ask(&question()).await?.end.is_ok());
    }
    // Nothing of it arrives until another could lead.
    let mut silent = fleet.exchanges["d0"].disturb(Rule::new(lease, Side::Question, Fault::Silent));
    silent.wait_until_met(3).await?;
    eventually("the end of the term", async || {
        fleet.dispatchers[0]
            .log()
            .contains("the lease is lost")
            .then_some(())
    })
    .await;
    drop(silent);
    assert!(fleet.ask(&question()).await?.end.is_ok());
    let (_, after) = eventually("a leader", async || leader(&fleet).await).await;
    assert!(after > before, "{after} after {before}");
    assert_at_rest(&mut fleet).await
}
