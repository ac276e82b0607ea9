//! The part of a model that is there.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flotilla_protocol::weights::SegmentSet;
use flotilla_weights_core::Manifest;

use crate::folder::is_weights;

/// Files of which some segments are there.
#[derive(Debug)]
pub(super) struct Coming {
    manifest: Arc<Manifest>,
    folder: PathBuf,
    have: SegmentSet,
    /// Of each file, the places of its segments in the manifest, in the order of their bytes.
    of_file: Vec<Vec<usize>>,
}

impl Coming {
    pub(super) fn new(manifest: Arc<Manifest>, folder: PathBuf, have: SegmentSet) -> Self {
        let mut of_file = vec![Vec::new(); manifest.files().len()];
        for (place, segment) in manifest.segments().iter().enumerate() {
            of_file[segment.file].push(place);
        }
        for places in &mut of_file {
            places.sort_by_key(|place| manifest.segments()[*place].offset);
        }
        Self {
            manifest,
            folder,
            have,
            of_file,
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Notes a segment; `false` if it was known.
    pub(super) fn insert(&mut self, segment: usize) -> bool {
        let is_new = !self.have.contains(segment);
        self.have.insert(segment);
        is_new
    }

    /// Whether all files but those of weights are there.
    pub(super) fn is_described(&self) -> bool {
        let files = self.manifest.files().iter().zip(&self.of_file);
        let mut described = files.filter(|(file, _)| !is_weights(&file.path));
        described.all(|(_, places)| places.iter().all(|place| self.have.contains(*place)))
    }

    /// Whether bytes of a file are there.
    pub(super) fn has(&self, file: &Path, bytes: &Range<u64>) -> bool {
        self.covering(file, bytes)
            .is_some_and(|places| places.iter().all(|place| self.have.contains(*place)))
    }

    /// The place of the last segment that covers bytes of a file; after all others for a file that is not listed.
    pub(super) fn turn(&self, file: &Path, bytes: &Range<u64>) -> usize {
        match self.covering(file, bytes) {
            Some(places) => places.iter().copied().max().unwrap_or(0),
            None => self.manifest.segments().len(),
        }
    }

    /// The segments that bytes of a file are in; `None` of a file that is not listed.
    fn covering(&self, file: &Path, bytes: &Range<u64>) -> Option<&[usize]> {
        let files = self.manifest.files();
        let index = files.iter().position(|listed| Path::new(&listed.path) == file)?;
        let (places, segments) = (&self.of_file[index], self.manifest.segments());
        let first = places.partition_point(|place| {
            let segment = segments[*place];
            segment.offset + segment.bytes <= bytes.start
        });
        let end = places.partition_point(|place| segments[*place].offset < bytes.end);
        Some(&places[first..end.max(first)])
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::weights::SegmentId;
    use flotilla_weights_core::{ManifestFile, Segment};

    use super::*;

    /// Two files of 30 bytes in segments of 10: the weights are listed out of the order of their bytes.
    fn coming() -> Coming {
        let file = |path: &str| ManifestFile {
            path: path.to_owned(),
            bytes: 30,
        };
        let segment = |file, offset| Segment {
            id: SegmentId::new([7; 32]),
            file,
            offset,
            bytes: 10,
        };
        let places = [(0, 0), (0, 10), (0, 20), (1, 0), (1, 20), (1, 10)];
        let segments = places.map(|(file, offset)| segment(file, offset)).to_vec();
        let manifest = Manifest::new(vec![file("config.json"), file("model.safetensors")], segments);
        let manifest = Arc::new(manifest.unwrap());
        let none = SegmentSet::none(manifest.segments().len());
        Coming::new(manifest, PathBuf::from("folder"), none)
    }

    #[test]
    fn bytes_are_there_with_all_segments_that_they_are_in() {
        let mut coming = coming();
        let weights = Path::new("model.safetensors");
        assert!(!coming.has(weights, &(0..1)));
        assert!(coming.insert(4) && !coming.insert(4));
        let there = |coming: &Coming, bytes: Range<u64>| coming.has(weights, &bytes);
        assert!(there(&coming, 20..30) && there(&coming, 22..23));
        assert!(!there(&coming, 19..30) && !there(&coming, 0..30));
        coming.insert(5);
        assert!(there(&coming, 10..30) && there(&coming, 15..25) && !there(&coming, 9..11));
        coming.insert(3);
        assert!(there(&coming, 0..30) && there(&coming, 7..7));
        assert!(!coming.has(Path::new("other.safetensors"), &(0..1)));
    }

    #[test]
    fn model_is_described_by_all_files_but_its_weights() {
        let mut coming = coming();
        for place in [3, 0, 1] {
            coming.insert(place);
            assert!(!coming.is_described());
        }
        coming.insert(2);
        assert!(coming.is_described());
    }

    #[test]
    fn turn_of_bytes_is_that_of_the_last_segment_that_they_need() {
        let coming = coming();
        let turn = |bytes| coming.turn(Path::new("model.safetensors"), &bytes);
        assert_eq!((turn(0..10), turn(20..30), turn(10..20)), (3, 4, 5));
        assert_eq!((turn(5..25), turn(15..25)), (5, 5));
        assert_eq!(coming.turn(Path::new("other.safetensors"), &(0..1)), 6);
    }
}
