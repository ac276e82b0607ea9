//! `flotilla profile run` against real fleets: what it measures, where, and what is left of it.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use async_nats::jetstream::message::PublishMessage;
use flotilla_client::{Answer, Events, NewRequest, Profiles, submit_to};
use flotilla_profile::{DeviceProfile, Signature};
use flotilla_protocol::admin::ProfileStatuses;
use flotilla_protocol::event::{ErrorCode, FinishReason};
use flotilla_protocol::profile::{Profile, ProfileSource};
use flotilla_protocol::{Encoding, ModelName, WorkerId};
use flotilla_tests::{Fleet, Process, Question, Signal, eventually, flotilla_binary};
use serde_json::{Value, json};

use crate::slow::slow_models;

/// A grid that the context of the demonstration models has room for, and a measurement of seconds.
const SMALL: [&str; 8] = [
    "--inputs",
    "8,40",
    "--outputs",
    "4,24",
    "--requests",
    "20",
    "--budget",
    "12",
];

fn flotilla(fleet: &Fleet, command: &[&str]) -> Result<Output> {
    Ok(Command::new(flotilla_binary())
        .args(fleet.arguments(command))
        .current_dir(fleet.folder())
        .stdin(Stdio::null())
        .output()?)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn stored(fleet: &Fleet, model: &str) -> Result<Option<DeviceProfile>> {
    let profiles = Profiles::open(&fleet.connection).await?;
    Ok(profiles.entry(&ModelName::new(model)?, "cpu").await?)
}

async fn profiles_in_use(fleet: &Fleet) -> Result<ProfileStatuses> {
    let message = fleet.admin("profiles", &json!({})).await?;
    Ok(serde_json::from_slice(&message.payload)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_measured_profile_is_stored_and_used_by_the_dispatcher() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let command = [&["profile", "run", "adder", "-o", "adder.json"][..], &SMALL].concat();
    let run = flotilla(&fleet, &command)?;
    assert!(run.status.success(), "{}", stderr(&run));
    let told = stderr(&run);
    assert!(
        told.contains("cell 4 of 4: prompt 40, answer 24 tokens"),
        "{told}"
    );
    let table = String::from_utf8(run.stdout)?;
    assert_eq!(table.lines().count(), 5, "{table}");

    let profile = stored(&fleet, "adder").await?.context("it is stored")?;
    assert_eq!(profile.source(), ProfileSource::Measured);
    let document = profile.document();
    assert_eq!(document.indexes, [[4.0, 24.0], [8.0, 40.0]]);
    assert!(
        document.tputs.iter().flatten().all(|tput| *tput > 1.0),
        "{document:?}"
    );
    // Each cell has at least its requests alone.
    assert!(profile.samples().context("counted")? >= 4 * 5);
    let written = std::fs::read(fleet.folder().join("adder.json"))?;
    assert_eq!(Profile::from_json(&written)?, *document);
    let long = Signature {
        prompt_tokens: 40,
        output_tokens: 24,
    };
    let short = Signature {
        prompt_tokens: 8,
        output_tokens: 4,
    };
    assert!(profile.work(long) > profile.work(short), "{document:?}");

    eventually("the dispatcher to use it", async || {
        let used = profiles_in_use(&fleet).await.ok()?.profiles;
        let adders = used.iter().find(|it| it.model.as_str() == "adder")?;
        (adders.source == ProfileSource::Measured).then_some(())
    })
    .await;
    let answer = fleet.ask(&Question::prompt("adder", "2+2=")).await?;
    assert_eq!(answer.text, "4");

    let show = [
        "profile", "show", "--model", "adder", "--kind", "cpu", "--svg", "grid.svg",
    ];
    let shown = flotilla(&fleet, &show)?;
    assert!(shown.status.success(), "{}", stderr(&shown));
    let svg = std::fs::read_to_string(fleet.folder().join("grid.svg"))?;
    assert!(svg.contains("adder on cpu (measured"), "{svg}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_cannot_be_met_is_told_and_nothing_is_stored() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let impossible = ["--slo-e2e-ms", "0.01"];
    let command = [&["profile", "run", "adder"][..], &SMALL, &impossible].concat();
    let run = flotilla(&fleet, &command)?;
    assert_eq!(run.status.code(), Some(1));
    let told = stderr(&run);
    assert!(
        told.contains("no request of the grid meets the targets"),
        "{told}"
    );
    assert_eq!(stored(&fleet, "adder").await?, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_workers_only_the_named_one_is_measured() -> Result<()> {
    let fleet = Fleet::builder().workers(2).start().await?;
    let command = [&["profile", "run", "adder", "--no-store"][..], &SMALL].concat();
    let unnamed = flotilla(&fleet, &command)?;
    assert_eq!(unnamed.status.code(), Some(2));
    assert!(
        stderr(&unnamed).contains("several workers (w0, w1)"),
        "{}",
        stderr(&unnamed)
    );

    let run = flotilla(&fleet, &[&command[..], &["--worker", "w1"]].concat())?;
    assert!(run.status.success(), "{}", stderr(&run));
    let workers = fleet.status().await?.workers;
    let holders = workers.iter().filter(|worker| !worker.report.models.is_empty());
    let holders: Vec<&str> = holders.map(|worker| worker.report.worker.as_str()).collect();
    assert_eq!(holders, ["w1"]);
    assert_eq!(stored(&fleet, "adder").await?, None, "--no-store");

    let nobody = flotilla(&fleet, &[&command[..], &["--kind", "abacus"]].concat())?;
    assert_eq!(nobody.status.code(), Some(2));
    assert!(stderr(&nobody).contains("abacus"), "{}", stderr(&nobody));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_run_stores_nothing_and_leaves_the_worker_idle() -> Result<()> {
    let models = slow_models()?;
    let fleet = Fleet::builder().models_dir(models.path()).start().await?;
    let arguments = ["profile", "run", "slow", "--inputs", "64", "--outputs", "500"];
    let mut run = Process::flotilla("run", fleet.folder(), &fleet.arguments(&arguments))?;
    eventually("requests of the run", async || {
        let workers = fleet.status().await.ok()?.workers;
        let runs = workers.iter().any(|worker| !worker.report.running.is_empty());
        runs.then_some(())
    })
    .await;
    run.signal(Signal::Int)?;
    assert_eq!(run.wait().await?.code(), Some(130), "{}", run.log());
    eventually("an idle worker", async || {
        let workers = fleet.status().await.ok()?.workers;
        workers
            .iter()
            .all(|worker| worker.report.running.is_empty())
            .then_some(())
    })
    .await;
    assert_eq!(stored(&fleet, "slow").await?, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_prints_the_grid_and_loads_nothing() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let command = [&["profile", "run", "adder", "--dry-run", "--json"][..], &SMALL].concat();
    let run = flotilla(&fleet, &command)?;
    assert!(run.status.success(), "{}", stderr(&run));
    let shown: Value = serde_json::from_slice(&run.stdout)?;
    assert_eq!(shown["inputs"], json!([8, 40]));
    assert_eq!((&shown["worker"], &shown["kind"]), (&json!("w0"), &json!("cpu")));
    assert!(stderr(&run).contains("it would take"), "{}", stderr(&run));
    assert!(fleet.status().await?.workers[0].report.models.is_empty());
    let too_long = ["profile", "run", "adder", "--inputs", "120", "--outputs", "16"];
    let refused = flotilla(&fleet, &too_long)?;
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("136 tokens"), "{}", stderr(&refused));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_ignores_its_end_tokens_is_as_long_as_was_asked_for() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    for ignored in [false, true] {
        let body = json!({"prompt": "123+456=", "max_tokens": 40, "ignore_eos": ignored});
        let answer = fleet.ask(&Question::new("adder", body)).await?;
        let finished = answer.end.expect("an answer");
        let (reason, tokens) = match ignored {
            true => (FinishReason::Length, 40),
            false => (FinishReason::Stop, 3),
        };
        assert_eq!(
            (finished.finish_reason, finished.usage.completion_tokens),
            (reason, tokens)
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_one_worker_waits_for_it_while_others_are_served() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let question = Question::new("adder", json!({"prompt": "1+1=", "deadline_ms": 2000}));
    let mut events = Events::subscribe(&fleet.connection, question.request.clone()).await?;
    let new = NewRequest {
        request: question.request.clone(),
        class: question.class,
        model: question.model.clone(),
        encoding: Encoding::Json,
        body: question.body.to_string().into(),
    };
    submit_to(&fleet.connection, new, &WorkerId::new("nobody")?).await?;
    let other = fleet.ask(&Question::prompt("adder", "2+2=")).await?;
    assert_eq!(other.text, "4");
    let answer = Answer::collect(&mut events).await?;
    assert_eq!(
        answer.end.expect_err("no such worker").code,
        ErrorCode::DeadlineExceeded
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_one_worker_is_refused_without_its_name_or_an_end_of_the_wait() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let cases = [
        (
            "not a worker!",
            json!({"prompt": "1+1=", "deadline_ms": 1000}),
            "Flotilla-Worker",
        ),
        ("w0", json!({"prompt": "1+1="}), "deadline_ms"),
    ];
    for (worker, body, field) in cases {
        let question = Question::new("adder", body);
        let mut events = Events::subscribe(&fleet.connection, question.request.clone()).await?;
        let subject = fleet.connection.subjects.request(question.class, &question.model);
        let message = PublishMessage::build()
            .payload(question.body.to_string().into())
            .message_id(question.request.as_str())
            .header("Flotilla-Worker", worker);
        fleet
            .connection
            .jetstream
            .send_publish(subject, message)
            .await?
            .await?;
        let error = Answer::collect(&mut events).await?.end.expect_err("a refusal");
        assert_eq!(
            (error.code, error.param.as_deref()),
            (ErrorCode::InvalidRequest, Some(field))
        );
    }
    Ok(())
}
