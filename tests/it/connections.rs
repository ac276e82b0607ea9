//! What becomes of questions whose connection breaks or falls silent.

use anyhow::{Context, Result};
use flotilla_client::{AppendError, Connection, Journal, NewEntry, new_request_id};
use flotilla_config::{Config, LoadOptions};
use flotilla_protocol::event::{Accepted, Event};
use flotilla_protocol::{Attempt, Encoding, ModelName, RequestId, Strikes};
use flotilla_tests::{Fleet, Flow, PATIENCE, eventually};
use tokio::time::timeout;

/// A fleet without workers, and a connection through its proxy that waits for answers for longer than a test does.
async fn patient_connection() -> Result<(Fleet, Connection)> {
    let fleet = Fleet::builder().workers(0).proxied().start().await?;
    let url = fleet.proxies["client"].url();
    let config = Config::load(&LoadOptions {
        flags: vec![
            format!("nats.url={url}"),
            format!("nats.request_timeout_ms={}", (PATIENCE * 5).as_millis()),
        ],
        ..LoadOptions::default()
    })?;
    let connection = Connection::open(&config.nats, "patient").await?;
    eventually("the journal stream", async || {
        let stream = connection.jetstream.get_stream("FLOTILLA_JOURNAL").await;
        stream.ok().map(drop)
    })
    .await;
    Ok((fleet, connection))
}

fn accepted(request: &RequestId) -> Result<Event> {
    Ok(Event::Accepted(Accepted {
        request: request.clone(),
        model: ModelName::new("m")?,
        prompt_tokens: 1,
    }))
}

/// Under chaos every answer paused for the whole time limit of an append when the server was killed and came back
/// within half a second: its confirmation was waited for that nobody could send any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_whose_answer_is_lost_is_given_up_when_the_connection_is_back() -> Result<()> {
    let (fleet, connection) = patient_connection().await?;
    let (request, proxy) = (new_request_id(), &fleet.proxies["client"]);
    let (observed, observer) = (request.clone(), fleet.connect_directly().await?);
    proxy.set_flows(Flow::Open, Flow::Stalled);
    let event = accepted(&request)?;
    let append = tokio::spawn(async move {
        let entry = NewEntry {
            request: &request,
            expected_last_sequence: 0,
            attempt: Attempt(0),
            worker: None,
            incarnation: None,
            strikes: Strikes(0),
            alone: false,
            encoding: Encoding::Json,
            event: &event,
        };
        Journal::new(&connection).append(entry).await
    });
    let journal = Journal::new(&observer);
    eventually("the entry", async || {
        let entries = journal.read(&observed, 0).await.ok()?;
        (entries.len() == 1).then_some(())
    })
    .await;
    // The answer that waits in the proxy is never delivered.
    proxy.forget();
    proxy.heal();
    proxy.reset();
    let given_up = timeout(PATIENCE, append).await.context("the append waits")?;
    assert!(matches!(given_up?, Err(AppendError::Unknown { .. })));
    Ok(())
}

/// A network that loses the state of its address translation tells nobody: what is sent is dropped. The client's own
/// signs of life would have noticed after three minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_that_falls_silent_is_replaced_while_somebody_waits() -> Result<()> {
    let (fleet, connection) = patient_connection().await?;
    let journal = Journal::new(&connection);
    assert_eq!(journal.read(&new_request_id(), 0).await?, []);
    fleet.proxies["client"].forget();
    let read = async {
        // The read under way is lost with its connection.
        while journal.read(&new_request_id(), 0).await.is_err() {}
    };
    timeout(PATIENCE, read)
        .await
        .context("the connection stays silent")?;
    Ok(())
}
