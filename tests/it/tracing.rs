//! A request's trace in its events and in the logs.

use anyhow::{Context, Result};
use async_nats::HeaderMap;
use flotilla_client::submit_traced;
use flotilla_protocol::TraceParent;
use flotilla_tests::{Fleet, PATIENCE, Question, eventually};
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::timeout;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn parent() -> String {
    format!("00-{TRACE}-00f067aa0ba902b7-01")
}

/// The kinds of all events of a request up to the last one, each of which carries the trace.
async fn traced_events(fleet: &Fleet, question: &Question) -> Result<Vec<String>> {
    let subject = fleet.connection.subjects.events(&question.request);
    let mut events = fleet.connection.client.subscribe(subject).await?;
    let trace = TraceParent::parse(&parent()).context("a trace")?;
    submit_traced(&fleet.connection, question.as_new(), Some(&trace)).await?;
    let mut kinds = Vec::new();
    loop {
        let event = timeout(PATIENCE, events.next()).await?.context("an event")?;
        let found = event.headers.context("headers")?;
        let kind = found.get("Flotilla-Event").context("a kind")?.to_string();
        let carried = found.get("traceparent").map(ToString::to_string);
        assert_eq!(carried, Some(parent()), "{kind}");
        let is_last = matches!(kind.as_str(), "finished" | "failed");
        kinds.push(kind);
        if is_last {
            return Ok(kinds);
        }
    }
}

#[tokio::test]
async fn trace_of_a_request_is_in_each_of_its_events_and_in_the_logs() -> Result<()> {
    let fleet = Fleet::builder().set("log.level=debug").start().await?;
    let kinds = traced_events(&fleet, &Question::prompt("adder", "2+2=")).await?;
    for kind in ["accepted", "tokens", "finished"] {
        assert!(kinds.iter().any(|it| it == kind), "{kinds:?}");
    }
    let refused = Question::new("adder", json!({"prompt": "2+2=", "max_tokens": -1}));
    assert_eq!(
        traced_events(&fleet, &refused).await?.last().map(String::as_str),
        Some("failed")
    );
    for process in fleet.dispatchers.iter().chain(&fleet.workers) {
        let name = process.name();
        eventually(&format!("the trace in the log of {name}"), async || {
            process.log().contains(TRACE).then_some(())
        })
        .await;
    }
    Ok(())
}

/// A micro service's caller has a trace too; what is none is passed over.
#[tokio::test]
async fn trace_of_a_service_call_reaches_the_worker_and_a_broken_one_harms_nobody() -> Result<()> {
    let fleet = Fleet::builder().set("log.level=debug").start().await?;
    for header in ["00-not-a-trace", &parent()] {
        let mut found = HeaderMap::new();
        found.insert("traceparent", header);
        let client = &fleet.connection.client;
        let asked = client.request_with_headers("flotilla.infer.adder", found, r#"{"prompt":"2+2="}"#.into());
        let answer: serde_json::Value = serde_json::from_slice(&asked.await?.payload)?;
        assert_eq!(answer["choices"][0]["text"], "4", "{answer}");
    }
    eventually("the trace in the worker's log", async || {
        fleet.workers[0].log().contains(TRACE).then_some(())
    })
    .await;
    Ok(())
}
