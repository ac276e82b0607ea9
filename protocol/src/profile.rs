//! How fast one device kind serves one model, in AIBrix's JSON and with our additions.
//!
//! This is the document as it travels; what is wrong with its figures is found by whoever uses them
//! (`flotilla-profile`), all of it at once. So that everything wrong can be named with its place, a figure
//! that is no number at all (`null`, or `NaN` as Python writes it) is read as a NaN and what is missing as empty.

use serde::{Deserialize, Deserializer, Serialize};

use crate::codec::{DecodeError, Encoding};

/// A profile as it is stored in the KV bucket `profiles`. A matrix is `[output][input]`. Unknown fields are
/// ignored, since the files are written by other systems too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Device kind.
    #[serde(default)]
    pub gpu: String,
    /// Cost of the device, in any unit that all profiles share.
    #[serde(default = "missing", deserialize_with = "figure")]
    pub cost: f64,
    /// Requests a second at saturation; 0 when the targets cannot be met.
    #[serde(default, deserialize_with = "matrix")]
    pub tputs: Vec<Vec<f64>>,
    /// `[output ticks, input ticks]`, in tokens, each ascending.
    #[serde(default, deserialize_with = "matrix")]
    pub indexes: Vec<Vec<f64>>,
    /// Unix seconds; the newer profile replaces the older.
    #[serde(default = "missing", deserialize_with = "figure")]
    pub created: f64,
    /// Mean seconds of a whole request.
    #[serde(
        default,
        deserialize_with = "optional_matrix",
        skip_serializing_if = "Option::is_none"
    )]
    pub e2e: Option<Vec<Vec<f64>>>,
    /// Mean seconds to the first token.
    #[serde(
        default,
        deserialize_with = "optional_matrix",
        skip_serializing_if = "Option::is_none"
    )]
    pub ttft: Option<Vec<Vec<f64>>>,
    /// Mean seconds an output token.
    #[serde(
        default,
        deserialize_with = "optional_matrix",
        skip_serializing_if = "Option::is_none"
    )]
    pub tpot: Option<Vec<Vec<f64>>>,
    /// Targets that the throughput was measured under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slos: Option<ProfileSlos>,
    /// Seconds an output token against batch size, `[batch size, seconds]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_by_batch: Option<Vec<(f64, f64)>>,
    /// Prompt tokens a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_tokens_per_s: Option<f64>,
    /// Seconds until the model is resident, by where its weights come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_seconds_by_tier: Option<LoadSeconds>,
    /// Measurements behind the figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<u64>,
    /// Where the figures come from; `None` in a foreign file means imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ProfileSource>,
}

impl Profile {
    /// Largest profile that is read, in bytes. A grid of 64 x 64 ticks with four matrices has 350 KiB, and a
    /// NATS server takes messages of at most 1 MiB unless it is told otherwise.
    pub const BYTES_MAX: usize = 1 << 20;

    /// Reads a JSON document. `NaN`, `Infinity` and `-Infinity`, which are not JSON but what Python writes,
    /// are read as NaN: the check of the figures then says where they stand.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field when the document is too large or not of this shape.
    pub fn from_json(body: &[u8]) -> Result<Self, DecodeError> {
        match Encoding::Json.decode(body, Self::BYTES_MAX) {
            Err(DecodeError::Malformed { .. }) => {
                // At most 4/3 of the body, as `NaN` becomes `null`.
                Encoding::Json.decode(&with_nulls_for_no_numbers(body), Self::BYTES_MAX * 2)
            }
            decoded => decoded,
        }
    }
}

/// Targets in seconds at a percentile; a target that is absent or 0 is none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProfileSlos {
    /// The percentile, in percent; 0 is the mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentile: Option<f64>,
    /// Whole request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2e: Option<f64>,
    /// First token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft: Option<f64>,
    /// Each output token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot: Option<f64>,
    /// Each token of prompt and output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpat: Option<f64>,
    /// Requests a second that were asked for; nothing here uses it, and it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tput: Option<f64>,
    /// Output tokens a second that were asked for; nothing here uses it, and it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tt: Option<f64>,
}

/// Seconds until a model is resident, by where its weights come from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LoadSeconds {
    /// From the memory of the worker's own machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<f64>,
    /// From another worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<f64>,
    /// From where the model is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<f64>,
}

/// Where a profile's figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileSource {
    /// A profiling run on the device.
    Measured,
    /// A file of another system.
    Imported,
    /// The device's bandwidth and the model's size.
    Estimated,
}

impl ProfileSource {
    /// The source as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Imported => "imported",
            Self::Estimated => "estimated",
        }
    }
}

impl std::fmt::Display for ProfileSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

fn missing() -> f64 {
    f64::NAN
}

fn number(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

fn numbers(matrix: Vec<Vec<Option<f64>>>) -> Vec<Vec<f64>> {
    let rows = matrix.into_iter();
    rows.map(|row| row.into_iter().map(number).collect()).collect()
}

fn figure<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::deserialize(deserializer).map(number)
}

fn matrix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<f64>>, D::Error> {
    Vec::deserialize(deserializer).map(numbers)
}

fn optional_matrix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Vec<f64>>>, D::Error> {
    Option::deserialize(deserializer).map(|matrix| matrix.map(numbers))
}

/// The document with `null` for the words that Python writes for what JSON has no number for.
fn with_nulls_for_no_numbers(body: &[u8]) -> Vec<u8> {
    let mut written = Vec::with_capacity(body.len() + body.len() / 3);
    let mut rest = body;
    let mut inside_text = false;
    while let Some(&byte) = rest.first() {
        let word = NO_NUMBERS
            .iter()
            .find(|&&word| !inside_text && rest.starts_with(word));
        if let Some(word) = word {
            written.extend_from_slice(b"null");
            rest = &rest[word.len()..];
            continue;
        }
        let taken = if inside_text && byte == b'\\' {
            2.min(rest.len())
        } else {
            1
        };
        inside_text ^= byte == b'"';
        written.extend_from_slice(&rest[..taken]);
        rest = &rest[taken..];
    }
    written
}

/// Longest first, so that a sign is not left behind.
const NO_NUMBERS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_no_number_are_read_as_nan_and_texts_are_left_alone() {
        let body = br#"{"gpu": "a \"NaN\" \\", "cost": NaN, "tputs": [[1, -Infinity], [Infinity, 2]],
            "indexes": [[4, null], [8]], "created": 3, "e2e": [[NaN]], "unknown": {"x": NaN}}"#;
        let profile = Profile::from_json(body).unwrap();
        assert_eq!(profile.gpu, r#"a "NaN" \"#);
        assert!(profile.cost.is_nan() && profile.e2e.unwrap()[0][0].is_nan());
        assert!(profile.tputs[0][1].is_nan() && profile.tputs[1][0].is_nan());
        assert_eq!((profile.tputs[0][0], profile.tputs[1][1]), (1.0, 2.0));
        assert!(profile.indexes[0][1].is_nan());
    }

    #[test]
    fn what_is_missing_is_left_to_the_check_of_the_figures() {
        let profile = Profile::from_json(b"{}").unwrap();
        assert!(profile.gpu.is_empty() && profile.tputs.is_empty() && profile.indexes.is_empty());
        assert!(profile.cost.is_nan() && profile.created.is_nan());
    }

    #[test]
    fn a_document_of_another_shape_is_refused_with_its_field() {
        let error = Profile::from_json(br#"{"tputs": [[1, "two"]], "cost": NaN}"#).unwrap_err();
        let DecodeError::Malformed { field, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(field, "tputs[0][1]");
        let large = vec![b' '; Profile::BYTES_MAX + 1];
        assert!(matches!(
            Profile::from_json(&large).unwrap_err(),
            DecodeError::TooLarge { .. }
        ));
        assert!(Profile::from_json(b"{\"gpu\": \"a\\").is_err());
    }
}
