//! Requests that end otherwise: cancelled, too late, handed over by a worker that drains.

use std::time::Duration;

use anyhow::{Context, Result};
use flotilla_client::{Answer, Catalog, Journal};
use flotilla_protocol::Attempt;
use flotilla_protocol::admin::{Standing, WhyReply};
use flotilla_protocol::event::{ErrorCode, Event, FinishReason};
use flotilla_tests::{Fleet, Question, Signal, eventually, simulated_model, write_profile};
use serde_json::json;

use crate::slow::{again, slow_models, worker_of};

fn long_question(tokens: u32) -> Question {
    Question::new(
        "slow",
        json!({"prompt": "w5 w9", "max_tokens": tokens, "temperature": 1.0, "seed": 3}),
    )
}

#[tokio::test]
async fn cancelled_request_ends_where_it_is_and_frees_its_slot() -> Result<()> {
    let models = slow_models()?;
    let fleet = Fleet::builder()
        .models_dir(models.path())
        .set("worker.slots=1")
        .start()
        .await?;
    let (running, queued) = (long_question(900), long_question(900));
    // Of two that are published one after the other either may be read first: who is to wait is published when one runs.
    let mut running_events = fleet.submit(&running).await?;
    while !matches!(
        running_events.next().await?.context("tokens come")?.event,
        Event::Tokens(_)
    ) {}
    let mut queued_events = fleet.submit(&queued).await?;
    eventually("the second request to be queued", async || {
        let reply = fleet
            .admin("why", &json!({"request": queued.request}))
            .await
            .ok()?;
        let why: WhyReply = serde_json::from_slice(&reply.payload).ok()?;
        matches!(why.found?.standing, Standing::Queued { .. }).then_some(())
    })
    .await;

    let reply = fleet.admin("cancel", &json!({"request": queued.request})).await?;
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&reply.payload)?,
        json!("ended")
    );
    let answer = Answer::collect(&mut queued_events).await?;
    assert_eq!(
        answer.end.expect("cancelled is no failure").finish_reason,
        FinishReason::Cancelled
    );
    assert!(answer.token_ids.is_empty());

    let body = json!({"request": running.request}).to_string();
    fleet
        .connection
        .client
        .publish(fleet.connection.subjects.cancel(), body.into())
        .await?;
    let end = loop {
        if let Event::Finished(finished) = running_events.next().await?.context("it ends")?.event {
            break finished;
        }
    };
    assert_eq!(end.finish_reason, FinishReason::Cancelled);
    assert!(end.usage.completion_tokens > 0 && end.usage.completion_tokens < 900);
    eventually("a free slot", async || {
        (fleet.status().await.ok()?.workers.pop()?.report.free_slots == 1).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_to_which_nobody_listens_any_more_is_cancelled_where_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let profile = folder.path().join("profile.json");
    write_profile(&profile, Duration::ZERO, Duration::ZERO)?;
    let fleet = Fleet::builder()
        .set("worker.engine=simulated")
        .set(&format!("worker.simulated.profile={}", profile.display()))
        .set("dispatcher.client_lost_after_ms=600")
        .start()
        .await?;
    // Answers that no test waits for, one at a time.
    let mut model = simulated_model("endless", 1 << 30);
    model.facts.context_tokens_max = 100_000;
    model.slots = Some(1);
    Catalog::open(&fleet.connection).await?.add(&model).await?;
    let question = |seed: u64| {
        let body =
            json!({"prompt": [1, 2], "max_tokens": 50_000, "seed": seed, "cancel_on_disconnect": true});
        Question::new("endless", body)
    };
    let (running, queued) = (question(1), question(2));
    let mut running_events = fleet.submit(&running).await?;
    while !matches!(
        running_events.next().await?.context("tokens come")?.event,
        Event::Tokens(_)
    ) {}
    let queued_events = fleet.submit(&queued).await?;
    // Neither says goodbye. The one that waits ends first: the other is listened to until then.
    drop(queued_events);
    let journal = Journal::new(&fleet.connection);
    let cancelled = async |question: &Question| {
        let entries = journal.read(&question.request, 0).await.ok()?;
        entries.into_iter().find_map(|entry| match entry.event {
            Event::Finished(finished) => Some(finished),
            _ => None,
        })
    };
    let end = eventually("the end of the one that waits", async || cancelled(&queued).await).await;
    assert_eq!(end.finish_reason, FinishReason::Cancelled);
    assert_eq!(end.usage.completion_tokens, 0);
    assert!(cancelled(&running).await.is_none(), "somebody listens to it");
    drop(running_events);
    let end = eventually("the end of the one that runs", async || cancelled(&running).await).await;
    assert_eq!(end.finish_reason, FinishReason::Cancelled);
    assert!((1..50_000).contains(&end.usage.completion_tokens));
    Ok(())
}

#[tokio::test]
async fn request_past_its_deadline_fails_wherever_it_is() -> Result<()> {
    let models = slow_models()?;
    let fleet = Fleet::builder()
        .models_dir(models.path())
        .set("worker.slots=1")
        .start()
        .await?;
    let with_deadline = |ms: u64| {
        // Without its end token the answer is as long as it may be, on a fast machine as well.
        let body = json!({
            "prompt": "w5", "max_tokens": 900, "temperature": 1.0, "seed": 3, "logit_bias": {"0": -100},
            "deadline_ms": ms,
        });
        Question::new("slow", body)
    };
    let mut running = fleet.submit(&with_deadline(500)).await?;
    let mut queued = fleet.submit(&with_deadline(300)).await?;
    for events in [&mut queued, &mut running] {
        let error = Answer::collect(events).await?.end.expect_err("too late");
        assert_eq!(error.code, ErrorCode::DeadlineExceeded, "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn drained_worker_hands_its_work_over_and_exits_cleanly() -> Result<()> {
    let models = slow_models()?;
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        .workers(2)
        .set("worker.drain_timeout_s=0")
        // The request is seen to run before its answer is over.
        .set("worker.report_interval_ms=50")
        .start()
        .await?;
    let question = long_question(400);
    let unbroken = fleet.ask(&again(&question)).await?;
    let mut events = fleet.submit(&question).await?;
    let worker = worker_of(&fleet, &question, 1).await;
    fleet.workers[worker].signal(Signal::Term)?;
    assert!(
        fleet.workers[worker].wait().await?.success(),
        "{}",
        fleet.workers[worker].log()
    );
    let answer = Answer::collect(&mut events).await?;
    assert_eq!(answer.token_ids, unbroken.token_ids);
    assert_eq!(answer.attempts, Attempt(2));
    fleet.wait_for_workers(1).await;
    Ok(())
}

#[tokio::test]
async fn draining_worker_with_time_finishes_what_it_runs() -> Result<()> {
    let models = slow_models()?;
    let mut fleet = Fleet::builder().models_dir(models.path()).start().await?;
    let question = long_question(60);
    let mut events = fleet.submit(&question).await?;
    while !matches!(
        events.next().await?.context("tokens come")?.event,
        Event::Tokens(_)
    ) {}
    fleet.workers[0].signal(Signal::Term)?;
    assert!(
        fleet.workers[0].wait().await?.success(),
        "{}",
        fleet.workers[0].log()
    );
    let last = loop {
        let delivered = events.next().await?.context("it ends")?;
        if delivered.event.kind().is_terminal() {
            break delivered;
        }
    };
    assert_eq!(last.attempt, Attempt(1), "the first attempt finished it");
    Ok(())
}

#[tokio::test]
async fn request_that_takes_longer_than_the_ack_wait_is_delivered_once() -> Result<()> {
    const REQUESTS: u64 = 5;
    let models = slow_models()?;
    let fleet = Fleet::builder()
        .models_dir(models.path())
        .set("dispatcher.ack_wait_ms=1000")
        .set("worker.slots=1")
        .start()
        .await?;
    // One runs and the others wait, the last ones for several ack waits.
    let started = std::time::Instant::now();
    let mut running = Vec::new();
    for _ in 0..REQUESTS {
        running.push(fleet.submit(&long_question(900)).await?);
    }
    for events in &mut running {
        assert_eq!(Answer::collect(events).await?.attempts, Attempt(1));
    }
    assert!(
        started.elapsed().as_millis() > 2000,
        "the answers came too fast to prove anything"
    );
    let requests = fleet.connection.jetstream.get_stream("FLOTILLA_REQUESTS").await?;
    let consumer = requests.consumer_info("interactive").await?;
    assert_eq!(
        (consumer.delivered.consumer_sequence, consumer.num_redelivered),
        (REQUESTS, 0)
    );
    Ok(())
}

#[tokio::test]
async fn more_requests_than_the_dispatcher_may_hold_wait_in_the_stream_and_are_all_answered() -> Result<()> {
    let fleet = Fleet::builder()
        .set("dispatcher.queue_max=2")
        .set("worker.slots=1")
        .start()
        .await?;
    let mut pending = Vec::new();
    for n in 0..20 {
        let question = Question::new("adder", json!({"prompt": format!("{n}+1=")}));
        pending.push((n, fleet.submit(&question).await?));
    }
    for (n, mut events) in pending {
        let answer = Answer::collect(&mut events).await?;
        assert_eq!((answer.text, answer.attempts), ((n + 1).to_string(), Attempt(1)));
    }
    Ok(())
}
