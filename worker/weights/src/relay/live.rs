//! Taking chunks live, as they are published, and putting them together.

use std::collections::BTreeMap;

use async_nats::{HeaderMap, Subscriber};
use flotilla_weights_core::SEGMENT_BYTES_MAX;
use futures_util::StreamExt;

use crate::buffers::{Buffer, Buffers};

use super::{CopyName, MANIFEST_TOKEN, OFFSET_HEADER, Relay, RelayError};

/// The chunks of one copy, from the moment of the subscription on.
#[derive(Debug)]
pub struct LiveChunks {
    subscriber: Subscriber,
    /// Segments of which some chunks are there.
    open: BTreeMap<usize, Assembly>,
    buffers: Buffers,
}

/// What came with a chunk.
#[derive(Debug)]
pub enum Part {
    /// A part of a segment; more are to come.
    Some {
        /// Which segment.
        segment: usize,
    },
    /// The last part of a segment that was missing; these are all its bytes.
    Last {
        /// Which segment.
        segment: usize,
        /// Its bytes, not compared with anything yet.
        bytes: Buffer,
    },
}

#[derive(Debug)]
struct Assembly {
    bytes: Buffer,
    /// Where parts that arrived begin and how long they are.
    parts: BTreeMap<usize, usize>,
}

impl Relay {
    /// Listens to the chunks of a copy. Those that arrive while nobody takes them and the subscription is full are
    /// lost.
    ///
    /// # Errors
    /// [`RelayError::Read`].
    pub async fn live(&self, name: CopyName, buffers: Buffers) -> Result<LiveChunks, RelayError> {
        let subject = format!("$O.{}.C.{}.{}.*", self.bucket, name.root, name.generation);
        Ok(LiveChunks {
            subscriber: self.subscribe(subject).await?,
            open: BTreeMap::new(),
            buffers,
        })
    }
}

impl LiveChunks {
    /// The next part of a segment whose length is known; `None` when the connection is closed. Chunks of segments
    /// that are not wanted, by their places in the manifest, are dropped. Cancel safe: a part that was taken is
    /// kept.
    pub async fn next(&mut self, segment_bytes: &(dyn Fn(usize) -> Option<u64> + Sync)) -> Option<Part> {
        loop {
            let message = self.subscriber.next().await?;
            let Some((segment, offset)) = place(&message.subject, message.headers.as_ref()) else {
                continue;
            };
            let Some(bytes) = segment_bytes(segment) else {
                self.open.remove(&segment);
                continue;
            };
            if let Some(part) = self.take(segment, offset, &message.payload, bytes) {
                return Some(part);
            }
        }
    }

    fn take(&mut self, segment: usize, offset: usize, payload: &[u8], bytes: u64) -> Option<Part> {
        let bytes = usize::try_from(bytes.min(SEGMENT_BYTES_MAX)).ok()?;
        let end = offset.checked_add(payload.len()).filter(|end| *end <= bytes)?;
        if self.open.len() >= OPEN_MAX && !self.open.contains_key(&segment) {
            // The one that began first has lost a chunk long ago; it is repaired as a whole.
            let first = *self.open.keys().next()?;
            self.open.remove(&first);
        }
        let buffers = &self.buffers;
        let assembly = self.open.entry(segment).or_insert_with(|| Assembly {
            bytes: buffers.take(bytes),
            parts: BTreeMap::new(),
        });
        assembly.bytes[offset..end].copy_from_slice(payload);
        assembly.parts.insert(offset, payload.len());
        if !assembly.is_whole() {
            return Some(Part::Some { segment });
        }
        let bytes = self.open.remove(&segment)?.bytes;
        Some(Part::Last { segment, bytes })
    }
}

impl Assembly {
    /// Whether the parts cover all bytes; what covers them twice is for the hash to judge.
    fn is_whole(&self) -> bool {
        let mut covered = 0;
        for (offset, bytes) in &self.parts {
            if *offset > covered {
                return false;
            }
            covered = covered.max(offset + bytes);
        }
        covered == self.bytes.len()
    }
}

/// Which segment a chunk is of, and where in it.
fn place(subject: &str, headers: Option<&HeaderMap>) -> Option<(usize, usize)> {
    let token = subject
        .rsplit('.')
        .next()
        .filter(|token| *token != MANIFEST_TOKEN)?;
    let offset = headers?.get(OFFSET_HEADER)?.as_str();
    Some((token.parse().ok()?, offset.parse().ok()?))
}

/// Segments that are put together at once: what a sender has under way, and some that will not be complete.
const OPEN_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_whole_when_every_byte_is_covered(cuts in prop::collection::btree_set(1_usize..100, 0..8), order: u64) {
            let mut starts: Vec<usize> = std::iter::once(0).chain(cuts).collect();
            let ends: Vec<usize> = starts[1..].iter().copied().chain([100]).collect();
            let mut parts: Vec<(usize, usize)> = starts.drain(..).zip(ends).collect();
            let rotation = usize::try_from(order % parts.len() as u64).unwrap();
            parts.rotate_left(rotation);
            let mut assembly = Assembly { bytes: Buffers::new(0).take(100), parts: BTreeMap::new() };
            for (index, (start, end)) in parts.iter().enumerate() {
                prop_assert_eq!(assembly.is_whole(), false, "before part {}", index);
                assembly.parts.insert(*start, end - start);
            }
            prop_assert!(assembly.is_whole());
        }
    }

    #[test]
    fn chunk_says_its_place_and_the_manifest_is_no_segment() {
        let mut headers = HeaderMap::new();
        headers.insert(OFFSET_HEADER, "1048576");
        assert_eq!(place("$O.b.C.ab.00.17", Some(&headers)), Some((17, 1 << 20)));
        assert_eq!(place("$O.b.C.ab.00.m", Some(&headers)), None);
        assert_eq!(place("$O.b.C.ab.00.17", None), None);
        headers.insert(OFFSET_HEADER, "-1");
        assert_eq!(place("$O.b.C.ab.00.17", Some(&headers)), None);
    }
}
