//! The blocks of one model's KV memory, and what they hold after nobody needs them any more.
//!
//! A block is free, private to one sequence, or cached: full, never written again, and found by its tokens
//! and all tokens before them. A cached block has any number of holders; without one it rests until its
//! memory is needed, the least recently used first. Memory comes and goes by whole slabs: see [`slabs`].
//!
//! Who holds a cached block holds its parent too, and gives it back after the child. So a parent never rests
//! for longer than its children, and the block that has rested longest is a leaf. With a block that leaves, all
//! that come after it leave, which rest too.

mod index;
mod queue;
mod slab_set;
mod slabs;

use crate::kv::{KvBudget, KvSlab, SlabChange};
use index::BlockIndex;
use queue::IdleList;
use slabs::{BlockKind, Freed, Slabs};

/// The blocks that have memory, in the places in which they had it.
#[derive(Debug)]
pub(super) struct BlockPool {
    block_tokens: usize,
    states: Vec<State>,
    slabs: Slabs,
    resting: IdleList,
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

/// So many blocks that are not cached cannot be had together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing(pub(super) usize);

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
    pub(super) fn new(slab: KvSlab, block_tokens: usize) -> Self {
        Self {
            block_tokens,
            states: Vec::new(),
            slabs: Slabs::new(slab),
            resting: IdleList::default(),
            index: BlockIndex::new(block_tokens),
            evicted_blocks: 0,
        }
    }

    /// The slabs.
    pub(super) fn slab(&self) -> KvSlab {
        self.slabs.shape()
    }

    /// How many slabs have memory.
    pub(super) fn mapped_slabs(&self) -> usize {
        self.slabs.mapped_count()
    }

    /// Blocks that are held.
    pub(super) fn held_count(&self) -> usize {
        let held = |state: &&State| !matches!(state, State::Free | State::Cached { holders: 0 });
        self.states.iter().filter(held).count()
    }

    /// Cached blocks whose memory was needed for others, since the pool was made.
    pub(super) fn evicted_blocks(&self) -> u64 {
        self.evicted_blocks
    }

    /// What is to be done to the memory next.
    pub(super) fn poll_change(&mut self) -> Option<SlabChange> {
        self.slabs.poll_change()
    }

    /// Pages that could be given back at any time.
    pub(super) fn unused_pages(&self) -> u64 {
        self.slabs.unused_pages()
    }

    /// Whether so many private blocks can be had now.
    pub(super) fn can_give(&self, blocks: usize, budget: &KvBudget) -> bool {
        let more = blocks.saturating_sub(self.slabs.free_blocks());
        more <= self.blocks_after(budget, 0)
    }

    /// Blocks of the slabs that could be had if so many pages were given back.
    pub(super) fn blocks_after(&self, budget: &KvBudget, pages_given_back: u64) -> usize {
        let shape = self.slabs.shape();
        let slabs = budget.slabs_free_after(shape, pages_given_back);
        let slabs = usize::try_from(slabs).unwrap_or(usize::MAX);
        slabs.saturating_mul(shape.blocks as usize)
    }

    /// Takes `count` blocks: the longest cached chain that holds the first of `tokens`, then private ones.
    /// `count` blocks hold all of `tokens`.
    ///
    /// # Errors
    /// [`Missing`] when there are not as many to be had. The chain counts as just used then.
    pub(super) fn reserve(
        &mut self,
        tokens: &[u32],
        count: usize,
        budget: &mut KvBudget,
    ) -> Result<BlockTable, Missing> {
        let blocks = self.chain(tokens);
        let cached = blocks.len();
        blocks.iter().for_each(|block| self.hold(*block));
        let mut table = BlockTable { blocks, cached };
        match self.grow(&mut table, count, budget) {
            Ok(()) => Ok(table),
            Err(missing) => {
                self.release(table, budget);
                Err(missing)
            }
        }
    }

    /// Adds private blocks to a table until it has `count`.
    ///
    /// # Errors
    /// [`Missing`] when there are not as many to be had; nothing is taken then.
    pub(super) fn grow(
        &mut self,
        table: &mut BlockTable,
        count: usize,
        budget: &mut KvBudget,
    ) -> Result<(), Missing> {
        let more = count.saturating_sub(table.blocks.len());
        if !self.can_give(more, budget) {
            return Err(Missing(more));
        }
        table.blocks.reserve(more);
        for _ in 0..more {
            let block = self.take_private(budget);
            table.blocks.push(block);
        }
        Ok(())
    }

    /// Makes every full block of `tokens`, which are written, a cached one. A block that was cached by another
    /// meanwhile takes the place of the table's own, so that no two hold the same.
    pub(super) fn share(&mut self, table: &mut BlockTable, tokens: &[u32], budget: &mut KvBudget) {
        for written in tokens.chunks_exact(self.block_tokens).skip(table.cached) {
            let parent = table.last_cached();
            match self.index.find(parent, written) {
                Some(known) => self.exchange(table, known, budget),
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
    pub(super) fn adopt(&mut self, table: &mut BlockTable, tokens: &[u32], budget: &mut KvBudget) {
        for wanted in tokens.chunks_exact(self.block_tokens).skip(table.cached) {
            let Some(known) = self.index.find(table.last_cached(), wanted) else {
                return;
            };
            self.exchange(table, known, budget);
        }
    }

    /// Takes a sequence's blocks back; those that are cached stay so.
    pub(super) fn release(&mut self, table: BlockTable, budget: &mut KvBudget) {
        for block in table.blocks.into_iter().rev() {
            match &mut self.states[block as usize] {
                State::Free => unreachable!("a block in a table is not free"),
                State::Private => self.free_up(block, Freed::Held, budget),
                State::Cached { holders } => {
                    *holders -= 1;
                    if *holders == 0 {
                        self.resting.push(block);
                        self.slabs.rest(block, budget);
                    }
                }
            }
        }
    }

    /// Since when a slab could have been given back that could be for longest; 0 for one that holds nothing.
    pub(super) fn unused_since(&self) -> Option<u64> {
        self.slabs.longest_unused().map(|(since, _)| since)
    }

    /// Gives the slab back that has been unused for longest; what its blocks hold is forgotten.
    ///
    /// # Panics
    /// When there is none.
    pub(super) fn give_back_slab(&mut self, budget: &mut KvBudget) {
        let (_, slab) = self.slabs.longest_unused().expect("a slab is unused");
        for block in self.slabs.blocks_of(slab) {
            self.evict(block, budget);
        }
        // When another slab was free, this one lost its memory with its last block.
        if self.slabs.is_mapped(slab) {
            self.slabs.unmap(slab, budget);
        }
    }

    /// Frees the block that has rested longest, whatever is held beside it in its slab; `false` when none rests.
    pub(super) fn evict_oldest(&mut self, budget: &mut KvBudget) -> bool {
        let oldest = self.resting.oldest();
        if let Some(block) = oldest {
            self.evict(block, budget);
        }
        oldest.is_some()
    }

    /// Gives all memory back. All sequences have given their blocks back.
    pub(super) fn clear(&mut self, budget: &mut KvBudget) {
        while self.slabs.longest_unused().is_some() {
            self.give_back_slab(budget);
        }
        assert_eq!(self.slabs.mapped_count(), 0, "nobody holds a block");
    }

    /// What would be there if all blocks were taken from everybody but those who hold these tables.
    pub(super) fn census<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) -> Census {
        let mut is_kept = vec![false; self.states.len()];
        let mut is_slab_kept = vec![false; self.states.len().div_ceil(self.slab().blocks as usize)];
        let mut kept = 0;
        for block in tables.flat_map(|table| &table.blocks) {
            let is_known = std::mem::replace(&mut is_kept[*block as usize], true);
            kept += usize::from(!is_known);
            is_slab_kept[self.slabs.slab_of(*block) as usize] = true;
        }
        let slabs_kept = is_slab_kept.iter().filter(|is_kept| **is_kept).count();
        let slabs_given_back = self.slabs.mapped_count() - slabs_kept;
        Census {
            is_kept,
            blocks: slabs_kept * self.slab().blocks as usize - kept,
            pages: slabs_given_back as u64 * self.slab().pages,
        }
    }

    /// How many of the blocks that the first of `tokens` are cached in are kept in a census.
    pub(super) fn kept_of(&self, tokens: &[u32], census: &Census) -> usize {
        let chain = self.chain(tokens).into_iter();
        chain.filter(|block| census.is_kept[*block as usize]).count()
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
        let order = self.resting.oldest_first();
        for (block, held) in (0..).zip(holders) {
            let resting_at = order.iter().position(|resting| *resting == block);
            let (is_right, rests) = match self.states[block as usize] {
                State::Free => (held == 0, false),
                State::Private => (held == 1, false),
                State::Cached { holders } => (held == holders, held == 0),
            };
            assert!(is_right, "block {block} has {held} holders");
            assert_eq!(
                resting_at.is_some(),
                rests,
                "block {block} rests if nobody holds it"
            );
            self.check_cached(block, resting_at, &order);
        }
        self.slabs
            .check_invariants(|block| match self.states[block as usize] {
                State::Free => BlockKind::Free,
                State::Cached { holders: 0 } => BlockKind::Resting,
                State::Private | State::Cached { .. } => BlockKind::Held,
            });
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

    fn check_cached(&self, block: u32, resting_at: Option<usize>, order: &[u32]) {
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
        if let Some(parent_at) = order.iter().position(|resting| *resting == parent) {
            assert!(
                resting_at.is_some_and(|at| at < parent_at),
                "children go before their parents"
            );
        }
    }

    /// The longest chain of cached blocks that hold the first of `tokens`.
    fn chain(&self, tokens: &[u32]) -> Vec<u32> {
        let mut chain = Vec::with_capacity(tokens.len() / self.block_tokens + 1);
        for wanted in tokens.chunks_exact(self.block_tokens) {
            let Some(block) = self.index.find(chain.last().copied(), wanted) else {
                break;
            };
            chain.push(block);
        }
        chain
    }

    /// Puts a cached block in the place of a table's first private one.
    fn exchange(&mut self, table: &mut BlockTable, known: u32, budget: &mut KvBudget) {
        self.hold(known);
        let own = std::mem::replace(&mut table.blocks[table.cached], known);
        table.cached += 1;
        self.free_up(own, Freed::Held, budget);
    }

    fn hold(&mut self, block: u32) {
        let State::Cached { holders } = &mut self.states[block as usize] else {
            unreachable!("only cached blocks are found")
        };
        *holders += 1;
        if *holders == 1 {
            self.resting.remove(block);
            self.slabs.hold(block);
        }
    }

    fn free_up(&mut self, block: u32, freed: Freed, budget: &mut KvBudget) {
        self.states[block as usize] = State::Free;
        self.slabs.free(block, freed, budget);
    }

    /// Frees a block that rests, with all that come after it; one that is free already stays so.
    fn evict(&mut self, block: u32, budget: &mut KvBudget) {
        if self.states[block as usize] == State::Free {
            return;
        }
        let mut next = self.index.leaf_below(block);
        loop {
            let (parent, _) = self.index.identity(next).expect("what rests is cached");
            self.index.remove(next);
            self.resting.remove(next);
            self.evicted_blocks += 1;
            self.free_up(next, Freed::Resting, budget);
            match parent {
                Some(parent) if next != block => next = self.index.leaf_below(parent),
                Some(_) | None => return,
            }
        }
    }

    fn take_private(&mut self, budget: &mut KvBudget) -> u32 {
        let block = self.slabs.take().unwrap_or_else(|| {
            self.slabs.map(budget);
            self.make_places();
            self.slabs.take().expect("a new slab has a free block")
        });
        self.states[block as usize] = State::Private;
        block
    }

    fn make_places(&mut self) {
        let places = self.slabs.places();
        if places > self.states.len() {
            self.states.resize(places, State::Free);
            self.resting.grow(places);
            self.index.grow(places);
        }
    }
}

/// What a batch could give up.
#[derive(Debug)]
pub(super) struct Census {
    is_kept: Vec<bool>,
    /// Blocks in slabs that stay in use.
    pub(super) blocks: usize,
    /// Pages of the other slabs.
    pub(super) pages: u64,
}
