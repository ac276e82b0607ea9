//! The figures of an outcome.

use std::collections::BTreeMap;

use flotilla_protocol::request::Slo;
use flotilla_protocol::{ModelName, Tenant};
use serde::Serialize;

use super::{Outcome, RequestEnd, RequestRecord, meets_targets};
use crate::run::Scenario;
use crate::trace::TraceRequest;

/// What an outcome comes to. Times are in seconds, shares from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Requests of the trace.
    pub requests: usize,
    /// Of these, the ones whose answer is complete.
    pub finished: usize,
    /// Of these, the ones that ended because their deadline passed.
    pub deadline_exceeded: usize,
    /// Share of all requests that met their targets, as [`meets_targets`] defines it.
    pub slo_share: f64,
    /// Requests that met their targets, for each second of the trace.
    pub goodput_rps: f64,
    /// From publish to the last token, for each token of the answer.
    pub s_per_token: Percentiles,
    /// From publish to the last token.
    pub e2e_s: Percentiles,
    /// From publish to the first token.
    pub ttft_s: Percentiles,
    /// Longest time from a publish to the first assignment, or to the end of who was never assigned.
    pub max_wait_s: f64,
    /// Of all devices: price times time with at least one request.
    pub cost: f64,
    /// Models that were loaded.
    pub loads: u64,
    /// Of these, the ones that others were evicted for.
    pub swaps: u64,
    /// By tenant; requests without one are under the empty name.
    pub tenants: BTreeMap<String, Part>,
    /// By model.
    pub models: BTreeMap<ModelName, Part>,
}

/// Requests that have something in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Part {
    /// How many they are.
    pub requests: usize,
    /// How many of them met their targets.
    pub met: usize,
}

/// Of the requests whose answer is complete; none when there is no such request.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Percentiles {
    /// Half of them are at most this.
    pub p50: Option<f64>,
    /// 99 of 100 are at most this.
    pub p99: Option<f64>,
}

impl Part {
    /// Share that met their targets; none when there are no requests.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.met as f64 / self.requests as f64)
    }

    pub(super) fn add(&mut self, met: bool) {
        self.requests += 1;
        self.met += usize::from(met);
    }
}

impl Percentiles {
    /// By nearest rank: each is one of the values.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100);
            values.get(rank.checked_sub(1)?).copied()
        };
        Self {
            p50: at(50),
            p99: at(99),
        }
    }
}

impl Figures {
    /// Computes the figures of what a policy made of a scenario.
    #[must_use]
    pub fn of(scenario: &Scenario, outcome: &Outcome) -> Self {
        let slos: BTreeMap<&ModelName, Option<Slo>> = scenario
            .fleet()
            .models
            .iter()
            .map(|model| (&model.name, model.slo))
            .collect();
        let (mut all, mut tenants, mut models) = (Part::default(), BTreeMap::new(), BTreeMap::new());
        for (request, record) in pairs(scenario, outcome) {
            let of_model = slos.get(&request.model).copied().flatten();
            let met = meets_targets(request, record, of_model);
            let tenant = request.tenant.as_ref().map_or("", Tenant::as_str);
            let of_tenant: &mut Part = tenants.entry(tenant.to_owned()).or_default();
            let of_model: &mut Part = models.entry(request.model.clone()).or_default();
            for part in [&mut all, of_tenant, of_model] {
                part.add(met);
            }
        }
        let count = |end| outcome.requests.iter().filter(|record| record.end == end).count();
        let trace_s = scenario.trace().duration().as_secs_f64();
        Self {
            requests: all.requests,
            finished: count(RequestEnd::Finished),
            deadline_exceeded: count(RequestEnd::DeadlineExceeded),
            slo_share: all.share().unwrap_or(0.0),
            goodput_rps: all.met as f64 / trace_s.max(1.0),
            s_per_token: percentiles(outcome, |record| {
                Some(record.total()?.as_secs_f64() / f64::from(record.output_tokens))
            }),
            e2e_s: percentiles(outcome, |record| Some(record.total()?.as_secs_f64())),
            ttft_s: percentiles(outcome, |record| Some(record.to_first_token()?.as_secs_f64())),
            max_wait_s: max_wait_s(outcome),
            cost: outcome.devices.iter().map(|device| device.cost).sum(),
            loads: outcome.devices.iter().map(|device| device.loads).sum(),
            swaps: outcome.devices.iter().map(|device| device.swaps).sum(),
            tenants,
            models,
        }
    }
}

fn pairs<'a>(
    scenario: &'a Scenario,
    outcome: &'a Outcome,
) -> impl Iterator<Item = (&'a TraceRequest, &'a RequestRecord)> {
    scenario.trace().requests.iter().zip(&outcome.requests)
}

fn percentiles(outcome: &Outcome, value: impl Fn(&RequestRecord) -> Option<f64>) -> Percentiles {
    let finished = outcome.requests.iter();
    let finished = finished.filter(|record| record.end == RequestEnd::Finished);
    Percentiles::of(finished.filter_map(value).collect())
}

fn max_wait_s(outcome: &Outcome) -> f64 {
    let waits = outcome.requests.iter().map(|record| {
        let until = record.assigned.or(record.ended).unwrap_or(outcome.ended);
        until.since(record.published).as_secs_f64()
    });
    waits.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let percentiles = Percentiles::of((1..=200).rev().map(f64::from).collect());
        assert_eq!((percentiles.p50, percentiles.p99), (Some(100.0), Some(198.0)));
        assert_eq!(Percentiles::of(vec![3.0]).p99, Some(3.0));
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
