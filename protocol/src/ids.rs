//! Names and counters, each a type of its own, so that one can never be passed for another.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text cannot be an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// The text is empty.
    #[error("{kind} is empty")]
    Empty {
        /// What the text should have named.
        kind: &'static str,
    },
    /// The text is longer than the limit.
    #[error("{kind} has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLong {
        /// What the text should have named.
        kind: &'static str,
        /// Length of the text.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A character that the id may not hold.
    #[error("{kind} contains {character:?}; allowed are {allowed}")]
    Character {
        /// What the text should have named.
        kind: &'static str,
        /// The first offending character.
        character: char,
        /// The allowed set, in words.
        allowed: &'static str,
    },
    /// Not one of a closed list.
    #[error("{kind} is {value:?}; allowed are {allowed}")]
    Unknown {
        /// What the text should have named.
        kind: &'static str,
        /// The text, cut to 64 characters.
        value: String,
        /// The allowed set, in words.
        allowed: &'static str,
    },
}

const TOKEN_ALLOWED: &str = "letters, digits, '-' and '_'";

fn check_length(kind: &'static str, text: &str, bytes_max: usize) -> Result<(), IdError> {
    match text.len() {
        0 => Err(IdError::Empty { kind }),
        bytes if bytes > bytes_max => Err(IdError::TooLong {
            kind,
            bytes,
            bytes_max,
        }),
        _ => Ok(()),
    }
}

fn check_token(kind: &'static str, text: &str, bytes_max: usize) -> Result<(), IdError> {
    check_length(kind, text, bytes_max)?;
    match text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')))
    {
        Some(character) => Err(IdError::Character {
            kind,
            character,
            allowed: TOKEN_ALLOWED,
        }),
        None => Ok(()),
    }
}

/// One token, or two with a '.' between.
fn check_owned_token(kind: &'static str, text: &str, bytes_max: usize) -> Result<(), IdError> {
    check_length(kind, text, bytes_max)?;
    let (owner, id) = text.split_once('.').unwrap_or((text, text));
    check_token(kind, owner, bytes_max)?;
    check_token(kind, id, bytes_max)
}

fn check_printable(kind: &'static str, text: &str, bytes_max: usize) -> Result<(), IdError> {
    check_length(kind, text, bytes_max)?;
    match text.chars().find(|c| c.is_control()) {
        Some(character) => Err(IdError::Character {
            kind,
            character,
            allowed: "printable characters",
        }),
        None => Ok(()),
    }
}

/// The first bytes of a text, eight in a word, as numbers that order like them; a shorter text ends in zeros, which no
/// id holds.
fn head<const WORDS: usize>(text: &str) -> [u64; WORDS] {
    let mut head = [0; WORDS];
    for (word, bytes) in head.iter_mut().zip(text.as_bytes().chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_be_bytes(padded);
    }
    head
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident, $bytes_max:literal, $head_words:literal) => {
        $(#[$doc])*
        #[derive(Clone, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name {
            /// The first bytes, as in [`head`]: most comparisons are decided without a look at the text. Names that
            /// people give begin alike, and most end within two words; random ids differ in the first.
            head: [u64; $head_words],
            text: std::sync::Arc<str>,
        }

        impl $name {
            /// Longest accepted text, in bytes.
            pub const BYTES_MAX: usize = $bytes_max;

            /// Checks a text.
            ///
            /// # Errors
            /// [`IdError`] when the text is empty, too long or holds a character that is not allowed.
            pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
                let text = text.as_ref();
                $check($kind, text, Self::BYTES_MAX)?;
                Ok(Self::unchecked(text.into()))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.text
            }

            fn unchecked(text: std::sync::Arc<str>) -> Self {
                let head = head(&text);
                Self { head, text }
            }
        }

        impl Ord for $name {
            /// As the texts.
            fn cmp(&self, other: &Self) -> Ordering {
                self.head.cmp(&other.head).then_with(|| {
                    let is_whole = self.text.len().max(other.text.len()) <= 8 * $head_words;
                    match is_whole || std::sync::Arc::ptr_eq(&self.text, &other.text) {
                        true => Ordering::Equal,
                        false => self.text.cmp(&other.text),
                    }
                })
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.text.len() == other.text.len() && self.cmp(other).is_eq()
            }
        }

        impl Eq for $name {}

        impl std::hash::Hash for $name {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.text.hash(state);
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.text.as_ref().to_owned()
            }
        }
    };
}

text_id! {
    /// Names one request for ever. The client chooses it; it is also the `Nats-Msg-Id` of the publish, the
    /// end of the journal's subject, and the only thing that a reader of the events must know, so it
    /// should hold 128 random bits. At most 64 characters of `[A-Za-z0-9_-]`; an [`Owner`] and a '.' may stand before.
    RequestId, "the request id", check_owned_token, 64, 1
}
text_id! {
    /// Whose a request is, as far as the server's permissions go: the first of two tokens of its id, so that a user may be
    /// allowed `flotilla.events.<owner>.*` and nobody else's. At most 31 characters of `[A-Za-z0-9_-]`.
    Owner, "the owner", check_token, 31, 1
}
text_id! {
    /// Names one worker. At most 64 characters of `[A-Za-z0-9_-]`.
    WorkerId, "the worker id", check_token, 64, 2
}
text_id! {
    /// First token of every subject and the stem of every stream's and bucket's name. At most 32 characters.
    Namespace, "the namespace", check_token, 32, 1
}
text_id! {
    /// A catalog entry's name, as people write it (`org/llama3.1:8b`). At most 128 bytes, no control
    /// characters; [`crate::subject::encode_token`] makes it one subject token.
    ModelName, "the model name", check_printable, 128, 2
}
text_id! {
    /// On whose account a request runs. At most 64 bytes, no control characters.
    Tenant, "the tenant", check_printable, 64, 1
}

impl RequestId {
    /// Writes 128 random bits as 32 hexadecimal digits.
    #[must_use]
    pub fn from_random(bits: u128) -> Self {
        Self::unchecked(format!("{bits:032x}").into())
    }

    /// The same under an owner.
    #[must_use]
    pub fn from_random_of(owner: &Owner, bits: u128) -> Self {
        Self::unchecked(format!("{owner}.{bits:032x}").into())
    }

    /// The seed of a request that names none: a hash (FNV-1a, 64 bit) of the id, so that every attempt of
    /// the request draws the same tokens.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

macro_rules! counter_id {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter_id! {
    /// The n-th time that a request is given to a worker, from 1; a larger attempt fences a smaller one.
    Attempt, u32
}
counter_id! {
    /// How many workers have died or panicked with the request; at the limit it is poison.
    Strikes, u32
}
counter_id! {
    /// A leader's term: the revision of the lease it took. Larger is newer.
    Epoch, u64
}

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Somebody is waiting.
    Interactive,
    /// Runs when there is room.
    Batch,
}

impl Class {
    /// Every class, most urgent first.
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Batch];

    /// The class as a subject token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Class {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| IdError::Unknown {
                kind: "the class",
                value: text.chars().take(64).collect(),
                allowed: "interactive and batch",
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_that_would_break_a_subject_is_refused() {
        for bad in [
            "",
            "a*",
            ">",
            "a b",
            "ü",
            ".",
            ".a",
            "a.",
            "a..b",
            "a.b.c",
            "a.*",
            "a.>",
            "*.a",
            &"x".repeat(65),
        ] {
            assert!(RequestId::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(RequestId::new("a-B_9").unwrap().as_str(), "a-B_9");
        assert_eq!(RequestId::new("team-a.B_9").unwrap().as_str(), "team-a.B_9");
    }

    #[test]
    fn random_ids_of_the_longest_owner_are_valid() {
        let owner = Owner::new("o".repeat(Owner::BYTES_MAX)).unwrap();
        let id = RequestId::from_random_of(&owner, u128::MAX);
        assert_eq!(RequestId::new(id.as_str()).unwrap(), id);
    }

    #[test]
    fn refusal_names_the_offending_character() {
        let error = WorkerId::new("a.b").unwrap_err().to_string();
        assert_eq!(
            error,
            "the worker id contains '.'; allowed are letters, digits, '-' and '_'"
        );
    }

    #[test]
    fn random_request_ids_are_valid_and_keep_every_bit() {
        assert_eq!(RequestId::from_random(0).as_str(), "0".repeat(32));
        assert_eq!(RequestId::from_random(u128::MAX).as_str(), "f".repeat(32));
        assert!(RequestId::new(RequestId::from_random(7).as_str()).is_ok());
    }

    #[test]
    fn seeds_of_different_requests_differ_and_stay() {
        let a = RequestId::new("a").unwrap();
        assert_eq!(
            a.seed(),
            0xaf63_dc4c_8601_ec8c,
            "FNV-1a of \"a\" by its specification"
        );
        assert_ne!(a.seed(), RequestId::new("b").unwrap().seed());
    }

    #[test]
    fn unknown_class_is_named() {
        assert!(
            "urgent"
                .parse::<Class>()
                .unwrap_err()
                .to_string()
                .contains("\"urgent\"")
        );
        assert_eq!("batch".parse::<Class>().unwrap(), Class::Batch);
    }

    proptest! {
        #[test]
        fn ids_are_alike_and_in_order_as_their_texts_are(
            texts in prop::array::uniform2("(aaaaaaaa){0,3}[ab]{1,2}")
        ) {
            let [left, right] = &texts;
            let order = left.cmp(right);
            let models = texts.clone().map(|text| ModelName::new(text).unwrap());
            prop_assert_eq!((models[0].cmp(&models[1]), models[0] == models[1]), (order, order.is_eq()));
            let requests = texts.clone().map(|text| RequestId::new(text).unwrap());
            prop_assert_eq!((requests[0].cmp(&requests[1]), requests[0] == requests[1]), (order, order.is_eq()));
        }
    }
}
