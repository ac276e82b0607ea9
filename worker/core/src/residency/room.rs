//! Who gets room, and who leaves for it.
//!
//! Models that wait are served in the order of their arrival. What an earlier one needs is set aside; a later
//! one may pass it only in what is left beside that. Nobody is evicted unless a set of victims suffices.

use flotilla_protocol::fleet::DepartureReason;
use flotilla_protocol::{ModelName, Moment};

use super::fault::{ModelFault, Together};
use super::loading::Loading;
use super::model::{Model, State};
use super::shard::{Holding, Home, Shard, cut_of};
use super::victims::Victims;
use super::{Action, Grant, ModelNeeds, Residency};
use crate::ledger::{DeviceIndex, Ledger, Purpose};

/// Room on one device: pages for models themselves, the pool of keys and values beside them, and places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Room {
    pub(super) pages: u64,
    /// What the pool has to have at least: the most that any of several models needs, as they share it.
    pub(super) kv_pages_min: u64,
    pub(super) places: usize,
}

impl Room {
    /// What is left of it beside another; nothing where that is larger. Of a shared pool nothing is ever missing.
    pub(super) fn less(self, other: Self) -> Self {
        Self {
            pages: self.pages.saturating_sub(other.pages),
            kv_pages_min: 0,
            places: self.places.saturating_sub(other.places),
        }
    }
}

/// One device as a newcomer finds it.
#[derive(Debug)]
pub(super) struct Site<'a> {
    ledger: &'a Ledger,
    /// Not taken at this moment.
    pub(super) free: Room,
    /// Not taken once everyone that was told to leave has left.
    pub(super) coming: Room,
    /// Not taken if everyone but pinned models left.
    pub(super) at_most: Room,
}

/// What a newcomer needs on one device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    /// For itself.
    pub(super) pages: u64,
    /// What the pool has to have at least for it.
    pub(super) kv_pages_min: u64,
}

/// A place for a model that waits: on one device, or on several in parts.
#[derive(Debug)]
pub(super) struct Spot {
    /// Indices of the devices, and what each is to hold.
    pub(super) sites: Vec<usize>,
    pub(super) shards: Vec<Shard>,
    pub(super) placement: Placement,
}

/// What to do for one model that waits.
#[derive(Debug)]
pub(super) enum Placement {
    /// There is room, beside so many leases of others, and so many pages are left then.
    Load { leases: usize, left_pages: u64 },
    /// Those that were told to leave make room, or keys and values that nobody uses.
    Coming,
    /// Requests that run make room when they end, as they use keys and values where it could be.
    InUse,
    /// These have to leave.
    Evict(Victims),
    /// Too much is on its way in, or came too recently, to make room now.
    Blocked,
}

impl Placement {
    /// Smaller is better: what is soonest, disturbs the fewest and costs least. Of devices that have room, those with
    /// the fewest requests share their time with the fewest; where they are equal, that which fits best leaves most
    /// room in one piece.
    pub(super) fn rank(&self) -> (u8, usize, u64, usize) {
        match self {
            Self::Load { leases, left_pages } => (0, *leases, *left_pages, 0),
            Self::Coming => (1, 0, 0, 0),
            // After idle models, before busy ones.
            Self::InUse => (2, 1, 0, 0),
            Self::Evict(victims) => (2, victims.busy_count, victims.cost_us, victims.models.len()),
            Self::Blocked => (3, 0, 0, 0),
        }
    }
}

impl ModelNeeds {
    /// Pages without which it does not run.
    pub(super) fn pages_min(&self) -> u64 {
        self.pages_own().saturating_add(self.kv_pages_min)
    }
}

impl Residency {
    /// Serves the models that wait for room, as far as there is any.
    pub(super) fn settle(&mut self, now: Moment) {
        self.looked_at = self.looked_at.max(now);
        let mut claims = vec![Room::default(); self.ledgers.len()];
        for (model, needs) in self.line() {
            let Some(spot) = self.place(now, &model, &needs, &claims) else {
                let fault = self.refusal(&needs);
                self.fail(now, &model, fault);
                continue;
            };
            match spot.placement {
                Placement::Load { .. } => {
                    self.load(now, &model, spot.shards);
                    continue;
                }
                Placement::Evict(victims) => self.evict_all(now, &model, victims),
                Placement::Coming | Placement::InUse | Placement::Blocked => {}
            }
            for (site, shard) in spot.sites.into_iter().zip(spot.shards) {
                let claim = &mut claims[site];
                claim.pages = claim.pages.saturating_add(shard.grant.pages());
                claim.places += 1;
                if shard.part.is_none() {
                    claim.kv_pages_min = claim.kv_pages_min.max(needs.kv_pages_min);
                }
            }
        }
        self.resize_pools(&claims);
    }

    fn evict_all(&mut self, now: Moment, newcomer: &ModelName, victims: Victims) {
        for victim in victims.models {
            self.model_mut(&victim).left_at = Some(now);
            let newcomer = newcomer.clone();
            self.evict(now, &victim, DepartureReason::Room { newcomer });
        }
    }

    /// Models that wait for room, first come first.
    fn line(&self) -> Vec<(ModelName, ModelNeeds)> {
        let waiting = self.models.iter().filter_map(|(name, model)| match &model.state {
            State::WaitingForRoom { needs, ticket } => Some((*ticket, name, *needs)),
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::Loading(_)
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

    /// The best place for a model: a device that can hold it, or else the fewest that can together. `None` when it
    /// would fit nowhere, even alone with what is pinned.
    fn place(&self, now: Moment, model: &ModelName, needs: &ModelNeeds, claims: &[Room]) -> Option<Spot> {
        let own = needs.own();
        let possible = self.working().filter(|index| self.can_hold(*index, own));
        let placed = possible.map(|index| (index, self.placement(now, model, index, own, claims[index])));
        let best = placed.min_by_key(|(index, placement)| (placement.rank(), *index));
        let Some((index, placement)) = best else {
            return self.place_split(now, model, needs.split.as_ref()?, claims);
        };
        let shard = Shard {
            device: self.device_at(index),
            grant: Grant {
                weights_pages: needs.weights_pages,
                workspace_pages: needs.workspace_pages,
                kv_pages: 0,
            },
            part: None,
        };
        Some(Spot {
            sites: vec![index],
            shards: vec![shard],
            placement,
        })
    }

    /// Whether a model could lie on a device, alone with what is pinned.
    fn can_hold(&self, index: usize, own: Own) -> bool {
        let at_most = self.site(index, own.kv_pages_min).at_most;
        own.pages <= at_most.pages && at_most.places > 0
    }

    /// Whether a device that works is large enough for all of a model.
    pub(super) fn fits_whole(&self, needs: &ModelNeeds) -> bool {
        let mut pages = self.working().map(|index| self.ledgers[index].pages_total());
        pages.any(|pages| needs.pages_min() <= pages)
    }

    pub(super) fn device_at(&self, index: usize) -> DeviceIndex {
        self.ledgers[index].device()
    }

    /// What to do on a device for a newcomer that needs this there, behind what others claim.
    pub(super) fn placement(
        &self,
        now: Moment,
        model: &ModelName,
        index: usize,
        own: Own,
        claim: Room,
    ) -> Placement {
        let asked = Room {
            pages: own.pages.saturating_add(claim.pages),
            kv_pages_min: claim.kv_pages_min.max(own.kv_pages_min),
            places: 1 + claim.places,
        };
        let site = self.site(index, asked.kv_pages_min);
        let device = site.ledger.device();
        let missing = asked.less(site.coming);
        if missing != Room::default() {
            let victims = self.victims(now, model, device, missing);
            let victims = victims.or_else(|| self.victims_for_smaller_pool(now, model, index, asked));
            return victims.map_or(Placement::Blocked, Placement::Evict);
        }
        if own.pages <= site.free.pages && site.free.places > 0 {
            let here = self.models.values().filter(|model| model.is_on(device));
            return Placement::Load {
                leases: here.map(Model::lease_count).sum(),
                left_pages: site.free.pages - own.pages,
            };
        }
        let kv_pages_busy = self.kv_pages_busy_beyond(index, site.coming.kv_pages_min);
        let coming_now = Room {
            pages: site.coming.pages.saturating_sub(kv_pages_busy),
            ..site.coming
        };
        let missing = asked.less(coming_now);
        if missing == Room::default() {
            return Placement::Coming;
        }
        let victims = self.victims(now, model, device, missing);
        let idle = victims.filter(|victims| victims.busy_count == 0);
        idle.map_or(Placement::InUse, Placement::Evict)
    }

    /// Takes a model's pages on all its devices.
    fn load(&mut self, now: Moment, model: &ModelName, shards: Vec<Shard>) {
        let holdings = shards.iter().map(|shard| self.hold(model, *shard)).collect();
        self.changes += 1;
        let entry = self.model_mut(model);
        entry.evict_first = Vec::new();
        entry.state = State::Loading(Loading::new(now, Home::new(holdings)));
        let source = self.begin_load(model, &cut_of(shards.iter()));
        let model = model.clone();
        self.actions.push_back(Action::Load {
            model,
            shards,
            source,
        });
    }

    fn hold(&mut self, model: &ModelName, shard: Shard) -> Holding {
        let Grant {
            weights_pages,
            workspace_pages,
            kv_pages,
        } = shard.grant;
        let parts = [
            (Purpose::Weights, weights_pages),
            (Purpose::Workspace, workspace_pages),
            (Purpose::Kv, kv_pages),
        ];
        let reservations = self.ledger_mut(shard.device).reserve_all(model, &parts);
        Holding {
            shard,
            reservations: reservations.expect("a place was found where all of it is free"),
        }
    }

    /// Indices of the devices that work.
    pub(super) fn working(&self) -> impl Iterator<Item = usize> {
        let ledgers = self.ledgers.iter().enumerate();
        ledgers
            .filter(|(_, ledger)| self.device_fault(ledger.device()).is_none())
            .map(|(index, _)| index)
    }

    /// A device beside whose models the pool has at least so many pages.
    pub(super) fn site(&self, index: usize, kv_pages_min: u64) -> Site<'_> {
        let ledger = &self.ledgers[index];
        let here = |model: &&Model| model.is_on(ledger.device());
        let left = |filter: fn(&Model) -> bool, kv_pages_held: u64| {
            let models = || self.models.values().filter(here).filter(|model| filter(model));
            let pages: u64 = models().map(|model| model.pages_on(ledger.device())).sum();
            let kv_pages_min = Self::kv_pages_needed(models()).max(kv_pages_min);
            let taken = pages.saturating_add(kv_pages_min.max(kv_pages_held));
            Room {
                pages: ledger.pages_total().saturating_sub(taken),
                kv_pages_min,
                places: self.settings.models_max.saturating_sub(models().count()),
            }
        };
        Site {
            ledger,
            free: left(|_| true, ledger.pool_pages()),
            coming: left(|model| !model.is_leaving(), 0),
            at_most: left(Model::is_pinned_down, 0),
        }
    }

    /// Why a model will not fit, with the numbers of the device that comes closest.
    fn refusal(&self, needs: &ModelNeeds) -> ModelFault {
        // Beside what is pinned, whatever of that is for keys and values: models of a device share them.
        let sites = || self.working().map(|index| self.site(index, 0));
        let together = Together {
            devices: sites().count(),
            pages_at_most: sites()
                .map(|site| site.at_most.pages + site.at_most.kv_pages_min)
                .sum(),
        };
        match sites().max_by_key(|site| site.at_most.pages) {
            Some(site) if site.at_most.places > 0 => ModelFault::NoRoom {
                needs: *needs,
                pages_total: site.ledger.pages_total(),
                pages_at_most: site.at_most.pages + site.at_most.kv_pages_min,
                together: Some(together).filter(|it| needs.split.is_some() && it.devices > 1),
            },
            Some(_) => ModelFault::NoPlace,
            None => ModelFault::NoDevice(self.device_faults.values().next().cloned()),
        }
    }
}
