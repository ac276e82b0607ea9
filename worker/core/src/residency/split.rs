//! Where a model goes that no single device can hold: on the fewest devices that can, together.
//!
//! Of all such sets of devices, and of some ways to cut the model over each, that one is taken which is soonest,
//! disturbs the fewest and costs least: by what is free now, by what is coming, with victims on one device alone, and
//! with victims on all. Devices keep the order of their indices, so the last one has the last layers.

use std::ops::Range;

use flotilla_protocol::{ModelName, Moment};

use super::Residency;
use super::room::{Own, Placement, Room, Spot};
use super::shard::{Part, Shard, SplitNeeds};
use super::victims::Victims;

/// What a device has for a newcomer beside what those before it claim.
struct Rooms {
    free: u64,
    coming: u64,
    at_most: u64,
}

impl Residency {
    /// The best place for a model in parts; `None` when all devices together would not suffice, even alone with what
    /// is pinned.
    pub(super) fn place_split(
        &self,
        now: Moment,
        model: &ModelName,
        needs: &SplitNeeds,
        claims: &[Room],
    ) -> Option<Spot> {
        let open = self
            .working()
            .filter(|index| self.site(*index, 0).at_most.places > 0);
        let open: Vec<usize> = open.collect();
        (2..=open.len()).find_map(|count| {
            let spots = sets(&open, count).into_iter();
            let spots = spots.filter_map(|set| self.place_over(now, model, needs, &set, claims));
            spots.min_by_key(|spot| spot.placement.rank())
        })
    }

    /// The best way to cut a model over these devices; `None` when they do not suffice.
    fn place_over(
        &self,
        now: Moment,
        model: &ModelName,
        needs: &SplitNeeds,
        set: &[usize],
        claims: &[Room],
    ) -> Option<Spot> {
        let rooms: Vec<Rooms> = set
            .iter()
            .map(|index| self.rooms(*index, claims[*index]))
            .collect();
        let pages = |of: fn(&Rooms) -> u64| rooms.iter().map(of).collect::<Vec<u64>>();
        let (coming, at_most) = (pages(|room| room.coming), pages(|room| room.at_most));
        let emptied_one = (0..set.len()).map(|emptied| {
            let mut pages = coming.clone();
            pages[emptied] = at_most[emptied];
            pages
        });
        let spot = |pages: &[u64]| {
            let cut = needs.cut(pages)?;
            Some(self.spot_of(now, model, needs, (set, &cut), claims))
        };
        // What is free changes with what pools are told: a cut by it is for a load at once and never for a wait, or
        // each look would ask the pools for other pages.
        let at_once = spot(&pages(|room| room.free));
        let at_once = at_once.filter(|spot| matches!(spot.placement, Placement::Load { .. }));
        if at_once.is_some() {
            return at_once;
        }
        let ways = [coming.clone()]
            .into_iter()
            .chain(emptied_one)
            .chain([at_most.clone()]);
        let spots = ways.filter_map(|pages| spot(&pages));
        spots.min_by_key(|spot| spot.placement.rank())
    }

    fn rooms(&self, index: usize, claim: Room) -> Rooms {
        let site = self.site(index, claim.kv_pages_min);
        let busy = self.kv_pages_busy_beyond(index, site.coming.kv_pages_min);
        Rooms {
            free: site.free.pages.saturating_sub(claim.pages),
            coming: site.coming.pages.saturating_sub(claim.pages.saturating_add(busy)),
            at_most: site.at_most.pages,
        }
    }

    fn spot_of(
        &self,
        now: Moment,
        model: &ModelName,
        needs: &SplitNeeds,
        (set, cut): (&[usize], &[Range<u32>]),
        claims: &[Room],
    ) -> Spot {
        let placements = set.iter().zip(cut).map(|(index, layers)| {
            let own = Own {
                pages: needs.grant(layers, needs.kv_blocks_min).pages(),
                kv_pages_min: 0,
            };
            self.placement(now, model, *index, own, claims[*index])
        });
        let placement = together(placements);
        let kv_blocks = match placement {
            Placement::Load { .. } => self.kv_blocks(needs, (set, cut), claims),
            Placement::Coming | Placement::InUse | Placement::Evict(_) | Placement::Blocked => {
                needs.kv_blocks_min
            }
        };
        let shards = set.iter().zip(cut).map(|(index, layers)| Shard {
            device: self.device_at(*index),
            grant: needs.grant(layers, kv_blocks),
            part: Some(Part {
                first_layer: layers.start,
                layers: layers.end - layers.start,
                kv_blocks,
            }),
        });
        Spot {
            sites: set.to_vec(),
            shards: shards.collect(),
            placement,
        }
    }

    /// Blocks for keys and values of a model that is loaded now.
    fn kv_blocks(&self, needs: &SplitNeeds, (set, cut): (&[usize], &[Range<u32>]), claims: &[Room]) -> u64 {
        let parts = set.iter().zip(cut).map(|(index, layers)| {
            let least = needs.grant(layers, needs.kv_blocks_min).pages();
            let free = self.rooms(*index, claims[*index]).free;
            (layers.clone(), free.saturating_sub(least))
        });
        needs.kv_blocks(&parts.collect::<Vec<_>>())
    }
}

/// What is to be done when each of several devices needs this.
fn together(placements: impl Iterator<Item = Placement>) -> Placement {
    let (mut leases, mut left_pages) = (0, 0);
    let (mut victims, mut is_in_use, mut is_coming) = (Victims::default(), false, false);
    for placement in placements {
        match placement {
            Placement::Blocked => return Placement::Blocked,
            Placement::Evict(here) => victims.join(here),
            Placement::InUse => is_in_use = true,
            Placement::Coming => is_coming = true,
            Placement::Load {
                leases: here,
                left_pages: left,
            } => {
                leases += here;
                left_pages += left;
            }
        }
    }
    if !victims.models.is_empty() {
        Placement::Evict(victims)
    } else if is_in_use {
        Placement::InUse
    } else if is_coming {
        Placement::Coming
    } else {
        Placement::Load { leases, left_pages }
    }
}

/// Every set of so many of these, in order. A worker has few devices: of 8 there are at most 70 such sets.
fn sets(of: &[usize], count: usize) -> Vec<Vec<usize>> {
    let Some((first, others)) = of.split_first() else {
        return if count == 0 { vec![Vec::new()] } else { Vec::new() };
    };
    if count == 0 {
        return vec![Vec::new()];
    }
    let with_first = sets(others, count - 1).into_iter().map(|mut set| {
        set.insert(0, *first);
        set
    });
    with_first.chain(sets(others, count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_all_of_their_size_once_and_in_order() {
        assert_eq!(sets(&[3, 5, 7], 2), [[3, 5], [3, 7], [5, 7]]);
        assert_eq!(sets(&[3, 5], 2), [[3, 5]]);
        assert!(sets(&[3], 2).is_empty());
    }
}
