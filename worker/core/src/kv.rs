//! The memory for keys and values of one device: how much there is, who has how much of it, who gets more.
//!
//! All pages that weights and workspaces leave free form the device's pool. Its batches take pages from it when
//! their sequences grow: one thread runs them all, so [`KvBudget`] is passed to whoever needs it. A batch takes
//! and gives back whole slabs, see [`KvSlab`]; what lies in a slab is its own business. Pages that nobody holds
//! stay with the batch that used them last, as its cache, until [`relieve`] or [`shrink`] takes them.

mod relief;

use flotilla_protocol::Class;
use serde::{Deserialize, Serialize};

use crate::ledger::PAGE_BYTES;
pub use relief::{provide, relieve, shrink};

/// The unit in which a model's keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvBlock {
    /// Tokens of one block.
    pub tokens: u64,
    /// Bytes of one block.
    pub bytes: u64,
}

impl KvBlock {
    /// The slabs in which such blocks get their memory.
    #[must_use]
    pub fn slab(self) -> KvSlab {
        KvSlab::of(self.bytes)
    }

    /// Tokens that fit on this many pages.
    #[must_use]
    pub fn tokens_on(self, pages: u64) -> u64 {
        let KvSlab { blocks, pages: each } = self.slab();
        (pages / each)
            .saturating_mul(blocks.into())
            .saturating_mul(self.tokens)
    }

    /// Pages that this many tokens of one sequence need.
    #[must_use]
    pub fn pages_for(self, tokens: u64) -> u64 {
        let slab = self.slab();
        let slabs = tokens.div_ceil(self.tokens.max(1)).div_ceil(slab.blocks.into());
        slabs.saturating_mul(slab.pages)
    }
}

/// Blocks that get and lose their memory together, on whole pages of their own. Block `i` of a slab starts at `i`
/// times the size of a block; what the last block leaves of the pages is waste.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvSlab {
    /// How many blocks; at least 1.
    pub blocks: u32,
    /// On how many pages; at least 1.
    pub pages: u64,
}

impl KvSlab {
    /// The smallest slab of such blocks that wastes at most a sixteenth of its pages: one page for blocks that
    /// are much smaller than one, else as many pages as some blocks fill. Where the sizes are so unlucky that
    /// 15 pages more than one block needs do not suffice, the slab that wastes least.
    #[must_use]
    pub fn of(block_bytes: u64) -> Self {
        let block_bytes = block_bytes.max(1);
        let least = block_bytes.div_ceil(PAGE_BYTES);
        let waste = |pages: u64| pages.saturating_mul(PAGE_BYTES) % block_bytes;
        let candidates = least..=least.saturating_add(EXTRA_PAGES_MAX);
        let is_good = |pages: &u64| waste(*pages) <= pages.saturating_mul(PAGE_BYTES) / WASTE_PART;
        let least_waste = |pages: &u64| (u128::from(waste(*pages)) << 64) / u128::from(*pages);
        let good = candidates.clone().find(is_good);
        let pages = good.or_else(|| candidates.min_by_key(least_waste));
        let pages = pages.expect("a range that includes its ends is not empty");
        let blocks = pages.saturating_mul(PAGE_BYTES) / block_bytes;
        Self {
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            pages,
        }
    }
}

/// A slab of a model's KV memory, by its place: block `i` is in slab `i / blocks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlabIndex(pub u32);

/// What has to be done to a model's memory before its next step, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlabChange {
    /// Put memory behind a slab; what it holds does not matter.
    Map(SlabIndex),
    /// Take a slab's memory away; nothing in it is used any more.
    Unmap(SlabIndex),
}

/// Who goes before whom on a device: by class, then by arrival. Smaller goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Rank {
    class: usize,
    arrival: u64,
}

/// How a device's pool stands, as the one who runs the device tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KvReport {
    /// What the pool was last told to be, in pages.
    pub pages_target: u64,
    /// Pages that may be in use until the next report: the target, or what is in use beyond it.
    pub pages_held: u64,
    /// Pages that have memory.
    pub pages_used: u64,
    /// Those of them in slabs of which no sequence holds a block.
    pub pages_unused: u64,
}

/// The pages of one device that its batches share.
///
/// While more are in use than the target says, none are given out.
#[derive(Debug, Default)]
pub struct KvBudget {
    pages_target: u64,
    pages_used: u64,
    pages_used_max: u64,
    /// Sequences that arrived.
    arrivals: u64,
    /// Counts times at which memory fell out of use, for "least recently used" across batches.
    uses: u64,
    /// Counts what may help somebody who could get nothing.
    reliefs: u64,
}

impl KvBudget {
    /// A pool of so many pages, none in use.
    #[must_use]
    pub fn new(pages_target: u64) -> Self {
        Self {
            pages_target,
            ..Self::default()
        }
    }

    /// Sets how many pages there are; [`shrink`] then gives back what nobody holds.
    pub fn resize(&mut self, pages_target: u64) {
        self.pages_target = pages_target;
        self.note_relief();
    }

    /// Pages that may be in use.
    #[must_use]
    pub fn pages_target(&self) -> u64 {
        self.pages_target
    }

    /// Pages in use.
    #[must_use]
    pub fn pages_used(&self) -> u64 {
        self.pages_used
    }

    /// The most pages that were ever in use.
    #[must_use]
    pub fn pages_used_max(&self) -> u64 {
        self.pages_used_max
    }

    /// How it stands; `pages_unused` are those of all its batches, see [`crate::batch::Batch::unused_pages`].
    #[must_use]
    pub fn report(&self, pages_unused: u64) -> KvReport {
        KvReport {
            pages_target: self.pages_target,
            pages_held: self.pages_target.max(self.pages_used),
            pages_used: self.pages_used,
            pages_unused,
        }
    }

    /// More is in use than there should be.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.pages_used > self.pages_target
    }

    /// Slabs that can be had.
    pub(crate) fn slabs_free(&self, slab: KvSlab) -> u64 {
        self.slabs_free_after(slab, 0)
    }

    /// Slabs that could be had if so many pages were given back.
    pub(crate) fn slabs_free_after(&self, slab: KvSlab, pages_given_back: u64) -> u64 {
        let pages_free = (self.pages_target + pages_given_back).saturating_sub(self.pages_used);
        pages_free / slab.pages
    }

    /// Takes the pages of a slab.
    pub(crate) fn take(&mut self, slab: KvSlab) {
        assert!(self.slabs_free(slab) > 0, "no more is taken than there is");
        self.pages_used += slab.pages;
        self.pages_used_max = self.pages_used_max.max(self.pages_used);
    }

    /// Takes the pages of a slab back.
    pub(crate) fn give_back(&mut self, slab: KvSlab) {
        self.pages_used -= slab.pages;
        self.note_relief();
    }

    /// The rank of a sequence that arrives now.
    pub(crate) fn next_rank(&mut self, class: Class) -> Rank {
        self.arrivals += 1;
        Rank {
            class: Class::ALL
                .iter()
                .position(|listed| *listed == class)
                .expect("every class is listed"),
            arrival: self.arrivals,
        }
    }

    /// The next moment at which memory falls out of use, from 1.
    pub(crate) fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// Something happened that may help somebody who could get nothing.
    pub(crate) fn note_relief(&mut self) {
        self.reliefs += 1;
    }

    /// How often [`Self::note_relief`] was called, from 1.
    pub(crate) fn reliefs(&self) -> u64 {
        self.reliefs + 1
    }
}

const _: () = assert!(
    matches!(Class::ALL[0], Class::Interactive),
    "the first class is the most urgent one"
);

/// One in this many bytes of a slab may be wasted: little beside what is lost in the last blocks of sequences.
const WASTE_PART: u64 = 16;
/// Larger slabs waste less, but are given back later.
const EXTRA_PAGES_MAX: u64 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn slab(kib: u64) -> (u32, u64) {
        let KvSlab { blocks, pages } = KvSlab::of(kib << 10);
        (blocks, pages)
    }

    #[test]
    fn slabs_are_whole_pages_with_little_waste() {
        assert_eq!(slab(8), (256, 1));
        assert_eq!(slab(20), (102, 1), "8 of 2048 KiB are lost");
        assert_eq!(slab(720), (8, 3), "384 of 6144");
        assert_eq!(slab(1100), (7, 4), "492 of 8192");
        assert_eq!(slab(2048), (1, 1));
        assert_eq!(slab(3 << 10), (2, 3), "a block alone would lose 1024 of 4096");
    }

    #[test]
    fn no_size_wastes_more_than_one_part_in_sixteen_of_blocks_up_to_16_mib() {
        for bytes in (128..16 << 20).step_by(128 * 97) {
            let KvSlab { blocks, pages } = KvSlab::of(bytes);
            let used = u64::from(blocks) * bytes;
            assert!(used <= pages * PAGE_BYTES, "{bytes}: blocks lie on their pages");
            let wasted = pages * PAGE_BYTES - used;
            assert!(
                wasted * WASTE_PART <= pages * PAGE_BYTES,
                "{bytes}: {wasted} of {pages} pages"
            );
        }
    }

    #[test]
    fn tokens_and_pages_count_whole_slabs() {
        let block = KvBlock {
            tokens: 16,
            bytes: 720 << 10,
        };
        assert_eq!(
            (block.tokens_on(2), block.tokens_on(3), block.tokens_on(7)),
            (0, 128, 256)
        );
        assert_eq!(
            (block.pages_for(1), block.pages_for(128), block.pages_for(129)),
            (3, 3, 6)
        );
    }
}
