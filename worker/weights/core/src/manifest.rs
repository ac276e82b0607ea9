//! What a model's files are made of.

use std::collections::HashSet;

use bytes::Bytes;
use flotilla_protocol::weights::{Root, SegmentId, SegmentSet};
use flotilla_protocol::{DecodeError, Encoding};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cut::SEGMENT_BYTES_MAX;

/// The files of a model and the segments that they are made of, in the order in which a load wants them.
///
/// It is written down as JSON, and its [`Root`] is the hash of just these bytes. It lists no tensors: the headers of
/// the files do, and travel with the first segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    files: Vec<ManifestFile>,
    segments: Vec<Segment>,
    json: Bytes,
    root: Root,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Its path in the model's folder, with `/` between the parts.
    pub path: String,
    /// Its length.
    pub bytes: u64,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// The hash of its bytes.
    pub id: SegmentId,
    /// Its file's place in the list of files.
    pub file: usize,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length, from 1 to [`SEGMENT_BYTES_MAX`].
    pub bytes: u64,
}

impl Segment {
    /// Its length in memory.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        usize::try_from(self.bytes).expect("a checked segment fits into memory")
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    /// The version of this format.
    flotilla_manifest: u32,
    files: Vec<ManifestFile>,
    segments: Vec<Segment>,
}

/// Why bytes are no manifest that may be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not the bytes that were asked for.
    #[error("the manifest of {expected} has the hash {found}")]
    OtherRoot {
        /// The root that was asked for.
        expected: Root,
        /// The hash of what came.
        found: Root,
    },
    /// Not a manifest at all.
    #[error("the manifest cannot be read")]
    Decode(#[from] DecodeError),
    /// Written by a later release.
    #[error("the manifest has format {found}, this release reads {VERSION}")]
    Version {
        /// Its format.
        found: u32,
    },
    /// More of something than any model has.
    #[error("the manifest has {count} {what}, at most {max} are allowed")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A path that could lead out of the folder, or the same one twice.
    #[error("the manifest's path {path:?} is not a file of one model folder, or is listed twice")]
    Path {
        /// The path.
        path: String,
    },
    /// A segment of no file or of a size that none has.
    #[error(
        "segment {segment} of the manifest is no piece of a file: file {file}, {bytes} bytes at {offset}"
    )]
    Segment {
        /// Its place in the list.
        segment: usize,
        /// What it says.
        file: usize,
        /// Where it begins.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// The segments of a file overlap, leave a gap, or end too early or late.
    #[error("the manifest's segments do not cover {path} of {bytes} bytes: {covered} is where they go wrong")]
    Coverage {
        /// The file.
        path: String,
        /// Its length.
        bytes: u64,
        /// Up to where they cover it.
        covered: u64,
    },
}

impl Manifest {
    /// Longest accepted JSON, in bytes: a model of 2 TB.
    pub const JSON_BYTES_MAX: usize = 64 << 20;

    /// Most files of a model.
    pub const FILES_MAX: usize = 10_000;

    /// Of files and their segments in load order.
    ///
    /// # Errors
    /// [`ManifestError`] when they are not files of one folder, each covered once.
    pub fn new(files: Vec<ManifestFile>, segments: Vec<Segment>) -> Result<Self, ManifestError> {
        check(&files, &segments)?;
        let raw = RawManifest {
            flotilla_manifest: VERSION,
            files,
            segments,
        };
        let json = Encoding::Json
            .encode(&raw)
            .expect("texts and numbers can be written as JSON");
        Ok(Self::checked(raw, json))
    }

    /// Reads the manifest of a root. Bytes of any other origin than the root's are refused.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn from_json(expected: Root, json: Bytes) -> Result<Self, ManifestError> {
        let found = root_of(&json);
        if found != expected {
            return Err(ManifestError::OtherRoot { expected, found });
        }
        let raw: RawManifest = Encoding::Json.decode(&json, Self::JSON_BYTES_MAX)?;
        if raw.flotilla_manifest != VERSION {
            return Err(ManifestError::Version {
                found: raw.flotilla_manifest,
            });
        }
        check(&raw.files, &raw.segments)?;
        Ok(Self::checked(raw, json))
    }

    fn checked(raw: RawManifest, json: Bytes) -> Self {
        Self {
            files: raw.files,
            segments: raw.segments,
            root: root_of(&json),
            json,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn root(&self) -> Root {
        self.root
    }

    /// Its bytes, of which the root is the hash.
    #[must_use]
    pub const fn json(&self) -> &Bytes {
        &self.json
    }

    /// The files.
    #[must_use]
    pub fn files(&self) -> &[ManifestFile] {
        &self.files
    }

    /// The segments, in the order in which a load wants them.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes of the segments of a set.
    ///
    /// # Panics
    /// The set is of another manifest.
    #[must_use]
    pub fn bytes_of(&self, set: &SegmentSet) -> u64 {
        assert_eq!(set.segments(), self.segments.len(), "a set of this manifest");
        set.iter().map(|segment| self.segments[segment].bytes).sum()
    }
}

/// The hash of bytes as a root.
fn root_of(json: &[u8]) -> Root {
    Root::new(*blake3::hash(json).as_bytes())
}

fn check(files: &[ManifestFile], segments: &[Segment]) -> Result<(), ManifestError> {
    for (what, count, max) in [
        ("files", files.len(), Manifest::FILES_MAX),
        ("segments", segments.len(), SegmentSet::SEGMENTS_MAX),
    ] {
        if count > max {
            return Err(ManifestError::TooMany { what, count, max });
        }
    }
    let mut paths = HashSet::new();
    for file in files {
        if !is_inside(&file.path) || !paths.insert(file.path.as_str()) {
            let path = file.path.chars().take(PATH_SHOWN_MAX).collect();
            return Err(ManifestError::Path { path });
        }
    }
    check_segments(files, segments)
}

fn check_segments(files: &[ManifestFile], segments: &[Segment]) -> Result<(), ManifestError> {
    for (index, segment) in segments.iter().enumerate() {
        let Segment {
            file, offset, bytes, ..
        } = *segment;
        if file >= files.len() || !(1..=SEGMENT_BYTES_MAX).contains(&bytes) {
            return Err(ManifestError::Segment {
                segment: index,
                file,
                offset,
                bytes,
            });
        }
    }
    let mut by_place: Vec<&Segment> = segments.iter().collect();
    by_place.sort_by_key(|segment| (segment.file, segment.offset));
    let mut by_place = by_place.into_iter().peekable();
    for (index, file) in files.iter().enumerate() {
        let mut covered = 0_u64;
        while let Some(segment) = by_place.next_if(|next| next.file == index && next.offset == covered) {
            // No sum of accepted lengths is beyond the numbers: one that overruns its file ends the walk.
            covered = covered.saturating_add(segment.bytes);
            if covered > file.bytes {
                break;
            }
        }
        let rest = by_place.peek().is_some_and(|next| next.file == index);
        if covered != file.bytes || rest {
            return Err(ManifestError::Coverage {
                path: file.path.clone(),
                bytes: file.bytes,
                covered,
            });
        }
    }
    Ok(())
}

/// Whether a path names a file inside a folder on every system: no root, no way up, nothing hidden in a name.
fn is_inside(path: &str) -> bool {
    path.len() <= PATH_BYTES_MAX
        && path.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.chars().any(|c| c.is_control() || matches!(c, '\\' | ':'))
        })
}

/// The format that this release writes and reads.
const VERSION: u32 = 1;
/// No model has longer ones, and every file system takes them.
const PATH_BYTES_MAX: usize = 255;
/// Of a bad path in an error.
const PATH_SHOWN_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, bytes: u64) -> ManifestFile {
        ManifestFile {
            path: path.to_owned(),
            bytes,
        }
    }

    fn segment(file: usize, offset: u64, bytes: u64) -> Segment {
        Segment {
            id: SegmentId::new([7; 32]),
            file,
            offset,
            bytes,
        }
    }

    #[test]
    fn manifest_comes_back_from_its_bytes_and_from_no_others() {
        let files = vec![
            file("config.json", 3),
            file("1_Pooling/config.json", 0),
            file("m.safetensors", 9),
        ];
        let segments = vec![segment(2, 4, 5), segment(0, 0, 3), segment(2, 0, 4)];
        let manifest = Manifest::new(files, segments).unwrap();
        let json = manifest.json().clone();
        assert_eq!(
            Manifest::from_json(manifest.root(), json.clone()).unwrap(),
            manifest
        );
        assert_eq!(manifest.bytes(), 12);

        let mut changed = json.to_vec();
        *changed.last_mut().unwrap() = b' ';
        let refused = Manifest::from_json(manifest.root(), changed.into()).unwrap_err();
        assert!(matches!(refused, ManifestError::OtherRoot { .. }), "{refused}");
    }

    #[test]
    fn other_bytes_have_another_root() {
        let root = |id| {
            let mut segment = segment(0, 0, 1);
            segment.id = SegmentId::new([id; 32]);
            Manifest::new(vec![file("a", 1)], vec![segment]).unwrap().root()
        };
        assert_ne!(root(1), root(2));
        assert_eq!(root(1), root(1));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in [
            "",
            "/etc/passwd",
            "../up",
            "a/../b",
            "a//b",
            ".hidden",
            "a\\b",
            "C:a",
            "a\nb",
            "a/",
            &"x".repeat(256),
        ] {
            let refused = Manifest::new(vec![file(path, 0)], Vec::new()).unwrap_err();
            assert!(
                matches!(refused, ManifestError::Path { .. }),
                "{path:?}: {refused}"
            );
        }
        let twice = vec![file("a", 0), file("a", 0)];
        assert!(matches!(
            Manifest::new(twice, Vec::new()),
            Err(ManifestError::Path { .. })
        ));
    }

    #[test]
    fn segments_that_do_not_cover_their_files_are_refused() {
        let refused = |segments: &[Segment]| {
            Manifest::new(vec![file("a", 8), file("b", 0)], segments.to_vec()).unwrap_err()
        };
        for segments in [
            &[][..],
            &[segment(0, 0, 7)],
            &[segment(0, 0, 9)],
            &[segment(0, 0, 4), segment(0, 3, 5)],
            &[segment(0, 0, 4), segment(0, 5, 3)],
            &[segment(0, 0, 8), segment(0, 0, 8)],
            &[segment(0, 0, 8), segment(1, 0, 1)],
            &[segment(0, u64::MAX, 8)],
        ] {
            let refused = refused(segments);
            assert!(
                matches!(refused, ManifestError::Coverage { .. }),
                "{segments:?}: {refused}"
            );
        }
        for segments in [
            segment(2, 0, 8),
            segment(0, 0, 0),
            segment(0, 0, SEGMENT_BYTES_MAX + 1),
        ] {
            let refused = refused(&[segments]);
            assert!(
                matches!(refused, ManifestError::Segment { segment: 0, .. }),
                "{refused}"
            );
        }
    }

    #[test]
    fn manifest_of_a_later_release_is_refused_with_its_format() {
        let json = br#"{"flotilla_manifest": 2, "files": [], "segments": []}"#;
        let refused = Manifest::from_json(root_of(json), Bytes::from_static(json)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the manifest has format 2, this release reads 1"
        );
        let json = br#"{"flotilla_manifest": 1, "files": [], "segments": [], "more": 1}"#;
        assert!(matches!(
            Manifest::from_json(root_of(json), Bytes::from_static(json)),
            Err(ManifestError::Decode(_))
        ));
    }
}
