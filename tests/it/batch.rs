//! Batches over the command line: submitted, killed, run again, collected.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::jetstream::stream::State;
use flotilla_client::Catalog;
use flotilla_protocol::admin::QueueStatus;
use flotilla_tests::{
    Fleet, Process, Question, copy_folder, demo_models_dir, eventually, flotilla_binary, settings_of_user,
    simulated_model, write_encoder, write_profile,
};
use serde_json::{Value, json};

/// Requests of the large batch.
const REQUESTS: usize = 1000;
/// Messages that the request stream takes, fewer than the batch has.
const ROOM: usize = 200;

/// A line of a batch.
fn line(custom_id: &str, url: &str, body: &Value) -> String {
    json!({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).to_string()
}

fn completion(custom_id: &str, model: &str, prompt: &str) -> String {
    line(
        custom_id,
        "/v1/completions",
        &json!({"model": model, "prompt": prompt, "max_tokens": 4}),
    )
}

fn write(fleet: &Fleet, name: &str, lines: &[String]) -> Result<PathBuf> {
    let path = fleet.folder().join(name);
    fs::write(&path, lines.join("\n"))?;
    Ok(path)
}

fn flotilla(fleet: &Fleet, command: &[&str], settings: &[String]) -> Result<Output> {
    let mut program = Command::new(flotilla_binary());
    program.args(fleet.arguments(command));
    for setting in settings {
        program.args(["--set", setting]);
    }
    Ok(program
        .current_dir(fleet.folder())
        .stdin(Stdio::null())
        .output()?)
}

/// Runs a command that prints JSON, and expects an exit code.
fn told(fleet: &Fleet, command: &[&str], code: i32) -> Result<Value> {
    let output = flotilla(fleet, &[command, &["--json"]].concat(), &[])?;
    assert_eq!(output.status.code(), Some(code), "{command:?}: {output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn start(fleet: &Fleet, name: &str, command: &[&str]) -> Result<Process> {
    Process::flotilla(name, fleet.folder(), &fleet.arguments(command))
}

fn count(value: &Value) -> usize {
    value.as_array().map_or(0, Vec::len)
}

/// The lines of a file of answers by their custom ids, each once.
fn answers(path: &Path) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for text in fs::read_to_string(path)?.lines() {
        let line: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
        let custom_id = line["custom_id"].as_str().context("a custom_id")?.to_owned();
        assert!(found.insert(custom_id, line).is_none(), "twice: {text}");
    }
    Ok(found)
}

fn whole_lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.matches('\n').count())
}

async fn requests(fleet: &Fleet) -> Result<State> {
    let name = fleet.connection.subjects.requests_stream();
    let stream = fleet.connection.jetstream.get_stream(name).await?;
    Ok(stream.cached_info().state.clone())
}

/// A thousand requests: completions, conversations, and at the end some for a model that is not there.
fn large_batch() -> Vec<String> {
    let mut lines = Vec::new();
    for number in 0..REQUESTS {
        let custom_id = format!("r{number}");
        let chat = json!({
            "model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3,
        });
        lines.push(match number {
            _ if number >= REQUESTS - 5 => completion(&custom_id, "nobody", "x"),
            _ if number % 10 == 0 => line(&custom_id, "/v1/chat/completions", &chat),
            _ => completion(&custom_id, "m", &format!("word{number}")),
        });
    }
    lines
}

/// Nobody runs requests until a worker is added.
async fn fleet_without_workers(folder: &Path) -> Result<Fleet> {
    let profile = folder.join("profile.json");
    write_profile(&profile, Duration::ZERO, Duration::ZERO)?;
    let fleet = Fleet::builder()
        .workers(0)
        .simulated(&profile, 4)
        .set(&format!("nats.requests_max_messages={ROOM}"))
        .start()
        .await?;
    let catalog = Catalog::open(&fleet.connection).await?;
    catalog.add(&simulated_model("m", 1 << 30)).await?;
    Ok(fleet)
}

/// Both commands are killed where they cannot be done: the queue has no room for the whole batch, and nobody runs what is
/// in it. Each is then run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_requests_are_answered_once_though_submit_and_results_are_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut fleet = fleet_without_workers(folder.path()).await?;
    let batch = write(&fleet, "b.jsonl", &large_batch())?;
    let (record, output) = (
        batch.with_extension("jsonl.flotilla"),
        batch.with_extension("results.jsonl"),
    );

    let mut submit = start(&fleet, "submit", &["submit", "b.jsonl"])?;
    eventually("the queue to be full", async || {
        (whole_lines(&record) > ROOM && requests(&fleet).await.ok()?.messages == ROOM as u64).then_some(())
    })
    .await;
    assert!(
        submit.is_running()?,
        "a full queue is waited for: {}",
        submit.log()
    );
    submit.kill()?;
    eventually("the dispatcher to hold the requests", async || {
        let queue = fleet.admin("queue", &json!({})).await.ok()?;
        let queue: QueueStatus = serde_json::from_slice(&queue.payload).ok()?;
        (queue.queued_total == ROOM as u64).then_some(())
    })
    .await;
    let early = told(&fleet, &["results", "b.jsonl", "--no-wait"], 1)?;
    assert_eq!(count(&early["unfinished"]), ROOM, "{early}");
    assert_eq!(count(&early["unknown"]), REQUESTS - ROOM, "{early}");

    fleet.add_worker()?;
    fleet.wait_for_an_empty_queue().await;
    let mut results = start(&fleet, "results", &["results", "b.jsonl"])?;
    eventually("some answers", async || {
        (whole_lines(&output) > ROOM / 2).then_some(())
    })
    .await;
    assert!(
        results.is_running()?,
        "it looks for the others: {}",
        results.log()
    );
    results.kill()?;
    let cut = format!("{}{{\"id\":\"batch_r", fs::read_to_string(&output)?);
    fs::write(&output, cut)?;

    let submitted = told(&fleet, &["submit", "b.jsonl"], 0)?;
    assert_eq!(submitted["published_before"], ROOM, "{submitted}");
    assert_eq!(submitted["published"], REQUESTS - ROOM, "{submitted}");
    assert_eq!(
        submitted["collect"],
        format!("flotilla results b.jsonl --nats {}", fleet.cluster.url())
    );
    let name = submitted["batch"].as_str().context("a batch id")?;
    let collected = told(&fleet, &["results", name], 0)?;
    assert_eq!(collected["failed"], 5, "{collected}");
    let found = answers(&output)?;
    assert_eq!(found.len(), REQUESTS);
    for (custom_id, answer) in &found {
        let number: usize = custom_id[1..].parse()?;
        let response = &answer["response"];
        if number >= REQUESTS - 5 {
            assert_eq!(response["status_code"], 404, "{answer}");
            assert_eq!(response["body"]["error"]["code"], "unknown_model", "{answer}");
        } else if number.is_multiple_of(10) {
            assert_eq!(response["body"]["object"], "chat.completion", "{answer}");
        } else {
            assert_eq!(response["body"]["usage"]["completion_tokens"], 4, "{answer}");
        }
    }

    let text = fs::read_to_string(&output)?;
    assert_eq!(told(&fleet, &["submit", "b.jsonl"], 0)?["published"], 0);
    fs::remove_file(&record)?;
    let again = told(&fleet, &["submit", "b.jsonl"], 0)?;
    assert_eq!(
        again["published_before"], REQUESTS,
        "the journals know it: {again}"
    );
    let collected = told(&fleet, &["results", "b.jsonl"], 0)?;
    assert_eq!(collected["written_before"], REQUESTS, "{collected}");
    assert_eq!(fs::read_to_string(&output)?, text);
    fleet.wait_for_an_empty_queue().await;
    assert_eq!(
        requests(&fleet).await?.last_sequence,
        REQUESTS as u64,
        "each was published once"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_a_batch_are_told_all_at_once_and_nothing_is_published() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let good = completion("good", "adder", "1+1=");
    let lines = [
        good.clone(),
        "no json".to_owned(),
        good.replace("POST", "GET"),
        line(
            "many",
            "/v1/completions",
            &json!({"model": "adder", "prompt": "1", "max_token": 3}),
        ),
    ];
    write(&fleet, "bad.jsonl", &lines)?;
    let output = flotilla(&fleet, &["submit", "bad.jsonl"], &[])?;
    let words = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2), "{words}");
    for fault in [
        "bad.jsonl is no batch",
        "line 2: is no JSON object",
        "line 3, custom_id: \"good\" was in line 1 already",
        "line 3, method: must be \"POST\"",
        "line 4, body.max_token: unknown field \"max_token\"; did you mean \"max_tokens\"?",
    ] {
        assert!(words.contains(fault), "{fault} is not in {words}");
    }
    assert_eq!(requests(&fleet).await?.last_sequence, 0);
    assert!(!fleet.folder().join("bad.jsonl.flotilla").exists());

    let unsubmitted = flotilla(&fleet, &["results", "0123"], &[])?;
    assert_eq!(unsubmitted.status.code(), Some(2), "{unsubmitted:?}");
    Ok(())
}

/// The demonstration models, and an encoder called `encoder`.
fn models() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    for name in ["adder", "sorter"] {
        copy_folder(&demo_models_dir().join(name), &folder.path().join(name))?;
    }
    write_encoder("bert-mean-f32", &folder.path().join("encoder"))?;
    Ok(folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_with_the_least_rights_submits_a_batch_and_collects_its_answers() -> Result<()> {
    let models = models()?;
    let fleet = Fleet::builder()
        .with_users()
        .models_dir(models.path())
        .start()
        .await?;
    let settings = [
        settings_of_user("client").as_slice(),
        &["nats.owner=client".to_owned()],
    ]
    .concat();
    let embeddings = json!({"model": "encoder", "input": ["w1 w2", "w3"]});
    let lines = [
        completion("sum", "adder", "123+456="),
        completion("sorted", "sorter", "sort 52914="),
        line("vectors", "/v1/embeddings", &embeddings),
        line(
            "talk",
            "/v1/chat/completions",
            &json!({
                "model": "adder", "messages": [{"role": "user", "content": "1+1"}],
            }),
        ),
    ];
    let batch = write(&fleet, "b.jsonl", &lines)?;
    let run = |command: &[&str]| flotilla(&fleet, command, &settings);
    let output = run(&["submit", "b.jsonl", "--wait", "--json"])?;
    assert!(output.status.success(), "{output:?}");
    let found = answers(&batch.with_extension("results.jsonl"))?;
    let body = |custom_id: &str| &found[custom_id]["response"]["body"];
    assert_eq!(body("sum")["choices"][0]["text"], "579");
    assert_eq!(
        body("sorted")["choices"][0]["text"],
        "1245",
        "as long as it was asked for"
    );
    assert_eq!(count(&body("vectors")["data"]), 2, "{found:?}");
    assert_eq!(
        body("talk")["error"]["param"],
        "messages",
        "it has no template: {found:?}"
    );
    assert_eq!(found["talk"]["response"]["status_code"], 400);
    let id = found["sum"]["response"]["request_id"].as_str().context("an id")?;
    assert!(id.starts_with("client."), "{id}");

    // Another machine has the file alone.
    fs::remove_file(fleet.folder().join("b.jsonl.flotilla"))?;
    let output = run(&["results", "b.jsonl", "-o", "-"])?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout)?.lines().count(), lines.len());
    let log = fleet.cluster.servers[0].log();
    assert!(!log.contains("Violation"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_whose_journals_were_removed_are_told_by_name() -> Result<()> {
    let fleet = Fleet::builder().set("nats.journal_max_age_s=5").start().await?;
    // A load may take longer than these journals last.
    fleet.ask(&Question::prompt("adder", "1+1=")).await?;
    let lines = ["a", "b"].map(|custom_id| completion(custom_id, "adder", "1+2="));
    let batch = write(&fleet, "b.jsonl", &lines)?;
    told(&fleet, &["submit", "b.jsonl"], 0)?;
    fleet.wait_for_an_empty_queue().await;
    let journal = fleet.connection.subjects.journal_stream();
    eventually("the journals to be removed", async || {
        let stream = fleet.connection.jetstream.get_stream(&journal).await.ok()?;
        (stream.cached_info().state.messages == 0).then_some(())
    })
    .await;
    let looked = told(&fleet, &["results", "b.jsonl", "--no-wait"], 1)?;
    assert_eq!(looked["removed"], json!(["a", "b"]), "{looked}");
    assert_eq!(whole_lines(&batch.with_extension("results.jsonl")), 0);
    let output = flotilla(&fleet, &["results", "b.jsonl"], &[])?;
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(
        words.contains("nats.journal_max_age_s") && words.contains(": a, b"),
        "{words}"
    );
    let found = answers(&batch.with_extension("results.jsonl"))?;
    for custom_id in ["a", "b"] {
        assert_eq!(found[custom_id]["response"], Value::Null);
        assert_eq!(found[custom_id]["error"]["code"], "journal_removed");
    }
    // Who has the file alone cannot tell these from requests that were never published.
    fs::remove_file(fleet.folder().join("b.jsonl.flotilla"))?;
    let told = told(&fleet, &["results", "b.jsonl", "-o", "other.jsonl"], 1)?;
    assert_eq!(told["unknown"], json!(["a", "b"]), "{told}");
    Ok(())
}
