//! What each process and the server hold.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::time::Instant;

use super::slope::{Slope, Unit};
use crate::Fleet;
use crate::scrape::{Scrape, get};

/// Where readings come from.
#[derive(Debug)]
pub(super) struct Sources {
    processes: Vec<Source>,
    /// Where the server tells its state.
    monitoring: SocketAddr,
}

#[derive(Debug)]
struct Source {
    name: String,
    id: u32,
    /// Where its metrics are.
    metrics: SocketAddr,
}

/// All readings of a run.
#[derive(Debug, Default)]
pub(super) struct Readings {
    begun: Option<Instant>,
    of: BTreeMap<String, Series>,
}

/// What everything holds while nothing is under way.
#[derive(Debug)]
pub(super) struct Rest(BTreeMap<String, f64>);

/// The readings of one quantity, each with its time.
#[derive(Debug)]
struct Series {
    unit: Unit,
    readings: Vec<(Duration, f64)>,
}

impl Sources {
    pub(super) async fn find(fleet: &Fleet, monitoring_port: u16) -> Self {
        let mut processes = Vec::new();
        for process in fleet.dispatchers.iter().chain(&fleet.workers) {
            processes.push(Source {
                name: process.name().to_owned(),
                id: process.id(),
                metrics: process.http().await,
            });
        }
        Self {
            processes,
            monitoring: SocketAddr::from(([127, 0, 0, 1], monitoring_port)),
        }
    }
}

impl Readings {
    /// Reads everything once.
    pub(super) async fn read(&mut self, sources: &Sources) -> Result<()> {
        let at = self.begun.get_or_insert_with(Instant::now).elapsed();
        for process in &sources.processes {
            let of = |what: &str| format!("{} {what}", process.name);
            let (bytes, threads) = status(process.id)?;
            let descriptors = fs::read_dir(format!("/proc/{}/fd", process.id))?.count();
            self.add(at, of("memory"), Unit::Bytes, bytes);
            self.add(at, of("threads"), Unit::Count, threads);
            self.add(at, of("descriptors"), Unit::Count, count(descriptors));
            let tasks = Scrape::of(process.metrics).await?.sum(TASKS, &[]);
            let tasks = tasks.with_context(|| format!("{} does not tell its tasks", process.name))?;
            self.add(at, of("tasks"), Unit::Count, tasks);
        }
        self.read_server(at, sources.monitoring).await
    }

    async fn read_server(&mut self, at: Duration, monitoring: SocketAddr) -> Result<()> {
        let ask =
            async |path| -> Result<Value> { Ok(serde_json::from_str(&get(monitoring, path).await?.1)?) };
        let (server, jetstream) = (ask("/varz").await?, ask("/jsz").await?);
        for (name, unit, from, field) in [
            ("server memory", Unit::Bytes, &server, "mem"),
            ("server subscriptions", Unit::Count, &server, "subscriptions"),
            ("server connections", Unit::Count, &server, "connections"),
            ("server consumers", Unit::Count, &jetstream, "consumers"),
            ("server streams", Unit::Count, &jetstream, "streams"),
            (STORED, Unit::Count, &jetstream, "messages"),
        ] {
            let value = from[field].as_f64();
            let value = value.with_context(|| format!("the server does not tell its {field}"))?;
            self.add(at, name.to_owned(), unit, value);
        }
        Ok(())
    }

    fn add(&mut self, at: Duration, name: String, unit: Unit, value: f64) {
        let readings = Vec::new();
        let series = self.of.entry(name).or_insert(Series { unit, readings });
        series.readings.push((at, value));
    }

    /// How everything changed after a time in which it may settle.
    pub(super) fn slopes(&self, settled_after: Duration) -> Vec<Slope> {
        let slope = |(name, series): (&String, &Series)| {
            // What is stored grows until the first of it is removed for its age, caches until they are full.
            let grows_first = name == STORED || series.unit == Unit::Bytes;
            let from = settled_after * u32::from(grows_first);
            let readings = series.readings.iter().filter(|(at, _)| *at >= from);
            Slope::new(name, series.unit, &readings.copied().collect::<Vec<_>>())
        };
        self.of.iter().filter_map(slope).collect()
    }
}

impl Rest {
    /// Reads everything once.
    pub(super) async fn read(sources: &Sources) -> Result<Self> {
        let mut readings = Readings::default();
        readings.read(sources).await?;
        let newest = |(name, series): (String, Series)| Some((name, series.readings.last()?.1));
        Ok(Self(readings.of.into_iter().filter_map(newest).collect()))
    }

    /// Whether there is no more of what a slope is of than there was then.
    pub(super) fn is_back_at(&self, then: &Self, slope: &Slope) -> bool {
        let of = |rest: &Self| rest.0.get(&slope.name).copied();
        matches!((of(self), of(then)), (Some(now), Some(then)) if !slope.is_more(then, now))
    }
}

/// Resident bytes and threads of a process.
fn status(process: u32) -> Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let number = |field: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let word = line.and_then(|rest| rest.split_whitespace().next());
        Ok(word.with_context(|| format!("no {field}"))?.parse()?)
    };
    Ok((number("VmRSS:")? * 1024.0, number("Threads:")?))
}

fn count(things: usize) -> f64 {
    f64::from(u32::try_from(things).unwrap_or(u32::MAX))
}

/// Messages of all streams.
const STORED: &str = "server messages";
/// The metric of tasks.
const TASKS: &str = "flotilla_process_tokio_tasks";
