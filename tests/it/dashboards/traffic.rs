//! A fleet with something to see on every panel.

use std::time::Duration;

use anyhow::{Result, ensure};
use flotilla_protocol::Class;
use flotilla_tests::{Fleet, ModelFolderBuilder, Question, eventually};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{interval, timeout};

use crate::weights;

/// Two dispatchers, and two workers whose devices hold one model each, so that four models have to take turns.
pub async fn fleet() -> Result<Fleet> {
    Fleet::builder()
        .dispatchers(2)
        .workers(2)
        .set("worker.models_per_device_max=1")
        .set("worker.slots=2")
        .set("worker.host_memory_bytes=64MiB")
        .set("worker.min_residency_max_ms=1000")
        .set("dispatcher.reconcile_interval_ms=1000")
        .set("nats.relay_max_bytes=256MiB")
        .start()
        .await
}

/// Clients of a fleet, and what happens to it meanwhile.
pub struct Traffic<'f> {
    fleet: &'f Fleet,
}

impl<'f> Traffic<'f> {
    pub fn new(fleet: &'f Fleet) -> Self {
        Self { fleet }
    }

    /// A model is copied from one worker to the other, a model is unloaded by order, a request becomes a dead letter, one
    /// misses its target.
    pub async fn incidents(&self) -> Result<()> {
        let fleet = self.fleet;
        weights::give(fleet, &ModelFolderBuilder::default(), &["w0"]).await?;
        weights::wait_until_offered(fleet, 1).await?;
        weights::answer_of(fleet, "w1").await?;
        let unloaded = json!({"model": weights::MODEL, "worker": "w1"});
        fleet.admin("unload", &unloaded).await?;
        break_a_journal(fleet).await?;
        let mut late = Question::prompt("adder", "1+1=");
        late.body["slo"] = json!({"e2e_ms": 0.1});
        let answer = fleet.ask(&late).await?;
        ensure!(answer.end.is_ok(), "{answer:?}");
        Ok(())
    }

    /// Clients that ask for ever, one request after the other.
    pub async fn clients(&self) {
        join_all((0..CLIENTS).map(|client| self.client(client))).await;
    }

    async fn client(&self, client: usize) {
        let mut pace = interval(PACE);
        for number in 0.. {
            pace.tick().await;
            // A model that is given later is not known at first: such requests are refused.
            let asked = self.ask(client * 7 + number);
            // One that takes long on a busy machine is left to itself.
            drop(timeout(LONGEST, asked).await);
        }
    }

    async fn ask(&self, number: usize) -> Result<()> {
        let mut events = self.fleet.submit(&question(number)).await?;
        while events.next().await?.is_some() {}
        Ok(())
    }
}

/// An entry that no writer of ours makes stands in the way of an answer, which is a dead letter then.
pub async fn break_a_journal(fleet: &Fleet) -> Result<()> {
    let connection = &fleet.connection;
    let question = Question::prompt("adder", "20+22=");
    let subject = connection.subjects.journal(&question.request);
    let stored = connection.jetstream.publish(subject, "by nobody".into()).await?;
    stored.await?;
    // Its events cannot be followed to an end: what the client would read of the journal is broken.
    let _events = fleet.submit(&question).await?;
    let letters = connection.subjects.dead_stream();
    eventually("a dead letter", async || {
        let stream = connection.jetstream.get_stream(&letters).await.ok()?;
        (stream.cached_info().state.messages > 0).then_some(())
    })
    .await;
    Ok(())
}

/// Requests come in waves of one model, so that models take turns on the devices.
fn question(number: usize) -> Question {
    let in_time = json!({"e2e_ms": 60_000.0});
    match number / WAVE % 4 {
        0 => Question::new("adder", json!({"prompt": format!("{number}+1="), "slo": in_time})),
        1 => Question {
            class: Class::Batch,
            ..Question::prompt("reverser", "reverse hello=")
        },
        2 => Question::new("sorter", json!({"prompt": "sort 52914=", "slo": in_time})),
        _ => {
            let body = json!({"prompt": "w2 w3 w5", "max_tokens": 30, "ignore_eos": true, "slo": in_time});
            Question::new(weights::MODEL, body)
        }
    }
}

const CLIENTS: usize = 8;
/// Requests of a client for one model, before it goes on to the next.
const WAVE: usize = 25;
const PACE: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(20);
