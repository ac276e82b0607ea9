//! What a request takes and costs on a device kind: fixed when it is queued, so that its place, its admission and its
//! booking are all decided by the same numbers.

use std::time::Duration;

use flotilla_profile::{DeviceProfile, Reach, Signature};
use flotilla_protocol::profile::ProfileSource;

use crate::predictor::Prediction;
use crate::share::Share;
use crate::target::Target;

/// A request as profiles see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Asked {
    pub(crate) prompt_tokens: u32,
    pub(crate) prediction: Prediction,
    pub(crate) target: Option<Target>,
}

impl Asked {
    /// The same when so many tokens of the answer are out: it will have at least one more.
    pub(crate) fn after(&self, made: u32) -> Self {
        let least = made.saturating_add(1);
        Self {
            prediction: Prediction {
                low: self.prediction.low.max(least),
                high: self.prediction.high.max(least),
            },
            ..*self
        }
    }

    /// The part of its share that it takes on devices of a profile, from 0 to 1.
    ///
    /// So many requests were on the device when the profile was measured that its own targets just held. A request
    /// with more time bears more company, in proportion; for one whose whole answer nothing bounds the part is 0.
    fn share_part(&self, profile: &DeviceProfile) -> f64 {
        let within_s = |target: Target| {
            let within = target.end_within(self.prompt_tokens, self.prediction.high);
            within.map_or(f64::INFINITY, |within| within.as_secs_f64())
        };
        let measured_within_s = Target::of(None, None, None, Some(profile.slos())).map(within_s);
        match (measured_within_s, self.target.map(within_s)) {
            (Some(measured_s), Some(given_s)) if measured_s < given_s => measured_s / given_s,
            (Some(_), Some(_)) | (None, _) | (_, None) => 1.0,
        }
    }

    /// The signature that capacity is booked for.
    pub(crate) fn signature(&self) -> Signature {
        Signature {
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.prediction.high,
        }
    }
}

/// What a request takes on one device kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Price {
    /// Time of the whole request at saturation.
    pub(crate) expected: Duration,
    /// Device time that it costs.
    pub(crate) work: Duration,
    /// Part of the device that it occupies while it runs.
    pub(crate) share: Share,
    /// How long after its publish it may start at the latest, in microseconds; `i64::MAX` without a target.
    pub(crate) start_within_us: i64,
    /// Cost of an hour of the device.
    pub(crate) cost: f64,
    /// Where the figures come from.
    pub(crate) source: ProfileSource,
    /// Whether they lie beyond what was measured.
    pub(crate) reach: Reach,
}

impl Price {
    /// The price of a request on devices that run as `profile` says, all times multiplied by `factor`. With much time
    /// it takes less of a device, but no less than `share_part_min` of what the profile says.
    pub(crate) fn of(profile: &DeviceProfile, factor: f64, asked: &Asked, share_part_min: f64) -> Self {
        let signature = asked.signature();
        let e2e = profile.e2e(signature);
        let start_within_us = asked.target.map_or(i64::MAX, |target| {
            target.start_within_us(profile, factor, asked.prompt_tokens, asked.prediction)
        });
        Self {
            expected: e2e.value.mul_f64(factor),
            work: profile.work(signature).mul_f64(factor),
            share: Share::of(profile.share(signature) * asked.share_part(profile).max(share_part_min)),
            start_within_us,
            cost: profile.cost(),
            source: profile.source(),
            reach: e2e.reach,
        }
    }

    /// What it costs in device time times the device's price; swapping a model in costs as much as computing.
    pub(crate) fn cost_with(&self, swap: Duration) -> f64 {
        self.cost * (self.work + swap).as_secs_f64()
    }

    /// Whether capacity is a matter of shares. An estimated profile knows nothing of them: the worker's slots rule.
    pub(crate) fn is_measured(&self) -> bool {
        match self.source {
            ProfileSource::Measured | ProfileSource::Imported => true,
            ProfileSource::Estimated => false,
        }
    }
}
