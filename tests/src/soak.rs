//! A soak: a fleet of real processes serves at a share of its capacity for a long time, and nothing of it may grow.
//!
//! Requests of every kind arrive at random times: answers that are followed, of a shape, asked by request and reply,
//! cancelled, left by their clients, and refused. What each process and the server hold is read at intervals: memory,
//! file descriptors, threads, tasks, connections, subscriptions, consumers, stored messages. Of each the slope is told, and
//! growth beyond what is due to chance is an error, unless it is gone when nothing is under way: a queue that was longer at
//! the end is no leak.

mod load;
mod mix;
mod readings;
mod slope;

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Result, bail};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

pub use load::Tally;
pub use slope::Slope;

use crate::{Fleet, ModelFolderBuilder, ServerOptions, Spelling, copy_folder, demo_models_dir, free_port};
use load::Load;
use mix::Mix;
use readings::{Readings, Rest, Sources};

/// What to run.
#[derive(Debug, Clone)]
pub struct SoakOptions {
    /// What the questions and their times follow from.
    pub seed: u64,
    /// How long the fleet is under load.
    pub duration: Duration,
    /// The load, as a share of what the fleet can do.
    pub share: f64,
    /// Requests that tell what it can do.
    pub capacity_requests: usize,
    /// How often is read what everything holds.
    pub read_every: Duration,
}

/// What was seen.
#[derive(Debug)]
pub struct SoakSummary {
    /// Requests a second that the fleet answered when it was asked for all it can.
    pub capacity_rps: f64,
    /// What became of the requests.
    pub tally: Tally,
    /// Of everything that was read, how it changed.
    pub slopes: Vec<Slope>,
}

/// Runs a fleet under load.
///
/// # Errors
/// When a part does not start, an answer is wrong or missing, or anything grew; the error tells what.
pub async fn soak(options: &SoakOptions) -> Result<SoakSummary> {
    let folder = models()?;
    let monitoring = free_port();
    let server = ServerOptions {
        monitoring_port: Some(monitoring),
        ..ServerOptions::default()
    };
    let journals_kept = (options.duration / 10).clamp(JOURNALS_KEPT_MIN, JOURNALS_KEPT_MAX);
    let fleet = Fleet::builder()
        .server(server)
        .dispatchers(2)
        .workers(2)
        .models_dir(folder.path())
        // The server keeps something in memory for each journal: after this long there are always as many.
        .set(&format!("nats.journal_max_age_s={}", journals_kept.as_secs()))
        .start()
        .await?;
    let mix = Mix::draw(&fleet, options.seed).await?;
    let load = Load::new(&fleet, mix, options.seed);
    let capacity_rps = load.capacity(options.capacity_requests).await?;
    fleet.wait_for_an_empty_queue().await;
    let sources = Sources::find(&fleet, monitoring).await;
    let rest = Rest::read(&sources).await?;
    let mut readings = Readings::default();
    let reading = async {
        let mut ticks = tokio::time::interval(options.read_every);
        loop {
            ticks.tick().await;
            if let Err(error) = readings.read(&sources).await {
                break error;
            }
        }
    };
    let tally = tokio::select! {
        tally = load.run(capacity_rps * options.share, options.duration) => tally?,
        error = reading => return Err(error),
    };
    fleet.wait_for_an_empty_queue().await;
    let summary = SoakSummary {
        capacity_rps,
        tally,
        slopes: readings.slopes(journals_kept * 2),
    };
    let mut grown: Vec<&Slope> = summary.slopes.iter().filter(|slope| slope.grew()).collect();
    let end = Instant::now() + journals_kept * 2 + CLIENTS_ARE_MISSED_WITHIN;
    while !grown.is_empty() && Instant::now() < end {
        let now = Rest::read(&sources).await?;
        grown.retain(|slope| !now.is_back_at(&rest, slope));
        sleep(options.read_every).await;
    }
    if !grown.is_empty() {
        let names: Vec<&str> = grown.iter().map(|slope| slope.name.as_str()).collect();
        bail!("these grew and stayed: {}\n{summary}", names.join(", "));
    }
    Ok(summary)
}

impl fmt::Display for SoakSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "capacity {:.1} requests/s", self.capacity_rps)?;
        writeln!(f, "{}", self.tally)?;
        Slope::table(&self.slopes, f)
    }
}

/// The demonstration models, one with long answers, and one that can give answers of a shape.
fn models() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    for model in fs::read_dir(demo_models_dir())? {
        let model = model?;
        if model.file_type()?.is_dir() {
            copy_folder(&model.path(), &folder.path().join(model.file_name()))?;
        }
    }
    ModelFolderBuilder::default().write(&folder.path().join(mix::LONG))?;
    let bytes = ModelFolderBuilder {
        spelling: Spelling::Bytes,
        ..ModelFolderBuilder::default()
    };
    bytes.write(&folder.path().join(mix::SHAPED))?;
    Ok(folder)
}

/// What belongs to clients that left without a word is given up after this long, with some to spare.
const CLIENTS_ARE_MISSED_WITHIN: Duration = Duration::from_secs(30);
/// Longer than any answer takes.
const JOURNALS_KEPT_MIN: Duration = Duration::from_secs(20);
/// Enough of them to see what they cost.
const JOURNALS_KEPT_MAX: Duration = Duration::from_secs(120);
