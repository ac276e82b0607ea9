//! How long the steps and loads of one model on one kind of device take.

use std::time::Duration;

use flotilla_profile::{DeviceProfile, LoadTier, StepTimes};

/// Step times and load times behind a profile.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Timing {
    steps: StepTimes,
    /// A load whose weights have to be read from where they are kept.
    pub(crate) load_from_origin: Duration,
    /// A load whose weights are in host memory.
    pub(crate) load_from_host: Duration,
}

impl Timing {
    /// Of a model with weights of this size; the size only matters where the profile says nothing of loads.
    pub(crate) fn new(profile: &DeviceProfile, weights_bytes: u64) -> Self {
        let at = |bytes_per_s: f64| Duration::from_secs_f64(weights_bytes as f64 / bytes_per_s);
        let load = |tier, bytes_per_s| profile.load_time(tier).unwrap_or_else(|| at(bytes_per_s));
        Self {
            steps: StepTimes::from_profile(profile),
            load_from_origin: load(LoadTier::Origin, ORIGIN_BYTES_PER_S),
            load_from_host: load(LoadTier::Host, HOST_BYTES_PER_S),
        }
    }

    /// How long a step takes that reads this many prompt tokens and draws the next one for this many sequences.
    pub(crate) fn step(&self, prefill_tokens: u32, decoding_sequences: u32) -> Duration {
        self.steps.step(prefill_tokens, decoding_sequences)
    }
}

/// A good local disk.
const ORIGIN_BYTES_PER_S: f64 = 2e9;
/// From host memory over PCIe, with what a load does beside copying.
const HOST_BYTES_PER_S: f64 = 1e10;
