//! A profile of a device that nobody has measured.

use flotilla_protocol::profile::{Profile, ProfileSource};

use crate::check::check;
use crate::fault::{Place, ProfileFault, ProfileFaults};
use crate::profile::DeviceProfile;

/// What an estimate is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct EstimateFrom {
    /// Device kind.
    pub kind: String,
    /// Cost of the device, in the unit of the other profiles.
    pub cost: f64,
    /// Bytes of the model's weights as they are loaded.
    pub weights_bytes: u64,
    /// Bytes that the device reads from its memory a second.
    pub memory_bytes_per_s: u64,
    /// Sequences that it runs at once; at least 1.
    pub slots: u32,
    /// Now, in Unix seconds.
    pub created: f64,
}

impl DeviceProfile {
    /// Estimates a profile. A decode step reads every weight once, whatever the batch, so that is its time;
    /// prompts are read [`PREFILL_TO_DECODE`] times as fast as one sequence makes tokens; and the device is
    /// saturated when its slots are full, so that each request has one of them as its share. No targets.
    ///
    /// # Errors
    /// [`ProfileFaults`] when a figure is out of range, every one of them.
    pub fn estimated(from: EstimateFrom) -> Result<Self, ProfileFaults> {
        let mut faults = from.faults();
        let document = from.document();
        if let Err(further) = check(&document) {
            faults.extend(further.0);
        }
        match faults.is_empty() {
            true => Self::try_from(document),
            false => Err(ProfileFaults(faults)),
        }
    }
}

impl EstimateFrom {
    fn faults(&self) -> Vec<ProfileFault> {
        let counts = [
            ("memory_bytes_per_s", self.memory_bytes_per_s),
            ("slots", u64::from(self.slots)),
        ];
        let zeros = counts.into_iter().filter(|&(_, count)| count == 0);
        zeros
            .map(|(field, _)| ProfileFault::Figure {
                place: Place::new(field, &[]),
                found: 0.0,
                expected: "a number above 0",
            })
            .collect()
    }

    /// The document; figures that are faults, and reported as such, do not spread into it.
    fn document(self) -> Profile {
        let reading = bytes(self.weights_bytes) / bytes(self.memory_bytes_per_s.max(1));
        let step = reading.clamp(STEP_MIN, STEP_MAX);
        let slots = f64::from(self.slots.max(1));
        let prefill_tokens_per_s = PREFILL_TO_DECODE / step;
        let ticks: Vec<f64> = TICK_POWERS.map(|power| f64::from(1_u32 << power)).collect();
        let e2e: Vec<Vec<f64>> = ticks
            .iter()
            .map(|output| {
                let of_prompt = |input: &f64| input / prefill_tokens_per_s + output * step;
                ticks.iter().map(of_prompt).collect()
            })
            .collect();
        let rate = |row: &Vec<f64>| row.iter().map(|seconds| slots / seconds).collect();
        let mut tpot_by_batch = vec![(1.0, step)];
        tpot_by_batch.extend((self.slots > 1).then_some((slots, step)));
        Profile {
            gpu: self.kind,
            cost: self.cost,
            tputs: e2e.iter().map(rate).collect(),
            indexes: vec![ticks.clone(), ticks],
            created: self.created,
            e2e: Some(e2e),
            ttft: None,
            tpot: None,
            slos: None,
            tpot_by_batch: Some(tpot_by_batch),
            prefill_tokens_per_s: Some(prefill_tokens_per_s),
            load_seconds_by_tier: None,
            samples: None,
            source: Some(ProfileSource::Estimated),
        }
    }
}

/// A count of bytes as a figure; above 2^53 the last digits are lost, which an estimate does not miss.
#[allow(clippy::cast_precision_loss)]
fn bytes(count: u64) -> f64 {
    count as f64
}

/// Prompt tokens that a device reads in the time in which it makes one: measured on our CPU engine it is 13 to 21,
/// and more on every GPU. The estimate takes a low one, since too long a time only makes a device take less.
pub const PREFILL_TO_DECODE: f64 = 16.0;

/// Shortest decode step, in seconds: besides reading weights a step is planned, started and sampled, so that
/// even a model of a few kilobytes makes no more than 10,000 tokens a second.
const STEP_MIN: f64 = 1e-4;
/// Longest decode step, in seconds; nobody would serve a model that takes a quarter of an hour for a token.
const STEP_MAX: f64 = 1e3;
/// Ticks of both axes, as powers of two: 16 to 32,768 tokens.
const TICK_POWERS: std::ops::RangeInclusive<u32> = 4..=15;
