//! The parts of a model on the devices that hold it: one on one device, or layers that follow each other on each of
//! several.
//!
//! A part has its weights, its workspace and, where there are several, its own keys and values: a fixed number of
//! blocks for the whole time, as they have to be there on every device at once and no pool spans devices.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Grant;
use crate::ledger::{DeviceIndex, PAGE_BYTES, Reservation};

/// What a model takes in parts, so that it can be counted before it is decided where it is cut. A part takes for each
/// of its layers what one layer takes, and what comes with the first and the last where it has those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitNeeds {
    /// Layers of the model; at least 2.
    pub layers: u32,
    /// Weights that go with the first layer, in bytes.
    pub first_bytes: u64,
    /// Weights of one layer.
    pub layer_bytes: u64,
    /// Weights that go with the last layer.
    pub last_bytes: u64,
    /// Pages of workspace of the part with the first layer.
    pub first_workspace_pages: u64,
    /// Pages of workspace of a part with neither the first nor the last layer.
    pub inner_workspace_pages: u64,
    /// Pages of workspace of the part with the last layer.
    pub last_workspace_pages: u64,
    /// Keys and values of one block, for each layer, in bytes.
    pub kv_layer_block_bytes: u64,
    /// Blocks of one full context, without which it does not run.
    pub kv_blocks_min: u64,
    /// Blocks of as many full contexts as may run at once.
    pub kv_blocks_max: u64,
}

/// What one device holds of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// The device.
    pub device: DeviceIndex,
    /// Its pages there.
    pub grant: Grant,
    /// Which part it is; `None` when it is all of the model.
    pub part: Option<Part>,
}

/// A part of a split model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The first of its layers.
    pub first_layer: u32,
    /// How many there are; at least 1.
    pub layers: u32,
    /// Blocks of keys and values that the model has for itself, on each of its devices.
    pub kv_blocks: u64,
}

impl Part {
    /// Its layers.
    #[must_use]
    pub fn range(&self) -> Range<u32> {
        self.first_layer..self.first_layer + self.layers
    }
}

/// All that devices hold of a model, in the order of its layers.
#[derive(Debug)]
pub(super) struct Home {
    holdings: Vec<Holding>,
}

/// A shard with its pages.
#[derive(Debug)]
pub(super) struct Holding {
    pub(super) shard: Shard,
    pub(super) reservations: Vec<Reservation>,
}

impl Home {
    pub(super) fn new(holdings: Vec<Holding>) -> Self {
        assert!(!holdings.is_empty(), "a home is on some device");
        Self { holdings }
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.holdings.iter().map(|holding| &holding.shard)
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = DeviceIndex> {
        self.shards().map(|shard| shard.device)
    }

    /// The device with the first of it.
    pub(super) fn first(&self) -> DeviceIndex {
        self.holdings[0].shard.device
    }

    pub(super) fn is_on(&self, device: DeviceIndex) -> bool {
        self.devices().any(|it| it == device)
    }

    pub(super) fn is_split(&self) -> bool {
        self.shards().any(|shard| shard.part.is_some())
    }

    pub(super) fn pages_on(&self, device: DeviceIndex) -> u64 {
        let here = self.holdings.iter().filter(|it| it.shard.device == device);
        here.flat_map(|it| &it.reservations).map(Reservation::pages).sum()
    }

    /// Pages of its weights, on all devices together.
    pub(super) fn weights_pages(&self) -> u64 {
        self.shards().map(|shard| shard.grant.weights_pages).sum()
    }

    /// Where it is cut: the layers of each part; none when it is whole.
    pub(super) fn cut(&self) -> Vec<Range<u32>> {
        cut_of(self.shards())
    }

    pub(super) fn into_holdings(self) -> Vec<Holding> {
        self.holdings
    }
}

/// The layers of each of a model's parts; none when it is whole.
pub(super) fn cut_of<'a>(shards: impl Iterator<Item = &'a Shard>) -> Vec<Range<u32>> {
    shards.filter_map(|shard| Some(shard.part?.range())).collect()
}

impl Grant {
    /// All pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let others = self.workspace_pages.saturating_add(self.kv_pages);
        self.weights_pages.saturating_add(others)
    }
}

impl SplitNeeds {
    /// What a part of these layers takes with so many blocks for keys and values.
    pub(super) fn grant(&self, layers: &Range<u32>, kv_blocks: u64) -> Grant {
        let (is_first, is_last) = (layers.start == 0, layers.end == self.layers);
        let count = u64::from(layers.end - layers.start);
        let ends = [(is_first, self.first_bytes), (is_last, self.last_bytes)];
        let ends = ends.into_iter().filter(|(is_here, _)| *is_here);
        let layer_bytes = self.layer_bytes.saturating_mul(count);
        let weights_bytes = ends.fold(layer_bytes, |sum, (_, bytes)| sum.saturating_add(bytes));
        let kv_bytes = self.kv_layer_block_bytes.saturating_mul(count);
        Grant {
            weights_pages: weights_bytes.div_ceil(PAGE_BYTES),
            workspace_pages: match (is_first, is_last) {
                (true, _) => self.first_workspace_pages,
                (false, false) => self.inner_workspace_pages,
                (false, true) => self.last_workspace_pages,
            },
            kv_pages: kv_bytes.saturating_mul(kv_blocks).div_ceil(PAGE_BYTES),
        }
    }

    /// Cuts the model over devices that have so many pages each, in their order, such that each has about as much of
    /// it as it has room for. `None` when they do not suffice, or when one of them would have none of it.
    pub(super) fn cut(&self, pages: &[u64]) -> Option<Vec<Range<u32>>> {
        let last = pages.len().checked_sub(1)?;
        let rooms: Vec<u32> = pages
            .iter()
            .enumerate()
            .map(|(index, pages)| self.layers_on(*pages, index == 0, index == last))
            .collect();
        let room: u64 = rooms.iter().map(|room| u64::from(*room)).sum();
        let devices = u32::try_from(pages.len()).ok()?;
        if rooms.contains(&0) || room < self.layers.into() || devices > self.layers {
            return None;
        }
        // One layer each, and the others by what room is left then.
        let (others, spare) = (u64::from(self.layers - devices), room - u64::from(devices));
        let share = |room: u32| others * u64::from(room - 1) / spare.max(1);
        let share = |room: u32| u32::try_from(share(room)).expect("a share is no more than the room");
        let mut counts: Vec<u32> = rooms.iter().map(|room| 1 + share(*room)).collect();
        // What rounding left goes where the largest part of the room is left.
        for _ in counts.iter().sum::<u32>()..self.layers {
            let spare =
                |index: &usize| u64::from(rooms[*index] - counts[*index]) * PARTS / u64::from(rooms[*index]);
            let emptiest = (0..counts.len()).rev().max_by_key(spare);
            counts[emptiest.expect("there are devices")] += 1;
        }
        let mut start = 0;
        let ranges = counts.into_iter().map(|count| {
            start += count;
            start - count..start
        });
        Some(ranges.collect())
    }

    /// Blocks for keys and values that parts of these layers can have, each in so many pages beside its least: half of
    /// what is there, since others come.
    pub(super) fn kv_blocks(&self, parts: &[(Range<u32>, u64)]) -> u64 {
        let blocks = parts.iter().map(|(layers, spare_pages)| {
            let least = self.grant(layers, self.kv_blocks_min).kv_pages;
            let bytes = (least + spare_pages / 2).saturating_mul(PAGE_BYTES);
            let block_bytes = self.kv_layer_block_bytes * u64::from(layers.end - layers.start);
            bytes / block_bytes.max(1)
        });
        let blocks = blocks.min().unwrap_or(0);
        blocks.clamp(self.kv_blocks_min, self.kv_blocks_max.max(self.kv_blocks_min))
    }

    /// How many layers fit on so many pages beside the ends that belong there.
    fn layers_on(&self, pages: u64, is_first: bool, is_last: bool) -> u32 {
        let fits = |count: u32| {
            let start = if is_first { 0 } else { 1 };
            let layers = match is_last {
                true => self.layers - count..self.layers,
                false => start..start + count,
            };
            self.grant(&layers, self.kv_blocks_min).pages() <= pages
        };
        // Each of several devices has a layer, so none has all.
        let (mut fitting, mut beyond) = (0, self.layers);
        while beyond - fitting > 1 {
            let middle = fitting + (beyond - fitting) / 2;
            match fits(middle) {
                true => fitting = middle,
                false => beyond = middle,
            }
        }
        fitting
    }
}

/// In so many parts is it told how much of a device is left: more than any has layers.
const PARTS: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn needs() -> SplitNeeds {
        SplitNeeds {
            layers: 10,
            first_bytes: 6 * MIB,
            layer_bytes: 7 * MIB,
            last_bytes: 20 * MIB,
            first_workspace_pages: 3,
            inner_workspace_pages: 2,
            last_workspace_pages: 5,
            kv_layer_block_bytes: MIB / 4,
            kv_blocks_min: 8,
            kv_blocks_max: 64,
        }
    }

    #[test]
    fn part_takes_its_layers_and_the_ends_that_belong_to_it() {
        let needs = needs();
        let pages = |grant: Grant| (grant.weights_pages, grant.workspace_pages, grant.kv_pages);
        assert_eq!(pages(needs.grant(&(0..2), 8)), (10, 3, 2));
        assert_eq!(pages(needs.grant(&(2..5), 8)), (11, 2, 3));
        assert_eq!(pages(needs.grant(&(5..10), 16)), (28, 5, 10));
    }

    #[test]
    fn devices_without_room_for_a_layer_are_no_place() {
        assert_eq!(needs().cut(&[1000, 3, 1000]), None);
        assert_eq!(needs().cut(&[]), None);
        assert_eq!(needs().cut(&[40, 20]), None, "together they are too small");
    }

    #[test]
    fn keys_and_values_take_half_of_what_the_tightest_device_can_spare() {
        let needs = needs();
        let blocks = |spare: [u64; 2]| needs.kv_blocks(&[(0..4, spare[0]), (4..10, spare[1])]);
        assert_eq!(blocks([0, 1000]), 8);
        assert_eq!(blocks([16, 1000]), 24, "16 MiB more for blocks of 1 MiB");
        assert_eq!(blocks([1000, 1000]), 64);
    }

    proptest! {
        #[test]
        fn cut_model_is_whole_in_order_and_fits_on_each_device(
            pages in prop::collection::vec(0_u64..80, 2..6),
        ) {
            let needs = needs();
            let Some(cut) = needs.cut(&pages) else {
                let last = pages.len() - 1;
                let rooms = pages.iter().enumerate();
                let rooms: Vec<u32> = rooms
                    .map(|(index, pages)| needs.layers_on(*pages, index == 0, index == last))
                    .collect();
                let room: u32 = rooms.iter().sum();
                prop_assert!(rooms.contains(&0) || room < needs.layers);
                return Ok(());
            };
            prop_assert_eq!(cut.len(), pages.len());
            prop_assert_eq!((cut[0].start, cut[cut.len() - 1].end), (0, needs.layers));
            prop_assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start));
            for (layers, pages) in cut.iter().zip(pages) {
                prop_assert!(!layers.is_empty());
                prop_assert!(needs.grant(layers, needs.kv_blocks_min).pages() <= pages);
            }
        }
    }
}
