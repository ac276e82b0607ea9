//! Who gets room, and who leaves for it.
//!
//! Models that wait are served in the order of their arrival. What an earlier one needs is set aside; a later
//! one may pass it only in what is left beside that. Nobody is evicted unless a set of victims suffices.

use std::fmt;

use flotilla_protocol::{ModelName, Moment};

use super::model::{Model, Ready, State, Stay};
use super::{Action, Grant, ModelNeeds, Residency};
use crate::ledger::{DeviceIndex, Ledger, PAGE_BYTES, Purpose};

/// Room on one device: pages, and places for models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Room {
    pages: u64,
    places: usize,
}

/// One device as a newcomer finds it.
#[derive(Debug)]
struct Site<'a> {
    ledger: &'a Ledger,
    /// Not taken at this moment.
    free: Room,
    /// Not taken once everyone that was told to leave has left.
    coming: Room,
    /// Not taken if everyone but pinned models left.
    at_most: Room,
}

/// What to do for one model that waits.
#[derive(Debug)]
enum Placement {
    /// There is room.
    Load,
    /// Those that were told to leave make room.
    Coming,
    /// These have to leave.
    Evict {
        busy_count: usize,
        victims: Vec<ModelName>,
    },
    /// Too much is on its way in to make room now.
    Blocked,
}

impl Placement {
    /// Smaller is better: what is soonest and disturbs the fewest.
    fn rank(&self) -> (u8, usize, usize) {
        match self {
            Self::Load => (0, 0, 0),
            Self::Coming => (1, 0, 0),
            Self::Evict { busy_count, victims } => (2, *busy_count, victims.len()),
            Self::Blocked => (3, 0, 0),
        }
    }
}

impl ModelNeeds {
    /// Pages without which it does not run.
    fn pages_min(&self) -> u64 {
        let pages = self.weights_pages.saturating_add(self.workspace_pages);
        pages.saturating_add(self.kv_pages_min)
    }
}

impl Residency {
    /// Serves the models that wait for room, as far as there is any.
    pub(super) fn settle(&mut self, now: Moment) {
        let mut claims = vec![Room::default(); self.ledgers.len()];
        for (model, needs) in self.line() {
            let Some((site, placement)) = self.place(&model, &needs, &claims) else {
                let reason = self.refusal(&needs);
                self.fail(now, &model, reason);
                continue;
            };
            match placement {
                Placement::Load => {
                    self.load(&model, site, needs, claims[site]);
                    continue;
                }
                Placement::Evict { victims, .. } => victims.iter().for_each(|victim| self.evict(victim)),
                Placement::Coming | Placement::Blocked => {}
            }
            claims[site].pages = claims[site].pages.saturating_add(needs.pages_min());
            claims[site].places += 1;
        }
    }

    /// Models that wait for room, first come first.
    fn line(&self) -> Vec<(ModelName, ModelNeeds)> {
        let waiting = self.models.iter().filter_map(|(name, model)| match &model.state {
            State::WaitingForRoom { needs, ticket } => Some((*ticket, name, *needs)),
            State::Absent
            | State::Inspecting
            | State::Loading { .. }
            | State::Ready(_)
            | State::Draining(_)
            | State::Unloading { .. }
            | State::Failed { .. } => None,
        });
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_unstable_by_key(|(ticket, _, _)| *ticket);
        waiting
            .into_iter()
            .map(|(_, name, needs)| (name.clone(), needs))
            .collect()
    }

    /// The best place for a model; `None` when it would not fit on any device, even alone with what is pinned.
    fn place(&self, model: &ModelName, needs: &ModelNeeds, claims: &[Room]) -> Option<(usize, Placement)> {
        let sites = (0..self.ledgers.len()).map(|index| (index, self.site(index)));
        let possible =
            sites.filter(|(_, site)| needs.pages_min() <= site.at_most.pages && site.at_most.places > 0);
        let placed =
            possible.map(|(index, site)| (index, self.placement(model, &site, needs, claims[index])));
        placed.min_by(|(a, one), (b, other)| (one.rank(), a).cmp(&(other.rank(), b)))
    }

    fn placement(&self, model: &ModelName, site: &Site<'_>, needs: &ModelNeeds, claim: Room) -> Placement {
        let asked = Room {
            pages: needs.pages_min().saturating_add(claim.pages),
            places: 1 + claim.places,
        };
        let missing = Room {
            pages: asked.pages.saturating_sub(site.coming.pages),
            places: asked.places.saturating_sub(site.coming.places),
        };
        if missing == Room::default() {
            let is_free = needs.pages_min() <= site.free.pages && site.free.places > 0;
            return if is_free {
                Placement::Load
            } else {
                Placement::Coming
            };
        }
        let victims = self.victims(model, site.ledger.device(), missing);
        if victims.is_empty() {
            return Placement::Blocked;
        }
        let busy = victims
            .iter()
            .filter(|victim| self.models[*victim].lease_count() > 0);
        Placement::Evict {
            busy_count: busy.count(),
            victims,
        }
    }

    /// The models whose leaving makes up for what is missing: idle ones, those first that the newcomer's hint
    /// names, then the least recently used, then busy ones, those with the fewest leases first as the likeliest
    /// to be idle soon. Empty when all together do not suffice. One whose leaving is not needed beside the
    /// others' is spared.
    fn victims(&self, newcomer: &ModelName, device: DeviceIndex, missing: Room) -> Vec<ModelName> {
        let ready = self
            .models
            .iter()
            .filter_map(|(name, model)| Some((name, model, model.ready_on(device)?)));
        let ready = ready.filter(|(name, model, _)| *name != newcomer && !model.is_pinned_down());
        let mut candidates: Vec<_> = ready.collect();
        let evict_first = &self.models[newcomer].evict_first;
        let hinted_at = |name: &ModelName, ready: &Ready| {
            let is_idle = ready.leases.is_empty();
            let at = evict_first.iter().position(|hinted| hinted == name);
            at.filter(|_| is_idle).unwrap_or(usize::MAX)
        };
        candidates.sort_by_key(|(name, _, ready)| (ready.leases.len(), hinted_at(name, ready), ready.used));
        let suffices = |chosen: &[(&ModelName, &Model)]| {
            let pages: u64 = chosen.iter().map(|(_, model)| model.pages()).sum();
            pages >= missing.pages && chosen.len() >= missing.places
        };
        let mut chosen = Vec::new();
        for (name, model, _) in candidates {
            if suffices(&chosen) {
                break;
            }
            chosen.push((name, model));
        }
        if !suffices(&chosen) {
            return Vec::new();
        }
        for index in (0..chosen.len()).rev() {
            let spared = chosen.remove(index);
            if !suffices(&chosen) {
                chosen.insert(index, spared);
            }
        }
        chosen.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// Takes a model's pages, as many for keys and values as are free beside what others claim.
    fn load(&mut self, model: &ModelName, index: usize, needs: ModelNeeds, claim: Room) {
        let site = self.site(index);
        let unclaimed = site.coming.pages.saturating_sub(claim.pages).min(site.free.pages);
        let spare = unclaimed.saturating_sub(needs.pages_min());
        let kv_more = needs
            .kv_pages_wanted
            .saturating_sub(needs.kv_pages_min)
            .min(spare);
        let grant = Grant {
            weights_pages: needs.weights_pages,
            workspace_pages: needs.workspace_pages,
            kv_pages: needs.kv_pages_min + kv_more,
        };
        let parts = [
            (Purpose::Weights, grant.weights_pages),
            (Purpose::Workspace, grant.workspace_pages),
            (Purpose::Kv, grant.kv_pages),
        ];
        let ledger = &mut self.ledgers[index];
        let reservations = ledger
            .reserve_all(model, &parts)
            .expect("no more is granted than is free");
        let device = ledger.device();
        self.changes += 1;
        let entry = self.model_mut(model);
        entry.evict_first = Vec::new();
        entry.state = State::Loading {
            device,
            reservations,
            stay: Stay::ByKeepAlive,
        };
        let model = model.clone();
        self.actions.push_back(Action::Load { model, device, grant });
    }

    fn site(&self, index: usize) -> Site<'_> {
        let ledger = &self.ledgers[index];
        let here = |model: &&Model| model.place().is_some_and(|(device, _)| device == ledger.device());
        let taken = |filter: fn(&Model) -> bool| {
            let models = self.models.values().filter(here).filter(|model| filter(model));
            models.fold(Room::default(), |room, model| Room {
                pages: room.pages + model.pages(),
                places: room.places + 1,
            })
        };
        let left = |taken: Room| Room {
            pages: ledger.pages_total().saturating_sub(taken.pages),
            places: self.settings.models_max.saturating_sub(taken.places),
        };
        Site {
            ledger,
            free: left(taken(|_| true)),
            coming: left(taken(|model| !model.is_leaving())),
            at_most: left(taken(Model::is_pinned_down)),
        }
    }

    fn refusal(&self, needs: &ModelNeeds) -> String {
        let sites = (0..self.ledgers.len()).map(|index| self.site(index));
        let best = sites.max_by_key(|site| site.at_most.pages);
        Refusal {
            needs: *needs,
            pages_total: best.as_ref().map_or(0, |site| site.ledger.pages_total()),
            at_most: best.map_or(Room::default(), |site| site.at_most),
        }
        .to_string()
    }
}

/// Why a model will not fit, with the numbers of the device that comes closest.
#[derive(Debug)]
struct Refusal {
    needs: ModelNeeds,
    pages_total: u64,
    at_most: Room,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (needs, page_mib) = (&self.needs, PAGE_BYTES >> 20);
        if self.at_most.places == 0 {
            return f.write_str("every place for a model is taken by a pinned one");
        }
        write!(
            f,
            "it needs {} pages of {page_mib} MiB ({} for weights, {} for workspace, {} for keys and values); \
             the largest device has {}, of which {} are not pinned",
            needs.pages_min(),
            needs.weights_pages,
            needs.workspace_pages,
            needs.kv_pages_min,
            self.pages_total,
            self.at_most.pages,
        )
    }
}
