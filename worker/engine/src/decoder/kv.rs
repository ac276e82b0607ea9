//! Where the KV blocks of a model lie, and which of them have memory.

use std::ops::Range;

use crate::PAGE_BYTES;
use crate::backend::{KV_UNIT_BYTES, KvLayout, RegionId, Span};

/// Blocks that get and lose their memory together: they lie one after the other on pages of their own, and what
/// the last one leaves of these is unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSlab {
    /// How many blocks; at least 1.
    pub blocks: usize,
    /// On how many pages; enough for the blocks.
    pub pages: usize,
}

/// The addresses for all KV blocks of a model; block `i` lies in slab `i / slab.blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpace {
    /// The slabs.
    pub slab: KvSlab,
    /// How many there can be.
    pub slabs_max: usize,
}

impl KvSpace {
    /// For models that have no KV blocks.
    pub const NONE: Self = Self {
        slab: KvSlab { blocks: 1, pages: 1 },
        slabs_max: 0,
    };

    /// So many pages can it have at most, as the starts of blocks are told in [`KV_UNIT_BYTES`] as u32.
    pub const PAGES_MAX: usize = (u32::MAX as usize).div_ceil(PAGE_BYTES / KV_UNIT_BYTES) - 1;

    /// One slab of so many blocks, for a caller that maps and unmaps them all together.
    pub const fn of_one_slab(blocks: usize, block_bytes: usize) -> Self {
        let bytes = blocks.saturating_mul(block_bytes);
        Self {
            slab: KvSlab {
                blocks,
                pages: bytes.div_ceil(PAGE_BYTES),
            },
            slabs_max: 1,
        }
    }

    /// Its length; none when it is longer than the starts of blocks can be told.
    pub(crate) fn len_bytes(&self) -> Option<usize> {
        let pages = self.slabs_max.checked_mul(self.slab.pages)?;
        let len_bytes = pages.checked_mul(PAGE_BYTES)?;
        u32::try_from(len_bytes / KV_UNIT_BYTES).ok()?;
        Some(len_bytes)
    }
}

/// A model's KV space on a device.
#[derive(Debug)]
pub(crate) struct KvMemory {
    region: RegionId,
    space: KvSpace,
    slab_blocks: u32,
    slab_units: u32,
    block_units: u32,
    /// For each slab whether it has memory.
    is_mapped: Vec<bool>,
}

impl KvMemory {
    /// A space that is no longer than can be told.
    ///
    /// # Panics
    /// The blocks do not fit on the pages of their slab.
    pub(super) fn new(region: RegionId, space: KvSpace, layout: KvLayout) -> Self {
        let KvSlab { blocks, pages } = space.slab;
        let (slab_units, block_units) = (pages * PAGE_BYTES / KV_UNIT_BYTES, layout.block_units());
        assert!(
            blocks > 0 && blocks * block_units <= slab_units,
            "blocks lie on the pages of their slab"
        );
        let in_u32 = |units: usize| u32::try_from(units).expect("the space was checked to be in reach");
        Self {
            region,
            space,
            slab_blocks: in_u32(blocks),
            slab_units: in_u32(slab_units),
            block_units: in_u32(block_units),
            is_mapped: vec![false; space.slabs_max],
        }
    }

    pub(super) fn region(&self) -> RegionId {
        self.region
    }

    /// The whole range.
    pub(super) fn span(&self) -> Span {
        Span {
            region: self.region,
            offset_bytes: 0,
            len_bytes: self.is_mapped.len() * self.space.slab.pages * PAGE_BYTES,
        }
    }

    /// The pages of a slab.
    pub(super) fn pages(&self, slab: usize) -> Range<usize> {
        let pages = self.space.slab.pages;
        let start = slab.saturating_mul(pages);
        start..start.saturating_add(pages)
    }

    pub(super) fn set_mapped(&mut self, slab: usize, is_mapped: bool) {
        self.is_mapped[slab] = is_mapped;
    }

    /// Where a block starts, in [`KV_UNIT_BYTES`]; none when it has no memory.
    pub(crate) fn start(&self, block: u32) -> Option<u32> {
        let (slab, index) = (block / self.slab_blocks, block % self.slab_blocks);
        let is_mapped = *self.is_mapped.get(slab as usize)?;
        is_mapped.then(|| slab * self.slab_units + index * self.block_units)
    }
}
