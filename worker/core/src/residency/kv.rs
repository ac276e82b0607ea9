//! The pool of pages for keys and values of each device: how large it is to be.
//!
//! It has all pages that weights and workspaces leave, and that no model claims which waits for room. It is never
//! smaller than one full context of each model that may run, so that whoever comes first there always goes on. The
//! ledger counts a growing pool before the engine is told, and a shrinking one when the engine says what it has
//! given back: pages in use stay the pool's until nobody uses them. One resize of a device is under way at a time.

use std::cmp::Reverse;

use flotilla_protocol::{ModelName, Moment};

use super::model::{Model, State};
use super::room::{Own, Room};
use super::shard::Home;
use super::victims::Victims;
use super::{Action, ModelNeeds, Residency};
use crate::kv::KvReport;
use crate::ledger::DeviceIndex;

/// The pool of one device. What it holds is in the ledger.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// What the engine was last told.
    pages_target: u64,
    /// It has not answered to that yet.
    is_asked: bool,
    pub(super) pages_used: u64,
    /// Pages that requests use.
    pages_busy: u64,
}

impl Pool {
    /// Pages that its batches may take.
    pub(super) fn pages(&self) -> u64 {
        self.pages_target
    }
}

impl Model {
    /// Pages of the pool without which it cannot run, as long as it may run. A model in parts has pages of its own.
    fn kv_pages_needed(&self) -> u64 {
        if self.home().is_some_and(Home::is_split) {
            return 0;
        }
        match self.state {
            State::Loading(_) | State::Ready(_) | State::Draining(_) => self.kv_pages_min,
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Unloading { .. }
            | State::Failed { .. } => 0,
        }
    }
}

impl ModelNeeds {
    /// Pages that are the model's alone, where it lies on one device.
    pub(super) fn pages_own(&self) -> u64 {
        self.weights_pages.saturating_add(self.workspace_pages)
    }

    /// What it needs on a device that holds all of it.
    pub(super) fn own(&self) -> Own {
        Own {
            pages: self.pages_own(),
            kv_pages_min: self.kv_pages_min,
        }
    }
}

impl Residency {
    /// The engine of a device says how its pool stands: in answer to [`Action::ResizeKv`], and again whenever that
    /// changes. News from before a resize say nothing about what may be in use after it.
    ///
    /// # Panics
    /// When more is in use than there was.
    pub fn handle_kv_resized(&mut self, now: Moment, device: DeviceIndex, report: KvReport) {
        let index = self.index_of(device);
        let pool = &mut self.pools[index];
        pool.pages_used = report.pages_used;
        pool.pages_busy = report.pages_used.saturating_sub(report.pages_unused);
        if report.pages_target != pool.pages_target {
            return;
        }
        let was_asked = std::mem::take(&mut pool.is_asked);
        let ledger = &mut self.ledgers[index];
        let before = ledger.pool_pages();
        let is_waited_for = || {
            let mut models = self.models.values();
            models.any(|model| matches!(model.state, State::WaitingForRoom { .. }))
        };
        if !was_asked && report.pages_held == before && !is_waited_for() {
            return;
        }
        assert!(
            report.pages_held <= before,
            "a pool holds no more than it was given"
        );
        ledger
            .resize_pool(report.pages_held)
            .expect("giving back needs no room");
        self.settle(now);
    }

    /// Pages of a device's pool that a model that comes cannot have at once.
    pub(super) fn kv_pages_kept(&self, index: usize) -> u64 {
        let device = self.ledgers[index].device();
        let models = self.models.values();
        let here = models.filter(|model| model.is_on(device));
        Self::kv_pages_needed(here).max(self.pools[index].pages_busy)
    }

    /// The largest share of a device's pool that any of these models needs.
    pub(super) fn kv_pages_needed<'a>(models: impl Iterator<Item = &'a Model>) -> u64 {
        models.map(Model::kv_pages_needed).max().unwrap_or(0)
    }

    /// Pages of a device's pool that requests use beyond so many, as far as the engine has told.
    pub(super) fn kv_pages_busy_beyond(&self, index: usize, pages: u64) -> u64 {
        self.pools[index].pages_busy.saturating_sub(pages)
    }

    /// Tells the engines of all devices how large their pools are to be, beside what models that wait claim.
    pub(super) fn resize_pools(&mut self, claims: &[Room]) {
        for (index, claim) in claims.iter().enumerate() {
            let has_failed = self.device_fault(self.ledgers[index].device()).is_some();
            if self.pools[index].is_asked || has_failed {
                continue;
            }
            let wanted = self.pool_wanted(index, *claim);
            let ledger = &mut self.ledgers[index];
            let granted = wanted.min(ledger.pool_pages() + ledger.pages_free());
            if granted > ledger.pool_pages() {
                ledger.resize_pool(granted).expect("so much is free");
            }
            let pool = &mut self.pools[index];
            if granted != pool.pages_target {
                (pool.pages_target, pool.is_asked) = (granted, true);
                self.changes += 1;
                let device = self.ledgers[index].device();
                self.actions.push_back(Action::ResizeKv {
                    device,
                    pages: granted,
                });
            }
        }
    }

    /// Models that make room for a newcomer only because the pool may be smaller without them. Of all that could
    /// leave, those stay who can beside it: first those in use, then those that need little of the pool. `None`
    /// when all together do not suffice.
    pub(super) fn victims_for_smaller_pool(
        &self,
        now: Moment,
        newcomer: &ModelName,
        index: usize,
        asked: Room,
    ) -> Option<Victims> {
        let device = self.ledgers[index].device();
        let staying = self.models.iter().filter(|(_, model)| !model.is_leaving());
        let (mut left, mut stay): (Vec<_>, Vec<_>) = staying
            .filter(|(_, model)| model.is_on(device))
            .partition(|(name, model)| {
                let ready = model.ready_on(device).filter(|_| !model.is_pinned_down());
                *name != newcomer && ready.is_some_and(|ready| !self.is_spared(now, newcomer, name, ready))
            });
        let fits = |stay: &[(&ModelName, &Model)]| {
            let pages: u64 = stay.iter().map(|(_, model)| model.pages_on(device)).sum();
            let kv = Self::kv_pages_needed(stay.iter().map(|(_, model)| *model)).max(asked.kv_pages_min);
            let pages_total = self.ledgers[index].pages_total();
            pages.saturating_add(asked.pages).saturating_add(kv) <= pages_total
                && stay.len() + asked.places <= self.settings.models_max
        };
        if !fits(&stay) {
            return None;
        }
        left.sort_by_key(|(_, model)| (Reverse(model.lease_count()), model.kv_pages_min));
        left.retain(|candidate| {
            stay.push(*candidate);
            let fits = fits(&stay);
            if !fits {
                stay.pop();
            }
            !fits
        });
        let mut victims = Victims::default();
        for (name, model) in left {
            victims.busy_count += usize::from(model.lease_count() > 0);
            victims.cost_us = victims.cost_us.saturating_add(model.regret_us(now));
            victims.models.push(name.clone());
        }
        Some(victims).filter(|victims| !victims.models.is_empty())
    }

    fn pool_wanted(&self, index: usize, claim: Room) -> u64 {
        let device = self.ledgers[index].device();
        let here = || {
            let models = self.models.values();
            models.filter(|model| model.is_on(device))
        };
        let needed = Self::kv_pages_needed(here());
        if needed == 0 {
            return 0;
        }
        let pages = |model: &Model| model.pages_on(device);
        let all: u64 = here().map(pages).sum();
        let staying: u64 = here().filter(|model| !model.is_leaving()).map(pages).sum();
        let taken = all.max(staying.saturating_add(claim.pages));
        let left = self.ledgers[index].pages_total().saturating_sub(taken);
        left.max(needed)
    }

    fn index_of(&self, device: DeviceIndex) -> usize {
        let index = self.ledgers.iter().position(|ledger| ledger.device() == device);
        index.expect("pools are those of devices that there are")
    }
}
