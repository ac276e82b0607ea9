//! Slabs, of which the first is quickly found.

/// A set of slabs, one bit for each.
#[derive(Debug, Default)]
pub(super) struct SlabSet {
    words: Vec<u64>,
    /// No word before this one has a member.
    first_word: usize,
}

impl SlabSet {
    pub(super) fn set(&mut self, index: u32, is_member: bool) {
        if is_member {
            self.insert(index);
        } else {
            self.remove(index);
        }
    }

    pub(super) fn insert(&mut self, index: u32) {
        let (word, bit) = place(index);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit;
        self.first_word = self.first_word.min(word);
    }

    /// Takes a slab out; one that is not there is no fault.
    pub(super) fn remove(&mut self, index: u32) {
        let (word, bit) = place(index);
        if let Some(word) = self.words.get_mut(word) {
            *word &= !bit;
        }
        while self.words.get(self.first_word) == Some(&0) {
            self.first_word += 1;
        }
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        let (word, bit) = place(index);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    pub(super) fn first(&self) -> Option<u32> {
        let words = self.words.iter().enumerate().skip(self.first_word);
        let (at, word) = words.into_iter().find(|(_, word)| **word != 0)?;
        let index = at * u64::BITS as usize + word.trailing_zeros() as usize;
        Some(u32::try_from(index).expect("members are u32"))
    }
}

fn place(index: u32) -> (usize, u64) {
    ((index / u64::BITS) as usize, 1 << (index % u64::BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::SlabSet;

    proptest! {
        #[test]
        fn set_is_that_of_its_members(steps in prop::collection::vec((0..300_u32, any::<bool>()), 0..200)) {
            let (mut set, mut known) = (SlabSet::default(), BTreeSet::new());
            for (index, is_member) in steps {
                set.set(index, is_member);
                if is_member {
                    known.insert(index);
                } else {
                    known.remove(&index);
                }
                prop_assert_eq!(set.first(), known.first().copied());
                prop_assert_eq!(set.contains(index), is_member);
            }
        }
    }
}
