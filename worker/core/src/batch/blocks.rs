//! The blocks of one model's KV memory, and what they hold after nobody needs them any more.
//!
//! A block is free, private to one sequence, or cached: full, never written again, and found by its tokens
//! and all tokens before them. A cached block has any number of holders; without one it stays until its
//! memory is needed, the least recently used first.
//!
//! Who holds a cached block holds its parent too, and gives it back after the child. So a parent is never
//! idle for longer than its children, and the block that has been idle longest is a leaf.

mod idle;
mod index;

use idle::IdleList;
use index::BlockIndex;

/// Blocks `0..total`.
#[derive(Debug)]
pub(super) struct BlockPool {
    block_tokens: usize,
    states: Vec<State>,
    free: Vec<u32>,
    idle: IdleList,
    index: BlockIndex,
    evicted_blocks: u64,
}

/// The blocks of one sequence from its first token on. It goes back to the pool by [`BlockPool::release`].
#[derive(Debug)]
pub(super) struct BlockTable {
    blocks: Vec<u32>,
    /// How many of the first blocks are cached; the others are private.
    cached: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Private,
    Cached { holders: usize },
}

impl BlockTable {
    pub(super) fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// How many of the first blocks are full and may have other holders.
    pub(super) fn cached_count(&self) -> usize {
        self.cached
    }

    /// The block before the first private one.
    fn last_cached(&self) -> Option<u32> {
        Some(self.blocks[self.cached.checked_sub(1)?])
    }
}

impl BlockPool {
    pub(super) fn new(total: u32, block_tokens: usize) -> Self {
        Self {
            block_tokens,
            states: vec![State::Free; total as usize],
            free: (0..total).rev().collect(),
            idle: IdleList::new(total),
            index: BlockIndex::new(total, block_tokens),
            evicted_blocks: 0,
        }
    }

    /// Blocks that nobody holds, whether they are cached or free.
    pub(super) fn unheld_count(&self) -> usize {
        self.free.len() + self.idle.count()
    }

    /// Cached blocks whose memory was needed for others, since the pool was made.
    pub(super) fn evicted_blocks(&self) -> u64 {
        self.evicted_blocks
    }

    /// Takes `count` blocks: the longest cached chain that holds the first of `tokens`, then private ones.
    /// `None`, and nothing changes, when too few are not held. `count` blocks hold all of `tokens`.
    pub(super) fn reserve(&mut self, tokens: &[u32], count: usize) -> Option<BlockTable> {
        let chain_max = tokens.len() / self.block_tokens;
        // At the best, the whole chain is in the hands of others already.
        if count - chain_max > self.unheld_count() {
            return None;
        }
        let mut blocks = Vec::with_capacity(count);
        for wanted in tokens.chunks_exact(self.block_tokens) {
            let Some(block) = self.index.find(blocks.last().copied(), wanted) else {
                break;
            };
            blocks.push(block);
        }
        let cached = blocks.len();
        let idle = blocks.iter().filter(|block| self.is_idle(**block)).count();
        if count - cached > self.unheld_count() - idle {
            return None;
        }
        blocks.iter().for_each(|block| self.hold(*block));
        blocks.extend((cached..count).map(|_| self.take_private()));
        Some(BlockTable { blocks, cached })
    }

    /// Makes every full block of `tokens`, which are written, a cached one. A block that was cached by another
    /// meanwhile takes the place of the table's own, so that no two hold the same.
    pub(super) fn share(&mut self, table: &mut BlockTable, tokens: &[u32]) {
        for written in tokens.chunks_exact(self.block_tokens).skip(table.cached) {
            let parent = table.last_cached();
            match self.index.find(parent, written) {
                Some(known) => self.exchange(table, known),
                None => {
                    let block = table.blocks[table.cached];
                    self.index.insert(block, parent, written);
                    self.states[block as usize] = State::Cached { holders: 1 };
                    table.cached += 1;
                }
            }
        }
    }

    /// Puts cached blocks in the place of private ones, as far as there are any that hold `tokens`.
    pub(super) fn adopt(&mut self, table: &mut BlockTable, tokens: &[u32]) {
        for wanted in tokens.chunks_exact(self.block_tokens).skip(table.cached) {
            let Some(known) = self.index.find(table.last_cached(), wanted) else {
                return;
            };
            self.exchange(table, known);
        }
    }

    /// Takes a sequence's blocks back; those that are cached stay so.
    pub(super) fn release(&mut self, table: BlockTable) {
        for block in table.blocks.into_iter().rev() {
            match &mut self.states[block as usize] {
                State::Free => unreachable!("a block in a table is not free"),
                State::Private => self.free_up(block),
                State::Cached { holders } => {
                    *holders -= 1;
                    if *holders == 0 {
                        self.idle.push(block);
                    }
                }
            }
        }
    }

    /// Checks each block's state against the tables that hold it; with each table come its sequence's tokens.
    ///
    /// # Panics
    /// When they differ.
    pub(super) fn check_invariants<'a>(&self, held: impl Iterator<Item = (&'a BlockTable, &'a [u32])>) {
        let mut holders = vec![0; self.states.len()];
        for (table, tokens) in held {
            self.check_table(table, tokens);
            table
                .blocks
                .iter()
                .for_each(|block| holders[*block as usize] += 1);
        }
        let order = self.idle.oldest_first();
        for (block, held) in (0..).zip(holders) {
            let is_free = self.free.contains(&block);
            let idle_at = order.iter().position(|idle| *idle == block);
            assert_eq!(
                (is_free, idle_at.is_some()),
                match self.states[block as usize] {
                    State::Free => (held == 0, false),
                    State::Private => (held != 1, false),
                    State::Cached { holders } => (held != holders, held == 0),
                },
                "block {block} has {held} holders and stands where it belongs"
            );
            self.check_cached(block, idle_at, &order);
        }
        assert_eq!(
            self.unheld_count(),
            self.free.len() + order.len(),
            "idle ones are counted"
        );
    }

    fn check_table(&self, table: &BlockTable, tokens: &[u32]) {
        let mut parent = None;
        for (at, block) in table.blocks.iter().enumerate() {
            if at < table.cached {
                let written = &tokens[at * self.block_tokens..][..self.block_tokens];
                assert_eq!(
                    self.index.find(parent, written),
                    Some(*block),
                    "the block of its tokens"
                );
                parent = Some(*block);
            } else {
                assert_eq!(
                    self.states[*block as usize],
                    State::Private,
                    "written by one alone"
                );
            }
        }
    }

    fn check_cached(&self, block: u32, idle_at: Option<usize>, order: &[u32]) {
        let is_cached = |block: u32| matches!(self.states[block as usize], State::Cached { .. });
        let identity = self.index.identity(block);
        assert_eq!(identity.is_some(), is_cached(block), "cached ones are found");
        let Some((parent, tokens)) = identity else {
            return;
        };
        assert_eq!(
            self.index.find(parent, tokens),
            Some(block),
            "one block has one identity"
        );
        let Some(parent) = parent else {
            return;
        };
        assert!(is_cached(parent), "a parent outlives its children");
        if let Some(parent_at) = order.iter().position(|idle| *idle == parent) {
            assert!(
                idle_at.is_some_and(|at| at < parent_at),
                "children go before their parents"
            );
        }
    }

    fn is_idle(&self, block: u32) -> bool {
        self.states[block as usize] == State::Cached { holders: 0 }
    }

    /// Puts a cached block in the place of a table's first private one.
    fn exchange(&mut self, table: &mut BlockTable, known: u32) {
        self.hold(known);
        let own = std::mem::replace(&mut table.blocks[table.cached], known);
        table.cached += 1;
        self.free_up(own);
    }

    fn hold(&mut self, block: u32) {
        let State::Cached { holders } = &mut self.states[block as usize] else {
            unreachable!("only cached blocks are found")
        };
        *holders += 1;
        if *holders == 1 {
            self.idle.remove(block);
        }
    }

    fn free_up(&mut self, block: u32) {
        self.states[block as usize] = State::Free;
        self.free.push(block);
    }

    /// A free block, or the memory of the cached one that was unused longest.
    fn take_private(&mut self) -> u32 {
        let block = self.free.pop().unwrap_or_else(|| {
            let oldest = self.idle.pop_oldest().expect("unheld blocks were counted");
            self.index.remove(oldest);
            self.evicted_blocks += 1;
            oldest
        });
        self.states[block as usize] = State::Private;
        block
    }
}
