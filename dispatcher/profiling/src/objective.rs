//! What a device must keep to.

use std::time::Duration;

use flotilla_profile::Signature;
use flotilla_protocol::profile::ProfileSlos;
use flotilla_protocol::request::Slo;

use crate::fault::ObjectiveFault;
use crate::measured::Latencies;

/// Times that requests must not exceed. All that are set must hold; none at all asks only for throughput.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Targets {
    /// Whole request.
    pub e2e: Option<Duration>,
    /// First token.
    pub ttft: Option<Duration>,
    /// Each token after the first.
    pub tpot: Option<Duration>,
    /// Whole request, divided by the tokens of prompt and answer.
    pub tpat: Option<Duration>,
}

impl Targets {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn named(&self) -> [(&'static str, Option<Duration>); 4] {
        [
            ("e2e", self.e2e),
            ("ttft", self.ttft),
            ("tpot", self.tpot),
            ("tpat", self.tpat),
        ]
    }
}

impl From<&Slo> for Targets {
    /// Targets that are not above 0 are none.
    fn from(slo: &Slo) -> Self {
        let span = |ms: Option<f64>| {
            let ms = ms.filter(|ms| *ms > 0.0)?;
            Duration::try_from_secs_f64(ms / 1e3).ok()
        };
        Self {
            e2e: span(slo.e2e_ms),
            ttft: span(slo.ttft_ms),
            tpot: span(slo.tpot_ms),
            tpat: span(slo.tpat_ms),
        }
    }
}

/// Targets, and for how many requests they hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    percentile: f64,
    targets: Targets,
}

impl Objective {
    /// Targets at a percentile, in percent; 0 is the mean.
    ///
    /// # Errors
    /// [`ObjectiveFault`], the first one.
    pub fn new(percentile: f64, targets: Targets) -> Result<Self, ObjectiveFault> {
        if !(0.0..=100.0).contains(&percentile) {
            return Err(ObjectiveFault::Percentile { found: percentile });
        }
        let mut none = targets
            .named()
            .into_iter()
            .filter(|(_, target)| *target == Some(Duration::ZERO));
        match none.next() {
            Some((name, _)) => Err(ObjectiveFault::Target { name }),
            None => Ok(Self { percentile, targets }),
        }
    }

    /// The percentile, in percent; 0 is the mean.
    #[must_use]
    pub fn percentile(&self) -> f64 {
        self.percentile
    }

    /// The targets.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Whether requests of this length keep to the targets at `percentile`.
    pub(crate) fn holds(&self, cell: Signature, latencies: &Latencies, percentile: f64) -> bool {
        let tokens = f64::from(cell.prompt_tokens) + f64::from(cell.output_tokens);
        let Targets {
            e2e,
            ttft,
            tpot,
            tpat,
        } = self.targets;
        let e2e_s = latencies.e2e.at(percentile);
        let found = [
            (e2e, e2e_s),
            (ttft, latencies.ttft.at(percentile)),
            (tpot, latencies.tpot.at(percentile)),
            (tpat, e2e_s / tokens),
        ];
        found
            .iter()
            .all(|(target, found)| target.is_none_or(|target| *found <= target.as_secs_f64()))
    }

    /// As a profile tells them; nothing when there are no targets.
    pub(crate) fn document(&self) -> Option<ProfileSlos> {
        let seconds = |target: Option<Duration>| target.map(|target| target.as_secs_f64());
        (!self.targets.is_empty()).then(|| ProfileSlos {
            percentile: Some(self.percentile),
            e2e: seconds(self.targets.e2e),
            ttft: seconds(self.targets.ttft),
            tpot: seconds(self.targets.tpot),
            tpat: seconds(self.targets.tpat),
            ..ProfileSlos::default()
        })
    }
}
