//! Which slabs have memory, and which of their blocks nobody uses.

use std::collections::VecDeque;

use super::queue::IdleList;
use super::slab_set::SlabSet;
use crate::kv::{KvBudget, KvSlab, SlabChange, SlabIndex};

/// The slabs of one model's KV memory.
///
/// A block without memory belongs to nobody. Of those with memory, a block is free, resting (kept for what it
/// holds, by nobody) or held. A slab of which no block is held can lose its memory at any time; the one that has
/// been so for longest goes first. Free blocks are taken from slabs that others are held of, so that as few
/// slabs as possible are in use. One slab whose blocks are all free is kept, so that a lone sequence that comes
/// and goes does not map and unmap it each time.
#[derive(Debug)]
pub(super) struct Slabs {
    shape: KvSlab,
    slabs: Vec<Slab>,
    /// The next free block of the same slab.
    next_free: Vec<Option<u32>>,
    free_blocks: usize,
    mapped: usize,
    /// Slabs with held and free blocks.
    open: SlabSet,
    /// Slabs with resting and free blocks alone.
    ajar: SlabSet,
    /// Slabs with resting blocks and no held one.
    unused: IdleList,
    unused_count: usize,
    /// The slab whose blocks are all free.
    spare: Option<u32>,
    unmapped: SlabSet,
    changes: VecDeque<SlabChange>,
}

#[derive(Debug, Clone, Copy)]
struct Slab {
    is_mapped: bool,
    held: u32,
    free: u32,
    first_free: Option<u32>,
    /// When its last held block was given up.
    unused_since: u64,
}

/// What a block was before it became free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freed {
    Held,
    Resting,
}

impl Slabs {
    pub(super) fn new(shape: KvSlab) -> Self {
        assert!(shape.blocks > 0 && shape.pages > 0, "a slab has blocks and pages");
        Self {
            shape,
            slabs: Vec::new(),
            next_free: Vec::new(),
            free_blocks: 0,
            mapped: 0,
            open: SlabSet::default(),
            ajar: SlabSet::default(),
            unused: IdleList::default(),
            unused_count: 0,
            spare: None,
            unmapped: SlabSet::default(),
            changes: VecDeque::new(),
        }
    }

    pub(super) fn shape(&self) -> KvSlab {
        self.shape
    }

    /// Free blocks with memory.
    pub(super) fn free_blocks(&self) -> usize {
        self.free_blocks
    }

    /// Slabs with memory.
    pub(super) fn mapped_count(&self) -> usize {
        self.mapped
    }

    pub(super) fn poll_change(&mut self) -> Option<SlabChange> {
        self.changes.pop_front()
    }

    /// Blocks that there are places for; grows with the most slabs that ever had memory at once.
    pub(super) fn places(&self) -> usize {
        self.next_free.len()
    }

    /// Puts memory behind one more slab. Blocks of all slabs so far are in use.
    pub(super) fn map(&mut self, budget: &mut KvBudget) {
        assert_eq!(self.spare, None, "no slab is mapped while another one is free");
        budget.take(self.shape);
        let index = self.unmapped.first().unwrap_or_else(|| self.add());
        self.unmapped.remove(index);
        let first = index * self.shape.blocks;
        for block in first..first + self.shape.blocks {
            let next = block + 1;
            self.next_free[block as usize] = (next < first + self.shape.blocks).then_some(next);
        }
        let slab = &mut self.slabs[index as usize];
        (slab.is_mapped, slab.free, slab.first_free) = (true, self.shape.blocks, Some(first));
        self.free_blocks += self.shape.blocks as usize;
        self.mapped += 1;
        self.spare = Some(index);
        self.changes.push_back(SlabChange::Map(SlabIndex(index)));
    }

    /// Takes a free block, if there is one.
    pub(super) fn take(&mut self) -> Option<u32> {
        let open = self.open.first().or_else(|| self.ajar.first());
        let index = open.or(self.spare)?;
        let slab = &mut self.slabs[index as usize];
        let block = slab.first_free.expect("the slab has a free block");
        slab.first_free = self.next_free[block as usize];
        slab.free -= 1;
        self.free_blocks -= 1;
        self.hold(block);
        Some(block)
    }

    /// A block that nobody holds is held now; it is not free.
    pub(super) fn hold(&mut self, block: u32) {
        let index = self.slab_of(block);
        let slab = &mut self.slabs[index as usize];
        slab.held += 1;
        if slab.held == 1 && self.spare == Some(index) {
            self.spare = None;
        } else if slab.held == 1 {
            self.list_as_used(index);
        }
        self.sort_in(index);
    }

    /// A held block rests now.
    pub(super) fn rest(&mut self, block: u32, budget: &mut KvBudget) {
        let index = self.slab_of(block);
        self.slabs[index as usize].held -= 1;
        self.note_unused(index, budget);
        self.sort_in(index);
    }

    /// A block is free now. When its slab is not the only free one, the slab loses its memory.
    pub(super) fn free(&mut self, block: u32, freed: Freed, budget: &mut KvBudget) {
        let index = self.slab_of(block);
        let slab = &mut self.slabs[index as usize];
        self.next_free[block as usize] = slab.first_free.replace(block);
        slab.free += 1;
        self.free_blocks += 1;
        let is_free = slab.free == self.shape.blocks;
        match freed {
            Freed::Held => slab.held -= 1,
            Freed::Resting if is_free => self.list_as_used(index),
            Freed::Resting => {}
        }
        if !is_free && freed == Freed::Held {
            self.note_unused(index, budget);
        }
        self.sort_in(index);
        if is_free && self.spare.is_some() {
            self.unmap(index, budget);
        } else if is_free {
            self.spare = Some(index);
        }
    }

    /// Takes the memory of a slab whose blocks are all free.
    pub(super) fn unmap(&mut self, index: u32, budget: &mut KvBudget) {
        let slab = &mut self.slabs[index as usize];
        assert_eq!(slab.free, self.shape.blocks, "nothing in the slab is of use");
        (slab.is_mapped, slab.free, slab.first_free) = (false, 0, None);
        self.spare.take_if(|spare| *spare == index);
        self.free_blocks -= self.shape.blocks as usize;
        self.mapped -= 1;
        self.unmapped.insert(index);
        self.changes.push_back(SlabChange::Unmap(SlabIndex(index)));
        budget.give_back(self.shape);
    }

    /// Whether a slab has memory.
    pub(super) fn is_mapped(&self, index: u32) -> bool {
        self.slabs[index as usize].is_mapped
    }

    /// The slab that is to lose its memory first, and since when it could have.
    pub(super) fn longest_unused(&self) -> Option<(u64, u32)> {
        let spare = self.spare.map(|index| (0, index));
        let since = |index: u32| (self.slabs[index as usize].unused_since, index);
        spare.or_else(|| self.unused.oldest().map(since))
    }

    /// Pages of slabs of which no block is held.
    pub(super) fn unused_pages(&self) -> u64 {
        (self.unused_count + usize::from(self.spare.is_some())) as u64 * self.shape.pages
    }

    /// The blocks of a slab.
    pub(super) fn blocks_of(&self, index: u32) -> std::ops::Range<u32> {
        index * self.shape.blocks..(index + 1) * self.shape.blocks
    }

    pub(super) fn slab_of(&self, block: u32) -> u32 {
        block / self.shape.blocks
    }

    /// Checks each slab against what its blocks are: held, resting, or free.
    ///
    /// # Panics
    /// When they differ.
    pub(super) fn check_invariants(&self, kind: impl Fn(u32) -> BlockKind) {
        let count = |index: u32, wanted: BlockKind| {
            let blocks = self.blocks_of(index).filter(|block| kind(*block) == wanted);
            u32::try_from(blocks.count()).expect("a slab's blocks are counted as u32")
        };
        let unused = self.unused.oldest_first();
        let mut spares = Vec::new();
        for (index, slab) in (0..).zip(&self.slabs) {
            let (held, free) = (count(index, BlockKind::Held), count(index, BlockKind::Free));
            if !slab.is_mapped {
                assert_eq!(
                    free, self.shape.blocks,
                    "slab {index} without memory holds nothing"
                );
                assert!(self.unmapped.contains(index) && !unused.contains(&index));
                continue;
            }
            assert_eq!((slab.held, slab.free), (held, free), "slab {index} is counted");
            let is_spare = free == self.shape.blocks;
            spares.extend(is_spare.then_some(index));
            assert_eq!(self.open.contains(index), held > 0 && free > 0);
            assert_eq!(self.ajar.contains(index), held == 0 && free > 0 && !is_spare);
            assert_eq!(unused.contains(&index), held == 0 && !is_spare);
            let mut listed = Vec::from_iter(slab.first_free);
            while let Some(next) = listed.last().and_then(|last| self.next_free[*last as usize]) {
                listed.push(next);
            }
            assert_eq!(listed.len(), slab.free as usize, "free blocks are listed");
            assert!(listed.iter().all(|block| kind(*block) == BlockKind::Free));
        }
        assert_eq!(spares, Vec::from_iter(self.spare), "one free slab is kept");
        assert_eq!(unused.len(), self.unused_count);
        assert!(
            unused.is_sorted_by_key(|index| self.slabs[*index as usize].unused_since),
            "unused slabs stand in the order in which they became so"
        );
        let mapped = self.slabs.iter().filter(|slab| slab.is_mapped);
        let free: usize = mapped.clone().map(|slab| slab.free as usize).sum();
        assert_eq!((mapped.count(), free), (self.mapped, self.free_blocks));
    }

    fn add(&mut self) -> u32 {
        let index = u32::try_from(self.slabs.len()).expect("slabs are counted as u32");
        let places = (index + 1).checked_mul(self.shape.blocks);
        let places = places.expect("so many blocks are far more bytes than any device has");
        self.slabs.push(Slab {
            is_mapped: false,
            held: 0,
            free: 0,
            first_free: None,
            unused_since: 0,
        });
        self.next_free.resize(places as usize, None);
        self.unused.grow(self.slabs.len());
        index
    }

    /// Lists a slab as unused if none of its blocks is held any more.
    fn note_unused(&mut self, index: u32, budget: &mut KvBudget) {
        let slab = &mut self.slabs[index as usize];
        if slab.held == 0 {
            slab.unused_since = budget.next_use();
            self.unused.push(index);
            self.unused_count += 1;
        }
    }

    fn list_as_used(&mut self, index: u32) {
        self.unused.remove(index);
        self.unused_count -= 1;
    }

    /// Puts a slab among those from which blocks can be taken, or not.
    fn sort_in(&mut self, index: u32) {
        let slab = self.slabs[index as usize];
        self.open.set(index, slab.held > 0 && slab.free > 0);
        let is_ajar = slab.held == 0 && slab.free > 0 && slab.free < self.shape.blocks;
        self.ajar.set(index, is_ajar);
    }
}

/// What becomes of a block, for checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockKind {
    Free,
    Resting,
    Held,
}
