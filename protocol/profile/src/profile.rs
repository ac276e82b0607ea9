//! One device kind serving one model: what a request takes there.

use std::time::Duration;

use flotilla_protocol::profile::{LoadSeconds, Profile, ProfileSlos, ProfileSource};

use crate::check::check;
use crate::fault::{BadProfile, ProfileFaults};
use crate::figures::span;
use crate::grid::{Axis, Spot, Surface};
use crate::work::work_seconds;

/// How long a request is, which is all that a profile asks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer, usually predicted.
    pub output_tokens: u32,
}

/// Whether a figure lies within what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Within the grid, or below its first ticks, where the first cell's figure is an upper bound.
    Inside,
    /// Beyond the last tick of an axis: the last slope goes on.
    Extrapolated,
}

/// A time, and how well it is founded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// The time.
    pub value: Duration,
    /// Whether it was measured thereabouts.
    pub reach: Reach,
}

/// Where weights come from when a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoadTier {
    /// The memory of the worker's own machine.
    Host,
    /// Another worker.
    Peer,
    /// Where the model is kept.
    Origin,
}

/// A profile whose figures make sense, with everything that lookups need beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceProfile {
    document: Profile,
    slos: ProfileSlos,
    outputs: Axis,
    inputs: Axis,
    e2e: Surface,
    ttft: Option<Surface>,
    work: Surface,
}

impl TryFrom<Profile> for DeviceProfile {
    type Error = ProfileFaults;

    /// Checks every figure.
    ///
    /// # Errors
    /// [`ProfileFaults`], all of them.
    fn try_from(document: Profile) -> Result<Self, ProfileFaults> {
        check(&document)?;
        let [outputs, inputs] = [0, 1].map(|axis: usize| Axis::new(document.indexes[axis].clone()));
        let surface = |values: &Vec<Vec<f64>>| Surface::new(&outputs, &inputs, values.clone());
        let e2e = document.e2e.as_ref().map(surface);
        let work = work_seconds(outputs.ticks(), inputs.ticks(), &document.tputs);
        Ok(Self {
            e2e: e2e.expect("the check refuses a profile without e2e"),
            ttft: document.ttft.as_ref().map(surface),
            work: Surface::new(&outputs, &inputs, work),
            slos: document.slos.as_ref().map(set_targets).unwrap_or_default(),
            outputs,
            inputs,
            document,
        })
    }
}

impl From<&DeviceProfile> for Profile {
    /// The document, as it was read.
    fn from(profile: &DeviceProfile) -> Self {
        profile.document.clone()
    }
}

impl DeviceProfile {
    /// Reads a JSON document, as a profile of `kind` when one is given, whatever the document calls itself.
    ///
    /// # Errors
    /// [`BadProfile`], with every fault of the figures.
    pub fn from_json(body: &[u8], kind: Option<&str>) -> Result<Self, BadProfile> {
        let mut document = Profile::from_json(body).map_err(BadProfile::Document)?;
        if let Some(kind) = kind {
            document.gpu = kind.to_owned();
        }
        Ok(Self::try_from(document)?)
    }

    /// The device kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.document.gpu
    }

    /// Cost of the device, in a unit that all profiles share.
    #[must_use]
    pub fn cost(&self) -> f64 {
        self.document.cost
    }

    /// When it was made, in Unix seconds.
    #[must_use]
    pub fn created(&self) -> f64 {
        self.document.created
    }

    /// Whether it takes the place of another one of the same model and kind: it is newer, or as old, so that
    /// reading the same again is no error.
    #[must_use]
    pub fn replaces(&self, other: &Self) -> bool {
        self.created() >= other.created()
    }

    /// Where its figures come from.
    #[must_use]
    pub fn source(&self) -> ProfileSource {
        self.document.source.unwrap_or(ProfileSource::Imported)
    }

    /// Measurements behind its figures, when it says so.
    #[must_use]
    pub fn samples(&self) -> Option<u64> {
        self.document.samples
    }

    /// The targets it was measured under; each that is there is above 0.
    #[must_use]
    pub fn slos(&self) -> &ProfileSlos {
        &self.slos
    }

    /// The document behind it.
    #[must_use]
    pub fn document(&self) -> &Profile {
        &self.document
    }

    /// Most requests a second of any cell.
    #[must_use]
    pub fn rate_max(&self) -> f64 {
        self.document.tputs.iter().flatten().copied().fold(0.0, f64::max)
    }

    /// Mean time of a whole request on a device at the load that the profile was measured at.
    #[must_use]
    pub fn e2e(&self, signature: Signature) -> Figure {
        self.figure(signature, self.e2e_seconds(signature))
    }

    /// Mean time to the first token: from the table; else from the prefill rate; else the time of a whole
    /// request with the shortest answer of the grid.
    #[must_use]
    pub fn ttft(&self, signature: Signature) -> Figure {
        let (output, input) = self.spots(signature);
        let prompt_tokens = f64::from(signature.prompt_tokens);
        let seconds = match (&self.ttft, self.document.prefill_tokens_per_s) {
            (Some(table), _) => table.at(output, input),
            (None, Some(rate)) => prompt_tokens / rate,
            (None, None) => self.e2e.at(self.outputs.spot(self.outputs.first()), input),
        };
        self.figure(signature, seconds)
    }

    /// Device time that the request costs at saturation: one over the throughput. Where the throughput is 0,
    /// because the targets cannot be met, it follows from the nearest feasible cells.
    #[must_use]
    pub fn work(&self, signature: Signature) -> Duration {
        span(self.work_seconds(signature))
    }

    /// Share of a device that one such request occupies while it runs, above 0 and at most 1. By Little's
    /// law a device holds throughput x time of them at once. A request that needs more than a device
    /// has the whole of one.
    #[must_use]
    pub fn share(&self, signature: Signature) -> f64 {
        (self.work_seconds(signature) / self.e2e_seconds(signature)).clamp(SHARE_MIN, 1.0)
    }

    /// Whether requests of this length meet the profile's targets: the nearest cell has a throughput.
    #[must_use]
    pub fn is_feasible(&self, signature: Signature) -> bool {
        let (output, input) = self.cell(signature);
        self.document.tputs[output][input] > 0.0
    }

    /// The cell whose ticks are nearest in log2 space, (output, input), each from 0. What lies halfway goes up,
    /// what lies outside to the outermost.
    #[must_use]
    pub fn cell(&self, signature: Signature) -> (usize, usize) {
        (
            self.outputs.nearest(f64::from(signature.output_tokens)),
            self.inputs.nearest(f64::from(signature.prompt_tokens)),
        )
    }

    /// Time until the model is resident, when the profile knows it.
    #[must_use]
    pub fn load_time(&self, tier: LoadTier) -> Option<Duration> {
        let LoadSeconds { host, peer, origin } = self.document.load_seconds_by_tier.as_ref()?;
        let seconds = match tier {
            LoadTier::Host => host,
            LoadTier::Peer => peer,
            LoadTier::Origin => origin,
        };
        seconds.map(span)
    }

    /// What a request takes alone on an idle device, as a part of [`Self::e2e`], above 0 and at most 1. It needs
    /// `tpot_by_batch`, and is 1 without. With `prefill_tokens_per_s` prompt and answer are counted apart;
    /// otherwise the whole request is taken to gain what a decode step gains.
    #[must_use]
    pub fn idle_speedup(&self, signature: Signature) -> f64 {
        let Some(steps) = &self.document.tpot_by_batch else {
            return 1.0;
        };
        let alone = steps[0].1;
        let e2e = self.e2e_seconds(signature);
        let ratio = match self.document.prefill_tokens_per_s {
            Some(rate) => {
                let prefill = f64::from(signature.prompt_tokens) / rate;
                (prefill + f64::from(signature.output_tokens) * alone) / e2e
            }
            None => {
                let sequences = e2e / self.work_seconds(signature);
                alone / crate::steps::tpot_seconds(steps, sequences)
            }
        };
        ratio.clamp(IDLE_MIN, 1.0)
    }

    /// Seconds of a whole request.
    pub(crate) fn e2e_seconds(&self, signature: Signature) -> f64 {
        let (output, input) = self.spots(signature);
        self.e2e.at(output, input)
    }

    /// Device-seconds of a whole request.
    pub(crate) fn work_seconds(&self, signature: Signature) -> f64 {
        let (output, input) = self.spots(signature);
        self.work.at(output, input)
    }

    /// Fewest output tokens of the grid.
    pub(crate) fn first_output(&self) -> f64 {
        self.outputs.first()
    }

    fn spots(&self, signature: Signature) -> (Spot, Spot) {
        let Signature {
            prompt_tokens,
            output_tokens,
        } = signature;
        (
            self.outputs.spot(f64::from(output_tokens)),
            self.inputs.spot(f64::from(prompt_tokens)),
        )
    }

    fn figure(&self, signature: Signature, seconds: f64) -> Figure {
        let (output, input) = self.spots(signature);
        Figure {
            value: span(seconds),
            reach: match output.is_beyond() || input.is_beyond() {
                true => Reach::Extrapolated,
                false => Reach::Inside,
            },
        }
    }
}

/// Only the targets that are above 0: a 0 is how AIBrix writes none.
fn set_targets(slos: &ProfileSlos) -> ProfileSlos {
    let set = |target: Option<f64>| target.filter(|&target| target > 0.0);
    ProfileSlos {
        percentile: slos.percentile,
        e2e: set(slos.e2e),
        ttft: set(slos.ttft),
        tpot: set(slos.tpot),
        tpat: set(slos.tpat),
        tput: set(slos.tput),
        tt: set(slos.tt),
    }
}

/// Smallest share: no device runs a million requests at once, and a share of nothing would be booked without end.
const SHARE_MIN: f64 = 1e-6;
/// Smallest part of the loaded time that an idle device is taken to need; a profile that says less is noise.
const IDLE_MIN: f64 = 0.01;
