//! What was accepted is compared with what is answered: stuck messages are found, lost requests are told.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::pull;
use flotilla_client::{Answer, Journal, NewEntry};
use flotilla_protocol::admin::Reconciliation;
use flotilla_protocol::event::{ErrorCode, Event, RequestError};
use flotilla_protocol::{Attempt, Encoding, RequestId, Strikes};
use flotilla_tests::{Fleet, FleetBuilder, Question, eventually};
use futures_util::StreamExt;
use serde_json::json;

use crate::command_line::flotilla;
use crate::slow::{slow_models, worker_of};

/// A fleet that looks often, and is patient for three seconds.
fn impatient() -> FleetBuilder {
    Fleet::builder()
        .set("dispatcher.ack_wait_ms=1000")
        .set("dispatcher.reconcile_interval_ms=200")
}

async fn reconciliation(fleet: &Fleet) -> Option<Reconciliation> {
    let message = fleet.admin("reconciliation", &json!({})).await.ok()?;
    serde_json::from_slice(&message.payload).ok()
}

/// What becomes of a message that was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    Terminate,
}

/// Another puller of the dispatcher's consumer, as an operator who looks what is in the queue, takes requests and does
/// not answer them. Tells what it got, and who waits for the answers to all.
async fn requests_taken_away(
    fleet: &Fleet,
    ack_wait: Duration,
    max_deliver: i64,
    then: Then,
) -> Result<(
    Vec<RequestId>,
    Vec<tokio::task::JoinHandle<Result<Answer, flotilla_client::EventsError>>>,
)> {
    let stream = fleet.connection.jetstream.get_stream("FLOTILLA_REQUESTS").await?;
    let consumer: async_nats::jetstream::consumer::PullConsumer = stream
        .get_consumer("interactive")
        .await
        .map_err(anyhow::Error::from_boxed)?;
    let found = consumer.cached_info().config.clone();
    stream
        .update_consumer(pull::Config {
            durable_name: found.durable_name,
            filter_subject: found.filter_subject,
            ack_policy: found.ack_policy,
            max_ack_pending: found.max_ack_pending,
            ack_wait,
            max_deliver,
            ..pull::Config::default()
        })
        .await?;
    let mut answers = Vec::new();
    let mut taken = Vec::new();
    while taken.is_empty() {
        let mut pulled = consumer
            .batch()
            .max_messages(8)
            .expires(Duration::from_secs(2))
            .messages()
            .await?;
        for _ in 0..8 {
            let mut events = fleet.submit(&Question::prompt("adder", "20+22=")).await?;
            answers.push(tokio::spawn(async move { Answer::collect(&mut events).await }));
        }
        while let Some(message) = pulled.next().await {
            let message = message.map_err(anyhow::Error::from_boxed)?;
            if then == Then::Terminate {
                let term = message.double_ack_with(AckKind::Term).await;
                term.map_err(anyhow::Error::from_boxed)?;
            }
            let id = message.headers.as_ref().and_then(|it| it.get("Nats-Msg-Id"));
            taken.push(RequestId::new(id.context("requests have ids")?.as_str())?);
        }
    }
    Ok((taken, answers))
}

async fn until_nothing_is_queued(fleet: &Fleet) -> Result<()> {
    let requests = fleet.connection.jetstream.get_stream("FLOTILLA_REQUESTS").await?;
    eventually("every message to leave the stream", async || {
        (requests.get_info().await.ok()?.state.messages == 0).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_the_server_gives_up_are_answered_all_the_same() -> Result<()> {
    let fleet = impatient().start().await?;
    let (taken, answers) = requests_taken_away(&fleet, Duration::from_secs(1), 1, Then::Nothing).await?;
    for answer in answers {
        assert_eq!(answer.await??.text, "42");
    }
    until_nothing_is_queued(&fleet).await?;
    let told = reconciliation(&fleet).await.context("the leader tells")?;
    let taken = u64::try_from(taken.len())?;
    assert_eq!((told.max_deliveries_total, told.lost_total), (taken, 0));
    Ok(())
}

/// Their bodies are gone with them, so that people have to know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_somebody_else_terminates_are_counted() -> Result<()> {
    let fleet = impatient().start().await?;
    let (taken, answers) = requests_taken_away(&fleet, Duration::from_secs(600), -1, Then::Terminate).await?;
    let taken = u64::try_from(taken.len())?;
    eventually("the leader to have heard of all", async || {
        let told = reconciliation(&fleet).await?;
        (told.terminated_total == taken).then_some(())
    })
    .await;
    answers.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

/// No advisory says so: their new owner has ten minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_nobody_answers_for_are_found_and_answered() -> Result<()> {
    let fleet = impatient().start().await?;
    let (taken, answers) = requests_taken_away(&fleet, Duration::from_secs(600), -1, Then::Nothing).await?;
    // Somebody has ended one of them: nothing is left to be done but to take it out of the stream.
    let event = Event::failed(RequestError {
        code: ErrorCode::Internal,
        message: "by hand".to_owned(),
        param: None,
    });
    let by_hand = NewEntry {
        request: &taken[0],
        expected_last_sequence: 0,
        attempt: Attempt(0),
        worker: None,
        incarnation: None,
        strikes: Strikes(0),
        alone: false,
        encoding: Encoding::Json,
        event: &event,
    };
    Journal::new(&fleet.connection).append(by_hand).await?;
    let mut ended_by_hand = 0;
    for answer in answers {
        match answer.await??.end {
            Ok(_) => {}
            Err(error) if error.message == "by hand" => ended_by_hand += 1,
            Err(error) => return Err(error.into()),
        }
    }
    assert_eq!(ended_by_hand, 1);
    until_nothing_is_queued(&fleet).await?;
    let told = eventually("the leader to have found nothing more", async || {
        let told = reconciliation(&fleet).await?;
        (told.unaccounted_messages == 0 && told.held_messages == 0).then_some(told)
    })
    .await;
    let taken = u64::try_from(taken.len())?;
    assert_eq!((told.stuck_total, told.ended_unacked_total), (taken, 1));
    assert_eq!(
        (told.max_deliveries_total, told.terminated_total, told.lost_total),
        (0, 0, 0)
    );
    Ok(())
}

/// An operator empties the request stream while a request runs, and then its dispatcher and its worker die.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_whose_message_is_removed_is_told_as_lost_when_nobody_can_end_it() -> Result<()> {
    let models = slow_models()?;
    let mut fleet = impatient()
        .models_dir(models.path())
        .set("dispatcher.worker_lost_after_ms=1500")
        .set("worker.report_interval_ms=300")
        .start()
        .await?;
    let sound = flotilla(&fleet, &["doctor"])?;
    let told = String::from_utf8_lossy(&sound.stdout).into_owned();
    assert!(told.contains("nothing is lost or stuck"), "{told}");
    assert!(
        told.contains("survives: process kill yes, power failure unknown"),
        "{told}"
    );
    assert!(told.contains("machine loss no (nats-server 2"), "{told}");
    let body = json!({"prompt": "w5 w9", "max_tokens": 900, "temperature": 1.0, "seed": 3});
    let question = Question::new("slow", body);
    let _events = fleet.submit(&question).await?;
    worker_of(&fleet, &question, 1).await;
    let requests = fleet.connection.jetstream.get_stream("FLOTILLA_REQUESTS").await?;
    requests.purge().await?;
    let told = eventually("the leader to miss the message", async || {
        reconciliation(&fleet)
            .await
            .filter(|told| told.gone_messages == 1)
    })
    .await;
    assert_eq!(told.lost_requests, 0, "the leader has it still");
    fleet.dispatchers[0].kill()?;
    fleet.workers[0].kill()?;
    fleet.restart_worker(0)?;
    fleet.restart_dispatcher(0)?;
    let told = eventually("the new leader to tell", async || {
        reconciliation(&fleet)
            .await
            .filter(|told| told.lost_requests == 1)
    })
    .await;
    assert_eq!(told.lost, std::slice::from_ref(&question.request));
    let doctor = flotilla(&fleet, &["doctor"])?;
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(
        !doctor.status.success() && told.contains(question.request.as_str()),
        "{told}"
    );
    Ok(())
}

/// A message that no writer of ours makes: no worker can go on with the answer, and no dispatcher tries for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_with_a_broken_journal_fails_and_is_kept() -> Result<()> {
    let fleet = impatient().start().await?;
    let question = Question::prompt("adder", "20+22=");
    let subject = fleet.connection.subjects.journal(&question.request);
    let stored = fleet
        .connection
        .jetstream
        .publish(subject, "by nobody".into())
        .await?;
    stored.await?;
    let _events = fleet.submit(&question).await?;
    let journal = Journal::new(&fleet.connection);
    let end = eventually("the request to end", async || {
        let content = journal.read_all(&question.request).await.ok()?;
        content
            .entries
            .into_iter()
            .find(|entry| entry.event.kind().is_terminal())
    })
    .await;
    let Event::Failed(failed) = end.event else {
        bail!("{:?} is no failure", end.event);
    };
    assert_eq!(failed.error.code, ErrorCode::Internal, "{}", failed.error);
    assert!(failed.error.message.contains("journal"), "{}", failed.error);
    until_nothing_is_queued(&fleet).await?;
    let letters = flotilla(&fleet, &["dead", "list", "--json"])?;
    let letters = String::from_utf8(letters.stdout)?;
    assert!(letters.contains(question.request.as_str()), "{letters}");
    Ok(())
}

/// What runs is answered, and then the queue is there again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_stream_that_is_removed_is_made_again() -> Result<()> {
    let models = slow_models()?;
    let fleet = impatient().models_dir(models.path()).start().await?;
    let body = json!({"prompt": "w5 w9", "max_tokens": 300, "temperature": 1.0, "seed": 3});
    let running = Question::new("slow", body);
    let mut events = fleet.submit(&running).await?;
    worker_of(&fleet, &running, 0).await;
    fleet
        .connection
        .jetstream
        .delete_stream("FLOTILLA_REQUESTS")
        .await?;
    assert!(Answer::collect(&mut events).await?.end.is_ok());
    let next = Question::new("slow", json!({"prompt": "w5 w9", "max_tokens": 2}));
    let mut events = eventually("the stream to be there", async || fleet.submit(&next).await.ok()).await;
    assert!(Answer::collect(&mut events).await?.end.is_ok());
    until_nothing_is_queued(&fleet).await
}
