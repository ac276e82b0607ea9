//! Processes die while requests run: nothing is lost, nothing is doubled, the stream goes on.

use std::time::Duration;

use anyhow::{Context, Result};
use flotilla_client::{Answer, AnswerBuilder, Journal};
use flotilla_protocol::assignment::Assignment;
use flotilla_protocol::codec::encode_internal;
use flotilla_protocol::event::{ErrorCode, Event};
use flotilla_protocol::{Attempt, Class, Encoding, Epoch, ModelName, Strikes, WorkerId};
use flotilla_tests::{Fleet, Question, eventually, write_encoder};
use serde_json::json;

use crate::slow::{again, slow_models, worker_of};

const ANSWER_TOKENS: u32 = 96;

/// A seeded question whose answer runs to its limit.
fn question(seed: u32) -> Question {
    let prompt = format!("w5 w9 w{} w33", 100 + seed);
    let body = json!({"prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 1.0, "seed": seed});
    Question::new("slow", body)
}

/// What the journal must be at the end, whatever died: every token once, one terminal event, at the end.
pub async fn assert_journal_is_whole(fleet: &Fleet, question: &Question, answer: &Answer) -> Result<()> {
    let entries = Journal::new(&fleet.connection).read(&question.request, 0).await?;
    let mut stored = Vec::new();
    for entry in &entries {
        if let Event::Tokens(tokens) = &entry.event {
            assert_eq!(tokens.offset as usize, stored.len());
            stored.extend_from_slice(&tokens.token_ids);
        }
    }
    assert_eq!(stored, answer.token_ids, "what was streamed is what is stored");
    let terminal = entries
        .iter()
        .filter(|entry| entry.event.kind().is_terminal())
        .count();
    assert_eq!(terminal, 1);
    assert!(
        entries
            .last()
            .is_some_and(|entry| entry.event.kind().is_terminal())
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_answer_goes_on_elsewhere_token_for_token() -> Result<()> {
    let models = slow_models()?;
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        .workers(2)
        .set("dispatcher.worker_lost_after_ms=1500")
        .set("worker.report_interval_ms=300")
        .start()
        .await?;
    for (round, kill_at) in [1_usize, 5, 24, 60].into_iter().enumerate() {
        let question = question(u32::try_from(round)?);
        let unbroken = fleet.ask(&again(&question)).await?;
        let mut events = fleet.submit(&question).await?;
        let worker = worker_of(&fleet, &question, 0).await;
        let mut builder = AnswerBuilder::default();
        let mut seen = 0;
        let mut killed = false;
        let answer = loop {
            let delivered = events
                .next()
                .await?
                .context("the stream ended without an answer")?;
            if let Event::Tokens(tokens) = &delivered.event {
                seen += tokens.token_ids.len();
            }
            if !killed && seen >= kill_at {
                fleet.workers[worker].kill()?;
                killed = true;
            }
            if let Some(answer) = builder.push(delivered) {
                break answer;
            }
        };
        assert!(seen < usize::try_from(ANSWER_TOKENS)? || killed);
        assert_eq!(
            answer.token_ids, unbroken.token_ids,
            "killed after {kill_at} tokens"
        );
        assert_eq!(answer.text, unbroken.text);
        assert_journal_is_whole(&fleet, &question, &answer).await?;
        assert_eq!(
            answer.attempts,
            Attempt(2),
            "the kill came in the middle of the answer"
        );
        fleet.restart_worker(worker)?;
        fleet.wait_for_workers(2).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_vectors_are_made_again_elsewhere() -> Result<()> {
    let models = tempfile::tempdir()?;
    write_encoder("bert-mean-f32", &models.path().join("encoder"))?;
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        .workers(2)
        .set("dispatcher.worker_lost_after_ms=1500")
        .set("worker.report_interval_ms=300")
        // A step takes one text, so that the list takes long.
        .set("worker.batch_tokens_max=64")
        .start()
        .await?;
    let texts: Vec<String> = (0..2000)
        .map(|n| vec![format!("w{}", n % 95 + 1); 40].join(" "))
        .collect();
    let question = Question::new("encoder", json!({"input": texts}));
    let one = fleet
        .ask(&Question::new("encoder", json!({"input": texts[7]})))
        .await?;
    let mut events = fleet.submit(&question).await?;
    let worker = worker_of(&fleet, &question, 0).await;
    fleet.workers[worker].kill()?;
    let answer = Answer::collect(&mut events).await?;
    assert_eq!(answer.attempts, Attempt(2), "the kill came before the vectors");
    assert_journal_is_whole(&fleet, &question, &answer).await?;
    let (found, expected) = (answer.end?.data, one.end?.data);
    let found = found.context("there are vectors")?;
    assert_eq!(found.len(), texts.len());
    assert_eq!(
        found[7].embedding,
        expected.context("there is a vector")?[0].embedding
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_requests_under_random_kills_end_exactly_once() -> Result<()> {
    let models = slow_models()?;
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        .workers(2)
        .set("dispatcher.worker_lost_after_ms=1500")
        .set("worker.report_interval_ms=300")
        // Kills at random hit some requests often; this test is about loss and doubling, not about poison.
        .set("dispatcher.strikes_max=50")
        .start()
        .await?;
    let mut pending = Vec::new();
    for seed in 0..200 {
        let body = json!({"prompt": format!("w7 w{}", 20 + seed), "max_tokens": 24, "temperature": 1.0, "seed": seed});
        let question = Question::new("slow", body);
        let mut events = fleet.submit(&question).await?;
        pending.push((
            question,
            tokio::spawn(async move { Answer::collect(&mut events).await }),
        ));
    }
    let seed = std::process::id();
    println!("kills are drawn with seed {seed}");
    let mut random = u64::from(seed);
    for _ in 0..5 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let worker = usize::try_from(random >> 63)?;
        // Waits until the victim is at work, so that every kill interrupts something.
        let busy = eventually("work, or its end", async || {
            if pending.iter().all(|(_, task)| task.is_finished()) {
                return Some(false);
            }
            let workers = fleet.status().await.ok()?.workers;
            let victim = workers
                .into_iter()
                .find(|w| w.report.worker.as_str() == format!("w{worker}"))?;
            victim
                .report
                .running
                .iter()
                .any(|r| r.output_tokens > 0)
                .then_some(true)
        })
        .await;
        if !busy {
            break;
        }
        fleet.workers[worker].kill()?;
        fleet.restart_worker(worker)?;
    }
    for (question, task) in pending {
        let answer = tokio::time::timeout(Duration::from_secs(200), task)
            .await
            .with_context(|| format!("{} has no end", question.request))???;
        assert!(answer.end.is_ok(), "{:?}", answer.end);
        assert_journal_is_whole(&fleet, &question, &answer).await?;
    }
    fleet.wait_for_an_empty_queue().await;
    Ok(())
}

/// Whichever worker computes one request dies. It takes its neighbours with it twice, and nobody after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_request_that_kills_its_workers_is_a_dead_letter() -> Result<()> {
    let models = slow_models()?;
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        .workers(2)
        .set("dispatcher.worker_lost_after_ms=1500")
        .set("worker.report_interval_ms=300")
        .start()
        .await?;
    let body = json!({"prompt": "w5 w9", "max_tokens": 900, "temperature": 1.0, "seed": 3});
    let poison = Question::new("slow", body);
    let mut events = fleet.submit(&poison).await?;
    let mut neighbours = Vec::new();
    for seed in 0..12 {
        let question = question(seed);
        let mut events = fleet.submit(&question).await?;
        let answer = tokio::spawn(async move { Answer::collect(&mut events).await });
        neighbours.push((question, answer));
    }
    let mut killed = Attempt(0);
    let error = loop {
        let delivered = events.next().await?.context("the stream goes on")?;
        match delivered.event {
            Event::Failed(failed) => break failed.error,
            Event::Tokens(_) if delivered.attempt > killed => {
                killed = delivered.attempt;
                let (worker, beside) = computing(&fleet, &poison, killed).await;
                assert!(
                    killed < Attempt(3) || beside == 0,
                    "{beside} run beside a suspect"
                );
                fleet.workers[worker].kill()?;
                fleet.restart_worker(worker)?;
            }
            _ => {}
        }
    };
    assert_eq!(error.code, ErrorCode::Poisoned, "{error}");
    assert_eq!(killed, Attempt(3), "each death is a strike");
    assert!(error.message.contains("3 strikes"), "{error}");
    for (question, answer) in neighbours {
        let answer = tokio::time::timeout(Duration::from_secs(120), answer).await???;
        assert!(answer.end.is_ok(), "{:?}", answer.end);
        assert_journal_is_whole(&fleet, &question, &answer).await?;
    }
    let mut dead = fleet.connection.jetstream.get_stream("FLOTILLA_DEAD").await?;
    assert_eq!(dead.info().await?.state.messages, 1);
    let letter = dead
        .get_last_raw_message_by_subject("flotilla.dead.interactive.slow")
        .await?;
    let header = |name: &str| letter.headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(
        header("Flotilla-Dead-Request").as_deref(),
        Some(poison.request.as_str())
    );
    assert_eq!(header("Flotilla-Dead-Reason"), Some(error.message));
    assert_eq!(
        letter.payload,
        poison.body.to_string().into_bytes(),
        "the original can be replayed"
    );
    Ok(())
}

/// A worker that was killed was waited for as long as one that may only be late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_worker_is_lost_because_its_connection_is_gone() -> Result<()> {
    let models = slow_models()?;
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        // Silence alone would take so long; the reason of the strike says that it did not.
        .set("dispatcher.worker_lost_after_ms=8000")
        .set("dispatcher.strikes_max=1")
        .start()
        .await?;
    let body = json!({"prompt": "w5 w9", "max_tokens": 900, "temperature": 1.0, "seed": 3});
    let question = Question::new("slow", body);
    let mut events = fleet.submit(&question).await?;
    worker_of(&fleet, &question, 0).await;
    // Who only ran when it died is a suspect first.
    fleet.workers[0].kill()?;
    fleet.restart_worker(0)?;
    computing(&fleet, &question, Attempt(2)).await;
    fleet.workers[0].kill()?;
    let answer = Answer::collect(&mut events).await?;
    let error = answer.end.expect_err("its worker died with it");
    assert_eq!(error.code, ErrorCode::Poisoned, "{error}");
    assert!(
        error.message.contains("worker w0 had no connection any more"),
        "{error}"
    );
    Ok(())
}

/// The worker that has this attempt by its own report, and how many it runs beside it.
async fn computing(fleet: &Fleet, question: &Question, attempt: Attempt) -> (usize, usize) {
    eventually("a worker to report the attempt", async || {
        let workers = fleet.status().await.ok()?.workers;
        let found = workers.into_iter().find(|worker| {
            let mut running = worker.report.running.iter();
            running.any(|it| it.request == question.request && it.attempt == attempt)
        })?;
        let worker = found
            .report
            .worker
            .as_str()
            .trim_start_matches('w')
            .parse()
            .ok()?;
        Some((worker, found.report.running.len() - 1))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_leads_when_the_leader_is_killed_and_running_work_does_not_notice() -> Result<()> {
    let models = slow_models()?;
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        .dispatchers(2)
        .start()
        .await?;
    let first = question(1);
    let unbroken = fleet.ask(&again(&first)).await?;
    let mut events = fleet.submit(&first).await?;
    worker_of(&fleet, &first, 0).await;
    let leader = leader(&fleet).await;
    fleet.dispatchers[leader].kill()?;
    let answer = Answer::collect(&mut events).await?;
    assert_eq!(answer.token_ids, unbroken.token_ids);
    assert_eq!(
        answer.attempts,
        Attempt(1),
        "running work goes on under the new leader"
    );
    let second = fleet.ask(&question(2)).await?;
    assert!(second.end.is_ok(), "the standby serves new requests");
    fleet.wait_for_an_empty_queue().await;
    assert_journal_is_whole(&fleet, &first, &answer).await
}

async fn leader(fleet: &Fleet) -> usize {
    let message = eventually("a leader", async || fleet.admin("queue", &json!({})).await.ok()).await;
    let status: serde_json::Value =
        serde_json::from_slice(&message.payload).expect("the queue's status is JSON");
    let name = status["dispatcher"].as_str().expect("it names its dispatcher");
    name.trim_start_matches('d')
        .parse()
        .expect("the harness numbers dispatchers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_is_killed_and_comes_back_loses_no_request() -> Result<()> {
    let models = slow_models()?;
    let mut fleet = Fleet::builder().models_dir(models.path()).start().await?;
    let mut pending = Vec::new();
    for seed in 0..8 {
        let question = question(seed);
        let mut events = fleet.submit(&question).await?;
        pending.push((
            question,
            tokio::spawn(async move { Answer::collect(&mut events).await }),
        ));
    }
    worker_of(&fleet, &pending[0].0, 0).await;
    fleet.server().kill()?;
    fleet.server().restart()?;
    for (question, task) in pending {
        let answer = tokio::time::timeout(Duration::from_secs(120), task).await???;
        assert!(answer.end.is_ok(), "{:?}", answer.end);
        assert_journal_is_whole(&fleet, &question, &answer).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_overtakes_an_epoch_that_its_lease_does_not_know() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    // What a worker remembers after its server's store was lost: a leader of a far larger epoch.
    let request = flotilla_client::new_request_id();
    let assignment = Assignment {
        request: request.clone(),
        attempt: Attempt(1),
        strikes: Strikes(0),
        epoch: Epoch(1_000_000),
        class: Class::Interactive,
        model: ModelName::new("adder")?,
        encoding: Encoding::Json,
        body: r#"{"prompt":"1+1="}"#.into(),
        queued_ms: 0,
        deadline_in_ms: None,
        evict_first: Vec::new(),
        alone: false,
    };
    let subject = fleet.connection.subjects.assign(&WorkerId::new("w0")?);
    fleet
        .connection
        .client
        .request(subject, encode_internal(&assignment)?)
        .await?;
    assert_eq!(fleet.ask(&Question::prompt("adder", "20+22=")).await?.text, "42");
    Ok(())
}
