//! When an answer has to be there, and when its request has to start for that.

use std::time::Duration;

use flotilla_profile::{DeviceProfile, Signature};
use flotilla_protocol::profile::ProfileSlos;
use flotilla_protocol::request::Slo;

use crate::micros::micros;
use crate::predictor::Prediction;

/// What a request is to meet, all spans counted from its publish.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Target {
    slo: Slo,
    /// The request is worthless after this.
    deadline: Option<Duration>,
}

impl Target {
    /// The target of a request, from the first of these that says anything: its own deadline or latency targets;
    /// the catalog's for its model; those that the profile was measured under.
    pub(crate) fn of(
        deadline: Option<Duration>,
        request: Option<Slo>,
        catalog: Option<Slo>,
        profile: Option<&ProfileSlos>,
    ) -> Option<Self> {
        let request = request.filter(is_set);
        if deadline.is_some() || request.is_some() {
            let slo = request.unwrap_or_default();
            return Some(Self { slo, deadline });
        }
        let slo = catalog
            .filter(is_set)
            .or_else(|| profile.map(of_profile).filter(is_set))?;
        Some(Self { slo, deadline })
    }

    /// How long after its publish a request may start at the latest on a device that runs as `profile` says, with
    /// all times multiplied by `factor`, in microseconds; negative when even at once is too late.
    ///
    /// Every target that is set is a bound, and the tightest rules:
    ///
    /// ```text
    /// e2e, deadline:  e2e                          − expected(prompt, output)
    /// tpot:           tpot · output + ttft         − expected(prompt, output)
    /// tpat:           tpat · (prompt + output)     − expected(prompt, output)
    /// ttft:           ttft                         − expected time to the first token
    /// ```
    ///
    /// The output is not known. A bound that grows with it is tightest for a short answer, one that does not for a
    /// long one; both ends of the prediction are tried.
    pub(crate) fn start_within_us(
        &self,
        profile: &DeviceProfile,
        factor: f64,
        prompt_tokens: u32,
        prediction: Prediction,
    ) -> i64 {
        let scaled = |span: Duration| span.mul_f64(factor);
        let first = scaled(profile.ttft(signature(prompt_tokens, prediction.high)).value);
        let first_bound = self.slo.ttft_ms.map(|ttft| bound(milliseconds(ttft), first));
        let whole = [prediction.low, prediction.high]
            .into_iter()
            .filter_map(|output| {
                let within = self.end_within(prompt_tokens, output)?;
                Some(bound(
                    within,
                    scaled(profile.e2e(signature(prompt_tokens, output)).value),
                ))
            });
        whole.chain(first_bound).min().unwrap_or(i64::MAX)
    }

    /// How long after its publish the first token has to be there; `None` when nothing bounds it.
    pub(crate) fn first_within(&self) -> Option<Duration> {
        self.slo.ttft_ms.map(milliseconds)
    }

    /// How long after its publish an answer of so many tokens has to be complete; `None` when nothing bounds it.
    pub(crate) fn end_within(&self, prompt_tokens: u32, output_tokens: u32) -> Option<Duration> {
        let first = self.slo.ttft_ms.unwrap_or(0.0);
        let tokens = f64::from(prompt_tokens) + f64::from(output_tokens);
        let bounds = [
            self.slo.e2e_ms.map(milliseconds),
            self.slo
                .tpot_ms
                .map(|tpot| milliseconds(tpot * f64::from(output_tokens) + first)),
            self.slo.tpat_ms.map(|tpat| milliseconds(tpat * tokens)),
            self.deadline,
        ];
        bounds.into_iter().flatten().min()
    }
}

fn signature(prompt_tokens: u32, output_tokens: u32) -> Signature {
    Signature {
        prompt_tokens,
        output_tokens,
    }
}

fn bound(within: Duration, expected: Duration) -> i64 {
    micros(within) - micros(expected)
}

fn is_set(slo: &Slo) -> bool {
    *slo != Slo::default()
}

fn of_profile(slos: &ProfileSlos) -> Slo {
    let in_ms = |seconds: Option<f64>| {
        seconds
            .filter(|seconds| *seconds > 0.0)
            .map(|seconds| seconds * 1e3)
    };
    Slo {
        e2e_ms: in_ms(slos.e2e),
        ttft_ms: in_ms(slos.ttft),
        tpot_ms: in_ms(slos.tpot),
        tpat_ms: in_ms(slos.tpat),
    }
}

/// A span that a client or an operator gave; what is no number bounds nothing.
fn milliseconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value / 1e3).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::profile::{Profile, ProfileSource};

    use super::*;

    fn slo(e2e_ms: f64) -> Slo {
        Slo {
            e2e_ms: Some(e2e_ms),
            ..Slo::default()
        }
    }

    /// A tenth of a second for a token of an answer, and nothing for a prompt.
    fn profile() -> DeviceProfile {
        let outputs = vec![1.0, 10.0, 100.0];
        let e2e: Vec<Vec<f64>> = outputs.iter().map(|output| vec![output / 10.0; 2]).collect();
        let document = Profile {
            gpu: "k".into(),
            cost: 1.0,
            tputs: e2e
                .iter()
                .map(|row| row.iter().map(|it| 1.0 / it).collect())
                .collect(),
            indexes: vec![outputs, vec![1.0, 1000.0]],
            created: 1.0,
            e2e: Some(e2e),
            ttft: Some(vec![vec![0.05; 2]; 3]),
            tpot: None,
            slos: None,
            tpot_by_batch: None,
            prefill_tokens_per_s: None,
            load_seconds_by_tier: None,
            samples: None,
            source: Some(ProfileSource::Measured),
        };
        DeviceProfile::try_from(document).unwrap()
    }

    #[test]
    fn the_first_that_says_anything_rules() {
        let profile_slos = ProfileSlos {
            e2e: Some(3.0),
            ttft: Some(0.0),
            ..ProfileSlos::default()
        };
        let of = |deadline_s: Option<u64>, request: Option<f64>, catalog: Option<f64>| {
            let deadline = deadline_s.map(Duration::from_secs);
            let target = Target::of(deadline, request.map(slo), catalog.map(slo), Some(&profile_slos));
            target.unwrap().end_within(1, 1).unwrap()
        };
        assert_eq!(of(None, None, None), Duration::from_secs(3));
        assert_eq!(of(None, None, Some(4000.0)), Duration::from_secs(4));
        assert_eq!(of(None, Some(5000.0), Some(4000.0)), Duration::from_secs(5));
        assert_eq!(of(Some(6), None, Some(4000.0)), Duration::from_secs(6));
        assert_eq!(of(Some(6), Some(5000.0), None), Duration::from_secs(5));
        let nothing = Some(Slo::default());
        assert_eq!(
            Target::of(None, nothing, nothing, Some(&ProfileSlos::default())),
            None
        );
        assert_eq!(Target::of(None, None, None, None), None);
    }

    #[test]
    fn the_tightest_of_several_targets_rules_at_both_ends_of_the_prediction() {
        let start_within_s = |slo: Slo, low: u32, high: u32| {
            let target = Target::of(None, Some(slo), None, None).unwrap();
            let within_us = target.start_within_us(&profile(), 1.0, 10, Prediction { low, high });
            (within_us as f64 / 1e4).round() / 100.0
        };
        let tpot_ms = Some(200.0);
        let of_tpot = Slo {
            tpot_ms,
            ..Slo::default()
        };
        assert_eq!(
            start_within_s(slo(20_000.0), 10, 100),
            10.0,
            "the long answer takes 10 s"
        );
        assert_eq!(
            start_within_s(of_tpot, 10, 100),
            1.0,
            "the short one has 2 s, and takes one"
        );
        let ttft_ms = Some(500.0);
        let both = Slo { ttft_ms, ..of_tpot };
        assert_eq!(
            start_within_s(both, 10, 100),
            0.45,
            "the first token takes 0.05 s"
        );
        let tpat_ms = Some(100.0);
        let of_tpat = Slo {
            tpat_ms,
            ..Slo::default()
        };
        assert_eq!(
            start_within_s(of_tpat, 10, 10),
            1.0,
            "20 tokens have 2 s, and take one"
        );
        assert_eq!(start_within_s(slo(500.0), 10, 10), -0.5);
    }
}
