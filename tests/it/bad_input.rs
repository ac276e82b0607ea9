//! Bad requests: each gets an error that names what is wrong, and the fleet lives on.

use anyhow::{Context, Result};
use async_nats::HeaderMap;
use flotilla_client::{Answer, Events, SubmitError, new_request_id};
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_tests::{Fleet, Question, eventually};
use serde_json::{Value, json};

async fn failure(fleet: &Fleet, question: &Question) -> Result<RequestError> {
    let answer = fleet.ask(question).await?;
    answer
        .end
        .err()
        .with_context(|| format!("{} was answered", question.body))
}

/// Publishes bytes that no client of ours would.
async fn raw_failure(fleet: &Fleet, body: &[u8], content_type: Option<&str>) -> Result<RequestError> {
    let request = new_request_id();
    let mut events = Events::subscribe(&fleet.connection, request.clone()).await?;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", request.as_str());
    if let Some(content_type) = content_type {
        headers.insert("Content-Type", content_type);
    }
    let subject = "flotilla.request.interactive.adder";
    fleet
        .connection
        .jetstream
        .publish_with_headers(subject, headers, body.to_vec().into())
        .await?
        .await?;
    Answer::collect(&mut events)
        .await?
        .end
        .err()
        .context("it was answered")
}

async fn assert_alive(fleet: &Fleet) -> Result<()> {
    assert_eq!(fleet.ask(&Question::prompt("adder", "1+1=")).await?.text, "2");
    Ok(())
}

#[tokio::test]
async fn each_bad_request_fails_with_its_code_and_field_and_hurts_nobody() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let long = "1".repeat(500);
    let cases: [(&str, Value, ErrorCode, Option<&str>); 7] = [
        ("nobody", json!({"prompt": "x"}), ErrorCode::UnknownModel, None),
        (
            "adder",
            json!({"prompt": 5}),
            ErrorCode::InvalidRequest,
            Some("prompt"),
        ),
        (
            "adder",
            json!({"prompt": "1", "max_tokens": -1}),
            ErrorCode::InvalidRequest,
            Some("max_tokens"),
        ),
        (
            "adder",
            json!({"prompt": "1", "temperature": "hot"}),
            ErrorCode::InvalidRequest,
            Some("temperature"),
        ),
        (
            "adder",
            json!({"prompt": long}),
            ErrorCode::ContextExceeded,
            Some("prompt"),
        ),
        (
            "adder",
            json!({"prompt": [1, 99]}),
            ErrorCode::InvalidRequest,
            Some("prompt"),
        ),
        (
            "adder",
            json!({"input": "x"}),
            ErrorCode::InvalidRequest,
            Some("input"),
        ),
    ];
    for (model, body, code, param) in cases {
        let error = failure(&fleet, &Question::new(model, body.clone())).await?;
        assert_eq!(error.code, code, "{body}: {error}");
        if param.is_some() {
            assert_eq!(error.param.as_deref(), param, "{body}: {error}");
        }
    }
    let chat = json!({"messages": [{"role": "user", "content": "1+1="}]});
    let error = failure(&fleet, &Question::new("adder", chat)).await?;
    assert_eq!(
        error.param.as_deref(),
        Some("messages"),
        "the adder has no chat template: {error}"
    );
    assert_alive(&fleet).await
}

#[tokio::test]
async fn bytes_that_are_no_request_fail_with_the_place() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let broken = raw_failure(&fleet, b"{\"prompt\":", None).await?;
    assert_eq!(broken.code, ErrorCode::InvalidRequest);
    assert!(broken.message.contains("line 1"), "{broken}");
    let packed = raw_failure(
        &fleet,
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        Some("application/msgpack"),
    )
    .await?;
    assert_eq!(packed.code, ErrorCode::InvalidRequest);
    let text = raw_failure(&fleet, b"hello", Some("text/plain")).await?;
    assert_eq!(text.param.as_deref(), Some("Content-Type"));
    assert_alive(&fleet).await
}

#[tokio::test]
async fn huge_body_is_refused_with_its_limit_on_either_side_of_the_server() -> Result<()> {
    let fleet = Fleet::builder()
        .set("dispatcher.request_bytes_max=64KiB")
        .set("dispatcher.prompt_bytes_max=64KiB")
        .start()
        .await?;
    let error = failure(&fleet, &Question::prompt("adder", &"1".repeat(100_000))).await?;
    assert_eq!(error.code, ErrorCode::TooLarge);
    assert!(error.message.contains("65536"), "{error}");
    let beyond = fleet
        .submit(&Question::prompt("adder", &"1".repeat(9 << 20)))
        .await
        .unwrap_err();
    let refused = beyond.downcast_ref::<SubmitError>().context("a submit error")?;
    assert!(matches!(refused, SubmitError::TooLarge { .. }), "{refused}");
    assert_alive(&fleet).await
}

#[tokio::test]
async fn message_without_an_id_becomes_a_dead_letter_and_is_gone_from_the_queue() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let subject = "flotilla.request.interactive.adder";
    fleet
        .connection
        .jetstream
        .publish(subject, "{\"prompt\":\"1+1=\"}".into())
        .await?
        .await?;
    let dead = fleet.connection.jetstream.get_stream("FLOTILLA_DEAD").await?;
    let letter = eventually("a dead letter", async || {
        dead.get_last_raw_message_by_subject("flotilla.dead.interactive.adder")
            .await
            .ok()
    })
    .await;
    let reason = letter
        .headers
        .get("Flotilla-Dead-Reason")
        .context("it has a reason")?
        .as_str()
        .to_owned();
    assert!(reason.contains("Nats-Msg-Id"), "{reason}");
    let requests = fleet.connection.jetstream.get_stream("FLOTILLA_REQUESTS").await?;
    eventually("an empty queue", async || {
        (requests.get_info().await.ok()?.state.messages == 0).then_some(())
    })
    .await;
    assert_alive(&fleet).await
}

#[tokio::test]
async fn full_queue_is_a_busy_signal_and_recovers() -> Result<()> {
    let mut fleet = Fleet::builder()
        .set("nats.requests_max_messages=3")
        .start()
        .await?;
    // Without a worker nothing leaves the queue, however eager the dispatcher is.
    fleet.workers[0].kill()?;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(fleet.submit(&Question::prompt("adder", "1+1=")).await?);
    }
    let error = fleet
        .submit(&Question::prompt("adder", "1+1="))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error.downcast_ref::<SubmitError>(),
            Some(SubmitError::Busy { .. })
        ),
        "{error:#}"
    );
    fleet.restart_worker(0)?;
    for mut events in waiting {
        Answer::collect(&mut events).await?;
    }
    // An answer is there a moment before its place in the queue is free.
    let mut events = eventually("room in the queue", async || {
        fleet.submit(&Question::prompt("adder", "1+1=")).await.ok()
    })
    .await;
    assert_eq!(Answer::collect(&mut events).await?.text, "2");
    Ok(())
}
