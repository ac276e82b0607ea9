//! How fast one device kind serves one model, in AIBrix's JSON and with our additions.

use serde::{Deserialize, Serialize};

/// A profile as it is stored in the KV bucket `profiles`. A matrix is `[output][input]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Device kind.
    pub gpu: String,
    /// Cost of the device, in any unit that all profiles share.
    pub cost: f64,
    /// Requests a second at saturation.
    pub tputs: Vec<Vec<f64>>,
    /// `[output ticks, input ticks]`, in tokens, each ascending.
    pub indexes: Vec<Vec<f64>>,
    /// Unix seconds; the newer profile replaces the older.
    pub created: f64,
    /// Mean seconds of a whole request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2e: Option<Vec<Vec<f64>>>,
    /// Mean seconds to the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft: Option<Vec<Vec<f64>>>,
    /// Mean seconds an output token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    /// Measurements behind the figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<u64>,
    /// Where the figures come from; `None` in a foreign file means imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ProfileSource>,
}

/// Targets in seconds at a percentile.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProfileSlos {
    /// The percentile, in percent.
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
