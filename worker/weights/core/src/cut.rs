//! Where files are cut into segments.
//!
//! A segment begins where a tensor does, or at a multiple of the segment size after that, so that a model with some
//! changed tensors has the segments of the others in common with its original: fine-tunes change tensors in place
//! and do not move bytes within one.

use std::ops::Range;

use crate::order::{Rank, rank};

/// Most bytes of a segment.
pub const SEGMENT_BYTES_MAX: u64 = 8 << 20;

/// What is known about a file before it is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLayout {
    /// Bytes of the file.
    pub bytes: u64,
    /// Its tensors with their places; none of a file that holds no tensors. What lies before, between and after
    /// them belongs to the file's description.
    pub tensors: Vec<(String, Range<u64>)>,
}

/// A part of a file that becomes a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which file.
    pub file: usize,
    /// Where it begins.
    pub offset: u64,
    /// Its bytes, from 1 to [`SEGMENT_BYTES_MAX`].
    pub bytes: u64,
}

/// Cuts files into pieces that cover each byte of them once, in the order in which a load wants them.
///
/// # Panics
/// Tensors that overlap or lie outside their file.
#[must_use]
pub fn cut(files: &[FileLayout]) -> Vec<Piece> {
    let mut ranked: Vec<(Rank, Piece)> = Vec::new();
    for (file, layout) in files.iter().enumerate() {
        let mut open: Option<(Rank, Piece)> = None;
        for (rank, place) in parts(layout) {
            let part = Piece {
                file,
                offset: place.start,
                bytes: place.end - place.start,
            };
            // Small neighbours travel together, as long as they are wanted at about the same time.
            match &mut open {
                Some((opened, piece)) if *opened == rank && piece.bytes + part.bytes <= SEGMENT_BYTES_MAX => {
                    piece.bytes += part.bytes;
                }
                _ => {
                    ranked.extend(open.take());
                    let mut split = split(part);
                    open = split.pop().map(|last| (rank, last));
                    ranked.extend(split.into_iter().map(|piece| (rank, piece)));
                }
            }
        }
        ranked.extend(open);
    }
    // Stable: pieces of one rank stay in the order of files and bytes.
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, piece)| piece).collect()
}

/// The tensors of a file, and what lies around them, in the order of their bytes.
fn parts(layout: &FileLayout) -> Vec<(Rank, Range<u64>)> {
    let mut tensors: Vec<&(String, Range<u64>)> = layout.tensors.iter().collect();
    tensors.sort_by_key(|(_, place)| (place.start, place.end));
    let mut parts = Vec::with_capacity(tensors.len() + 1);
    let mut covered = 0;
    for (name, place) in tensors {
        assert!(
            covered <= place.start && place.start <= place.end,
            "tensors do not overlap"
        );
        parts.push((Rank::Description, covered..place.start));
        parts.push((rank(name), place.clone()));
        covered = place.end;
    }
    assert!(covered <= layout.bytes, "tensors lie inside their file");
    parts.push((Rank::Description, covered..layout.bytes));
    parts.retain(|(_, place)| !place.is_empty());
    parts
}

/// Pieces of the largest size, and what is left.
fn split(part: Piece) -> Vec<Piece> {
    let count = part.bytes.div_ceil(SEGMENT_BYTES_MAX);
    let piece = |index| {
        let before = index * SEGMENT_BYTES_MAX;
        Piece {
            offset: part.offset + before,
            bytes: SEGMENT_BYTES_MAX.min(part.bytes - before),
            ..part
        }
    };
    (0..count).map(piece).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn tensor(name: &str, place: Range<u64>) -> (String, Range<u64>) {
        (name.to_owned(), place)
    }

    fn starts(pieces: &[Piece]) -> Vec<(usize, u64, u64)> {
        pieces
            .iter()
            .map(|piece| (piece.file, piece.offset, piece.bytes))
            .collect()
    }

    #[test]
    fn large_tensor_is_split_and_small_neighbours_travel_together() {
        let layout = FileLayout {
            bytes: 100 + 22 * MIB,
            tensors: vec![
                tensor("model.layers.0.a", 100..100 + 20 * MIB),
                tensor("model.layers.0.b", 100 + 20 * MIB..100 + 21 * MIB),
                tensor("model.layers.1.a", 100 + 21 * MIB..100 + 22 * MIB),
            ],
        };
        assert_eq!(
            starts(&cut(&[layout])),
            [
                (0, 0, 100),
                (0, 100, 8 * MIB),
                (0, 100 + 8 * MIB, 8 * MIB),
                // What is left of the large one, and its neighbour of the same layer.
                (0, 100 + 16 * MIB, 5 * MIB),
                (0, 100 + 21 * MIB, MIB),
            ]
        );
    }

    #[test]
    fn description_comes_first_and_the_head_last_wherever_they_lie() {
        let text = |bytes| FileLayout {
            bytes,
            tensors: Vec::new(),
        };
        let first = FileLayout {
            bytes: 40,
            tensors: vec![
                tensor("lm_head.weight", 10..20),
                tensor("model.embed_tokens.weight", 20..30),
                tensor("model.layers.1.a", 30..40),
            ],
        };
        let second = FileLayout {
            bytes: 20,
            tensors: vec![tensor("model.layers.0.a", 10..20)],
        };
        let pieces = cut(&[first, second, text(7), text(0)]);
        assert_eq!(
            starts(&pieces),
            [
                (0, 0, 10),
                (1, 0, 10),
                (2, 0, 7),
                (0, 20, 10),
                (1, 10, 10),
                (0, 30, 10),
                (0, 10, 10)
            ]
        );
    }

    #[test]
    fn tensors_that_did_not_change_keep_their_pieces() {
        let layout = |header: u64| FileLayout {
            bytes: header + 40 * MIB,
            tensors: (0..10)
                .map(|layer| {
                    let start = header + layer * 4 * MIB;
                    tensor(&format!("model.layers.{layer}.a"), start..start + 4 * MIB)
                })
                .collect(),
        };
        // A longer header moves every tensor and cuts none of them elsewhere.
        let relative = |header| {
            let pieces = cut(&[layout(header)]);
            pieces[1..]
                .iter()
                .map(|piece| (piece.offset - header, piece.bytes))
                .collect::<Vec<_>>()
        };
        assert_eq!(relative(100), relative(5000));
    }

    proptest! {
        #[test]
        fn pieces_cover_every_byte_once(
            files in prop::collection::vec(
                (0_u64..100, prop::collection::vec((0_u32..4, 0_u64..30_000_000, 0_u64..50), 0..12), 0_u64..100), 0..5),
        ) {
            let layouts: Vec<FileLayout> = files.iter().map(|(header, tensors, rest)| {
                let mut at = *header;
                let tensors = tensors.iter().enumerate().map(|(index, (layer, bytes, gap))| {
                    let place = at..at + bytes;
                    at = place.end + gap;
                    (format!("layers.{layer}.t{index}"), place)
                }).collect();
                FileLayout { bytes: at + rest, tensors }
            }).collect();
            let pieces = cut(&layouts);
            for (file, layout) in layouts.iter().enumerate() {
                let mut places: Vec<(u64, u64)> = pieces.iter()
                    .filter(|piece| piece.file == file)
                    .map(|piece| (piece.offset, piece.bytes))
                    .collect();
                places.sort_unstable();
                let mut covered = 0;
                for (offset, bytes) in places {
                    prop_assert_eq!(offset, covered);
                    prop_assert!((1..=SEGMENT_BYTES_MAX).contains(&bytes));
                    covered += bytes;
                }
                prop_assert_eq!(covered, layout.bytes);
            }
        }
    }
}
