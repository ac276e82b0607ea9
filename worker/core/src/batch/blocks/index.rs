//! Which cached block holds which tokens.

use std::hash::{BuildHasher, RandomState};

/// Finds cached blocks by their identity: their parent and their own tokens.
///
/// A parent is named by its block, which keeps its meaning because a parent is never taken out before its
/// children. Identities are compared in full; the hash only says where to look. It is keyed at random so
/// that nobody can choose prompts that all fall into one bucket, and decides nothing but the time it takes.
#[derive(Debug)]
pub(super) struct BlockIndex {
    block_tokens: usize,
    /// What each block holds; \[total, block_tokens].
    tokens: Vec<u32>,
    entries: Vec<Option<Entry>>,
    /// The first block of each bucket; as many as blocks, about.
    buckets: Vec<Option<u32>>,
    hashing: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    parent: Option<u32>,
    bucket: usize,
    next_in_bucket: Option<u32>,
    first_child: Option<u32>,
    /// Children of the same parent.
    older_sibling: Option<u32>,
    newer_sibling: Option<u32>,
}

impl BlockIndex {
    pub(super) fn new(block_tokens: usize) -> Self {
        Self {
            block_tokens,
            tokens: Vec::new(),
            entries: Vec::new(),
            buckets: vec![None],
            hashing: RandomState::new(),
        }
    }

    /// Makes room for blocks `0..total`, which are no fewer than before.
    pub(super) fn grow(&mut self, total: usize) {
        self.tokens.resize(total * self.block_tokens, 0);
        self.entries.resize(total, None);
        if total > self.buckets.len() {
            self.spread(total.next_power_of_two());
        }
    }

    /// The block that holds `tokens` after those of `parent` and its parents.
    pub(super) fn find(&self, parent: Option<u32>, tokens: &[u32]) -> Option<u32> {
        let mut next = self.buckets[self.bucket(parent, tokens)];
        while let Some(block) = next {
            let entry = self.entries[block as usize].expect("a bucket lists entries");
            if entry.parent == parent && self.tokens_of(block) == tokens {
                return Some(block);
            }
            next = entry.next_in_bucket;
        }
        None
    }

    /// Enters a block whose identity is not there yet; `tokens` are `block_tokens`, and the parent is there.
    pub(super) fn insert(&mut self, block: u32, parent: Option<u32>, tokens: &[u32]) {
        let bucket = self.bucket(parent, tokens);
        let start = block as usize * self.block_tokens;
        self.tokens[start..start + self.block_tokens].copy_from_slice(tokens);
        let older_sibling = parent.and_then(|parent| self.entry_mut(parent).first_child.replace(block));
        if let Some(older) = older_sibling {
            self.entry_mut(older).newer_sibling = Some(block);
        }
        self.entries[block as usize] = Some(Entry {
            parent,
            bucket,
            next_in_bucket: self.buckets[bucket].replace(block),
            first_child: None,
            older_sibling,
            newer_sibling: None,
        });
    }

    /// Takes out a block that is there and is nobody's parent.
    pub(super) fn remove(&mut self, block: u32) {
        let entry = self.entries[block as usize]
            .take()
            .expect("only entered blocks leave");
        assert_eq!(entry.first_child, None, "children leave before their parents");
        match (entry.newer_sibling, entry.parent) {
            (Some(newer), _) => self.entry_mut(newer).older_sibling = entry.older_sibling,
            (None, Some(parent)) => self.entry_mut(parent).first_child = entry.older_sibling,
            (None, None) => {}
        }
        if let Some(older) = entry.older_sibling {
            self.entry_mut(older).newer_sibling = entry.newer_sibling;
        }
        self.take_from_bucket(block, &entry);
    }

    /// The block from which to begin if a block is to leave with all that come after it: one of them without
    /// children, or itself.
    pub(super) fn leaf_below(&self, block: u32) -> u32 {
        let child = |block: &u32| self.entries[*block as usize].and_then(|entry| entry.first_child);
        std::iter::successors(Some(block), child).last().unwrap_or(block)
    }

    fn take_from_bucket(&mut self, block: u32, entry: &Entry) {
        let mut before = None;
        let mut next = self.buckets[entry.bucket];
        while let Some(other) = next.filter(|other| *other != block) {
            before = next;
            next = self.entries[other as usize].and_then(|other| other.next_in_bucket);
        }
        match before.and_then(|before| self.entries[before as usize].as_mut()) {
            Some(before) => before.next_in_bucket = entry.next_in_bucket,
            None => self.buckets[entry.bucket] = entry.next_in_bucket,
        }
    }

    /// Puts all blocks into so many new buckets.
    fn spread(&mut self, count: usize) {
        self.buckets.clear();
        self.buckets.resize(count, None);
        for block in 0..self.entries.len() {
            let Some(Entry { parent, .. }) = self.entries[block] else {
                continue;
            };
            let block = u32::try_from(block).expect("blocks are counted as u32");
            let bucket = self.bucket(parent, self.tokens_of(block));
            let next_in_bucket = self.buckets[bucket].replace(block);
            let entry = self.entry_mut(block);
            (entry.bucket, entry.next_in_bucket) = (bucket, next_in_bucket);
        }
    }

    fn entry_mut(&mut self, block: u32) -> &mut Entry {
        let entry = self.entries[block as usize].as_mut();
        entry.expect("parents and siblings are entered")
    }

    /// A block's parent and tokens; `None` when it is not there.
    pub(super) fn identity(&self, block: u32) -> Option<(Option<u32>, &[u32])> {
        let entry = (*self.entries.get(block as usize)?)?;
        Some((entry.parent, self.tokens_of(block)))
    }

    fn tokens_of(&self, block: u32) -> &[u32] {
        &self.tokens[block as usize * self.block_tokens..][..self.block_tokens]
    }

    fn bucket(&self, parent: Option<u32>, tokens: &[u32]) -> usize {
        let hash = self.hashing.hash_one((parent, tokens)) % self.buckets.len() as u64;
        usize::try_from(hash).expect("the number of buckets is a usize")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::btree_map::Entry;

    use proptest::prelude::*;

    use super::BlockIndex;

    const TOTAL: u32 = 24;

    proptest! {
        /// About as many blocks as buckets: some share one, whatever the hash, and are told apart all the same.
        /// Who leaves takes all that come after it along.
        #[test]
        fn blocks_are_found_by_parent_and_tokens_and_by_nothing_else(
            steps in prop::collection::vec((0..TOTAL, prop::option::of(0..3_u32), 0..3_u32, 0..3_u32), 0..200),
        ) {
            let mut index = BlockIndex::new(2);
            let mut known = BTreeMap::new();
            let mut total = 0;
            for (block, parent, first, second) in steps {
                total = total.max(block as usize + 1);
                index.grow(total);
                let identity = (parent, [first, second]);
                if index.identity(block).is_some() {
                    let mut next = block;
                    while index.identity(block).is_some() {
                        next = index.leaf_below(next);
                        let (parent, tokens) = index.identity(next).unwrap();
                        prop_assert_eq!(known.remove(&(parent, [tokens[0], tokens[1]])), Some(next));
                        index.remove(next);
                        next = parent.unwrap_or(block);
                    }
                } else if parent.is_some_and(|parent| index.identity(parent).is_none()) {
                    continue;
                } else if let Entry::Vacant(unknown) = known.entry(identity) {
                    index.insert(block, parent, &identity.1);
                    unknown.insert(block);
                }
                for parent in [None, Some(0), Some(1), Some(2)] {
                    for tokens in (0..9).map(|n| [n / 3, n % 3]) {
                        let expected = known.get(&(parent, tokens)).copied();
                        prop_assert_eq!(index.find(parent, &tokens), expected);
                    }
                }
            }
        }
    }
}
