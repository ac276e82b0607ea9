//! One batch that has its device for itself, driven by hand.

use flotilla_worker_core::batch::{Batch, BatchSettings, NewSequence, Outcome, SequenceId, StepPlan, Supply};
use flotilla_worker_core::isolate::Verdict;
use flotilla_worker_core::kv::{KvBudget, relieve};

pub struct Bench {
    pub batch: Batch,
    pub budget: KvBudget,
    blocks_total: usize,
}

impl Bench {
    pub fn new(settings: BatchSettings, pages: u64) -> Self {
        let slabs = usize::try_from(pages / settings.slab.pages).unwrap();
        Self {
            blocks_total: slabs * settings.slab.blocks as usize,
            batch: Batch::new(settings),
            budget: KvBudget::new(pages),
        }
    }

    pub fn add(&mut self, new: NewSequence) {
        self.batch.add(new, &mut self.budget).unwrap();
        self.check_invariants();
    }

    pub fn remove(&mut self, id: SequenceId) {
        self.batch.remove(id, &mut self.budget);
        self.check_invariants();
    }

    /// Gives everybody what can be had.
    pub fn provide(&mut self) {
        while self.batch.provide(&mut self.budget) == Supply::Short {
            relieve(&mut self.budget, &mut [&mut self.batch]);
            self.check_invariants();
        }
    }

    pub fn plan(&mut self) -> Option<StepPlan<'_>> {
        self.provide();
        self.batch.plan()
    }

    pub fn complete(&mut self, results: &[Option<u32>]) -> Vec<Outcome> {
        let outcomes = self.batch.complete(results, &mut self.budget).to_vec();
        self.check_invariants();
        outcomes
    }

    pub fn complete_isolated(&mut self, verdicts: Vec<Verdict>) -> Vec<Outcome> {
        let outcomes = self.batch.complete_isolated(verdicts, &mut self.budget).to_vec();
        self.check_invariants();
        outcomes
    }

    /// Blocks that no sequence holds, those without memory included.
    pub fn blocks_free(&self) -> usize {
        self.blocks_total - self.batch.blocks_held()
    }

    pub fn check_invariants(&self) {
        self.batch.check_invariants();
        assert_eq!(self.batch.pages_used(), self.budget.pages_used());
    }
}
