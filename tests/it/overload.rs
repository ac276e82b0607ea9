//! Too much of everything: each limit says what it is and what to do, loses nothing that was accepted, and is over when its
//! cause is. A full queue of requests is tried in `bad_input`, a full dispatcher in `endings`.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flotilla_client::{
    Answer, Catalog, Connection, Entry, Events, EventsError, Journal, NewEntry, Silence, SubmitError,
    new_request_id,
};
use flotilla_protocol::event::{
    Accepted, ErrorCode, Event, FinishReason, Finished, Phase, Progress, Timings, Tokens, Usage,
};
use flotilla_protocol::{Attempt, Encoding, ModelName, RequestId, Strikes, WorkerId, headers};
use flotilla_tests::{
    Fleet, Flow, ModelFolderBuilder, NatsServer, PATIENCE, Process, Question, ServerOptions, Signal,
    eventually, flotilla_binary, simulated_model, write_profile,
};
use serde_json::json;
use tokio::time::timeout;

use crate::weights::{answer_of, fleet_of, give, wait_until_offered};

/// Runs a command of ours against a fleet; a group of its own, so that nobody else's Ctrl-C reaches it.
async fn command(fleet: &Fleet, command: &[&str]) -> Result<Output> {
    let mut arguments = fleet.arguments(command);
    arguments.extend(["--set".to_owned(), "nats.request_timeout_ms=1000".to_owned()]);
    let folder = fleet.folder().to_owned();
    let run = move || {
        Command::new(flotilla_binary())
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .process_group(0)
            .output()
    };
    Ok(timeout(PATIENCE, tokio::task::spawn_blocking(run)).await???)
}

fn told(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// nats-server 2.15 answers no publish any more to a stream that could not be written to once, until it is started again, and
/// answers everything else. The limit on files is what a full disk is to it: the write fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_whose_disk_is_full_is_told_as_such_and_loses_nothing_that_it_had() -> Result<()> {
    let mut fleet = Fleet::builder()
        .set("nats.request_timeout_ms=1000")
        .start()
        .await?;
    fleet.workers[0].kill()?;
    let mut accepted = Vec::new();
    for number in 0..3 {
        let question = Question::prompt("adder", &format!("{number}+1="));
        accepted.push((number, fleet.submit(&question).await?));
    }
    fleet.server().limit_files(Some(1))?;
    let refused = fleet
        .submit(&Question::prompt("adder", "1+1="))
        .await
        .unwrap_err();
    let silence = match refused.downcast_ref::<SubmitError>() {
        Some(SubmitError::Unconfirmed { silence, .. }) => *silence,
        other => anyhow::bail!("{other:?}"),
    };
    assert_eq!(silence, Silence::Store, "{refused}");
    let run = command(&fleet, &["run", "adder", "1+1="]).await?;
    let words = told(&run);
    assert_eq!(run.status.code(), Some(1), "{words}");
    assert!(
        words.contains("disk is full") && words.contains("start nats-server again"),
        "{words}"
    );
    let doctor = told(&command(&fleet, &["doctor"]).await?);
    assert!(
        doctor.contains("did not store an entry") && doctor.contains("start nats-server again"),
        "{doctor}"
    );

    fleet.server().kill()?;
    fleet.server().restart()?;
    fleet.restart_worker(0)?;
    for (number, mut events) in accepted {
        let answer = timeout(PATIENCE, Answer::collect(&mut events)).await??;
        assert_eq!(answer.text, (number + 1).to_string());
    }
    assert_eq!(fleet.ask(&Question::prompt("adder", "20+22=")).await?.text, "42");
    Ok(())
}

#[tokio::test]
async fn server_without_memory_for_the_relay_is_told_with_the_settings_that_matter() -> Result<()> {
    let server = NatsServer::start(&ServerOptions {
        memory_bytes_max: Some(128 << 20),
        ..ServerOptions::default()
    })?;
    let folder = tempfile::tempdir()?;
    let start = |setting: &str| {
        let arguments = ["dispatcher", "--nats", &server.url(), "--set", setting].map(str::to_owned);
        Process::flotilla("dispatcher", folder.path(), &arguments)
    };
    let mut process = start("nats.relay_max_bytes=256MiB")?;
    assert_eq!(process.wait().await?.code(), Some(1));
    let log = process.log();
    for word in ["OBJ_flotilla_relay", "nats.relay_max_bytes", "max_memory_store"] {
        assert!(log.contains(word), "{word} is missing in {log}");
    }
    // What it advises helps.
    let process = start("nats.relay_max_bytes=64MiB")?;
    eventually("a leader", async || process.log().contains("leads").then_some(())).await;
    Ok(())
}

fn entry<'a>(request: &'a RequestId, worker: &'a WorkerId, after: u64, event: &'a Event) -> NewEntry<'a> {
    NewEntry {
        request,
        expected_last_sequence: after,
        attempt: Attempt(1),
        worker: Some(worker),
        incarnation: Some(7),
        alone: false,
        strikes: Strikes(0),
        encoding: Encoding::Json,
        event,
    }
}

/// A fleet of simulated workers, one in each process, whose journal stream holds 1 MiB.
async fn fleet_with_a_small_journal(workers: usize) -> Result<(Fleet, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let profile = folder.path().join("profile.json");
    write_profile(&profile, Duration::ZERO, Duration::ZERO)?;
    let fleet = Fleet::builder()
        .workers(workers)
        .simulated(&profile, 1)
        .set("nats.journal_max_bytes=1MiB")
        .set("dispatcher.worker_lost_after_ms=60000")
        .start()
        .await?;
    let model = simulated_model("m", 1 << 30);
    Catalog::open(&fleet.connection).await?.add(&model).await?;
    Ok((fleet, folder))
}

fn long_question() -> Question {
    Question::new("m", json!({"prompt": [1, 2], "max_tokens": 400, "seed": 5}))
}

/// Waits until an answer has begun, and returns its entries so far.
async fn begun(fleet: &Fleet, question: &Question) -> Vec<Entry> {
    let journal = Journal::new(&fleet.connection);
    eventually("the first tokens", async || {
        let entries = journal.read(&question.request, 0).await.ok()?;
        (entries.len() > 2).then_some(entries)
    })
    .await
}

/// Writes journals of others until the stream has dropped an entry.
async fn flood(fleet: &Fleet, until_gone: impl AsyncFn(&Journal) -> Result<bool>) -> Result<()> {
    let (journal, worker) = (Journal::new(&fleet.connection), WorkerId::new("other")?);
    let event = Event::Tokens(Tokens {
        offset: 0,
        token_ids: vec![1],
        text: "x".repeat(16 << 10),
        logprobs: Vec::new(),
    });
    for _ in 0..10_000 {
        if until_gone(&journal).await? {
            return Ok(());
        }
        let request = new_request_id();
        journal.append(entry(&request, &worker, 0, &event)).await?;
    }
    anyhow::bail!("the stream drops nothing")
}

fn tokens_of(entries: &[Entry]) -> Vec<u32> {
    let mut tokens = Vec::new();
    for entry in entries {
        if let Event::Tokens(stored) = &entry.event {
            assert_eq!(stored.offset as usize, tokens.len(), "{entries:?}");
            tokens.extend_from_slice(&stored.token_ids);
        }
    }
    tokens
}

/// An append to a journal whose entries are gone was refused for ever, and tried for ever: the answer never ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_whose_journal_was_dropped_while_it_ran_is_made_again_whole() -> Result<()> {
    let (fleet, _folder) = fleet_with_a_small_journal(1).await?;
    let question = long_question();
    let mut events = fleet.submit(&question).await?;
    begun(&fleet, &question).await;
    fleet.workers[0].signal(Signal::Stop)?;
    flood(&fleet, async |journal| {
        Ok(journal.read(&question.request, 0).await?.is_empty())
    })
    .await?;
    fleet.workers[0].signal(Signal::Continue)?;
    let journal = Journal::new(&fleet.connection);
    let entries = eventually("its end", async || {
        let entries = journal.read(&question.request, 0).await.ok()?;
        entries.last()?.event.kind().is_terminal().then_some(entries)
    })
    .await;
    assert_eq!(tokens_of(&entries).len(), 400);
    let ends = entries.iter().filter(|entry| entry.event.kind().is_terminal());
    assert_eq!(ends.count(), 1);
    let log = fleet.workers[0].log();
    assert!(log.contains("nats.journal_max_bytes"), "{log}");
    // Who followed it is told that it begins anew, and where to look.
    let followed = timeout(PATIENCE, Answer::collect(&mut events)).await?;
    match followed {
        Err(error @ EventsError::Incomplete { .. }) => {
            assert!(error.to_string().contains("nats.journal_max_bytes"), "{error}");
        }
        other => anyhow::bail!("{other:?}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_that_cannot_go_on_as_its_beginning_was_dropped_is_a_dead_letter_that_says_why() -> Result<()>
{
    let (mut fleet, _folder) = fleet_with_a_small_journal(1).await?;
    let question = long_question();
    let mut events = fleet.submit(&question).await?;
    let first = begun(&fleet, &question).await[0].sequence;
    flood(&fleet, async |journal| {
        Ok(journal.read(&question.request, 0).await?[0].sequence > first)
    })
    .await?;
    fleet.workers[0].kill()?;
    fleet.restart_worker(0)?;
    let error = loop {
        let delivered = timeout(PATIENCE, events.next()).await??.context("it ends")?;
        match delivered.event {
            Event::Failed(failed) => break failed.error,
            Event::Finished(_) => anyhow::bail!("it had ended before"),
            Event::Accepted(_) | Event::Tokens(_) | Event::Progress(_) => {}
        }
    };
    assert_eq!(error.code, ErrorCode::Internal, "{error}");
    let letters = told(&command(&fleet, &["dead", "list"]).await?);
    assert!(letters.contains("nats.journal_max_bytes"), "{letters}");
    Ok(())
}

/// Appends a whole answer of three tokens.
async fn append_answer(connection: &Connection, request: &RequestId) -> Result<()> {
    let (journal, worker) = (Journal::new(connection), WorkerId::new("w0")?);
    let accepted = Event::Accepted(Accepted {
        request: request.clone(),
        model: ModelName::new("m")?,
        prompt_tokens: 1,
    });
    let mut last = journal.append(entry(request, &worker, 0, &accepted)).await?;
    for offset in 0..3 {
        let tokens = Event::Tokens(Tokens {
            offset,
            token_ids: vec![offset],
            text: format!("{offset} "),
            logprobs: Vec::new(),
        });
        last = journal.append(entry(request, &worker, last, &tokens)).await?;
    }
    let finished = Event::Finished(Finished {
        finish_reason: FinishReason::Length,
        usage: Usage::new(1, 3),
        timings: Timings::default(),
        data: None,
    });
    journal.append(entry(request, &worker, last, &finished)).await?;
    Ok(())
}

/// News of a request, padded to so many bytes.
async fn publish_progress(connection: &Connection, request: &RequestId, padding: usize) -> Result<()> {
    let progress = Event::Progress(Progress {
        phase: Phase::Queued,
        position: Some(1),
        fraction: None,
        eta_ms: None,
    });
    let mut found = async_nats::HeaderMap::new();
    found.insert(headers::EVENT, "progress");
    found.insert(headers::CONTENT_TYPE, Encoding::Json.content_type());
    found.insert("Padding", "x".repeat(padding));
    let body = progress.encode(Encoding::Json)?;
    let subject = connection.subjects.events(request);
    connection
        .client
        .publish_with_headers(subject, found, body)
        .await?;
    Ok(())
}

async fn fleet_without_workers(options: ServerOptions) -> Result<Fleet> {
    let fleet = Fleet::builder()
        .server(options)
        .proxied()
        .workers(0)
        .start()
        .await?;
    eventually("the journal stream", async || {
        let stream = fleet.connection.jetstream.get_stream("FLOTILLA_JOURNAL").await;
        stream.ok().map(drop)
    })
    .await;
    Ok(fleet)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_reads_too_slowly_gets_what_it_lost_from_the_journal() -> Result<()> {
    let fleet = fleet_without_workers(ServerOptions::default()).await?;
    let (request, beside) = (new_request_id(), fleet.connect_directly().await?);
    let mut events = Events::subscribe(&fleet.connection, request.clone()).await?;
    // It is there when it is answered behind its subscription.
    Journal::new(&fleet.connection).read(&request, 0).await?;
    // More than wait for a subscription; what comes behind them is lost.
    for _ in 0..9000 {
        publish_progress(&beside, &request, 0).await?;
    }
    append_answer(&beside, &request).await?;
    // The client has taken in everything when it has the answer to a later question.
    Journal::new(&fleet.connection).read(&request, 0).await?;
    let answer = timeout(PATIENCE, Answer::collect(&mut events)).await??;
    assert_eq!(
        (answer.token_ids, answer.text.as_str()),
        (vec![0, 1, 2], "0 1 2 ")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_the_server_cuts_off_for_being_slow_gets_what_it_lost_from_the_journal() -> Result<()> {
    let fleet = fleet_without_workers(ServerOptions {
        max_payload_bytes: 1 << 20,
        pending_bytes_max: Some(2 << 20),
        ..ServerOptions::default()
    })
    .await?;
    let (request, beside) = (new_request_id(), fleet.connect_directly().await?);
    let mut events = Events::subscribe(&fleet.connection, request.clone()).await?;
    Journal::new(&fleet.connection).read(&request, 0).await?;
    fleet.proxies["client"].set_flows(Flow::Open, Flow::Stalled);
    // The proxy and the sockets hold some megabytes.
    eventually("the client to be cut off", async || {
        publish_progress(&beside, &request, 256 << 10).await.ok()?;
        fleet.cluster.servers[0]
            .log()
            .contains("Slow Consumer")
            .then_some(())
    })
    .await;
    append_answer(&beside, &request).await?;
    fleet.proxies["client"].heal();
    let answer = timeout(PATIENCE, Answer::collect(&mut events)).await??;
    ensure!(answer.token_ids == [0, 1, 2], "{answer:?}");
    Ok(())
}

/// The content store of a worker has no room: the model does not come, which is told, and comes when there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_whose_disk_is_full_says_so_and_has_the_model_when_there_is_room() -> Result<()> {
    let fleet = fleet_of(2).await?;
    give(&fleet, &ModelFolderBuilder::default(), &["w0"]).await?;
    wait_until_offered(&fleet, 1).await?;
    fleet.workers[1].limit_files(Some(512 << 10))?;
    let pull = ["models", "pull", "travels", "--worker", "w1"];
    let output = command(&fleet, &pull).await?;
    let words = told(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(
        words.contains("w1 does not get travels") && words.contains("cannot reserve room for"),
        "{words}"
    );
    assert!(answer_of(&fleet, "w0").await.is_ok());
    fleet.workers[1].limit_files(None)?;
    let output = command(&fleet, &pull).await?;
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(
        answer_of(&fleet, "w1").await?.token_ids,
        answer_of(&fleet, "w0").await?.token_ids
    );
    Ok(())
}
