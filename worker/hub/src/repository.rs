//! What a revision of a repository has.

use flotilla_protocol::hub::{HubModel, HubRevision};
use flotilla_weights::CONFIG;
use serde::Deserialize;

use crate::error::HubError;

/// A commit of a repository, and those of its files that loading reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The commit; or the revision that was asked for, of a hub that tells none.
    pub model: HubModel,
    /// The files, in order.
    pub files: Vec<HubFile>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Where it is in the repository, with `/` between the parts.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// What it hashes to, which the hub tells of large files.
    pub sha256: Option<[u8; 32]>,
}

/// What the hub says of a revision, as far as we read it.
#[derive(Debug, Deserialize)]
struct RawRevision {
    #[serde(default)]
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<RawFile>,
}

#[derive(Debug, Deserialize)]
struct RawFile {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    lfs: Option<RawLarge>,
}

#[derive(Debug, Deserialize)]
struct RawLarge {
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    size: Option<u64>,
}

impl Repository {
    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The file of a path.
    pub(crate) fn file(&self, path: &str) -> Option<&HubFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Every file that the hub lists in its answer about a revision, in JSON.
    ///
    /// # Errors
    /// [`HubError::Answer`].
    pub fn from_json(asked: &HubModel, body: &[u8]) -> Result<Self, HubError> {
        let answer = |reason: String| HubError::Answer {
            model: asked.clone(),
            reason,
        };
        let raw: RawRevision = serde_json::from_slice(body).map_err(|error| answer(error.to_string()))?;
        let revision = match raw.sha {
            Some(sha) => HubRevision::new(sha).map_err(|error| answer(error.to_string()))?,
            None => asked.revision.clone(),
        };
        let file = |raw: RawFile| {
            let large = raw.lfs.as_ref();
            let bytes = large.and_then(|large| large.size).or(raw.size);
            let bytes = bytes.ok_or_else(|| answer(format!("{} has no size", raw.rfilename)))?;
            let sha256 = large.and_then(|large| large.sha256.as_deref()).map(digest);
            let sha256 = sha256
                .map(|digest| digest.ok_or_else(|| answer(format!("the hash of {} is none", raw.rfilename))));
            Ok(HubFile {
                bytes,
                sha256: sha256.transpose()?,
                path: raw.rfilename,
            })
        };
        Ok(Self {
            model: HubModel {
                repo: asked.repo.clone(),
                revision,
            },
            files: raw.siblings.into_iter().map(file).collect::<Result<_, _>>()?,
        })
    }

    /// Keeps these files only.
    pub(crate) fn keep(&mut self, paths: &[String]) {
        self.files.retain(|file| paths.contains(&file.path));
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
    }

    /// Whether there is everything without which nothing can be loaded.
    pub(crate) fn check(&self) -> Result<(), HubError> {
        let incomplete = |what| HubError::Incomplete {
            model: self.model.clone(),
            what,
        };
        if self.file(CONFIG).is_none() {
            return Err(incomplete("config.json"));
        }
        if !self.files.iter().any(is_weights) {
            return Err(incomplete("weights in model.safetensors"));
        }
        if self.file("tokenizer.json").is_none() {
            return Err(incomplete("tokenizer.json"));
        }
        Ok(())
    }
}

/// Whether a file holds weights.
pub(crate) fn is_weights(file: &HubFile) -> bool {
    file.path.ends_with(".safetensors")
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(digest)
}
