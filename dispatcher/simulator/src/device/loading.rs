//! Loads and prefetches under way, and what is in host memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_protocol::{ModelName, Moment};
use flotilla_worker_core::batch::{Batch, BatchSettings};

use crate::fleet::Timing;

/// The loads of one device. Any number of them may be under way at once, each as fast as alone.
#[derive(Debug)]
pub(super) struct Loading {
    loads: BTreeMap<ModelName, Load>,
    /// Models whose weights are in host memory, or will be from this moment on. They stay there.
    in_host: BTreeMap<ModelName, Moment>,
    /// Models that were inspected and whose load has not begun.
    wanted: BTreeSet<ModelName>,
    /// A model left while another was wanted, since the last load began.
    has_evicted: bool,
    /// Loads take no time: the trace has not begun.
    pub(super) is_instant: bool,
}

#[derive(Debug)]
struct Load {
    began: Moment,
    ends: Moment,
    /// Taken when the load ends; the engine takes it in between two rounds.
    batch: Option<Batch>,
}

impl Loading {
    pub(super) fn new() -> Self {
        Self {
            loads: BTreeMap::new(),
            in_host: BTreeMap::new(),
            wanted: BTreeSet::new(),
            has_evicted: false,
            is_instant: false,
        }
    }

    /// When the next load ends.
    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        let under_way = self.loads.values().filter(|load| load.batch.is_some());
        under_way.map(|load| load.ends).min()
    }

    /// A model waits for room.
    pub(super) fn note_wanted(&mut self, model: &ModelName) {
        self.wanted.insert(model.clone());
    }

    /// A model leaves; when another one waits for room, it leaves for that.
    pub(super) fn note_unload(&mut self) {
        self.has_evicted |= !self.wanted.is_empty();
    }

    /// Whether a model has left for one that waits, since this was last asked.
    pub(super) fn evicted_for_others(&mut self) -> bool {
        std::mem::take(&mut self.has_evicted)
    }

    /// Begins a load: from host memory if the weights are there or will be soon enough, else from their origin.
    pub(super) fn begin(&mut self, now: Moment, model: &ModelName, timing: &Timing, settings: BatchSettings) {
        let from_origin = now + timing.load_from_origin;
        let from_host = self.in_host.get(model).map(|since| {
            let there = (*since).max(now);
            there + timing.load_from_host
        });
        let ends = match self.is_instant {
            true => now,
            false => from_host.map_or(from_origin, |at| at.min(from_origin)),
        };
        let in_host = self.in_host.entry(model.clone()).or_insert(ends);
        *in_host = (*in_host).min(ends);
        self.wanted.remove(model);
        let batch = Some(Batch::new(settings));
        let load = Load {
            began: now,
            ends,
            batch,
        };
        self.loads.insert(model.clone(), load);
    }

    /// Ends a load before its time, and tells how long it took; `None` when it has ended.
    pub(super) fn cancel(&mut self, now: Moment, model: &ModelName) -> Option<Duration> {
        let load = self.loads.get(model).filter(|load| load.batch.is_some())?;
        let (began, ends) = (load.began, load.ends);
        self.loads.remove(model);
        // What was read is lost, as nothing was there before.
        if self.in_host.get(model) == Some(&ends) {
            self.in_host.remove(model);
        }
        Some(now.since(began))
    }

    /// The models whose loads have ended by now, each once.
    pub(super) fn ended(&mut self, now: Moment) -> Vec<(ModelName, Batch)> {
        let due = self.loads.iter_mut().filter(|(_, load)| load.ends <= now);
        due.filter_map(|(model, load)| Some((model.clone(), load.batch.take()?)))
            .collect()
    }

    /// The engine has a model; tells how long its load took.
    pub(super) fn installed(&mut self, now: Moment, model: &ModelName) -> Duration {
        let load = self.loads.remove(model).expect("what is installed was loaded");
        now.since(load.began)
    }

    /// Begins to bring weights into host memory, which takes as long as the part of a load before that.
    pub(super) fn prefetch(&mut self, now: Moment, model: &ModelName, timing: &Timing) {
        let reading = timing.load_from_origin.saturating_sub(timing.load_from_host);
        self.in_host.entry(model.clone()).or_insert(now + reading);
    }
}
