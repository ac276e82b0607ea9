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
    /// The first block of each bucket.
    buckets: Vec<Option<u32>>,
    hashing: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    parent: Option<u32>,
    bucket: usize,
    next_in_bucket: Option<u32>,
}

impl BlockIndex {
    pub(super) fn new(total: u32, block_tokens: usize) -> Self {
        let total = total as usize;
        Self {
            block_tokens,
            tokens: vec![0; total * block_tokens],
            entries: vec![None; total],
            buckets: vec![None; total.max(1)],
            hashing: RandomState::new(),
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

    /// Enters a block whose identity is not there yet; `tokens` are `block_tokens`.
    pub(super) fn insert(&mut self, block: u32, parent: Option<u32>, tokens: &[u32]) {
        let bucket = self.bucket(parent, tokens);
        let start = block as usize * self.block_tokens;
        self.tokens[start..start + self.block_tokens].copy_from_slice(tokens);
        self.entries[block as usize] = Some(Entry {
            parent,
            bucket,
            next_in_bucket: self.buckets[bucket].replace(block),
        });
    }

    /// Takes out a block that is there and is nobody's parent.
    pub(super) fn remove(&mut self, block: u32) {
        let entry = self.entries[block as usize]
            .take()
            .expect("only entered blocks leave");
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

    /// A block's parent and tokens; `None` when it is not there.
    pub(super) fn identity(&self, block: u32) -> Option<(Option<u32>, &[u32])> {
        let entry = self.entries[block as usize]?;
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
        /// As many blocks as buckets: some share one, whatever the hash, and are told apart all the same.
        #[test]
        fn blocks_are_found_by_parent_and_tokens_and_by_nothing_else(
            steps in prop::collection::vec((0..TOTAL, prop::option::of(0..3_u32), 0..3_u32, 0..3_u32), 0..200),
        ) {
            let mut index = BlockIndex::new(TOTAL, 2);
            let mut known = BTreeMap::new();
            for (block, parent, first, second) in steps {
                let identity = (parent, [first, second]);
                if let Some((parent, tokens)) = index.identity(block) {
                    prop_assert_eq!(known.remove(&(parent, [tokens[0], tokens[1]])), Some(block));
                    index.remove(block);
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
