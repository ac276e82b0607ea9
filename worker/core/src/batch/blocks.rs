//! The free blocks of one model's KV memory.

/// Blocks `0..total`, each free or held by one sequence.
#[derive(Debug)]
pub(super) struct BlockPool {
    total: u32,
    free: Vec<u32>,
}

impl BlockPool {
    pub(super) fn new(total: u32) -> Self {
        Self {
            total,
            free: (0..total).rev().collect(),
        }
    }

    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Takes `count` blocks, or none when fewer are free.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let kept = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(kept))
    }

    pub(super) fn give_back(&mut self, blocks: Vec<u32>) {
        self.free.extend(blocks);
    }

    /// Checks that the held blocks and the free ones are all blocks, each once.
    pub(super) fn check_invariants(&self, mut held: Vec<u32>) {
        held.extend_from_slice(&self.free);
        held.sort_unstable();
        assert!(
            held.into_iter().eq(0..self.total),
            "every block is free or held, once"
        );
    }
}
