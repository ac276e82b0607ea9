//! Batches: a file of requests in OpenAI's batch format, and what is known of its requests.
//!
//! A request's id is a hash of the batch's id and of its `custom_id`, and the batch's id is a hash of the file unless
//! somebody names it. So the file alone says which journals hold the answers, on any machine, and publishing it again
//! publishes the same ids. What is kept beside the file, the [`Record`], makes that exact for longer than the server
//! knows an id again.

mod collect;
mod file;
mod lines;
mod output;
mod publish;
mod record;
mod tally;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use flotilla_protocol::{IdError, Owner, RequestId};
use serde::{Deserialize, Serialize};

pub(crate) use collect::{Collected, Collector, Patience, Source};
pub(crate) use file::{BatchError, BatchFile, Line};
pub(crate) use output::{Fate, Loss, Output, Written};
pub(crate) use publish::{News, Published, Publisher};
pub(crate) use record::{Record, RecordHead, RecordReader, path_of, records_of};
pub(crate) use tally::{Goal, Tally};

/// Names a batch: the first 128 bits of its file's hash, or what somebody chose. At most 64 characters of
/// `[A-Za-z0-9_-]`, as a worker's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct BatchId(String);

impl BatchId {
    /// The batch that a file is when nobody names it.
    pub(crate) fn of_content(content: &blake3::Hash) -> Self {
        Self(content.to_hex()[..DIGITS].to_owned())
    }

    /// The id of one of its requests.
    pub(crate) fn request(&self, owner: Option<&Owner>, custom_id: &str) -> RequestId {
        let mut hasher = blake3::Hasher::new_derive_key(REQUEST_ID);
        hasher
            .update(self.0.as_bytes())
            .update(&[0])
            .update(custom_id.as_bytes());
        let mut bits = [0; 16];
        hasher.finalize_xof().fill(&mut bits);
        let bits = u128::from_be_bytes(bits);
        match owner {
            Some(owner) => RequestId::from_random_of(owner, bits),
            None => RequestId::from_random(bits),
        }
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BatchId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for BatchId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        match text.chars().find(|&c| !is_good(c)) {
            _ if text.is_empty() => Err(IdError::Empty { kind: KIND }),
            _ if text.len() > BYTES_MAX => Err(IdError::TooLong {
                kind: KIND,
                bytes: text.len(),
                bytes_max: BYTES_MAX,
            }),
            Some(character) => Err(IdError::Character {
                kind: KIND,
                character,
                allowed: "letters, digits, '-' and '_'",
            }),
            None => Ok(Self(text)),
        }
    }
}

impl From<BatchId> for String {
    fn from(batch: BatchId) -> Self {
        batch.0
    }
}

/// A file's name with something after it.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

const KIND: &str = "the batch id";
const BYTES_MAX: usize = 64;
/// Of an id that is made of a hash: 128 bits.
const DIGITS: usize = 32;
/// Another text would give every request another id.
const REQUEST_ID: &str = "flotilla 2026 batch request id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_requests_follow_from_batch_owner_and_custom_id_and_stay() {
        let batch = BatchId::of_content(&blake3::hash(b"a file"));
        assert_eq!(batch.to_string().len(), DIGITS);
        let other: BatchId = "nightly-7".parse().unwrap();
        let owner = Owner::new("team-a").unwrap();
        let id = other.request(None, "line 1");
        assert_eq!(id, other.request(None, "line 1"));
        assert_ne!(id, other.request(None, "line 2"));
        assert_ne!(id, batch.request(None, "line 1"));
        let owned = other.request(Some(&owner), "line 1");
        assert_eq!(owned.as_str(), format!("team-a.{id}"));
        assert_eq!(
            id.as_str(),
            "740756f466baaee1c7f1c4161a54e1c1",
            "ids of batches that wait must not change"
        );
    }

    #[test]
    fn batch_that_cannot_be_a_name_is_refused() {
        for bad in ["", "a b", "a/b", "a.b", &"x".repeat(65)] {
            assert!(bad.parse::<BatchId>().is_err(), "{bad:?}");
        }
    }
}
