//! The least that a request costs a device, and when the device can do it.

use std::time::Duration;

use flotilla_profile::StepTimes;

use crate::fleet::{DeviceSpec, FleetSpec, ModelSpec};
use crate::outcome::Limits;
use crate::trace::TraceRequest;

/// How one kind of device serves one model.
#[derive(Debug)]
pub(super) struct Service {
    /// Least device time of one prompt token.
    prompt_work_s: f64,
    /// Least time that passes while one prompt token is read.
    prompt_time_s: f64,
    /// Shortest step that makes a token.
    step_min_s: f64,
    /// Longest time from one token of a request to its next.
    round_max_s: f64,
    decoding: Decoding,
}

/// The least device time of a token that is made, against the mean time of the steps: a convex function that
/// nowhere rises, as its corners.
#[derive(Debug)]
struct Decoding(Vec<(f64, f64)>);

/// What one request needs of one kind of device. Times are seconds from the start of the trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Need {
    /// Device time of the prompt.
    pub(super) prompt_work_s: f64,
    /// When it can be spent: from, until.
    pub(super) prompt_window_s: (f64, f64),
    /// Device time of the tokens after the first.
    pub(super) answer_work_s: f64,
    /// When it can be spent: from, until.
    pub(super) answer_window_s: (f64, f64),
}

impl Service {
    /// `neighbours` are the models that may be resident beside this one; each may have a step between two of
    /// its.
    pub(super) fn new(
        fleet: &FleetSpec,
        model: &ModelSpec,
        device: &DeviceSpec,
        neighbours: &[&ModelSpec],
    ) -> Self {
        let steps = StepTimes::from_profile(fleet.profile(model, device));
        let slots = model.slots.unwrap_or(device.slots).clamp(1, device.slots.max(1));
        let step = |sequences: u32| steps.step(0, sequences).as_secs_f64();
        let decoding = Decoding::of((1..=slots).map(|sequences| (step(sequences), f64::from(sequences))));
        let step_min_s = (1..=slots).map(step).fold(f64::INFINITY, f64::min);
        let per_token_s = 1.0 / steps.prefill_tokens_per_s();
        let longest = neighbours
            .iter()
            .map(|neighbour| longest_step_s(fleet, neighbour, device));
        Self {
            // A chunk of one prompt token counts as a token that is made.
            prompt_work_s: per_token_s.min(decoding.least()),
            prompt_time_s: per_token_s.min(step_min_s),
            step_min_s,
            round_max_s: longest.sum(),
            decoding,
        }
    }

    /// What a request needs to meet its targets; `None` when it could not, were it alone.
    pub(super) fn need(
        &self,
        request: &TraceRequest,
        model: &ModelSpec,
        latency: Duration,
        until: Duration,
    ) -> Option<Need> {
        let limits = Limits::of(request, model.slo);
        let (total_s, first_token_s) = (limits.total_ms / MS_PER_S, limits.first_token_ms / MS_PER_S);
        let published_s = request.at.as_secs_f64();
        let from_s = published_s + latency.as_secs_f64();
        let later_tokens = f64::from(request.output_tokens - 1);
        let prompt_tokens = f64::from(request.prompt_tokens);
        let limit_s = total_s.min((until - request.at).as_secs_f64());
        let first_s = first_token_s.min(limit_s);
        let by_engine_s = first_token_s + later_tokens * self.round_max_s;
        let until_s = published_s + limit_s.min(by_engine_s) + SLACK_S;
        let read_s = from_s + prompt_tokens * self.prompt_time_s;
        let first_until_s = (published_s + first_s + SLACK_S).min(until_s - later_tokens * self.step_min_s);
        if read_s > first_until_s {
            return None;
        }
        let step_s = (until_s - read_s) / later_tokens.max(1.0);
        Some(Need {
            prompt_work_s: prompt_tokens * self.prompt_work_s,
            prompt_window_s: (from_s, first_until_s),
            answer_work_s: later_tokens * self.decoding.at(step_s),
            answer_window_s: (read_s, until_s),
        })
    }
}

impl Decoding {
    /// Of the steps that there are: how long they take and how many sequences share them.
    fn of(steps: impl Iterator<Item = (f64, f64)>) -> Self {
        let mut points: Vec<_> = steps
            .map(|(step_s, sequences)| (step_s, step_s / sequences))
            .collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.total_cmp(&other.1)));
        let mut corners: Vec<(f64, f64)> = Vec::new();
        for point in points {
            if corners.last().is_some_and(|last| point.1 >= last.1) {
                continue;
            }
            while let [.., before, last] = corners[..]
                && slope(before, point) <= slope(before, last)
            {
                corners.pop();
            }
            corners.push(point);
        }
        Self(corners)
    }

    /// At the largest batch that is worth it.
    fn least(&self) -> f64 {
        self.0.last().map_or(0.0, |corner| corner.1)
    }

    /// When steps take this long on average.
    fn at(&self, step_s: f64) -> f64 {
        let above = self.0.partition_point(|corner| corner.0 <= step_s);
        match (above.checked_sub(1), self.0.get(above)) {
            (Some(below), Some(&next)) => {
                let last = self.0[below];
                last.1 + slope(last, next) * (step_s - last.0)
            }
            (None, Some(&first)) => first.1,
            (_, None) => self.least(),
        }
    }
}

fn slope(from: (f64, f64), to: (f64, f64)) -> f64 {
    (to.1 - from.1) / (to.0 - from.0)
}

/// Longest step of a model on a device: as many prompt tokens and sequences as one takes.
fn longest_step_s(fleet: &FleetSpec, model: &ModelSpec, device: &DeviceSpec) -> f64 {
    let steps = StepTimes::from_profile(fleet.profile(model, device));
    let slots = model.slots.unwrap_or(device.slots).clamp(1, device.slots.max(1));
    let decode = (0..=slots).map(|sequences| steps.step(0, sequences).as_secs_f64());
    let prefill = steps.step(device.batch_tokens_max, 0).as_secs_f64();
    prefill + decode.fold(0.0, f64::max)
}

/// Steps are rounded to whole nanoseconds, each; a million of them make up a millisecond.
const SLACK_S: f64 = 1e-3;
const MS_PER_S: f64 = 1e3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::FleetSpec;
    use crate::trace::{BuiltinTrace, Recipe};

    /// The fast device of the composite trace with its model, and a request with these tokens and targets.
    fn need(prompt_tokens: u32, output_tokens: u32, change: impl Fn(&mut TraceRequest)) -> Option<Need> {
        let fleet: FleetSpec = BuiltinTrace::Composite.fleet();
        let recipe = Recipe {
            seed: 1,
            rate: 1.0,
            duration: Duration::from_secs(1),
        };
        let mut request = BuiltinTrace::Composite.make(&recipe).requests.remove(0);
        (request.at, request.slo) = (Duration::from_secs(10), None);
        (request.prompt_tokens, request.output_tokens) = (prompt_tokens, output_tokens);
        change(&mut request);
        let fast = fleet.devices.iter().find(|device| device.kind == "sim-fast");
        let model = ModelSpec {
            slo: None,
            ..fleet.models[0].clone()
        };
        let service = Service::new(&fleet, &model, fast.unwrap(), &[&model]);
        service.need(
            &request,
            &model,
            Duration::from_millis(1),
            Duration::from_secs(1_000),
        )
    }

    fn within(e2e_ms: f64) -> impl Fn(&mut TraceRequest) {
        move |request| {
            request.slo = Some(flotilla_protocol::request::Slo {
                e2e_ms: Some(e2e_ms),
                ..Default::default()
            });
        }
    }

    #[test]
    fn with_much_time_a_token_costs_its_part_of_a_full_batch() {
        let need = need(1_200, 101, |_| {}).unwrap();
        assert!((need.prompt_work_s - 0.1).abs() < 1e-9);
        assert!((need.answer_work_s - 100.0 * 0.03 / 32.0).abs() < 1e-6);
        assert!((need.answer_window_s.0 - 10.101).abs() < 1e-6);
    }

    #[test]
    fn who_is_in_a_hurry_costs_more_as_its_batch_must_be_small() {
        let slow = need(1_200, 101, within(100.0 + 3_000.0)).unwrap().answer_work_s;
        let fast = need(1_200, 101, within(100.0 + 1_600.0)).unwrap().answer_work_s;
        // Eight share a step of 16 ms.
        assert!((fast / (100.0 * 0.016_064_5 / 8.0) - 1.0).abs() < 0.02, "{fast}");
        assert!(slow < fast / 2.0);
    }

    #[test]
    fn who_could_not_be_in_time_alone_needs_nothing() {
        assert!(need(1_200, 101, within(100.0 + 1_100.0)).is_none());
        assert!(need(1_200, 101, within(102.0 + 1_200.0)).is_some());
    }

    #[test]
    fn after_a_first_token_in_time_the_engine_goes_on_at_its_own_pace() {
        let need = need(1_200, 101, |request| {
            request.slo = Some(flotilla_protocol::request::Slo {
                ttft_ms: Some(500.0),
                ..Default::default()
            });
        });
        let need = need.unwrap();
        // No step reads more than 512 tokens or takes longer than with 32 sequences.
        let longest_s = 512.0 / 12_000.0 + 0.03;
        assert!((need.answer_window_s.1 - (10.5 + 100.0 * longest_s)).abs() < 0.01);
        assert!((need.prompt_window_s.1 - 10.5).abs() < 0.01);
    }

    #[test]
    fn corners_lie_below_all_steps_and_nowhere_rise() {
        let steps = [(0.01, 1.0), (0.012, 2.0), (0.02, 3.0), (0.021, 4.0), (0.08, 5.0)];
        let decoding = Decoding::of(steps.into_iter());
        for (step_s, sequences) in steps {
            assert!(decoding.at(step_s) <= step_s / sequences + 1e-12);
        }
        let at: Vec<_> = (0..200).map(|step| decoding.at(f64::from(step) * 5e-4)).collect();
        assert!(at.is_sorted_by(|one, other| one >= other));
        let bends = at[20..]
            .windows(3)
            .map(|three| three[0] - 2.0 * three[1] + three[2]);
        assert!(bends.min_by(f64::total_cmp).unwrap() > -1e-12, "it is convex");
        assert_eq!(decoding.at(1.0), decoding.least());
    }
}
