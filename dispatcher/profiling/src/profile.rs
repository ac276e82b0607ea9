//! The profile that the answers of all cells make.

use flotilla_profile::{DeviceProfile, Signature};
use flotilla_protocol::profile::{LoadSeconds, Profile, ProfileSource};

use crate::fault::FinishError;
use crate::grid::Grid;
use crate::objective::Objective;
use crate::plan::Done;
use crate::steps::{Decoded, prefill_tokens_per_s, tpot_by_batch};

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Device kind.
    pub kind: String,
    /// Cost of the device, in the unit of the other profiles.
    pub cost: f64,
    /// Now, in Unix seconds.
    pub created: f64,
    /// How long the model takes until it is resident, as far as somebody measured it.
    pub load_seconds_by_tier: Option<LoadSeconds>,
}

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Figures<'a> {
    pub(crate) grid: &'a Grid,
    pub(crate) objective: &'a Objective,
    pub(crate) done: &'a [Done],
    pub(crate) decoded: &'a [Decoded],
    pub(crate) samples: u64,
}

impl Figures<'_> {
    pub(crate) fn profile(&self, device: Device) -> Result<DeviceProfile, FinishError> {
        let feasible = self.done.iter().any(|done| done.answer.tput_per_s > 0.0);
        if !feasible {
            let fastest = self.done.iter().map(|done| done.alone.means.e2e_s);
            let fastest_s = fastest.fold(f64::INFINITY, f64::min);
            return Err(FinishError::NothingFeasible { fastest_s });
        }
        let alone: Vec<(Signature, f64)> = self
            .done
            .iter()
            .map(|done| (done.answer.signature, done.alone.means.ttft_s))
            .collect();
        let prefill = prefill_tokens_per_s(&alone);
        let document = Profile {
            gpu: device.kind,
            cost: device.cost,
            tputs: self.matrix(|done| done.answer.tput_per_s),
            indexes: vec![ticks(self.grid.outputs()), ticks(self.grid.inputs())],
            created: device.created,
            e2e: Some(self.matrix(|done| done.answer.e2e_s)),
            ttft: Some(self.matrix(|done| at_least_a_moment(done.answer.ttft_s))),
            tpot: Some(self.matrix(|done| at_least_a_moment(done.answer.tpot_s))),
            slos: self.objective.document(),
            tpot_by_batch: Some(tpot_by_batch(self.tpot_alone_s(), self.decoded, prefill)),
            prefill_tokens_per_s: prefill,
            load_seconds_by_tier: device.load_seconds_by_tier,
            samples: Some(self.samples),
            source: Some(ProfileSource::Measured),
        };
        DeviceProfile::try_from(document).map_err(FinishError::Figures)
    }

    fn matrix(&self, figure: impl Fn(&Done) -> f64) -> Vec<Vec<f64>> {
        let rows = self.done.chunks(self.grid.inputs().len());
        rows.map(|row| row.iter().map(&figure).collect()).collect()
    }

    /// Seconds of a token of requests alone, each cell weighted by its tokens: long answers say more.
    fn tpot_alone_s(&self) -> f64 {
        let (mut seconds, mut steps) = (0.0, 0.0);
        for done in self.done {
            let tokens = f64::from(done.answer.signature.output_tokens - 1);
            seconds += tokens * done.alone.means.tpot_s;
            steps += tokens;
        }
        at_least_a_moment(seconds / steps)
    }
}

fn ticks(lengths: &[u32]) -> Vec<f64> {
    lengths.iter().copied().map(f64::from).collect()
}

/// Tokens may come to a client together, in no time at all, which a profile does not believe.
fn at_least_a_moment(seconds: f64) -> f64 {
    seconds.max(MOMENT_S)
}

/// A microsecond: less is not measured.
const MOMENT_S: f64 = 1e-6;
