//! How the router reads a profile: the nearest cell, whatever lies between or beyond.

use flotilla_protocol::profile::{Profile, ProfileSlos};

/// One deployment's profile of one model.
#[derive(Debug, Clone)]
pub(super) struct GpuProfile {
    output_logs: Vec<f64>,
    input_logs: Vec<f64>,
    tputs: Vec<Vec<f64>>,
    e2e: Option<Vec<Vec<f64>>>,
    ttft: Option<Vec<Vec<f64>>>,
    target: Option<Target>,
}

/// The one target that rules, in seconds; whatever else is set beside it is ignored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    Tpot { tpot: f64, ttft: f64 },
    Ttft(f64),
    Tpat(f64),
    E2e(f64),
}

/// What a request looks like to the router: the predicted answer and the prompt, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) output_tokens: u32,
    pub(super) prompt_tokens: u32,
}

/// Why a profile cannot rank or price a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LookupError {
    /// The profile names no target, or lacks the matrix that its target needs.
    NotRankable,
    /// The cell's throughput is 0: the router calls this an "SLO failure request".
    Infeasible,
}

impl GpuProfile {
    /// Reads a profile.
    pub(super) fn new(profile: &Profile) -> Self {
        let logs = |axis: usize| {
            let ticks = profile.indexes.get(axis).into_iter().flatten();
            ticks.map(|tick| tick.log2()).collect()
        };
        Self {
            output_logs: logs(0),
            input_logs: logs(1),
            tputs: profile.tputs.clone(),
            e2e: profile.e2e.clone(),
            ttft: profile.ttft.clone(),
            target: profile.slos.as_ref().and_then(Target::of),
        }
    }

    /// Seconds from the expected end to the target; above 0 when a violation is expected.
    /// `target_output_tokens` is a prediction of its own, made after that of `features`.
    pub(super) fn overrun(&self, features: Features, target_output_tokens: u32) -> Result<f64, LookupError> {
        let target = self.target.ok_or(LookupError::NotRankable)?;
        let matrix = match target {
            Target::Ttft(_) => &self.ttft,
            Target::Tpot { .. } | Target::Tpat(_) | Target::E2e(_) => &self.e2e,
        };
        let expected = self.at(matrix.as_ref(), features);
        let expected = expected.ok_or(LookupError::NotRankable)?;
        let output = f64::from(target_output_tokens);
        let allowed = match target {
            Target::Tpot { tpot, ttft } => tpot * output + ttft,
            Target::Tpat(tpat) => tpat * (f64::from(features.prompt_tokens) + output),
            Target::Ttft(seconds) | Target::E2e(seconds) => seconds,
        };
        Ok(expected - allowed)
    }

    /// Share of a pod that the request takes. A profile without `e2e` prices it at nothing, and an `e2e` of 0
    /// at more than any pod has.
    pub(super) fn consumption(&self, features: Features) -> Result<f64, LookupError> {
        let tput = self.at(Some(&self.tputs), features);
        let tput = tput.filter(|&tput| tput > 0.0).ok_or(LookupError::Infeasible)?;
        let e2e = self.at(self.e2e.as_ref(), features);
        Ok(e2e.map_or(0.0, |e2e| 1.0 / (tput * e2e)))
    }

    fn at(&self, matrix: Option<&Vec<Vec<f64>>>, features: Features) -> Option<f64> {
        let (output, input) = self.cell(features)?;
        matrix?.get(output)?.get(input).copied()
    }

    /// The cell, (output, input); `None` when an axis has no tick.
    fn cell(&self, features: Features) -> Option<(usize, usize)> {
        Some((
            nearest(&self.output_logs, f64::from(features.output_tokens).log2())?,
            nearest(&self.input_logs, f64::from(features.prompt_tokens).log2())?,
        ))
    }
}

impl Target {
    /// The first that is above 0.
    fn of(slos: &ProfileSlos) -> Option<Self> {
        let set = |seconds: Option<f64>| seconds.filter(|&seconds| seconds > 0.0);
        let ttft = set(slos.ttft);
        let tpot = set(slos.tpot).map(|tpot| Self::Tpot {
            tpot,
            ttft: ttft.unwrap_or(0.0),
        });
        tpot.or_else(|| ttft.map(Self::Ttft))
            .or_else(|| set(slos.tpat).map(Self::Tpat))
            .or_else(|| set(slos.e2e).map(Self::E2e))
    }
}

/// The tick that is nearest, the upper one from halfway on; beyond an end it is that end's.
fn nearest(logs: &[f64], log: f64) -> Option<usize> {
    let last = logs.len().checked_sub(1)?;
    let above = logs.partition_point(|&tick| tick <= log);
    Some(match above {
        0 => 0,
        above if above > last => last,
        above => {
            let (below, gap) = (above - 1, logs[above] - logs[above - 1]);
            if log - logs[below] < HALFWAY * gap {
                below
            } else {
                above
            }
        }
    })
}

/// Part of the gap between two ticks from which on the upper one is taken.
const HALFWAY: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rival::stage;

    fn profile(cell: impl Fn(usize, usize) -> (f64, f64)) -> Profile {
        stage::profile("fast", cell)
    }

    fn features(output_tokens: u32, prompt_tokens: u32) -> Features {
        Features {
            output_tokens,
            prompt_tokens,
        }
    }

    #[test]
    fn ticks_are_found_and_what_lies_between_goes_to_the_nearest_in_log_space() {
        let profile = GpuProfile::new(&profile(|_, _| (1.0, 1.0)));
        let cell = |output, input| profile.cell(features(output, input)).unwrap();
        assert_eq!(cell(64, 256), (4, 1));
        assert_eq!(cell(256, 128), (6, 0));
        assert_eq!(cell(8, 128), (1, 0));
        assert_eq!((cell(4, 181).1, cell(4, 182).1), (0, 1));
    }

    #[test]
    fn lengths_beyond_the_grid_are_priced_as_its_last_cell() {
        let profile = GpuProfile::new(&profile(|_, _| (1.0, 1.0)));
        assert_eq!(profile.cell(features(0, 2_049)), Some((0, 4)));
        assert_eq!(profile.cell(features(9_999, 32_768)), Some((7, 4)));
    }

    #[test]
    fn consumption_is_one_over_throughput_times_time() {
        let profile = GpuProfile::new(&profile(|_, _| (62.477, 0.099_53)));
        let consumption = profile.consumption(features(4, 128)).unwrap();
        assert!((consumption - 0.1608).abs() < 1e-4);
        assert!(consumption * 6.0 <= 1.0 && consumption * 7.0 > 1.0);
    }

    #[test]
    fn a_cell_without_throughput_is_infeasible_and_one_without_time_costs_nothing() {
        let none = GpuProfile::new(&profile(|_, _| (0.0, 1.0)));
        assert_eq!(none.consumption(features(4, 128)), Err(LookupError::Infeasible));
        let timeless = GpuProfile::new(&Profile {
            e2e: None,
            ..profile(|_, _| (1.0, 1.0))
        });
        assert_eq!(timeless.consumption(features(4, 128)), Ok(0.0));
        let immediate = GpuProfile::new(&profile(|_, _| (1.0, 0.0)));
        assert!(immediate.consumption(features(4, 128)).unwrap() > 1.0);
    }

    #[test]
    fn the_first_target_that_is_set_rules_and_tpot_adds_ttft() {
        let all = ProfileSlos {
            e2e: Some(9.0),
            ttft: Some(2.0),
            tpot: Some(0.5),
            tpat: Some(0.1),
            ..ProfileSlos::default()
        };
        let overrun = |slos: &ProfileSlos| {
            let profile = GpuProfile::new(&Profile {
                slos: Some(slos.clone()),
                ..profile(|_, _| (1.0, 3.0))
            });
            profile.overrun(features(10, 20), 8)
        };
        assert_eq!(overrun(&all), Ok(3.0 - (0.5 * 8.0 + 2.0)));
        let no_tpot = ProfileSlos { tpot: None, ..all };
        assert_eq!(overrun(&no_tpot), Err(LookupError::NotRankable), "no ttft matrix");
        let no_ttft = ProfileSlos {
            ttft: Some(0.0),
            ..no_tpot
        };
        assert_eq!(overrun(&no_ttft), Ok(3.0 - 0.1 * 28.0));
        let e2e_only = ProfileSlos {
            tpat: None,
            ..no_ttft
        };
        assert_eq!(overrun(&e2e_only), Ok(3.0 - 9.0));
        assert_eq!(overrun(&ProfileSlos::default()), Err(LookupError::NotRankable));
    }
}
