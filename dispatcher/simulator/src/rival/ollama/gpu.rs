//! Where a model is loaded.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use flotilla_protocol::fleet::{ModelState, Report};
use flotilla_protocol::{ModelName, WorkerId};
use flotilla_worker_core::ledger::PAGE_BYTES;

use super::SLOTS;
use crate::device::memory;
use crate::fleet::{DeviceSpec, ModelSpec};

/// One device as the scheduler sees it.
#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) worker: WorkerId,
    device: DeviceSpec,
    /// Pages that its runners are estimated to take.
    taken: u64,
    /// Pages that its last report calls free; none before the first.
    reported_free: Option<u64>,
    /// Models that its last report calls ready.
    pub(super) resident: BTreeSet<ModelName>,
}

/// Where and how a model is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) gpu: usize,
    pub(super) slots: u32,
    pub(super) pages: u64,
}

impl Gpu {
    pub(super) fn new(device: &DeviceSpec) -> Self {
        Self {
            worker: device.worker.clone(),
            device: device.clone(),
            taken: 0,
            reported_free: None,
            resident: BTreeSet::new(),
        }
    }

    pub(super) fn has_reported(&self) -> bool {
        self.reported_free.is_some()
    }

    pub(super) fn learn(&mut self, report: &Report) {
        self.reported_free = Some(report.devices.iter().map(|device| device.pages_free()).sum());
        let ready = report.models.iter();
        let ready = ready.filter(|model| model.state == ModelState::Ready);
        self.resident = ready.map(|model| model.model.clone()).collect();
    }

    pub(super) fn take(&mut self, pages: u64) {
        self.taken += pages;
    }

    pub(super) fn give_back(&mut self, pages: u64) {
        self.taken -= pages;
    }

    /// Pages free by its runners' estimates and by the device's own word, whichever is less.
    fn free(&self) -> u64 {
        self.by_estimate().min(self.reported_free.unwrap_or(0))
    }

    fn by_estimate(&self) -> u64 {
        let pages = memory::pages(&self.device);
        pages.saturating_sub(RESERVE_PAGES).saturating_sub(self.taken)
    }

    /// Pages of a model with keys and values for so many full contexts.
    fn pages_for(&self, model: &ModelSpec, slots: u32) -> u64 {
        let one = memory::pages_min(model);
        one + u64::from(slots - 1) * memory::context_pages(model)
    }

    fn can_hold(&self, model: &ModelSpec) -> bool {
        memory::can_hold(&self.device, model)
    }

    /// Slots that a runner may have here at all.
    fn slots(&self, slots: u32) -> u32 {
        slots.min(self.device.slots).max(1)
    }
}

/// The device with the most free memory that holds the model whole, with as many slots as can be had.
pub(super) fn place(gpus: &[Gpu], model: &ModelSpec) -> Option<Place> {
    let fits = |gpu: &&usize, slots| gpus[**gpu].pages_for(model, slots) <= gpus[**gpu].free();
    let all: Vec<_> = (0..gpus.len()).collect();
    let order = by_free_memory(gpus, &all, Gpu::free);
    let trials = [SLOTS, 1].into_iter();
    let mut trials = trials.filter_map(|slots| Some((order.iter().find(|gpu| fits(gpu, slots))?, slots)));
    trials.next().map(|(&gpu, slots)| at(gpus, gpu, model, slots))
}

/// A device for a model that would be the only one: also one that has no room for the reserve beside it.
pub(super) fn place_alone(gpus: &[Gpu], model: &ModelSpec) -> Option<Place> {
    let able = (0..gpus.len()).filter(|&gpu| gpus[gpu].can_hold(model));
    let order = by_free_memory(gpus, &able.collect::<Vec<_>>(), Gpu::free);
    order.first().map(|&gpu| at(gpus, gpu, model, 1))
}

/// One of the devices that hold a model already.
pub(super) fn place_among(gpus: &[Gpu], holders: &[usize], model: &ModelSpec) -> Option<Place> {
    let order = by_free_memory(gpus, holders, Gpu::by_estimate);
    let fits = |gpu: usize, slots| gpus[gpu].pages_for(model, slots) <= gpus[gpu].by_estimate();
    let gpu = *order.first()?;
    let slots = if fits(gpu, SLOTS) { SLOTS } else { 1 };
    Some(at(gpus, gpu, model, slots))
}

fn at(gpus: &[Gpu], gpu: usize, model: &ModelSpec, slots: u32) -> Place {
    let slots = gpus[gpu].slots(slots);
    Place {
        gpu,
        slots,
        pages: gpus[gpu].pages_for(model, slots),
    }
}

/// Most free memory first; among equals the dearest, as the likeliest to be fast.
fn by_free_memory(gpus: &[Gpu], among: &[usize], free: fn(&Gpu) -> u64) -> Vec<usize> {
    let mut order = among.to_vec();
    let price = |gpu: usize| gpus[gpu].device.cost_per_hour;
    order.sort_by(|&one, &other| {
        let by_memory = Reverse(free(&gpus[one])).cmp(&Reverse(free(&gpus[other])));
        by_memory.then_with(|| price(other).total_cmp(&price(one)))
    });
    order
}

/// What each device keeps back.
const RESERVE_PAGES: u64 = (457 << 20_u64) / PAGE_BYTES;
