//! What it takes to bring a model to a worker that does not have it.

use std::time::Duration;

use flotilla_profile::LoadTier;
use flotilla_protocol::fleet::{DeviceReport, ModelReport, ModelState};
use flotilla_protocol::{ModelName, Moment, RequestId};

use crate::fleet::{Fleet, Resident, Worker};
use crate::models::{Kind, Models};
use crate::queue::Queue;
use crate::settings::PolicySettings;

/// A model on its way to a device.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Swap {
    pub(crate) device: usize,
    /// Time until it is resident.
    pub(crate) load_time: Duration,
    /// Time that others will lose, because their models have to come back: for each victim the chance that it is
    /// asked for within [`REGRET_HORIZON_S`], times its load.
    pub(crate) regret: Duration,
    /// Models that have to go, the least wanted first.
    pub(crate) victims: Vec<ModelName>,
}

/// What the choice of victims looks at.
pub(crate) struct Surroundings<'a> {
    pub(crate) now: Moment,
    pub(crate) settings: &'a PolicySettings,
    pub(crate) models: &'a Models,
    pub(crate) queue: &'a Queue,
    pub(crate) fleet: &'a Fleet,
}

/// A model that may go.
struct Victim<'a> {
    model: &'a ModelName,
    bytes: u64,
    regret: Duration,
    used: Moment,
}

impl Surroundings<'_> {
    /// The ways to bring a model to a worker for a request: one for each device that has room for it, or enough that
    /// may go.
    ///
    /// A model may go when nobody uses it or waits for it, it is not pinned and has been there for long enough. On a
    /// device that is kept for this request those that others wait for may go as well. Unless `may_evict`, only devices
    /// where nothing has to go count.
    pub(crate) fn swaps(
        &self,
        worker: &Worker,
        model: &ModelName,
        request: &RequestId,
        may_evict: bool,
    ) -> impl Iterator<Item = Swap> {
        let tier = tier(worker, model);
        let devices = worker.own_devices().iter().enumerate();
        let works = |index: usize| {
            let reported = worker.report.devices.get(index);
            reported.is_none_or(|device| device.state.is_working())
        };
        let open = devices.filter(move |(index, _)| works(*index) && worker.is_open_to(*index, request));
        open.filter_map(move |(index, device)| {
            let is_reserved = device.reserved_for.is_some();
            let victims = match self.has_place_for(worker, index, model) {
                true => Vec::new(),
                false if may_evict => self.victims_on(worker, index, model, is_reserved)?,
                false => return None,
            };
            Some(Swap {
                device: index,
                load_time: self.models.load_time(model, device.kind, tier),
                regret: victims.iter().map(|victim| victim.regret).sum(),
                victims: victims.into_iter().map(|victim| victim.model.clone()).collect(),
            })
        })
    }

    /// Whether a model fits on a device as it is, or never can: then the worker says so.
    fn has_place_for(&self, worker: &Worker, device: usize, model: &ModelName) -> bool {
        let Some(ledger) = worker.report.devices.get(device) else {
            return true;
        };
        let needed = self.bytes_of(model);
        needed <= self.free_bytes(worker, device, ledger)
            || needed > ledger.pages_total.saturating_mul(ledger.page_bytes)
    }

    fn bytes_of(&self, model: &ModelName) -> u64 {
        self.models.weights_bytes(model).unwrap_or(1).max(1)
    }

    /// The least wanted models whose going makes room on a device that has none.
    fn victims_on<'a>(
        &self,
        worker: &'a Worker,
        device: usize,
        model: &ModelName,
        is_reserved: bool,
    ) -> Option<Vec<Victim<'a>>> {
        let needed = self.bytes_of(model);
        let ledger = worker.report.devices.get(device)?;
        let mut free = self.free_bytes(worker, device, ledger);
        let kind = worker.devices[device].kind;
        let residents = worker.residents();
        let on_device = residents.filter_map(|it| Some((worker.bytes_on(it.1, device)?, it)));
        let idle = on_device
            .filter(|(_, (resident, report))| self.may_go(worker, kind, resident, report, is_reserved));
        let victim = |(bytes, it)| Victim {
            bytes,
            ..self.victim(worker, kind, it)
        };
        let mut victims: Vec<Victim<'_>> = idle.map(victim).collect();
        victims.sort_by_key(|victim| (victim.regret, victim.used));
        let mut chosen = Vec::new();
        for victim in victims {
            free += victim.bytes;
            chosen.push(victim);
            if needed <= free {
                return Some(chosen);
            }
        }
        None
    }

    /// Free bytes of a device once everything that was decided since its worker's newest report has been done.
    fn free_bytes(&self, worker: &Worker, device: usize, ledger: &DeviceReport) -> u64 {
        let leaving = worker
            .residents()
            .filter(|(_, report)| worker.is_leaving(&report.model));
        let leaving: u64 = leaving
            .filter_map(|(_, report)| worker.bytes_on(report, device))
            .sum();
        let coming = worker.coming_to(device);
        let coming = coming
            .into_iter()
            .map(|model| self.models.weights_bytes(model).unwrap_or(0));
        let free = ledger.free_bytes().saturating_add(leaving);
        coming.fold(free, u64::saturating_sub)
    }

    fn may_go(
        &self,
        worker: &Worker,
        kind: Kind,
        resident: &Resident,
        report: &ModelReport,
        is_reserved: bool,
    ) -> bool {
        let in_use = report.state != ModelState::Ready
            || report.leases > 0
            || report.waiting > 0
            || worker.is_booked_for(&report.model)
            || worker.is_leaving(&report.model);
        let pinned = self.models.get(&report.model).is_some_and(|model| model.pinned);
        let wanted = !is_reserved && self.queue.waits_for(&report.model);
        !in_use && !pinned && !wanted && self.stays_until(worker, kind, resident, report) <= self.now
    }

    /// Until when a resident model is not to be swapped for another.
    fn stays_until(&self, worker: &Worker, kind: Kind, resident: &Resident, report: &ModelReport) -> Moment {
        let took = report.load_ms.map(Duration::from_millis);
        let load_time = took.unwrap_or_else(|| self.models.load_time(&report.model, kind, LoadTier::Host));
        let settings = self.settings;
        let until = resident.stays_until(
            load_time,
            settings.min_residency_loads,
            settings.min_residency_max,
        );
        until.unwrap_or(worker.heard)
    }

    fn victim<'a>(
        &self,
        worker: &Worker,
        kind: Kind,
        (resident, report): (&'a Resident, &'a ModelReport),
    ) -> Victim<'a> {
        let model = &report.model;
        let tier = tier(worker, model);
        let copies = self.fleet.holders(model).count().max(1);
        #[expect(clippy::cast_precision_loss, reason = "there are fewer workers than 2^52")]
        let wanted_here = self.models.demand_per_s(self.now, model) / copies as f64;
        let chance = 1.0 - (-wanted_here * REGRET_HORIZON_S).exp();
        Victim {
            model,
            bytes: report.weights_bytes,
            regret: self.models.load_time(model, kind, tier).mul_f64(chance),
            used: resident.used,
        }
    }
}

/// Where a worker has a model's weights, or will when the model has left its device. Of one that does not tell, what
/// was resident once is probably in the machine's memory.
fn tier(worker: &Worker, model: &ModelName) -> LoadTier {
    let is_resident = worker.resident(model).is_some();
    let is_near = worker.has_in_host(model).map(|is_there| is_there || is_resident);
    match is_near.unwrap_or_else(|| worker.has_loaded(model)) {
        true => LoadTier::Host,
        false => LoadTier::Origin,
    }
}

/// How far ahead the loss of a model is regretted, in seconds: the memory of demand.
const REGRET_HORIZON_S: f64 = 60.0;
