//! JSON and MessagePack, bounded before a byte is decoded.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Largest message between our own processes, in bytes. A report of a worker with a thousand requests has
/// about 200 KiB; an assignment carries a request's body, which is bounded by configuration below this.
pub const INTERNAL_BYTES_MAX: usize = 8 << 20;

/// Deepest nesting that is decoded; serde_json has its own limit of 128.
const MESSAGE_PACK_DEPTH_MAX: usize = 64;

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// `application/json`, also what a message without `Content-Type` is taken for.
    #[default]
    Json,
    /// `application/msgpack`, with named fields.
    MessagePack,
}

/// Why bytes are not the message that was expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// More bytes than the limit; nothing was decoded.
    #[error("the body has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLarge {
        /// Length of the body.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Not the expected shape.
    #[error("{message}")]
    Malformed {
        /// Dotted path of the offending field; empty when the whole body is meant.
        field: String,
        /// What is wrong, in the decoder's words.
        message: String,
    },
    /// A `Content-Type` that is neither JSON nor MessagePack.
    #[error("the content type {value:?} is not supported; use application/json or application/msgpack")]
    ContentType {
        /// The header's value, cut to 64 characters.
        value: String,
    },
}

/// A message that cannot be written; only a map with keys that are not strings could be one.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The JSON encoder refused.
    #[error("the message cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// The MessagePack encoder refused.
    #[error("the message cannot be written as MessagePack")]
    MessagePack(#[from] rmp_serde::encode::Error),
}

impl Encoding {
    /// The `Content-Type` of this encoding.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::MessagePack => "application/msgpack",
        }
    }

    /// Reads a `Content-Type`; parameters such as `; charset=utf-8` are ignored, absence means JSON.
    ///
    /// # Errors
    /// [`DecodeError::ContentType`] for any other type.
    pub fn from_content_type(value: Option<&str>) -> Result<Self, DecodeError> {
        let Some(value) = value else { return Ok(Self::Json) };
        let essence = value.split(';').next().unwrap_or(value).trim();
        if essence.eq_ignore_ascii_case("application/json") {
            Ok(Self::Json)
        } else if essence.eq_ignore_ascii_case("application/msgpack")
            || essence.eq_ignore_ascii_case("application/x-msgpack")
        {
            Ok(Self::MessagePack)
        } else {
            Err(DecodeError::ContentType {
                value: value.chars().take(64).collect(),
            })
        }
    }

    /// Writes a message.
    ///
    /// # Errors
    /// [`EncodeError`] when the value has no such encoding; none of this crate's messages can cause it.
    pub fn encode<T: Serialize>(self, message: &T) -> Result<Bytes, EncodeError> {
        Ok(match self {
            Self::Json => serde_json::to_vec(message)?.into(),
            Self::MessagePack => rmp_serde::to_vec_named(message)?.into(),
        })
    }

    /// Reads a message of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`DecodeError`] naming the offending field.
    pub fn decode<T: DeserializeOwned>(self, body: &[u8], bytes_max: usize) -> Result<T, DecodeError> {
        if body.len() > bytes_max {
            return Err(DecodeError::TooLarge {
                bytes: body.len(),
                bytes_max,
            });
        }
        match self {
            Self::Json => decode_json(body),
            Self::MessagePack => decode_message_pack(body),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.content_type())
    }
}

/// Writes a message between our own processes: MessagePack with named fields.
///
/// # Errors
/// See [`Encoding::encode`].
pub fn encode_internal<T: Serialize>(message: &T) -> Result<Bytes, EncodeError> {
    Encoding::MessagePack.encode(message)
}

/// Reads a message between our own processes.
///
/// # Errors
/// See [`Encoding::decode`].
pub fn decode_internal<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    Encoding::MessagePack.decode(body, INTERNAL_BYTES_MAX)
}

fn decode_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    // Keeping track of the path takes longer than decoding: only what is wrong is read again with it.
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(malformed)?;
    deserializer.end().map_err(|error| DecodeError::Malformed {
        field: String::new(),
        message: error.to_string(),
    })?;
    Ok(value)
}

fn decode_message_pack<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    let mut unread = body;
    let mut deserializer = rmp_serde::Deserializer::new(&mut unread);
    deserializer.set_max_depth(MESSAGE_PACK_DEPTH_MAX);
    // As for JSON, the path is only looked for when something is wrong.
    let value = match T::deserialize(&mut deserializer) {
        Ok(value) => value,
        Err(_) => {
            unread = body;
            let mut deserializer = rmp_serde::Deserializer::new(&mut unread);
            deserializer.set_max_depth(MESSAGE_PACK_DEPTH_MAX);
            serde_path_to_error::deserialize(&mut deserializer).map_err(malformed)?
        }
    };
    let rest = unread.len();
    if rest > 0 {
        let message = format!("{rest} bytes follow the message");
        return Err(DecodeError::Malformed {
            field: String::new(),
            message,
        });
    }
    Ok(value)
}

fn malformed<E: fmt::Display>(error: serde_path_to_error::Error<E>) -> DecodeError {
    let path = error.path().to_string();
    let field = if path == "." { String::new() } else { path };
    DecodeError::Malformed {
        field,
        message: error.into_inner().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        name: String,
        inner: Inner,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        count: u32,
    }

    fn sample() -> Sample {
        Sample {
            name: "x".into(),
            inner: Inner { count: 3 },
        }
    }

    #[test]
    fn both_encodings_round_trip_and_name_the_broken_field() {
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            let bytes = encoding.encode(&sample()).unwrap();
            assert_eq!(encoding.decode::<Sample>(&bytes, 100).unwrap(), sample());
        }
        let error = Encoding::Json
            .decode::<Sample>(br#"{"name":"x","inner":{"count":-1}}"#, 100)
            .unwrap_err();
        let DecodeError::Malformed { field, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(field, "inner.count");
    }

    #[test]
    fn a_body_over_the_limit_is_refused_before_decoding() {
        let error = Encoding::Json.decode::<Sample>(&[b'x'; 11], 10).unwrap_err();
        assert_eq!(
            error,
            DecodeError::TooLarge {
                bytes: 11,
                bytes_max: 10
            }
        );
    }

    #[test]
    fn bytes_after_the_message_are_an_error() {
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            let mut bytes = encoding.encode(&sample()).unwrap().to_vec();
            bytes.push(b'1');
            assert!(encoding.decode::<Sample>(&bytes, 100).is_err(), "{encoding}");
        }
    }

    #[test]
    fn content_types_of_the_wild_are_understood() {
        assert_eq!(Encoding::from_content_type(None).unwrap(), Encoding::Json);
        assert_eq!(
            Encoding::from_content_type(Some("Application/JSON; charset=utf-8")).unwrap(),
            Encoding::Json
        );
        assert_eq!(
            Encoding::from_content_type(Some("application/x-msgpack")).unwrap(),
            Encoding::MessagePack
        );
        assert!(Encoding::from_content_type(Some("text/plain")).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for encoding in [Encoding::Json, Encoding::MessagePack] {
                prop_assert!(encoding.decode::<Sample>(&bytes, 100).is_err() || bytes.len() <= 100);
            }
        }
    }
}
