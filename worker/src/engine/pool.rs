//! The pages for keys and values of a device, where the device runs.

use flotilla_worker_core::batch::Batch;
use flotilla_worker_core::kv::{KvBudget, KvReport, shrink};
use tokio::sync::watch;

/// The pages that a device's batches share, and who is told how they stand.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) budget: KvBudget,
    told: watch::Sender<KvReport>,
}

impl Pool {
    /// An empty pool, until it is resized; and where it is told how it stands.
    pub(super) fn new() -> (Self, watch::Receiver<KvReport>) {
        Self::of(KvBudget::default())
    }

    /// A pool that starts like this.
    pub(super) fn of(budget: KvBudget) -> (Self, watch::Receiver<KvReport>) {
        let (told, reports) = watch::channel(budget.report(0));
        (Self { budget, told }, reports)
    }

    /// Makes it so many pages; what nobody uses beyond them is given back.
    pub(super) fn resize<'b>(&mut self, pages: u64, batches: impl Iterator<Item = &'b mut Batch>) {
        self.budget.resize(pages);
        let mut batches: Vec<&mut Batch> = batches.collect();
        shrink(&mut self.budget, &mut batches);
    }

    /// Tells how it stands, if that has changed. The memory of what was given back is given back.
    pub(super) fn tell<'b>(&self, batches: impl Iterator<Item = &'b mut Batch>) {
        let pages_unused = batches.map(|batch| batch.unused_pages()).sum();
        let report = self.budget.report(pages_unused);
        self.told.send_if_modified(|told| {
            let has_changed = *told != report;
            *told = report;
            has_changed
        });
    }
}
