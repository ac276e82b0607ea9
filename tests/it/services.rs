//! The NATS micro services: whole answers by request-reply, discovery, and what operators ask.

use anyhow::{Context, Result};
use flotilla_protocol::admin::{QueueStatus, ResidencyReply};
use flotilla_protocol::fleet::ModelState;
use flotilla_tests::{Fleet, eventually};
use futures_util::StreamExt;
use serde_json::{Value, json};

async fn infer(fleet: &Fleet, model: &str, body: &str) -> Result<(Option<String>, Value)> {
    let subject = format!("flotilla.infer.{model}");
    let message = fleet
        .connection
        .client
        .request(subject, body.to_owned().into())
        .await?;
    let code = message
        .headers
        .as_ref()
        .and_then(|found| found.get("Nats-Service-Error-Code"));
    Ok((
        code.map(|code| code.as_str().to_owned()),
        serde_json::from_slice(&message.payload)?,
    ))
}

#[tokio::test]
async fn one_line_request_gets_one_openai_response() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let (error, response) = infer(&fleet, "adder", r#"{"prompt":"2+2="}"#).await?;
    assert_eq!(error, None, "{response}");
    assert_eq!(response["object"], "text_completion");
    assert_eq!(response["model"], "adder");
    assert_eq!(response["choices"][0]["text"], "4");
    assert_eq!(response["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        response["usage"],
        json!({"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6})
    );
    Ok(())
}

#[tokio::test]
async fn one_line_request_that_fails_is_a_service_error() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let (error, response) = infer(&fleet, "nobody", r#"{"prompt":"2+2="}"#).await?;
    assert_eq!(error.as_deref(), Some("404"));
    assert_eq!(response["error"]["code"], "unknown_model");
    let (error, response) = infer(&fleet, "adder", r#"{"prompt":"2+2=","max_tokens":-1}"#).await?;
    assert_eq!(error.as_deref(), Some("400"));
    assert_eq!(response["error"]["param"], "max_tokens");
    Ok(())
}

#[tokio::test]
async fn endpoints_are_found_by_service_discovery() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let inbox = fleet.connection.client.new_inbox();
    let mut answers = fleet.connection.client.subscribe(inbox.clone()).await?;
    fleet
        .connection
        .client
        .publish_with_reply("$SRV.INFO.flotilla", inbox, "".into())
        .await?;
    let info = answers.next().await.context("somebody answers $SRV.INFO")?;
    let info: Value = serde_json::from_slice(&info.payload)?;
    assert_eq!(info["name"], "flotilla");
    let subjects: Vec<&str> = info["endpoints"]
        .as_array()
        .context("endpoints")?
        .iter()
        .filter_map(|e| e["subject"].as_str())
        .collect();
    for subject in [
        "flotilla.infer.*",
        "flotilla.admin.queue",
        "flotilla.admin.workers",
    ] {
        assert!(
            subjects.contains(&subject),
            "{subject} is missing in {subjects:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn model_is_loaded_and_unloaded_by_order() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let reply = fleet.admin("load", &json!({"model": "sorter"})).await?;
    let reply: ResidencyReply = serde_json::from_slice(&reply.payload)?;
    assert_eq!(reply.workers.len(), 1);
    let is_ready = async || {
        let report = fleet.status().await.ok()?.workers.pop()?.report;
        Some(
            report
                .models
                .iter()
                .any(|m| m.model.as_str() == "sorter" && m.state == ModelState::Ready),
        )
    };
    eventually("the sorter to be ready", async || is_ready().await?.then_some(())).await;
    fleet.admin("unload", &json!({"model": "sorter"})).await?;
    eventually("the sorter to be gone", async || {
        (!is_ready().await?).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn queue_endpoint_tells_the_leader_and_an_empty_queue() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let message = fleet.admin("queue", &json!({})).await?;
    let status: QueueStatus = serde_json::from_slice(&message.payload)?;
    assert_eq!(status.dispatcher, "d0");
    assert_eq!((status.queued_total, status.assigned.len()), (0, 0));
    Ok(())
}
