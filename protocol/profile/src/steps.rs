//! A device seen step by step, for whoever simulates one.

use std::time::Duration;

use crate::figures::span;
use crate::fit::Fit;
use crate::profile::DeviceProfile;

/// How long the steps of a device take: each reads some prompt tokens and makes one token of each sequence that
/// decodes.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTimes {
    prefill_tokens_per_s: f64,
    tpot_by_batch: Vec<(f64, f64)>,
    fit: Option<Fit>,
}

impl StepTimes {
    /// The steps behind a profile. What it says of them itself (`prefill_tokens_per_s`, `tpot_by_batch`) is
    /// taken; the rest, which AIBrix's files do not say, is fitted to its matrices.
    #[must_use]
    pub fn from_profile(profile: &DeviceProfile) -> Self {
        let document = profile.document();
        let known = (document.prefill_tokens_per_s, document.tpot_by_batch.as_deref());
        if let (Some(prefill_tokens_per_s), Some(steps)) = known {
            return Self {
                prefill_tokens_per_s,
                tpot_by_batch: steps.to_vec(),
                fit: None,
            };
        }
        let fit = Fit::of(document);
        Self {
            prefill_tokens_per_s: fit.prefill_tokens_per_s,
            tpot_by_batch: known.1.map_or_else(|| fit.tpot_by_batch(), <[_]>::to_vec),
            fit: Some(fit),
        }
    }

    /// What was fitted, and how well; `None` when the profile says it all.
    #[must_use]
    pub fn fit(&self) -> Option<&Fit> {
        self.fit.as_ref()
    }

    /// Prompt tokens that it reads a second.
    #[must_use]
    pub fn prefill_tokens_per_s(&self) -> f64 {
        self.prefill_tokens_per_s
    }

    /// Time of one step that reads so many prompt tokens and makes one token of each of so many sequences. A
    /// step with nothing to do takes none.
    #[must_use]
    pub fn step(&self, prefill_tokens: u32, decoding_sequences: u32) -> Duration {
        let prefill = f64::from(prefill_tokens) / self.prefill_tokens_per_s;
        let decode = match decoding_sequences {
            0 => 0.0,
            sequences => tpot_seconds(&self.tpot_by_batch, f64::from(sequences)),
        };
        span(prefill + decode)
    }
}

/// Seconds of a decode step of so many sequences: on the line between the neighbouring batch sizes, and beyond
/// the last on that of the last two, which never falls. Below the first, and with one alone, it is that one's.
pub(crate) fn tpot_seconds(steps: &[(f64, f64)], sequences: f64) -> f64 {
    let above = steps.partition_point(|&(batch, _)| batch <= sequences);
    let (from, to) = match (above, steps.len()) {
        (0, _) | (1, 1) => return steps[0].1,
        (above, count) if above == count => (steps[count - 2], steps[count - 1]),
        (above, _) => (steps[above - 1], steps[above]),
    };
    let slope = (to.1 - from.1) / (to.0 - from.0);
    if above == steps.len() {
        to.1 + slope.max(0.0) * (sequences - to.0)
    } else {
        from.1 + slope * (sequences - from.0)
    }
}
