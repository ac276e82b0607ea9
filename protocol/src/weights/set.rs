//! Which segments of a manifest somebody has.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A set of segments, by their places in the manifest. On the wire a bit for each, the first one lowest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawSet", into = "RawSet")]
pub struct SegmentSet {
    /// Segments of the manifest.
    segments: usize,
    words: Vec<u64>,
}

/// Why bytes are no set.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SegmentSetError {
    /// More segments than any manifest has.
    #[error("a set of {segments} segments is larger than any manifest, at most {max}")]
    TooMany {
        /// What the set says.
        segments: u64,
        /// The limit.
        max: usize,
    },
    /// Another number of bytes than the segments take, or bits beyond the last one.
    #[error("{bytes} bytes with their bits are no set of {segments} segments")]
    Bits {
        /// Segments of the set.
        segments: usize,
        /// Bytes that came.
        bytes: usize,
    },
}

#[derive(Serialize, Deserialize)]
struct RawSet {
    segments: u64,
    bits: Bytes,
}

impl SegmentSet {
    /// Most segments of a manifest: 8 TiB of weights.
    pub const SEGMENTS_MAX: usize = 1 << 20;

    /// None of so many segments.
    ///
    /// # Panics
    /// More than [`Self::SEGMENTS_MAX`].
    #[must_use]
    pub fn none(segments: usize) -> Self {
        assert!(
            segments <= Self::SEGMENTS_MAX,
            "no manifest has {segments} segments"
        );
        let words = vec![0; segments.div_ceil(WORD_BITS)];
        Self { segments, words }
    }

    /// All of so many segments.
    ///
    /// # Panics
    /// More than [`Self::SEGMENTS_MAX`].
    #[must_use]
    pub fn all(segments: usize) -> Self {
        let mut all = Self::none(segments);
        all.words.fill(u64::MAX);
        if let Some(last) = all.words.last_mut() {
            *last >>= (WORD_BITS - segments % WORD_BITS) % WORD_BITS;
        }
        all
    }

    /// Segments of the manifest.
    #[must_use]
    pub const fn segments(&self) -> usize {
        self.segments
    }

    /// Segments in the set.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether no segment is in it.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether every segment is in it.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.count() == self.segments
    }

    /// Whether a segment is in it.
    ///
    /// # Panics
    /// The manifest has no such segment.
    #[must_use]
    pub fn contains(&self, segment: usize) -> bool {
        assert!(segment < self.segments, "segment {segment} of {}", self.segments);
        self.words[segment / WORD_BITS] >> (segment % WORD_BITS) & 1 == 1
    }

    /// Adds a segment.
    ///
    /// # Panics
    /// The manifest has no such segment.
    pub fn insert(&mut self, segment: usize) {
        assert!(segment < self.segments, "segment {segment} of {}", self.segments);
        self.words[segment / WORD_BITS] |= 1 << (segment % WORD_BITS);
    }

    /// Takes a segment out.
    ///
    /// # Panics
    /// The manifest has no such segment.
    pub fn remove(&mut self, segment: usize) {
        assert!(segment < self.segments, "segment {segment} of {}", self.segments);
        self.words[segment / WORD_BITS] &= !(1 << (segment % WORD_BITS));
    }

    /// Adds all segments of another set.
    ///
    /// # Panics
    /// The sets are of manifests with unlike numbers of segments.
    pub fn insert_all(&mut self, other: &Self) {
        assert_eq!(self.segments, other.segments, "sets of one manifest");
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// The segments that are not in it.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut rest = Self::all(self.segments);
        for (word, other) in rest.words.iter_mut().zip(&self.words) {
            *word &= !other;
        }
        rest
    }

    /// The segments in it, in the manifest's order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        (0..self.segments).filter(|segment| self.contains(*segment))
    }
}

impl From<SegmentSet> for RawSet {
    fn from(set: SegmentSet) -> Self {
        let mut bits: Vec<u8> = set.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bits.truncate(set.segments.div_ceil(8));
        Self {
            segments: set.segments as u64,
            bits: bits.into(),
        }
    }
}

impl TryFrom<RawSet> for SegmentSet {
    type Error = SegmentSetError;

    fn try_from(raw: RawSet) -> Result<Self, SegmentSetError> {
        let segments = usize::try_from(raw.segments).unwrap_or(usize::MAX);
        if segments > Self::SEGMENTS_MAX {
            return Err(SegmentSetError::TooMany {
                segments: raw.segments,
                max: Self::SEGMENTS_MAX,
            });
        }
        let bytes = raw.bits.len();
        let beyond = segments % 8 != 0 && raw.bits.last().is_some_and(|last| last >> (segments % 8) != 0);
        if bytes != segments.div_ceil(8) || beyond {
            return Err(SegmentSetError::Bits { segments, bytes });
        }
        let mut set = Self::none(segments);
        for (word, bytes) in set.words.iter_mut().zip(raw.bits.chunks(WORD_BITS / 8)) {
            let mut whole = [0; WORD_BITS / 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        Ok(set)
    }
}

const WORD_BITS: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Encoding;

    proptest! {
        #[test]
        fn set_comes_back_from_the_wire_with_its_segments(
            (segments, members) in (0_usize..300).prop_flat_map(|segments| {
                (Just(segments), prop::collection::btree_set(0..segments.max(1), 0..=segments))
            })
        ) {
            let mut set = SegmentSet::none(segments);
            members.iter().for_each(|segment| set.insert(*segment));
            let bytes = Encoding::MessagePack.encode(&set).unwrap();
            prop_assert!(bytes.len() < segments / 8 + 40);
            let back: SegmentSet = Encoding::MessagePack.decode(&bytes, 1 << 10).unwrap();
            prop_assert_eq!(back.iter().collect::<Vec<_>>(), members.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(back.count() + back.complement().count(), segments);
            prop_assert_eq!(back, set);
        }
    }

    #[test]
    fn bits_that_are_no_segments_are_refused() {
        let decode = |json: &str| Encoding::Json.decode::<SegmentSet>(json.as_bytes(), 1 << 10);
        assert_eq!(
            decode(r#"{"segments": 9, "bits": [255, 1]}"#).unwrap(),
            SegmentSet::all(9)
        );
        for bad in [
            r#"{"segments": 9, "bits": [255, 2]}"#,
            r#"{"segments": 9, "bits": [255]}"#,
            r#"{"segments": 8, "bits": [255, 0]}"#,
            r#"{"segments": 1048577, "bits": []}"#,
            r#"{"segments": 18446744073709551615, "bits": []}"#,
        ] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn removed_segment_is_missing() {
        let mut set = SegmentSet::all(65);
        assert!(set.is_all());
        set.remove(64);
        assert_eq!(set.complement().iter().collect::<Vec<_>>(), [64]);
        assert!(!set.is_all() && !set.contains(64));
    }
}
