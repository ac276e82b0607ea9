//! The tier below the devices: weights in host memory, in an account of their own.
//!
//! A model that leaves a device goes here first when it is worth more than what would have to go for it: its copy
//! comes with the unload, and a later load takes it instead of the files. The load uses it up, so weights are never
//! counted in two places for longer than a load takes; a load that fails loses it. A prefetch fills it from files.
//!
//! A copy is of the files that were inspected. Who finds that they are others by now says so, and the copy is
//! dropped; the next one is made of the new files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use flotilla_protocol::fleet::{HostModel, HostReport, LoadSource};
use flotilla_protocol::{ModelName, Moment};
use thiserror::Error;

use super::fault::Unusable;
use super::model::{Model, State};
use super::room::Room;
use super::victims::{Candidate, cheapest};
use super::{Action, Keep, ModelNeeds, Residency};
use crate::ledger::PAGE_BYTES;

/// The account of the host memory.
#[derive(Debug)]
pub(super) struct Host {
    pages_total: u64,
    copies: BTreeMap<ModelName, HostCopy>,
}

#[derive(Debug, Clone)]
struct HostCopy {
    pages: u64,
    stage: Stage,
    /// The layers of each of its parts, as they lay on devices; none when it is whole.
    cut: Vec<Range<u32>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// On its way here, from a device or from files.
    Coming,
    /// As before, and of files that are others by now.
    ComingInVain,
    Held,
    /// A load uses it up.
    Leaving,
}

/// Why a model is not brought into host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PrefetchRefusal {
    /// The tier is off.
    #[error("this worker keeps no weights in host memory; see worker.host_memory_bytes")]
    NoHostMemory,
}

impl Host {
    pub(super) fn new(pages_total: u64) -> Self {
        Self {
            pages_total,
            copies: BTreeMap::new(),
        }
    }

    /// Whether it has a model's weights, or will have.
    pub(super) fn has(&self, model: &ModelName) -> bool {
        self.copies.contains_key(model)
    }

    fn pages_free(&self) -> u64 {
        let held: u64 = self.copies.values().map(|copy| copy.pages).sum();
        self.pages_total.saturating_sub(held)
    }

    /// Where a load that begins now finds the weights, cut like this; a copy is used up by it.
    fn begin_load(&mut self, model: &ModelName, cut: &[Range<u32>]) -> LoadSource {
        match self.copies.get_mut(model) {
            Some(copy) if copy.stage == Stage::Held && copy.cut == cut => {
                copy.stage = Stage::Leaving;
                LoadSource::Host
            }
            Some(_) | None => LoadSource::Origin,
        }
    }

    /// Where the load under way found the weights.
    pub(super) fn source(&self, model: &ModelName) -> LoadSource {
        match self.copies.get(model) {
            Some(copy) if copy.stage == Stage::Leaving => LoadSource::Host,
            Some(_) | None => LoadSource::Origin,
        }
    }

    /// A load has ended, and the copy that it used up is gone; tells where it found the weights.
    pub(super) fn end_load(&mut self, model: &ModelName) -> LoadSource {
        let source = self.source(model);
        if source == LoadSource::Host {
            self.copies.remove(model);
        }
        source
    }

    pub(super) fn check_invariants(&self) {
        let held: u64 = self.copies.values().map(|copy| copy.pages).sum();
        assert!(held <= self.pages_total, "host memory holds no more than it has");
    }

    pub(super) fn report(&self) -> Option<HostReport> {
        if self.pages_total == 0 {
            return None;
        }
        let held = self.copies.iter().filter(|(_, copy)| copy.stage == Stage::Held);
        let models = held.map(|(model, copy)| HostModel {
            model: model.clone(),
            bytes: copy.pages.saturating_mul(PAGE_BYTES),
        });
        Some(HostReport {
            bytes_total: self.pages_total.saturating_mul(PAGE_BYTES),
            models: models.collect(),
        })
    }
}

impl Residency {
    /// Somebody expects that a model will be wanted soon: its weights are brought into host memory, where they are
    /// not there or nearer already and nothing worth more has to go. One in back-off is left alone.
    ///
    /// # Errors
    /// [`PrefetchRefusal`].
    pub fn handle_prefetch(&mut self, now: Moment, model: &ModelName) -> Result<(), PrefetchRefusal> {
        if self.host.pages_total == 0 {
            return Err(PrefetchRefusal::NoHostMemory);
        }
        let is_near = self.host.has(model);
        let entry = self.model_mut(model);
        if matches!(entry.state, State::Absent) && !is_near {
            entry.is_expected = true;
        }
        self.advance(now, model);
        Ok(())
    }

    /// A prefetch ended. One that failed is forgotten: a load tries the same files again, and its failure is told.
    ///
    /// # Panics
    /// When none was under way.
    pub fn handle_prefetched(&mut self, now: Moment, model: &ModelName, result: Result<(), Unusable>) {
        let entry = self.model_mut(model);
        let state = std::mem::replace(&mut entry.state, State::Absent);
        assert!(
            matches!(state, State::Fetching),
            "a prefetch of {model} is under way: {state:?}"
        );
        self.arrive(model, result.is_ok());
        self.advance(now, model);
        self.settle(now);
    }

    /// A model's files are others than those that its copy was made of.
    pub fn handle_host_outdated(&mut self, model: &ModelName) {
        let Some(copy) = self.host.copies.get_mut(model) else {
            return;
        };
        self.changes += 1;
        match copy.stage {
            Stage::Held => {
                self.host.copies.remove(model);
                let model = model.clone();
                self.actions.push_back(Action::DropCopy { model });
            }
            Stage::Coming => copy.stage = Stage::ComingInVain,
            // A load that has begun is of the older files, as one from them would be.
            Stage::ComingInVain | Stage::Leaving => {}
        }
    }

    /// Where a load that begins now finds the weights. A copy that is cut otherwise than the model is to be is of no
    /// use any more.
    pub(super) fn begin_load(&mut self, model: &ModelName, cut: &[Range<u32>]) -> LoadSource {
        let source = self.host.begin_load(model, cut);
        if source == LoadSource::Origin {
            self.handle_host_outdated(model);
        }
        source
    }

    /// The account of the host memory; `None` when the tier is off.
    #[must_use]
    pub fn host_report(&self) -> Option<HostReport> {
        self.host.report()
    }

    /// Whether what leaves a device now is kept here: makes room for it then.
    pub(super) fn keep_in_host(&mut self, now: Moment, model: &ModelName) -> Keep {
        let entry = &self.models[model];
        let home = entry.home().expect("a model that leaves is somewhere");
        let (pages, cut, worth_us) = (home.weights_pages(), home.cut(), entry.origin_regret_us(now));
        if entry.is_outdated || !self.make_host_room(now, model, pages, worth_us) {
            return Keep::Nowhere;
        }
        let stage = Stage::Coming;
        self.host
            .copies
            .insert(model.clone(), HostCopy { pages, stage, cut });
        Keep::InHost
    }

    /// Goes on with a prefetch whose needs are known. What no device can hold as a whole is not brought here: where
    /// it will be cut is not known.
    pub(super) fn fetch(&mut self, now: Moment, model: &ModelName, needs: &ModelNeeds) {
        let (pages, worth_us) = (needs.weights_pages, self.models[model].origin_regret_us(now));
        let has_room = self.fits_whole(needs) && self.make_host_room(now, model, pages, worth_us);
        if has_room {
            let (stage, cut) = (Stage::Coming, Vec::new());
            self.host
                .copies
                .insert(model.clone(), HostCopy { pages, stage, cut });
        }
        let entry = self.model_mut(model);
        entry.is_expected = false;
        entry.state = match has_room {
            true => State::Fetching,
            false => State::Absent,
        };
        if has_room {
            let model = model.clone();
            self.actions.push_back(Action::Prefetch { model });
        }
    }

    /// What was on its way here is here, or will not come.
    pub(super) fn arrive(&mut self, model: &ModelName, is_here: bool) {
        self.changes += 1;
        let Some(copy) = self.host.copies.get_mut(model) else {
            return;
        };
        match (copy.stage, is_here) {
            (Stage::Coming, true) => copy.stage = Stage::Held,
            (Stage::ComingInVain, true) => {
                self.host.copies.remove(model);
                let model = model.clone();
                self.actions.push_back(Action::DropCopy { model });
            }
            (Stage::Coming | Stage::ComingInVain, false) => {
                self.host.copies.remove(model);
            }
            (Stage::Held | Stage::Leaving, _) => {}
        }
    }

    /// Makes room for a model's pages, for which the cheapest copies go if they are worth less; tells whether there
    /// is room now.
    fn make_host_room(&mut self, now: Moment, model: &ModelName, pages: u64, worth_us: u64) -> bool {
        if pages == 0 || pages > self.host.pages_total || self.host.has(model) {
            return false;
        }
        let missing = Room {
            pages: pages.saturating_sub(self.host.pages_free()),
            ..Room::default()
        };
        let held = self
            .host
            .copies
            .iter()
            .filter(|(_, copy)| copy.stage == Stage::Held);
        let mut candidates: Vec<Candidate<'_>> = held
            .map(|(model, copy)| Candidate {
                model,
                pages: copy.pages,
                cost_us: self
                    .models
                    .get(model)
                    .map_or(0, |entry| entry.origin_regret_us(now)),
            })
            .collect();
        candidates.sort_by_key(|candidate| candidate.cost_us);
        let Some(chosen) = cheapest(&candidates, missing) else {
            return false;
        };
        let cost_us: u64 = chosen.iter().map(|index| candidates[*index].cost_us).sum();
        if cost_us > worth_us {
            return false;
        }
        let dropped: Vec<ModelName> = chosen
            .into_iter()
            .map(|index| candidates[index].model.clone())
            .collect();
        for model in dropped {
            self.host.copies.remove(&model);
            self.actions.push_back(Action::DropCopy { model });
        }
        true
    }
}

impl Model {
    /// What is expected to be lost when its weights are neither on a device nor in host memory, in microseconds.
    fn origin_regret_us(&self, now: Moment) -> u64 {
        let load_time = self.origin_load_time.unwrap_or_else(|| {
            let bytes = self.weights_pages.saturating_mul(PAGE_BYTES);
            Duration::from_secs(bytes / ORIGIN_BYTES_PER_S)
        });
        self.uses.regret_us(now, load_time)
    }
}

/// How fast weights are read from files whose load nobody has measured: about what a disk gives.
const ORIGIN_BYTES_PER_S: u64 = 1 << 30;
