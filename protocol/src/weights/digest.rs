//! Names that are hashes of what they name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} is 64 lower-case hexadecimal digits, not {found:?}")]
pub struct DigestError {
    /// What the text should have named.
    kind: &'static str,
    /// The text, cut to 80 characters.
    found: String,
}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 32]);

        impl $name {
            /// Of a BLAKE3 hash.
            #[must_use]
            pub const fn new(blake3: [u8; 32]) -> Self {
                Self(blake3)
            }

            /// The BLAKE3 hash.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;
            fn from_str(text: &str) -> Result<Self, DigestError> {
                read(text).map(Self).ok_or_else(|| DigestError {
                    kind: $kind,
                    found: text.chars().take(80).collect(),
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = DigestError;
            fn try_from(text: String) -> Result<Self, DigestError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(digest: $name) -> Self {
                digest.to_string()
            }
        }
    };
}

digest! {
    /// Names a model's files for ever, as 64 hexadecimal digits: the BLAKE3 hash of their manifest. Two models
    /// with other bytes have other roots, whatever their names and shapes.
    Root, "a root"
}
digest! {
    /// Names a piece of a model's files, as 64 hexadecimal digits: the BLAKE3 hash of its bytes.
    SegmentId, "a segment"
}

/// 64 lower-case hexadecimal digits, and nothing else: one name has one spelling.
fn read(text: &str) -> Option<[u8; 32]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_has_one_spelling_and_comes_back_from_it() {
        let mut bytes = [0; 32];
        (bytes[0], bytes[31]) = (0xa0, 0x0f);
        let root = Root::new(bytes);
        let text = root.to_string();
        assert_eq!(text, format!("a0{}0f", "00".repeat(30)));
        assert_eq!(text.parse(), Ok(root));
        for bad in [
            "",
            "a0",
            &text.to_uppercase(),
            &format!("{text}0"),
            &text.replace('f', "g"),
        ] {
            assert!(bad.parse::<Root>().is_err(), "{bad}");
        }
        assert_eq!(
            "x".parse::<SegmentId>().unwrap_err().to_string(),
            "a segment is 64 lower-case hexadecimal digits, not \"x\""
        );
    }
}
