//! The pictures, each a function of the comparison. Policies are drawn last to first, so that the first is on
//! top.

use std::collections::BTreeSet;

use flotilla_protocol::Moment;

use super::Compared;
use super::chart::{Chart, Mark, Titles};
use super::scale::Scale;
use crate::bound::Bound;
use crate::outcome::{Outcome, RequestEnd, RequestRecord, meets_targets};
use crate::policy::PolicyName;
use crate::run::Scenario;

/// How many requests have taken at most so long for each token of their answer.
pub(super) fn latency_per_token(scenario: &Scenario, compared: &[Compared<'_>]) -> String {
    let curves: Vec<_> = compared
        .iter()
        .map(|one| (one.policy, shares(one.outcome)))
        .collect();
    let target_s = agreed_tpot_s(scenario);
    let values = curves.iter().flat_map(|(_, curve)| curve.iter().map(|(x, _)| *x));
    let titles = Titles {
        title: "Time for each token of the answer",
        subtitle: &subtitle(scenario),
        across: "seconds from publish to the last token, for each token of the answer (logarithmic)",
        up: "% of all requests",
    };
    let mut chart = Chart::new(&titles, Scale::log(values.chain(target_s)), Scale::percent());
    if let Some(target_s) = target_s {
        chart.upright(target_s, &format!("target {} ms", target_s * MS_PER_S));
    }
    for (policy, curve) in curves.iter().rev() {
        chart.line(*policy, curve);
    }
    chart.legend(names(compared), Mark::Line);
    chart.finish()
}

/// Of the requests of each minute, how many met their targets.
pub(super) fn slo_by_minute(scenario: &Scenario, compared: &[Compared<'_>]) -> String {
    let minutes = scenario.trace().duration().as_secs_f64() / SECONDS_PER_MINUTE;
    let titles = Titles {
        title: "Requests within their targets, minute by minute",
        subtitle: &subtitle(scenario),
        across: "minute of publish",
        up: "% of the minute's requests",
    };
    let mut chart = Chart::new(&titles, Scale::linear([minutes].into_iter()), Scale::percent());
    for one in compared.iter().rev() {
        let points = minute_shares(scenario, one.outcome);
        chart.line(one.policy, &points);
        points.iter().for_each(|point| chart.point(one.policy, *point));
    }
    chart.legend(names(compared), Mark::Line);
    chart.finish()
}

/// Requests within their targets for each second, against what nobody exceeds.
pub(super) fn goodput(scenario: &Scenario, compared: &[Compared<'_>], bound: Option<&Bound>) -> String {
    let mut order: Vec<_> = compared.iter().collect();
    order.sort_by(|one, other| other.figures.goodput_rps.total_cmp(&one.figures.goodput_rps));
    let rows: Vec<_> = order.iter().map(|one| one.policy.as_str()).collect();
    let values = order.iter().map(|one| one.figures.goodput_rps);
    let values = values.chain(bound.map(|bound| bound.goodput_rps));
    let titles = Titles {
        title: "Goodput",
        subtitle: &subtitle(scenario),
        across: "requests within their targets, a second",
        up: "",
    };
    let mut chart = Chart::of_rows(&titles, Scale::linear(values), &rows);
    for (row, one) in order.iter().enumerate() {
        let goodput_rps = one.figures.goodput_rps;
        let label = match bound.filter(|bound| bound.goodput_rps > 0.0) {
            Some(bound) => format!(
                "{goodput_rps:.2} ({:.0} %)",
                goodput_rps / bound.goodput_rps * PERCENT
            ),
            None => format!("{goodput_rps:.2}"),
        };
        chart.bar(one.policy, row, goodput_rps, &label);
    }
    if let Some(bound) = bound {
        chart.upright(
            bound.goodput_rps,
            &format!("nobody exceeds {:.2}", bound.goodput_rps),
        );
    }
    chart.finish()
}

/// What a policy costs, and what it is good for.
pub(super) fn cost_and_slo(scenario: &Scenario, compared: &[Compared<'_>]) -> String {
    let titles = Titles {
        title: "Cost, and requests within their targets",
        subtitle: &subtitle(scenario),
        across: "cost of all devices while busy, in the fleet's unit",
        up: "% of all requests within their targets",
    };
    let costs = compared.iter().map(|one| one.figures.cost);
    let mut chart = Chart::new(&titles, Scale::linear(costs), Scale::percent());
    for one in compared.iter().rev() {
        let share = one.figures.slo_share * PERCENT;
        chart.point(one.policy, (one.figures.cost, share));
    }
    let entries = compared.iter().map(|one| {
        let (share, cost) = (one.figures.slo_share * PERCENT, one.figures.cost);
        (one.policy, format!("{}: {share:.1} %, {cost:.3}", one.policy))
    });
    chart.legend(entries, Mark::Point);
    chart.finish()
}

/// How many requests wait for their first token, wherever they are.
pub(super) fn queue(scenario: &Scenario, compared: &[Compared<'_>]) -> String {
    let until_s = scenario.trace().duration().as_secs_f64() + SECONDS_PER_MINUTE;
    let curves: Vec<_> = compared
        .iter()
        .map(|one| (one.policy, waiting(one.outcome, until_s)))
        .collect();
    let counts = curves.iter().flat_map(|(_, curve)| curve.iter().map(|(_, y)| *y));
    let titles = Titles {
        title: "Requests that wait for their first token",
        subtitle: &subtitle(scenario),
        across: "seconds from the start of the trace",
        up: "requests (logarithmic)",
    };
    let mut chart = Chart::new(
        &titles,
        Scale::linear([until_s].into_iter()),
        Scale::count(counts),
    );
    for (policy, curve) in curves.iter().rev() {
        chart.line(*policy, curve);
    }
    chart.legend(names(compared), Mark::Line);
    chart.finish()
}

/// The longest time to a first token, or to the end of a request that never got one.
pub(super) fn longest_wait(scenario: &Scenario, compared: &[Compared<'_>]) -> String {
    let waits: Vec<_> = compared.iter().map(|one| longest_wait_s(one.outcome)).collect();
    let rows: Vec<_> = compared.iter().map(|one| one.policy.as_str()).collect();
    let titles = Titles {
        title: "Longest wait for a first token",
        subtitle: &subtitle(scenario),
        across: "seconds from publish to the first token, or to the end without one (logarithmic)",
        up: "",
    };
    let mut chart = Chart::of_rows(&titles, Scale::log(waits.iter().copied()), &rows);
    for (row, (one, wait_s)) in compared.iter().zip(&waits).enumerate() {
        chart.bar(one.policy, row, *wait_s, &format!("{wait_s:.2} s"));
    }
    chart.finish()
}

/// What a legend says where names are enough.
fn names(compared: &[Compared<'_>]) -> impl Iterator<Item = (PolicyName, String)> {
    compared.iter().map(|one| (one.policy, one.policy.to_string()))
}

fn subtitle(scenario: &Scenario) -> String {
    let (trace, fleet) = (scenario.trace(), scenario.fleet());
    format!(
        "{}: {} requests in {:.0} s on {} devices",
        trace.name,
        trace.requests.len(),
        trace.duration().as_secs_f64(),
        fleet.devices.len()
    )
}

/// Points of the curve that tells which share of all requests took at most so long for each token.
fn shares(outcome: &Outcome) -> Vec<(f64, f64)> {
    let finished = outcome.requests.iter();
    let finished = finished.filter(|record| record.end == RequestEnd::Finished);
    let per_token = finished.filter_map(|record| {
        let total_s = record.total()?.as_secs_f64();
        Some(total_s / f64::from(record.output_tokens))
    });
    let mut per_token: Vec<f64> = per_token.collect();
    per_token.sort_by(f64::total_cmp);
    let all = outcome.requests.len() as f64;
    let stride = per_token.len().div_ceil(CURVE_POINTS).max(1);
    let last = per_token.len().saturating_sub(1);
    let drawn = per_token.iter().enumerate();
    drawn
        .filter(|(index, _)| index % stride == 0 || *index == last)
        .map(|(index, value)| (*value, (index + 1) as f64 / all * PERCENT))
        .collect()
}

/// The time for each token that all requests ask for, if they ask for the same.
fn agreed_tpot_s(scenario: &Scenario) -> Option<f64> {
    let fleet = scenario.fleet();
    let targets = scenario.trace().requests.iter().map(|request| {
        let model = fleet.model(&request.model).and_then(|model| model.slo);
        request.slo.or(model).and_then(|slo| slo.tpot_ms)
    });
    let distinct: BTreeSet<_> = targets.map(|target| target.map(f64::to_bits)).collect();
    let mut distinct = distinct.into_iter();
    match (distinct.next(), distinct.next()) {
        (Some(Some(bits)), None) => Some(f64::from_bits(bits) / MS_PER_S),
        _ => None,
    }
}

/// Middle of each minute that has requests, and the share of them that met their targets.
fn minute_shares(scenario: &Scenario, outcome: &Outcome) -> Vec<(f64, f64)> {
    let mut minutes: Vec<(usize, usize)> = Vec::new();
    for (request, record) in scenario.trace().requests.iter().zip(&outcome.requests) {
        let of_model = scenario.fleet().model(&request.model).and_then(|model| model.slo);
        let minute = usize::try_from(request.at.as_secs() / 60).unwrap_or(usize::MAX - 1);
        if minutes.len() <= minute {
            minutes.resize(minute + 1, (0, 0));
        }
        minutes[minute].0 += 1;
        minutes[minute].1 += usize::from(meets_targets(request, record, of_model));
    }
    let minutes = minutes.into_iter().enumerate();
    minutes
        .filter(|(_, (all, _))| *all > 0)
        .map(|(minute, (all, met))| (minute as f64 + 0.5, met as f64 / all as f64 * PERCENT))
        .collect()
}

/// How many wait at evenly spaced moments.
fn waiting(outcome: &Outcome, until_s: f64) -> Vec<(f64, f64)> {
    let seconds = |moment: Moment| moment.since(Moment::default()).as_secs_f64();
    let sorted = |times: Vec<f64>| {
        let mut times = times;
        times.sort_by(f64::total_cmp);
        times
    };
    let records = &outcome.requests;
    let began = sorted(records.iter().map(|record| seconds(record.published)).collect());
    let ended = sorted(
        records
            .iter()
            .map(|record| seconds(waits_until(outcome, record)))
            .collect(),
    );
    let moments = (0..=QUEUE_POINTS).map(|index| until_s * index as f64 / QUEUE_POINTS as f64);
    moments
        .map(|at_s| {
            let by_then = |times: &[f64]| times.partition_point(|time_s| *time_s <= at_s);
            (at_s, (by_then(&began) - by_then(&ended)) as f64)
        })
        .collect()
}

fn longest_wait_s(outcome: &Outcome) -> f64 {
    let waits = outcome.requests.iter();
    let waits = waits.map(|record| waits_until(outcome, record).since(record.published).as_secs_f64());
    waits.fold(0.0, f64::max)
}

/// When a request's wait is over.
fn waits_until(outcome: &Outcome, record: &RequestRecord) -> Moment {
    record.first_token.or(record.ended).unwrap_or(outcome.ended)
}

/// Points of a curve of shares: more are not told apart.
const CURVE_POINTS: usize = 400;
/// Moments at which a queue is looked at.
const QUEUE_POINTS: usize = 300;
const SECONDS_PER_MINUTE: f64 = 60.0;
const MS_PER_S: f64 = 1e3;
const PERCENT: f64 = 100.0;
