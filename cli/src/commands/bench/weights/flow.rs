//! What the requests of a worker notice of weights that it sends: the time between tokens, with and without a copy.
//!
//! The worker is a real process with the default cap. On a machine of its own it would have nobody beside it, so it gets
//! half of the cores here for itself, and server, dispatcher and receivers the other half. With one core they share it,
//! and the figure says little.

mod cores;

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use flotilla_client::{Catalog, Connection, Events, NewRequest, new_request_id, submit};
use flotilla_config::Nats;
use flotilla_protocol::event::Event;
use flotilla_protocol::weights::Root;
use flotilla_protocol::{Class, Encoding, ModelName};
use flotilla_weights::Arrival;
use serde_json::json;
use tokio::time::{interval, timeout};

use self::cores::Halves;
use super::figures::{Count, Measure, Samples};
use super::worker::Worker;
use crate::commands::Interrupted;
use crate::commands::bench::engine::ShapeName;
use crate::commands::bench::swap::Pair;
use crate::context::Context;
use crate::fleet::{Fleet, FleetPlan, Port};
use crate::output;
use crate::stop::Signals;

/// What to measure, and where.
pub(super) struct Flow<'a> {
    /// The command's.
    pub(super) context: &'a Context,
    /// The server's program.
    pub(super) nats_server: PathBuf,
    /// For models and logs.
    pub(super) disk: &'a Path,
    /// For what receivers get.
    pub(super) receivers: &'a Path,
    /// How often each way is measured.
    pub(super) rounds: u16,
}

/// When a copy was under way, from its first segment verified to its last.
type Span = (Instant, Instant);

/// What was seen of one way.
#[derive(Default)]
struct Gaps {
    seconds: Vec<f64>,
}

impl Flow<'_> {
    /// Measures with a fleet of its own, which is gone afterwards.
    ///
    /// # Errors
    /// When files cannot be written, the fleet does not start, or a request or a copy fails.
    pub(super) async fn measure(&self, samples: &mut Samples) -> anyhow::Result<()> {
        let halves = Halves::of_this_process()?;
        let models = self.disk.join("flow-models");
        let shape = ShapeName::Smollm2.shape();
        let pair = tokio::task::block_in_place(|| Pair::write(&shape, &models, NonZeroUsize::MIN))?;
        let plan = self.plan(&pair, &halves)?;
        let mut signals = Signals::new()?;
        let (mut fleet, connection) = tokio::select! {
            started = Fleet::start(&plan, &self.context.config) => started?,
            () = signals.next() => return Err(Interrupted.into()),
        };
        let worker = fleet
            .children()
            .last()
            .context("the worker is the last one")?
            .pid();
        halves.give_first_to(worker)?;
        for child in fleet.children().filter(|child| child.pid() != worker) {
            halves.give_second_to(child.pid())?;
        }
        halves.give_second_to(std::process::id())?;
        let measured = tokio::select! {
            measured = self.take_turns(&connection, fleet.url(), &pair, samples) => measured,
            () = signals.next() => Err(Interrupted.into()),
        };
        fleet.stop().await;
        halves.give_all_to(std::process::id())?;
        measured
    }

    fn plan(&self, pair: &Pair, halves: &Halves) -> anyhow::Result<FleetPlan> {
        let folder = self.disk.join("flow");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut arguments = self.context.child_arguments();
        for setting in [
            format!("worker.cpu.threads={}", halves.first_count()),
            format!("worker.cpu.memory_bytes={}", pair.device_bytes()),
            // What lies in the relay when the next receiver comes need not be sent again.
            "worker.weights.window_bytes=64MiB".to_owned(),
        ] {
            arguments.extend(["--set".to_owned(), setting]);
        }
        Ok(FleetPlan {
            nats_server: self.nats_server.clone(),
            port: Port::Any,
            folder,
            workers: 1,
            models_dir: pair.folder.clone(),
            arguments,
        })
    }

    /// Tokens of a model, with and without copies of it, in turns.
    async fn take_turns(
        &self,
        connection: &Connection,
        url: &str,
        pair: &Pair,
        samples: &mut Samples,
    ) -> anyhow::Result<()> {
        // Both have the same weights, so the root is that of either.
        let [(speaks, _), _] = pair.models();
        let root = root_of(connection, &speaks).await?;
        let mut nats = self.context.config.nats.clone();
        nats.url = vec![url.to_owned()];
        stream(connection, &speaks, 1)
            .await
            .context("the first request")?;
        let (mut idle, mut sending) = (Gaps::default(), Gaps::default());
        let (mut bytes, mut seconds) = (0.0, 0.0);
        for round in 1..=self.rounds {
            output::note(&format!(
                "bench: tokens beside a copy, round {round} of {}",
                self.rounds
            ));
            let times = stream(connection, &speaks, TOKENS).await?;
            samples.add(Measure::TokenGapIdle, idle.add(&times, |_, _| true));
            let copies = RefCell::new(Vec::new());
            let times = tokio::select! {
                times = stream(connection, &speaks, TOKENS) => times?,
                failed = self.copy_for_ever(&nats, root, &copies) => return Err(failed.context("a copy beside tokens")),
            };
            let copies = copies.into_inner();
            let is_beside = |begin, end| {
                copies
                    .iter()
                    .any(|((first, last), _)| *first <= begin && end <= *last)
            };
            samples.add(Measure::TokenGapSending, sending.add(&times, is_beside));
            bytes += copies.iter().map(|(_, bytes)| bytes).sum::<f64>();
            seconds += copies
                .iter()
                .map(|((first, last), _)| (*last - *first).as_secs_f64())
                .sum::<f64>();
        }
        anyhow::ensure!(
            sending.seconds.len() >= GAPS_MIN,
            "copies were under way during {} tokens only; take more rounds",
            sending.seconds.len()
        );
        samples.count(Count::TokenGapP99, sending.at(99) / idle.at(99));
        samples.count(Count::TokenGapMedian, sending.at(50) / idle.at(50));
        samples.count(Count::SentBesideTokens, bytes / seconds / 1_048_576.0);
        Ok(())
    }

    /// One receiver after the other copies the root, until the future is dropped or one fails. Tells when a copy was
    /// under way, and how many bytes came meanwhile.
    async fn copy_for_ever(
        &self,
        nats: &Nats,
        root: Root,
        copies: &RefCell<Vec<(Span, f64)>>,
    ) -> anyhow::Error {
        let folder = self.receivers.join("flow-copy");
        loop {
            match copy(nats, root, &folder, copies).await {
                Ok(()) => {}
                Err(error) => return error,
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes stay far below 2^52")]
async fn copy(
    nats: &Nats,
    root: Root,
    folder: &Path,
    copies: &RefCell<Vec<(Span, f64)>>,
) -> anyhow::Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let worker = Worker::start(nats, "bench-flow", folder).await?;
    let importer = worker.importer.clone();
    let (mut arrival, announcer) = Arrival::begin(root);
    // The announcer goes with the import, and the watching ends with it.
    let importing = worker
        .role
        .run(async move { importer.import_telling(root, &announcer).await });
    let index = copies.borrow().len();
    let watching = async {
        let mut first_bytes = 0;
        while arrival.news().await {
            let (now, here_bytes) = (Instant::now(), arrival.progress().bytes());
            let mut copies = copies.borrow_mut();
            match copies.get_mut(index) {
                None if here_bytes == 0 => {}
                None => {
                    first_bytes = here_bytes;
                    copies.push(((now, now), 0.0));
                }
                Some(((_, last), bytes)) => {
                    *last = now;
                    *bytes = (here_bytes - first_bytes) as f64;
                }
            }
        }
    };
    let (imported, ()) = tokio::join!(importing, watching);
    drop(imported??);
    Ok(())
}

impl Gaps {
    /// Takes the times between events that `counts` takes; returns their 99th percentile.
    fn add(&mut self, times: &[Instant], counts: impl Fn(Instant, Instant) -> bool) -> f64 {
        let gaps = times.windows(2).filter(|pair| counts(pair[0], pair[1]));
        let added = Self {
            seconds: gaps.map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect(),
        };
        let p99 = added.at(99);
        self.seconds.extend(added.seconds);
        p99
    }

    /// What this share of them does not exceed; 0 without any.
    fn at(&self, percent: usize) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }
}

/// The root of a model, as soon as its worker has read the files.
async fn root_of(connection: &Connection, model: &ModelName) -> anyhow::Result<Root> {
    let catalog = Catalog::open(connection).await?;
    let mut ticks = interval(POLL);
    let found = async {
        loop {
            ticks.tick().await;
            if let Some(root) = catalog.entry(model).await?.and_then(|entry| entry.root) {
                return anyhow::Ok(root);
            }
        }
    };
    timeout(ROOT_MAX, found)
        .await
        .with_context(|| format!("nobody offers {model}"))?
}

/// When the events with tokens of one answer came.
async fn stream(connection: &Connection, model: &ModelName, tokens: u32) -> anyhow::Result<Vec<Instant>> {
    let body = json!({"prompt": "w5 w6 w7", "max_tokens": tokens, "ignore_eos": true});
    let request = new_request_id();
    let mut events = Events::subscribe(connection, request.clone()).await?;
    let new = NewRequest {
        request,
        class: Class::Interactive,
        model: model.clone(),
        encoding: Encoding::Json,
        body: serde_json::to_vec(&body)?.into(),
    };
    submit(connection, new).await?;
    let mut times = Vec::new();
    let streamed = async {
        while let Some(delivered) = events.next().await? {
            match delivered.event {
                Event::Tokens(_) => times.push(Instant::now()),
                Event::Failed(failed) => anyhow::bail!("a request failed: {}", failed.error.message),
                Event::Accepted(_) | Event::Progress(_) | Event::Finished(_) => {}
            }
        }
        Ok(())
    };
    timeout(ANSWER_MAX, streamed)
        .await
        .context("a request of the benchmark has no answer")??;
    Ok(times)
}

/// Of one answer.
const TOKENS: u32 = 384;
/// Below, a 99th percentile is one of them.
const GAPS_MIN: usize = 200;
const POLL: Duration = Duration::from_millis(50);
/// Reading two models takes seconds.
const ROOT_MAX: Duration = Duration::from_secs(60);
const ANSWER_MAX: Duration = Duration::from_secs(300);
