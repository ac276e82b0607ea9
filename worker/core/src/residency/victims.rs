//! Which models leave for a newcomer: the cheapest set whose leaving makes up for what is missing.
//!
//! Idle models cost what their return is expected to cost ([`super::reuse`]), those that the newcomer's hint
//! names cost nothing. When all idle ones together do not suffice, busy ones drain beside them, as few as
//! possible: those with the fewest leases first, and of equals the one whose newest lease runs longest, as the
//! likeliest to end soon. Nobody leaves whose leaving is not needed beside the others', and nobody at all when no
//! set suffices. A model within its least time of residence is spared by a newcomer that may be chasing it, unless
//! it was named.

use flotilla_protocol::{ModelName, Moment};

use super::Residency;
use super::model::{Model, Ready};
use super::room::Room;
use crate::ledger::DeviceIndex;

/// Up to this many candidates every set is looked at: at most 65,536 of them, a millisecond.
const EXACT_MAX: usize = 16;

/// Models that have to leave.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Victims {
    /// How many of them are in use.
    pub(super) busy_count: usize,
    /// What their leaving costs, in microseconds.
    pub(super) cost_us: u64,
    pub(super) models: Vec<ModelName>,
}

impl Victims {
    /// Adds those of another device; a model that lies on both leaves once.
    pub(super) fn join(&mut self, others: Self) {
        let is_new = |model: &ModelName| !self.models.contains(model);
        let added: Vec<ModelName> = others.models.into_iter().filter(is_new).collect();
        if !added.is_empty() {
            self.busy_count += others.busy_count;
            self.cost_us = self.cost_us.saturating_add(others.cost_us);
            self.models.extend(added);
        }
    }
}

/// A model that may leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) model: &'a ModelName,
    pub(super) pages: u64,
    pub(super) cost_us: u64,
}

impl Residency {
    /// The models to leave a device for a newcomer; `None` when no set makes up for what is missing now.
    pub(super) fn victims(
        &self,
        now: Moment,
        newcomer: &ModelName,
        device: DeviceIndex,
        missing: Room,
    ) -> Option<Victims> {
        let ready = self.models.iter().filter_map(|(name, model)| {
            let ready = model.ready_on(device)?;
            Some((name, model, ready))
        });
        let others = ready.filter(|(name, model, _)| *name != newcomer && !model.is_pinned_down());
        let (idle, busy): (Vec<_>, Vec<_>) = others.partition(|(_, _, ready)| ready.leases.is_empty());
        let idle = self.idle_candidates(now, newcomer, device, idle);
        let busy = busy
            .into_iter()
            .filter(|(name, _, ready)| !self.is_spared(now, newcomer, name, ready));
        let busy = busy_needed(busy.collect(), device, missing.less(room_of(&idle)));
        let busy_room = Room {
            pages: busy.iter().map(|(_, model, _)| model.pages_on(device)).sum(),
            places: busy.len(),
            ..Room::default()
        };
        let chosen = cheapest(&idle, missing.less(busy_room))?;
        let chosen = chosen.into_iter().map(|index| idle[index]);
        let mut victims = Victims {
            busy_count: busy.len(),
            ..Victims::default()
        };
        for candidate in chosen {
            victims.cost_us = victims.cost_us.saturating_add(candidate.cost_us);
            victims.models.push(candidate.model.clone());
        }
        victims
            .models
            .extend(busy.into_iter().map(|(name, _, _)| name.clone()));
        Some(victims)
    }

    /// Whether a model stays for now because the newcomer may be chasing it. One that is idle and was named does not.
    pub(super) fn is_spared(
        &self,
        now: Moment,
        newcomer: &ModelName,
        model: &ModelName,
        ready: &Ready,
    ) -> bool {
        let newcomer = &self.models[newcomer];
        let is_named = ready.leases.is_empty() && newcomer.evict_first.contains(model);
        newcomer.is_chasing(now) && ready.is_guarded(now) && !is_named
    }

    /// Idle models with what they cost, in the order in which equals leave: named ones, as they were named, then
    /// the least recently used.
    fn idle_candidates<'a>(
        &'a self,
        now: Moment,
        newcomer: &ModelName,
        device: DeviceIndex,
        idle: Vec<(&'a ModelName, &'a Model, &'a Ready)>,
    ) -> Vec<Candidate<'a>> {
        let evict_first = &self.models[newcomer].evict_first;
        let named = |name: &ModelName| evict_first.iter().position(|hinted| hinted == name);
        let mut candidates: Vec<_> = idle
            .into_iter()
            .filter(|(name, _, ready)| !self.is_spared(now, newcomer, name, ready))
            .map(|(name, model, ready)| (named(name), name, model, ready))
            .map(|(named, name, model, ready)| {
                let cost_us = named.map_or_else(|| model.regret_us(now), |_| 0);
                let order = (named.unwrap_or(usize::MAX), cost_us, ready.used);
                let pages = model.pages_on(device);
                (
                    order,
                    Candidate {
                        model: name,
                        pages,
                        cost_us,
                    },
                )
            })
            .collect();
        candidates.sort_by_key(|(order, _)| *order);
        candidates.into_iter().map(|(_, candidate)| candidate).collect()
    }
}

/// The busy models that have to drain to make up for what idle ones leave missing; fewer when all together do
/// not suffice, which the caller finds out.
fn busy_needed<'a>(
    mut busy: Vec<(&'a ModelName, &'a Model, &'a Ready)>,
    device: DeviceIndex,
    missing: Room,
) -> Vec<(&'a ModelName, &'a Model, &'a Ready)> {
    busy.sort_by_key(|(_, _, ready)| (ready.leases.len(), ready.newest_lease()));
    let suffices = |chosen: &[(&ModelName, &Model, &Ready)]| {
        let pages: u64 = chosen.iter().map(|(_, model, _)| model.pages_on(device)).sum();
        pages >= missing.pages && chosen.len() >= missing.places
    };
    let mut chosen = Vec::new();
    for candidate in busy {
        if suffices(&chosen) {
            break;
        }
        chosen.push(candidate);
    }
    for index in (0..chosen.len()).rev() {
        let spared = chosen.remove(index);
        if !suffices(&chosen) {
            chosen.insert(index, spared);
        }
    }
    chosen
}

fn room_of(candidates: &[Candidate<'_>]) -> Room {
    Room {
        pages: candidates.iter().map(|candidate| candidate.pages).sum(),
        places: candidates.len(),
        ..Room::default()
    }
}

/// Indices of the cheapest candidates that suffice, in their order; of equally cheap sets the smallest, then the
/// first. `None` when all together do not suffice.
pub(super) fn cheapest(candidates: &[Candidate<'_>], missing: Room) -> Option<Vec<usize>> {
    if missing.less(room_of(candidates)) != Room::default() {
        return None;
    }
    if candidates.len() > EXACT_MAX {
        return Some(greedy(candidates, missing));
    }
    let mut search = Search {
        candidates,
        missing,
        chosen: Vec::new(),
        best: None,
    };
    search.visit(0, 0, 0);
    search.best.map(|best| best.indices)
}

/// Looks at every set that may be cheaper than the cheapest one so far.
struct Search<'s> {
    candidates: &'s [Candidate<'s>],
    missing: Room,
    chosen: Vec<usize>,
    best: Option<Best>,
}

struct Best {
    cost_us: u64,
    indices: Vec<usize>,
}

impl Search<'_> {
    /// Goes on with the candidates from `index`, beside the chosen ones with their pages and cost.
    fn visit(&mut self, index: usize, pages: u64, cost_us: u64) {
        let best = self.best.as_ref();
        let is_beaten =
            |count| best.is_some_and(|best| (best.cost_us, best.indices.len()) <= (cost_us, count));
        if pages >= self.missing.pages && self.chosen.len() >= self.missing.places {
            if !is_beaten(self.chosen.len()) {
                let indices = self.chosen.clone();
                self.best = Some(Best { cost_us, indices });
            }
            return;
        }
        let Some(next) = self.candidates.get(index) else {
            return;
        };
        let rest = room_of(&self.candidates[index..]);
        let is_hopeless =
            pages + rest.pages < self.missing.pages || self.chosen.len() + rest.places < self.missing.places;
        if is_hopeless || is_beaten(self.chosen.len() + 1) {
            return;
        }
        let with_next = (pages + next.pages, cost_us.saturating_add(next.cost_us));
        self.chosen.push(index);
        self.visit(index + 1, with_next.0, with_next.1);
        self.chosen.pop();
        self.visit(index + 1, pages, cost_us);
    }
}

/// Takes the candidates that cost least for each page of use until they suffice, then spares the dearest that are
/// not needed.
fn greedy(candidates: &[Candidate<'_>], missing: Room) -> Vec<usize> {
    let useful = |index: &usize| u128::from(candidates[*index].pages.min(missing.pages).max(1));
    let cost = |index: &usize| u128::from(candidates[*index].cost_us);
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|a, b| (cost(a) * useful(b), a).cmp(&(cost(b) * useful(a), b)));
    let suffices = |chosen: &[usize]| {
        let pages: u64 = chosen.iter().map(|index| candidates[*index].pages).sum();
        pages >= missing.pages && chosen.len() >= missing.places
    };
    let mut chosen = Vec::new();
    for index in order {
        if suffices(&chosen) {
            break;
        }
        chosen.push(index);
    }
    let mut dearest_first = chosen.clone();
    dearest_first.sort_by_key(|index| std::cmp::Reverse((cost(index), *index)));
    for spared in dearest_first {
        let others: Vec<usize> = chosen.iter().copied().filter(|index| *index != spared).collect();
        if suffices(&others) {
            chosen = others;
        }
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests;
