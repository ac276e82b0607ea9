//! A worker is asked to stop while it has its hands full.

use std::time::Duration;

use anyhow::Result;
use flotilla_client::Catalog;
use flotilla_protocol::Attempt;
use flotilla_protocol::fleet::ModelState;
use flotilla_tests::{Fleet, Question, Signal, eventually, simulated_model, write_profile};
use serde_json::json;

use super::{Limiter, QUICK, Step, answered, ask, outcome};
use crate::crashes::assert_journal_is_whole;
use crate::slow::again;

const RUNNING: u32 = 32;

/// Each at another token.
fn question(seed: u32) -> Question {
    let body = json!({
        "prompt": "sort 52914=", "temperature": 2.0, "seed": seed, "max_tokens": 64, "logit_bias": {"2": -100},
    });
    Question::new("sorter", body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_drains_hands_32_running_requests_over_and_no_client_notices() -> Result<()> {
    let limiter = Limiter::default();
    let mut builder = Fleet::builder()
        .gate("w0", &limiter.gate())
        .set("worker.answer_channel_tokens=1")
        .set("worker.drain_timeout_s=1");
    for setting in QUICK {
        builder = builder.set(setting);
    }
    let mut fleet = builder.start().await?;
    let mut running = Vec::new();
    for seed in 0..RUNNING {
        let question = question(seed);
        let undisturbed = outcome(&fleet.ask(&again(&question)).await?)?;
        limiter.limit(&question.request, Step::token(seed as usize));
        let answer = ask(&fleet, &question).await?;
        running.push((question, undisturbed, answer));
    }
    limiter.all_reached().await;
    fleet.add_worker()?;
    fleet.wait_for_workers(2).await;
    fleet.workers[0].signal(Signal::Term)?;
    let ended = fleet.workers[0].wait().await?;
    assert!(ended.success(), "it ends in its time: {}", fleet.workers[0].log());
    for (question, undisturbed, answer) in running {
        let answer = answered(&question, answer).await?;
        assert_eq!(outcome(&answer)?, undisturbed);
        assert_eq!(answer.attempts, Attempt(2));
        assert_journal_is_whole(&fleet, &question, &answer).await?;
    }
    fleet.wait_for_an_empty_queue().await;
    Ok(())
}

/// A request whose model is on its way was kept for as long as one that runs, and then handed back all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_drains_hands_back_at_once_what_waits_for_a_load() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let profile = |name: &str, load: Duration| {
        let path = folder.path().join(name);
        write_profile(&path, load, load)?;
        anyhow::Ok(vec![
            "worker.engine=simulated".to_owned(),
            format!("worker.simulated.profile={}", path.display()),
            "worker.drain_timeout_s=3600".to_owned(),
            "worker.load_stall_timeout_s=3600".to_owned(),
        ])
    };
    let (slow, fast) = (
        profile("slow", Duration::from_secs(3600))?,
        profile("fast", Duration::ZERO)?,
    );
    let mut fleet = Fleet::builder().workers(0).start().await?;
    let catalog = Catalog::open(&fleet.connection).await?;
    catalog.add(&simulated_model("big", 1 << 30)).await?;
    fleet.add_worker_with(&slow)?;
    let question = Question::new("big", json!({"prompt": [1, 2, 3], "max_tokens": 8, "seed": 1}));
    let answer = ask(&fleet, &question).await?;
    eventually("the load", async || {
        let worker = fleet.status().await.ok()?.workers.pop()?;
        let mut models = worker.report.models.iter();
        models
            .any(|model| model.state == ModelState::Loading)
            .then_some(())
    })
    .await;
    fleet.add_worker_with(&fast)?;
    fleet.wait_for_workers(2).await;
    fleet.workers[0].signal(Signal::Term)?;
    assert!(
        fleet.workers[0].wait().await?.success(),
        "{}",
        fleet.workers[0].log()
    );
    let answer = answered(&question, answer).await?;
    assert!(answer.end.is_ok(), "{:?}", answer.end);
    assert_eq!(answer.attempts, Attempt(2));
    Ok(())
}
