//! A worker is asked to stop while it has its hands full.

use std::time::Duration;

use anyhow::Result;
use flotilla_client::Catalog;
use flotilla_protocol::Attempt;
use flotilla_protocol::assignment::ControlReply;
use flotilla_protocol::codec::decode_internal;
use flotilla_protocol::fleet::ModelState;
use flotilla_tests::{Fleet, Process, Question, Signal, eventually, simulated_model, write_profile};
use serde_json::{Value, json};

use super::{Limiter, QUICK, Step, answered, ask, outcome};
use crate::command_line::{flotilla, stdout};
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

/// How a worker is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Signal,
    /// `flotilla drain`, which waits until the worker is gone.
    Command,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_drains_hands_32_running_requests_over_and_no_client_notices() -> Result<()> {
    hands_over_while_asked_to_end(Ask::Signal).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_an_operator_drains_hands_over_as_well_and_is_gone_when_the_command_ends() -> Result<()> {
    hands_over_while_asked_to_end(Ask::Command).await
}

async fn hands_over_while_asked_to_end(ask_to_end: Ask) -> Result<()> {
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
    match ask_to_end {
        Ask::Signal => fleet.workers[0].signal(Signal::Term)?,
        Ask::Command => {
            let arguments = fleet.arguments(&["drain", "w0", "--json"]);
            let mut command = Process::flotilla("drain", fleet.folder(), &arguments)?;
            let ended = command.wait().await?;
            assert!(ended.success(), "{}", command.log());
            assert!(command.log().contains("\"is_back\":false"), "{}", command.log());
        }
    }
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

/// An order that a worker cannot read is refused as well, and not waited for in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_returns_at_once_on_demand_and_names_what_to_do_about_an_unknown_worker() -> Result<()> {
    let mut fleet = Fleet::builder().start().await?;
    let unknown = flotilla(&fleet, &["drain", "w7"])?;
    let words = String::from_utf8_lossy(&unknown.stderr);
    assert_eq!(unknown.status.code(), Some(4), "{words}");
    assert!(
        words.contains("no worker w7 reports; `flotilla ps` lists"),
        "{words}"
    );

    let order = fleet.connection.subjects.control(&"w0".parse()?);
    let order = fleet
        .connection
        .client
        .request(order, "of a later version".into());
    let ControlReply::Refused { reason } = decode_internal(&order.await?.payload)? else {
        panic!("it cannot have been read")
    };
    assert!(reason.contains("does not know the order"), "{reason}");

    let told: Value = serde_json::from_str(&stdout(&flotilla(
        &fleet,
        &["drain", "w0", "--no-wait", "--json"],
    )?)?)?;
    assert_eq!(told["worker"], "w0");
    assert!(
        fleet.workers[0].wait().await?.success(),
        "{}",
        fleet.workers[0].log()
    );
    fleet.wait_for_workers(0).await;
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
