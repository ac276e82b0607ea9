//! Chaos: a fleet of real processes serves a stream of requests while its parts are killed, stopped and cut off.
//!
//! Everything that is drawn follows from one seed: the questions, the faults, and the points at which they happen.
//! A point is a number of tokens that the clients have got, not a time, so that a seed that failed can be run again
//! with the same faults in about the same places. Two dispatchers, two workers with simulated devices, one server or
//! three that are a cluster.
//!
//! Each answer is compared with the undisturbed one of its question; each journal is read when its answer is there
//! and once more at the end. What is wrong is a [`Problem`]; with one, the logs of all parts are merged into one
//! timeline, whose path the error names.

mod clients;
mod conductor;
mod journals;
mod plan;
mod questions;
mod servers;
mod summary;
mod timeline;

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flotilla_client::{Catalog, Connection};
use tempfile::TempDir;

pub use clients::Problem;
pub use journals::check_journal;
pub use plan::{Aim, Fault, Kept, Part, Planned, Scope, When, plan};
pub use summary::Summary;

use crate::{Fleet, connect, eventually, simulated_model, write_profile};
use clients::Clients;
use conductor::Conductor;
use questions::{MODELS, Questions};
use timeline::Notes;

/// What to run.
#[derive(Debug, Clone)]
pub struct ChaosOptions {
    /// What everything that is drawn follows from.
    pub seed: u64,
    /// Requests in all.
    pub requests: usize,
    /// Faults in all.
    pub faults: usize,
    /// Servers; several are a cluster.
    pub servers: usize,
    /// Requests under way at once.
    pub clients: usize,
    /// How soon the fleet gives a silent part up.
    pub pace: Pace,
    /// What the parts log, as the setting `log.level`.
    pub log_level: String,
    /// Where the timeline goes.
    pub timeline: PathBuf,
    /// Which runs leave one.
    pub timeline_of: TimelineOf,
}

/// Which runs leave a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimelineOf {
    /// Those that found something.
    Failures,
    /// All of them.
    EveryRun,
}

/// How soon the fleet gives a silent part up, and with that how long faults last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// The default settings.
    Default,
    /// About a third of them, for short runs.
    Quick,
}

impl Pace {
    /// Silence after which a part has certainly been given up: the longer one of a leader's and a worker's.
    fn given_up_after(self) -> Duration {
        match self {
            Self::Default => Duration::from_secs(4),
            Self::Quick => Duration::from_millis(1500),
        }
    }

    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::Quick => &[
                "dispatcher.worker_lost_after_ms=1500",
                "dispatcher.lease_ttl_ms=1200",
                "dispatcher.ack_wait_ms=5000",
                "worker.report_interval_ms=300",
            ],
        }
    }
}

impl ChaosOptions {
    /// A run of so many requests: a fault for each 150, 8 at least.
    #[must_use]
    pub fn new(seed: u64, requests: usize) -> Self {
        Self {
            seed,
            requests,
            faults: (requests / 150).max(8),
            servers: 1,
            clients: 48,
            pace: Pace::Default,
            log_level: "info".to_owned(),
            timeline: std::env::temp_dir().join(format!("flotilla-chaos-{seed}.log")),
            timeline_of: TimelineOf::Failures,
        }
    }
}

/// A seed that nobody has chosen.
#[must_use]
pub fn new_seed() -> u64 {
    // Hashers are keyed by the system's random numbers. 32 bits are easier to type.
    RandomState::new().hash_one(()) >> 32
}

/// Runs requests under faults.
///
/// # Errors
/// When a part does not start or ends by itself, or when anything was lost, doubled, hung or wrong; the error names
/// the seed, the faults and the timeline's file.
pub async fn run(options: &ChaosOptions) -> Result<Summary> {
    let mut arena = Arena::open(options).await?;
    let ended = arena.play(options).await;
    let is_good = ended.as_ref().is_ok_and(|summary| summary.problems.is_empty());
    if is_good && options.timeline_of == TimelineOf::Failures {
        return ended;
    }
    let problems = match &ended {
        Ok(summary) => summary.to_string(),
        Err(error) => format!("{error:?}"),
    };
    arena.notes.tell(&problems);
    let written = timeline::write(&options.timeline, &arena.fleet, &arena.notes);
    written.with_context(|| format!("the timeline cannot be written: {problems}"))?;
    if is_good {
        return ended;
    }
    bail!(
        "chaos with seed {} found something; all logs as one timeline are in {}\nfaults:\n{}\n{problems}",
        options.seed,
        options.timeline.display(),
        arena.notes
    )
}

/// A fleet to torment.
struct Arena {
    fleet: Fleet,
    /// A connection that no fault touches but those of the server.
    observer: Connection,
    notes: Notes,
    _folder: TempDir,
}

impl Arena {
    async fn open(options: &ChaosOptions) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let profile = folder.path().join("profile.json");
        write_profile(&profile, LOAD_FROM_ORIGIN, LOAD_FROM_HOST)?;
        let mut builder = Fleet::builder()
            .dispatchers(2)
            .workers(2)
            .servers(options.servers)
            .proxied()
            .set("worker.engine=simulated")
            .set(&format!("worker.simulated.profile={}", profile.display()))
            .set(&format!("log.level={}", options.log_level))
            // Who is hit by faults is drawn; that somebody is hit often is no sign of poison.
            .set("dispatcher.strikes_max=100")
            .set("nats.journal_max_age_s=86400");
        for setting in options.pace.settings() {
            builder = builder.set(setting);
        }
        let fleet = builder.start().await?;
        let observer = fleet.connect_directly().await?;
        let catalog = Catalog::open(&observer).await?;
        for model in MODELS {
            catalog.add(&simulated_model(model, 10 << 30)).await?;
        }
        Ok(Self {
            fleet,
            observer,
            notes: Notes::default(),
            _folder: folder,
        })
    }

    async fn play(&mut self, options: &ChaosOptions) -> Result<Summary> {
        let questions = Questions::ask(&self.fleet, options.seed).await?;
        let tokens: u64 = (0..options.requests)
            .map(|number| questions.of(number).tokens())
            .sum();
        let scope = Scope {
            servers: options.servers,
            faults: options.faults,
            tokens,
            given_up_after: options.pace.given_up_after(),
        };
        let planned = plan(options.seed, scope);
        let clients = Clients::new(
            self.fleet.connection.clone(),
            self.observer.clone(),
            questions,
            options,
        );
        let mut conductor = Conductor::new(&mut self.fleet, self.observer.clone(), &mut self.notes, planned);
        let began = Instant::now();
        let told = conductor.lead(clients).await?;
        self.notes.pauses(&told.0);
        let mut summary = Summary::new(options, &self.fleet, &self.notes, told, began.elapsed());
        if let Err(error) = self.wait_for_an_empty_queue().await {
            summary.problems.push((0, Problem::Stuck(error.to_string())));
        }
        for server in &self.fleet.cluster.servers {
            // Whoever asks a server is answered out of that server's own copy.
            summary.read_journals_again(&connect(&server.url()).await?).await;
        }
        Ok(summary)
    }

    /// Every server has all that was stored, and every request was acked.
    async fn wait_for_an_empty_queue(&self) -> Result<()> {
        let settled = eventually("all servers", async || {
            self.fleet.cluster.is_current().await.then_some(())
        });
        let settled = tokio::time::timeout(crate::PATIENCE, settled).await;
        settled.context("the servers do not get even")?;
        let jetstream = &self.observer.jetstream;
        let stream = self.observer.subjects.requests_stream();
        let messages = async || {
            Some(
                jetstream
                    .get_stream(&stream)
                    .await
                    .ok()?
                    .cached_info()
                    .state
                    .messages,
            )
        };
        let emptied = eventually("the request stream", async || match messages().await {
            Some(0) => Some(()),
            Some(_) | None => None,
        });
        tokio::time::timeout(crate::PATIENCE / 2, emptied)
            .await
            .with_context(|| format!("{stream} does not become empty"))
    }
}

/// Loads are short: they are not what is tried here.
const LOAD_FROM_ORIGIN: Duration = Duration::from_millis(300);
const LOAD_FROM_HOST: Duration = Duration::from_millis(100);
