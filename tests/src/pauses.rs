//! A benchmark: how long clients wait when a worker or the leader dies, or is asked to stop.
//!
//! Real processes and a real server on this machine, default settings, simulated devices whose loads take no time. The
//! moment of each fault is spread evenly over the time between two reports and two renewals of the lease, on which the
//! pauses depend.

mod figures;
mod stream;

use std::time::Duration;

use anyhow::{Context, Result};
use flotilla_client::{Answer, Catalog, Journal};
use flotilla_protocol::RequestId;
use flotilla_protocol::event::EventKind;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{Fleet, PATIENCE, Question, Signal, eventually, simulated_model, write_profile};
pub use figures::Pauses;
use stream::Stream;

/// What to measure.
#[derive(Debug, Clone, Default)]
pub struct PausesOptions {
    /// Faults of each kind.
    pub rounds: usize,
    /// Settings other than the default ones, as `key=value`.
    pub settings: Vec<String>,
}

/// Kills and stops, and measures.
///
/// # Errors
/// When a part does not start, or an answer does not go on.
pub async fn run(options: &PausesOptions) -> Result<Pauses> {
    let mut bench = Bench::start(options).await?;
    let mut pauses = Pauses::default();
    for round in 0..options.rounds {
        let phase = phase(round, options.rounds);
        pauses.worker_killed.push(bench.kill_worker(phase).await?);
        let killed = bench.replace_leader(Signal::Kill, phase).await?;
        pauses.leader_killed.push(killed);
        let stopped = bench.replace_leader(Signal::Term, phase).await?;
        pauses.leader_stopped.push(stopped);
    }
    Ok(pauses)
}

/// How a change of leaders was for clients.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// From the signal to the first token of a request that was published right after it.
    pub first_assignment: Duration,
    /// The longest pause of an answer that runs meanwhile.
    pub pause: Duration,
    /// The longest pause of the same answer in as long a time before.
    pub pause_before: Duration,
}

/// The part of a second at which a round's fault comes.
fn phase(round: usize, rounds: usize) -> Duration {
    let part = u32::try_from(round).unwrap_or(u32::MAX);
    Duration::from_secs(1) * part / u32::try_from(rounds.max(1)).unwrap_or(u32::MAX)
}

struct Bench {
    fleet: Fleet,
    _folder: TempDir,
}

impl Bench {
    async fn start(options: &PausesOptions) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let profile = folder.path().join("profile.json");
        write_profile(&profile, Duration::ZERO, Duration::ZERO)?;
        let mut builder = Fleet::builder()
            .dispatchers(2)
            .workers(2)
            .set("worker.engine=simulated")
            .set(&format!("worker.simulated.profile={}", profile.display()));
        for setting in &options.settings {
            builder = builder.set(setting);
        }
        let fleet = builder.start().await?;
        let mut model = simulated_model(MODEL, 1 << 30);
        model.facts.context_tokens_max = 2 * ENDLESS_TOKENS;
        Catalog::open(&fleet.connection).await?.add(&model).await?;
        let bench = Self {
            fleet,
            _folder: folder,
        };
        bench.answer_of_both().await?;
        Ok(bench)
    }

    /// Lets both workers load the model, so that no load is part of a pause.
    async fn answer_of_both(&self) -> Result<()> {
        for worker in ["w0", "w1"] {
            let mut question = question(1);
            question.body["deadline_ms"] = json!(PATIENCE.as_millis());
            let answer = self.fleet.ask_worker(&question, &worker.parse()?).await?;
            answer.end.map_err(|error| anyhow::anyhow!("{error}"))?;
        }
        Ok(())
    }

    /// A stream that has run for a while.
    async fn stream(&self, time: Duration) -> Result<(RequestId, Stream)> {
        let question = question(ENDLESS_TOKENS);
        let stream = Stream::follow(self.fleet.submit(&question).await?);
        stream.has_run_for(time).await?;
        Ok((question.request, stream))
    }

    async fn kill_worker(&mut self, phase: Duration) -> Result<Duration> {
        let (request, stream) = self.stream(WARM_UP).await?;
        let worker = self.worker_of(&request).await?;
        sleep(phase).await;
        let killed = Instant::now();
        self.fleet.workers[worker].kill()?;
        stream.goes_on_after(killed + Duration::from_millis(1), 2).await?;
        let pause = stream.longest_pause(killed - WARM_UP, Instant::now());
        self.cancel(&request).await?;
        self.fleet.restart_worker(worker)?;
        self.fleet.wait_for_workers(2).await;
        self.answer_of_both().await?;
        Ok(pause)
    }

    async fn replace_leader(&mut self, signal: Signal, phase: Duration) -> Result<Change> {
        let warm_up = match signal {
            Signal::Kill => LEADERLESS,
            _ => WARM_UP,
        };
        let (request, stream) = self.stream(warm_up).await?;
        let leader = self.leader().await?;
        sleep(phase).await;
        let begun = Instant::now();
        self.fleet.dispatchers[leader].signal(signal)?;
        let first_assignment = self.first_token(begun).await?;
        let ended = Instant::now();
        let change = Change {
            first_assignment,
            pause: stream.longest_pause(begun, ended),
            pause_before: stream.longest_pause(begun - (ended - begun), begun),
        };
        self.cancel(&request).await?;
        self.fleet.dispatchers[leader].wait().await?;
        self.stands_by_again(leader).await?;
        Ok(change)
    }

    async fn first_token(&self, since: Instant) -> Result<Duration> {
        let mut events = self.fleet.submit(&question(1)).await?;
        let token = async {
            loop {
                let delivered = events.next().await?.context("it ended without a token")?;
                if delivered.event.kind() == EventKind::Tokens {
                    break anyhow::Ok(since.elapsed());
                }
            }
        };
        let waited = timeout(PATIENCE, token)
            .await
            .context("no new leader assigns")??;
        Answer::collect(&mut events).await?;
        Ok(waited)
    }

    /// Starts a dispatcher again, and waits until it wants to lead.
    async fn stands_by_again(&mut self, index: usize) -> Result<()> {
        let stands_by = |fleet: &Fleet| fleet.dispatchers[index].log().matches("stands by").count();
        let before = stands_by(&self.fleet);
        self.fleet.restart_dispatcher(index)?;
        eventually("a standby", async || {
            (stands_by(&self.fleet) > before).then_some(())
        })
        .await;
        Ok(())
    }

    async fn leader(&self) -> Result<usize> {
        let status = self.fleet.admin("queue", &json!({})).await?;
        let status: Value = serde_json::from_slice(&status.payload)?;
        let name = status["dispatcher"].as_str().context("a leader has a name")?;
        Ok(name.trim_start_matches('d').parse()?)
    }

    async fn worker_of(&self, request: &RequestId) -> Result<usize> {
        let entries = Journal::new(&self.fleet.connection).read(request, 0).await?;
        let worker = entries.first().and_then(|entry| entry.worker.clone());
        let worker = worker.context("a worker has begun")?;
        Ok(worker.as_str().trim_start_matches('w').parse()?)
    }

    async fn cancel(&self, request: &RequestId) -> Result<()> {
        self.fleet.admin("cancel", &json!({"request": request})).await?;
        Ok(())
    }
}

fn question(tokens: u32) -> Question {
    Question::new(
        MODEL,
        json!({"prompt": [1, 2, 3], "max_tokens": tokens, "seed": 1}),
    )
}

const MODEL: &str = "stream";
/// More than any round lasts.
const ENDLESS_TOKENS: u32 = 50_000;
/// How long an answer runs before a fault.
const WARM_UP: Duration = Duration::from_millis(500);
/// The same before nobody leads for about as long.
const LEADERLESS: Duration = Duration::from_secs(4);
