//! Vectors on the wire: numbers in JSON, bytes in MessagePack.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::codec::Encoding;

/// The vector of one text of an embedding request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// Which text of the request, from 0.
    pub index: u32,
    /// f32 \[dimensions]; finite. A list of numbers in JSON, their little-endian bytes in MessagePack.
    #[serde(serialize_with = "write", deserialize_with = "read")]
    pub embedding: Vec<f32>,
}

/// Most bytes of the `finished` event of an embedding request.
///
/// One event carries all vectors, so this bounds what one request may ask for: no more than the server takes as
/// one message, and no more than [`EVENT_BYTES_MAX`](super::EVENT_BYTES_MAX).
#[must_use]
pub fn embeddings_bytes_max(texts: usize, dimensions: u32, encoding: Encoding) -> usize {
    let dimensions = usize::try_from(dimensions).unwrap_or(usize::MAX);
    let number = match encoding {
        // `-1.2345678e-38,`
        Encoding::Json => 15,
        Encoding::MessagePack => size_of::<f32>(),
    };
    let vector = dimensions.saturating_mul(number).saturating_add(VECTOR_BYTES_MAX);
    vector.saturating_mul(texts).saturating_add(FINISHED_BYTES_MAX)
}

fn write<S: Serializer>(vector: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        return vector.serialize(serializer);
    }
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    serializer.serialize_bytes(&bytes)
}

fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
    struct VectorVisitor;
    impl<'de> Visitor<'de> for VectorVisitor {
        type Value = Vec<f32>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of numbers, or the little-endian bytes of 32-bit floats")
        }
        fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<f32>, E> {
            let (numbers, rest) = bytes.as_chunks();
            match rest {
                [] => Ok(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect()),
                _ => Err(E::invalid_length(bytes.len(), &self)),
            }
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<f32>, A::Error> {
            let mut vector = Vec::new();
            while let Some(number) = items.next_element()? {
                vector.push(number);
            }
            Ok(vector)
        }
    }
    deserializer.deserialize_any(VectorVisitor)
}

/// Of one vector besides its numbers: its names, its index and the length.
const VECTOR_BYTES_MAX: usize = 64;
/// Of the event besides its vectors.
const FINISHED_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{FinishReason, Finished, Timings, Usage};

    fn finished(texts: u32, number: f32, dimensions: usize) -> Finished {
        let embedding = vec![number; dimensions];
        let data = (0..texts).map(|index| Embedding {
            index,
            embedding: embedding.clone(),
        });
        Finished {
            finish_reason: FinishReason::Stop,
            usage: Usage::new(u32::MAX, 0),
            timings: Timings::default(),
            data: Some(data.collect()),
        }
    }

    #[test]
    fn no_answer_is_larger_than_was_said_before() {
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            for (texts, dimensions) in [(1, 0), (1, 1), (3, 1000), (100, 384)] {
                let whole = finished(texts, -1.234_567_8e-38, dimensions);
                let bytes = encoding.encode(&whole).unwrap();
                let dimensions = u32::try_from(dimensions).unwrap();
                let said = embeddings_bytes_max(usize::try_from(texts).unwrap(), dimensions, encoding);
                assert!(bytes.len() <= said, "{} of {said}", bytes.len());
                assert_eq!(encoding.decode::<Finished>(&bytes, bytes.len()).unwrap(), whole);
            }
        }
        assert_eq!(
            embeddings_bytes_max(usize::MAX, u32::MAX, Encoding::Json),
            usize::MAX
        );
    }

    #[test]
    fn bytes_that_are_no_floats_are_refused_and_lists_are_read_in_either_encoding() {
        #[derive(Serialize)]
        struct Other<T> {
            index: u32,
            embedding: T,
        }
        let decode = |body: &[u8]| Encoding::MessagePack.decode::<Embedding>(body, 100);
        let list = Other {
            index: 1,
            embedding: [0.5_f32, 2.0],
        };
        let list = Encoding::MessagePack.encode(&list).unwrap();
        assert_eq!(decode(&list).unwrap().embedding, [0.5, 2.0]);
        let text = Other {
            index: 1,
            embedding: "abcd",
        };
        assert!(decode(&Encoding::MessagePack.encode(&text).unwrap()).is_err());
        // {"index": 1, "embedding": three bytes}
        let mut cut = b"\x82\xa5index\x01\xa9embedding\xc4\x03".to_vec();
        cut.extend([0, 0, 0]);
        assert!(decode(&cut).is_err());
    }
}
