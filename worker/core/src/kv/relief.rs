//! How somebody who is short of blocks gets some from the others of the device.

use super::KvBudget;
use crate::batch::{Batch, Supply};

/// Gives blocks to those of the batch at a place among a device's models who need some for its next step, at the
/// cost of whoever has to give some up; `batch` tells a model's batch, if it has one. Tells whether somebody had to,
/// so that the memory of other batches is to be looked at before that of this one.
pub fn provide<M>(
    budget: &mut KvBudget,
    models: &mut [M],
    at: usize,
    batch: impl Fn(&mut M) -> Option<&mut Batch>,
) -> bool {
    let mut has_relieved = false;
    while let Some(needy) = batch(&mut models[at])
        && needy.provide(budget) == Supply::Short
    {
        let mut batches: Vec<&mut Batch> = models.iter_mut().filter_map(&batch).collect();
        relieve(budget, &mut batches);
        has_relieved = true;
    }
    has_relieved
}

/// Makes room for the one sequence that is short after [`Batch::provide`]. `batches` are all of the device's.
///
/// Cached blocks go first, by whole slabs of whatever batch, the least recently used before others. When none are
/// left, sequences are preempted: of those that rank after the needy one, the one that ranks last, whatever its
/// batch; then those that rank before it but are paused, the last first. If not even all of that would suffice,
/// nothing is done, and the needy one is left out until something has changed. So whoever ranks first among those
/// that are not paused always goes on, as long as the pool holds one whole sequence of each model.
///
/// # Panics
/// When no batch is short.
pub fn relieve(budget: &mut KvBudget, batches: &mut [&mut Batch]) {
    let needy = batches.iter().position(|batch| batch.shortage().is_some());
    let needy = needy.expect("a batch is short");
    let shortage = batches[needy].shortage().expect("it is the needy one");
    // The common case, as pages fill up with what is cached: no need to look at every block.
    let unused_pages = batches.iter().map(|batch| batch.unused_pages()).sum();
    let is_easy = batches[needy].is_relieved_by(&shortage, budget, unused_pages);
    if !is_easy && !would_suffice(budget, batches, needy) {
        let at = budget.reliefs();
        return batches[needy].settle_shortage(Some(at));
    }
    while !batches[needy].is_relieved(&shortage, budget) {
        if give_back_oldest(budget, batches) || batches[needy].evict_oldest(budget) {
            continue;
        }
        let victims = batches.iter().enumerate();
        let victims = victims.filter_map(|(at, batch)| Some((batch.victim(shortage.rank)?, at)));
        let (after, paused): (Vec<_>, Vec<_>) = victims.partition(|(rank, _)| *rank > shortage.rank);
        let victim = after.into_iter().max().or_else(|| paused.into_iter().max());
        let (rank, at) = victim.expect("all who yield suffice, and somebody has not yet");
        batches[at].preempt(rank, budget);
    }
    batches[needy].settle_shortage(None);
    shrink(budget, batches);
}

/// Gives pages back that nobody uses, the least recently used first, while more are in use than there should be.
/// What is in use after it falls by itself as sequences end.
pub fn shrink(budget: &mut KvBudget, batches: &mut [&mut Batch]) {
    while budget.is_exceeded() && give_back_oldest(budget, batches) {}
}

/// Gives the slab back that has been unused for longest; `false` when all are in use.
fn give_back_oldest(budget: &mut KvBudget, batches: &mut [&mut Batch]) -> bool {
    let unused = batches
        .iter_mut()
        .filter_map(|batch| Some((batch.unused_since()?, batch)));
    let oldest = unused.min_by_key(|(since, _)| *since);
    oldest.is_some_and(|(_, batch)| {
        batch.give_back_slab(budget);
        true
    })
}

/// Whether the needy one would get what it needs if everybody gave up what they can.
fn would_suffice(budget: &KvBudget, batches: &[&mut Batch], needy: usize) -> bool {
    let shortage = batches[needy].shortage().expect("it is the needy one");
    let prospects = batches.iter().enumerate();
    let prospects =
        prospects.map(|(at, batch)| batch.prospect(shortage.rank, (at == needy).then_some(&shortage)));
    let (mut blocks, mut blocks_needed, mut pages) = (0, 0, 0);
    for prospect in prospects {
        blocks += prospect.blocks;
        blocks_needed += prospect.blocks_needed;
        pages += prospect.pages;
    }
    let slab = batches[needy].slab();
    let slabs = usize::try_from(budget.slabs_free_after(slab, pages)).unwrap_or(usize::MAX);
    blocks_needed <= slabs.saturating_mul(slab.blocks as usize).saturating_add(blocks)
}
