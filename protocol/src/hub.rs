//! Names of models on a hub: `hf:org/name@revision`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A repository of the hub, such as `org/name`. Its parts are safe in an address and in a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HubRepo(String);

/// A branch, tag or commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HubRevision(String);

/// A model of the hub: one revision of one repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HubModel {
    /// The repository.
    pub repo: HubRepo,
    /// The revision; a commit where one could be resolved.
    pub revision: HubRevision,
}

/// Why a text names no model of the hub.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HubNameError {
    /// It does not begin with the scheme.
    #[error("{found:?} is no model of the hub; write hf:org/name or hf:org/name@revision")]
    Scheme {
        /// The text, shortened.
        found: String,
    },
    /// The repository cannot be one.
    #[error(
        "{found:?} is no repository of the hub; write org/name, each of up to 96 letters, digits, '-', '_' and '.'"
    )]
    Repo {
        /// The text, shortened.
        found: String,
    },
    /// The revision cannot be one.
    #[error(
        "{found:?} is no revision; give a branch, tag or commit of letters, digits, '-', '_', '.' and '/', at most \
         {REVISION_BYTES_MAX} of them"
    )]
    Revision {
        /// The text, shortened.
        found: String,
    },
}

impl HubRepo {
    /// Checks a text.
    ///
    /// # Errors
    /// [`HubNameError::Repo`].
    pub fn new(text: impl Into<String>) -> Result<Self, HubNameError> {
        let text = text.into();
        // A few old repositories have no organisation.
        let is_repo = text.split('/').count() <= 2 && text.split('/').all(is_part);
        match is_repo {
            true => Ok(Self(text)),
            false => Err(HubNameError::Repo { found: short(&text) }),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl HubRevision {
    /// Checks a text.
    ///
    /// # Errors
    /// [`HubNameError::Revision`].
    pub fn new(text: impl Into<String>) -> Result<Self, HubNameError> {
        let text = text.into();
        match text.len() <= REVISION_BYTES_MAX && text.split('/').all(is_part) {
            true => Ok(Self(text)),
            false => Err(HubNameError::Revision { found: short(&text) }),
        }
    }

    /// The branch that every repository has.
    #[must_use]
    pub fn main() -> Self {
        Self("main".to_owned())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a commit, whose files never change.
    #[must_use]
    pub fn is_commit(&self) -> bool {
        self.0.len() == COMMIT_DIGITS && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

impl HubModel {
    /// What such a name begins with.
    pub const SCHEME: &str = "hf:";
}

/// Without a revision it is the main branch's.
impl FromStr for HubModel {
    type Err = HubNameError;

    fn from_str(text: &str) -> Result<Self, HubNameError> {
        let name = text.strip_prefix(Self::SCHEME);
        let name = name.ok_or_else(|| HubNameError::Scheme { found: short(text) })?;
        let (repo, revision) = match name.split_once('@') {
            Some((repo, revision)) => (repo, HubRevision::new(revision)?),
            None => (name, HubRevision::main()),
        };
        Ok(Self {
            repo: HubRepo::new(repo)?,
            revision,
        })
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}@{}", Self::SCHEME, self.repo, self.revision)
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = HubNameError;

            fn try_from(text: String) -> Result<Self, HubNameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    )*};
}

as_text!(HubRepo, HubRevision);

fn is_part(part: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    // A leading dot would make `..` of a path and hidden files of names.
    (1..=PART_BYTES_MAX).contains(&part.len()) && !part.starts_with('.') && part.bytes().all(is_allowed)
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The hub's own limit.
const PART_BYTES_MAX: usize = 96;
/// Longer than any branch that somebody types.
const REVISION_BYTES_MAX: usize = 128;
/// Hexadecimal digits of a commit.
const COMMIT_DIGITS: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_the_hub_are_named_by_repository_and_revision() {
        let model: HubModel = "hf:org/Name-1.5_b@refs/pr/3".parse().unwrap();
        assert_eq!(model.repo.as_str(), "org/Name-1.5_b");
        assert_eq!(model.revision.as_str(), "refs/pr/3");
        assert_eq!(model.to_string().parse(), Ok(model));
        let model: HubModel = "hf:gpt2".parse().unwrap();
        assert_eq!((model.repo.as_str(), model.revision.as_str()), ("gpt2", "main"));
        assert!(!model.revision.is_commit());
        assert!(
            HubRevision::new("0123456789abcdef0123456789abcdef01234567")
                .unwrap()
                .is_commit()
        );
    }

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for bad in [
            "org/name",
            "hf:",
            "hf:org/",
            "hf:/name",
            "hf:a/b/c",
            "hf:../name",
            "hf:org/na me",
            "hf:org/name@",
            "hf:org/name@a//b",
            "hf:org/name@../main",
            "hf:org/name?x",
        ] {
            assert!(bad.parse::<HubModel>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<HubRepo>("\"../x\"").is_err());
    }
}
