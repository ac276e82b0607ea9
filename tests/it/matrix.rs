//! The fault matrix: each exchange between parts, each way in which the other side can fail it (silent, slow, refusing,
//! answering late, answering twice), and what must come of it. No row hangs, and every journal has one end.
//!
//! The proxies of `flotilla_tests::Exchanges` stand between real processes and a real server. Rows of one request meet its
//! messages alone, by the request's id, so that all of them run at once in one fleet. A row whose fault was never met fails: it
//! says nothing then.

mod begins;
mod commands;
mod requests;
mod table;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use flotilla_client::{Answer, AnswerBuilder, Catalog, Connection, Events, EventsError};
use flotilla_config::{Config, LoadOptions};
use flotilla_tests::{Fleet, FleetBuilder, eventually, simulated_model, write_profile};
use tempfile::TempDir;
use tokio::time::sleep;

/// How long parts of these fleets wait for an answer of the server.
const ASK_MAX: Duration = Duration::from_millis(1000);
/// An answer in time.
const SLOW: Duration = Duration::from_millis(250);
/// An answer that nobody waits for any more: after the time of an answer, and that of its place in a queue.
const LATE: Duration = Duration::from_millis(2400);
const MODEL: &str = "m";

/// A fleet of so many simulated workers in one process, whose parts do not wait for long.
fn impatient(folder: &Path, workers: usize) -> Result<FleetBuilder> {
    let profile = folder.join("profile.json");
    write_profile(&profile, Duration::ZERO, Duration::ZERO)?;
    Ok(Fleet::builder()
        .with_exchanges()
        .simulated(&profile, workers)
        .set(&format!("nats.request_timeout_ms={}", ASK_MAX.as_millis()))
        .set("dispatcher.assign_timeout_ms=500")
        .set("dispatcher.ack_wait_ms=2000"))
}

/// Starts it, and adds a model that every worker can have.
async fn start(workers: usize) -> Result<(Fleet, TempDir)> {
    let folder = tempfile::tempdir()?;
    let fleet = impatient(folder.path(), workers)?.start().await?;
    let mut model = simulated_model(MODEL, 1 << 30);
    model.slots = Some(64);
    Catalog::open(&fleet.connection).await?.add(&model).await?;
    Ok((fleet, folder))
}

/// A connection that does not wait for long either.
async fn connect(url: &str) -> Result<Connection> {
    let config = Config::load(&LoadOptions {
        flags: vec![
            format!("nats.url={url}"),
            format!("nats.request_timeout_ms={}", ASK_MAX.as_millis()),
        ],
        ..LoadOptions::default()
    })?;
    Ok(Connection::open(&config.nats, "matrix").await?)
}

/// Follows an answer as clients do: a journal that cannot be read now is read later.
async fn collect(events: &mut Events) -> Result<Answer> {
    let mut builder = AnswerBuilder::default();
    loop {
        match events.next().await {
            Ok(delivered) => {
                if let Some(answer) = builder.push(delivered.context("there was no end")?) {
                    return Ok(answer);
                }
            }
            Err(EventsError::Read(_)) => sleep(Duration::from_millis(50)).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Nothing waits any more, nobody has ended, and nothing has panicked.
async fn assert_at_rest(fleet: &mut Fleet) -> Result<()> {
    let beside = fleet.connect_directly().await?;
    let requests = beside.jetstream.get_stream("FLOTILLA_REQUESTS").await?;
    eventually("every request to be acked", async || {
        (requests.get_info().await.ok()?.state.messages == 0).then_some(())
    })
    .await;
    for process in fleet.dispatchers.iter_mut().chain(&mut fleet.workers) {
        let log = process.log();
        anyhow::ensure!(process.is_running()?, "{} has ended", process.name());
        anyhow::ensure!(!log.contains("panicked"), "{} has panicked", process.name());
    }
    Ok(())
}
