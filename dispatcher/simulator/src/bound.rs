//! How many requests anybody could serve within their targets, who knew every answer's length and every
//! arrival.
//!
//! An upper bound, not a policy: no schedule stands behind it. What is proved is that no run of this
//! simulator, whoever decides in it, has more requests within their targets on the same fleet and trace.
//!
//! **Work.** A step of a device takes `read/rate + step(n)` for the prompt tokens that it reads and the `n`
//! requests that get a token (`step(0) = 0`). Let each prompt token account for `1/rate` of it and each of
//! the `n` for `step(n)/n`; that is all of it. So a request with `p` prompt tokens and an answer of `q + 1`
//! accounts for at least `p/rate` while it is read and at least `step(n_i)/n_i` in each of `q` later steps.
//! The least convex function below the points `(step(n), step(n)/n)` that nowhere rises, call it `f`, gives
//! by Jensen's inequality `q * f(mean of step(n_i))`; and the mean is at most the time that is left for the
//! answer, divided by `q`. A step that is shared by more is longer. (The engine counts a chunk of one prompt
//! token as a token that is made; so of a prompt token the lesser of both is taken. Requests have no tokens in
//! common, so nothing is read twice or found in a cache. An attempt that ended elsewhere only adds work.)
//!
//! **Windows.** A request within its targets is read between its arrival at a device and the last moment for
//! its first token, and its later tokens are made before its last moment. Where only the first token has a
//! limit, the engine sets one: a request that has its first token is part of every step of its model, and
//! between two of these each other resident model has one at most.
//!
//! **Prices.** Let `S` be the requests within their targets of some run, each on one kind of device. Put any
//! price `y >= 0` on each second of each kind in each slot of time; `C` is what a kind has in a slot: its
//! devices times the slot's length. Let `c_r` be what the least work of `r` costs in the cheapest slots of
//! its windows, on its cheapest kind. Then
//!
//! ```text
//! |S| = sum over S of 1 <= sum over S of max(0, 1 - c_r) + sum over S of c_r
//!                       <= sum over all r of max(0, 1 - c_r) + sum over all slots of C * y
//! ```
//!
//! as what the requests of `S` account for in a slot is at most `C`, and costs them at least `c_r` each.
//! (This is weak duality of the linear program that serves fractions of requests, in any order, on devices
//! that share all work.) Any prices give a bound; good ones are found by raising them where too much wants to
//! go and lowering them elsewhere, and the best bound that comes by is kept.
//!
//! What it leaves out makes it larger, never smaller: loads and memory, that a request's tokens come one
//! after another, that a device serves whole requests, and that full batches need many requests of one model
//! at once.

mod prices;
mod service;
mod slots;

use std::collections::BTreeMap;

use flotilla_protocol::ModelName;

use crate::device::memory;
use crate::fleet::{DeviceSpec, FleetSpec, ModelSpec};
use crate::run::{PATIENCE, Scenario};
use prices::{Market, Offer};
use service::Service;
use slots::Slots;

/// What nobody can exceed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// Requests of the trace.
    pub requests: usize,
    /// Most of them that can be within their targets.
    pub met: usize,
    /// Of these, the ones that could be were they alone.
    pub alone: usize,
    /// Requests within their targets, for each second of the trace.
    pub goodput_rps: f64,
}

impl Bound {
    /// Of a scenario.
    #[must_use]
    pub fn of(scenario: &Scenario) -> Self {
        let (trace, fleet) = (scenario.trace(), scenario.fleet());
        let kinds = kinds(fleet);
        let services = services(scenario, &kinds);
        let until = trace.duration() + PATIENCE;
        let even_until_s = trace.duration().as_secs_f64() + TAIL_S;
        let slots = Slots::new(even_until_s, until.as_secs_f64());
        let offers = trace.requests.iter().filter_map(|request| {
            let model = fleet.model(&request.model)?;
            let latency = fleet.limits.network_latency;
            let kinds = services[&request.model].iter().enumerate();
            let offers = kinds.filter_map(|(kind, service)| {
                let need = service.as_ref()?.need(request, model, latency, until)?;
                Some(Offer {
                    kind,
                    parts: [
                        (need.prompt_work_s, slots.window(need.prompt_window_s)),
                        (need.answer_work_s, slots.window(need.answer_window_s)),
                    ],
                })
            });
            Some(offers.collect::<Vec<_>>()).filter(|offers| !offers.is_empty())
        });
        let requests: Vec<_> = offers.collect();
        let alone = requests.len();
        let capacity = |devices: usize| {
            (0..slots.count()).map(move |slot| devices as f64 * slots.length_s(slot) * ROUNDED)
        };
        let market = Market {
            capacity_s: kinds
                .iter()
                .map(|(_, devices)| capacity(*devices).collect())
                .collect(),
            requests,
        };
        let met = whole(market.bound()).min(alone);
        Self {
            requests: trace.requests.len(),
            met,
            alone,
            goodput_rps: met as f64 / trace.duration().as_secs_f64().max(1.0),
        }
    }

    /// Share of the requests that can be within their targets.
    #[must_use]
    pub fn slo_share(&self) -> f64 {
        self.met as f64 / self.requests.max(1) as f64
    }
}

/// Devices that do everything alike, one of each and how many there are.
fn kinds(fleet: &FleetSpec) -> Vec<(&DeviceSpec, usize)> {
    let mut kinds: Vec<(&DeviceSpec, usize)> = Vec::new();
    for device in &fleet.devices {
        let alike = |other: &DeviceSpec| {
            let limits = |device: &DeviceSpec| (device.slots, device.batch_tokens_max, device.memory_bytes);
            other.kind == device.kind && other.profile == device.profile && limits(other) == limits(device)
        };
        match kinds.iter_mut().find(|(other, _)| alike(other)) {
            Some((_, count)) => *count += 1,
            None => kinds.push((device, 1)),
        }
    }
    kinds
}

/// How each kind serves each model of the trace; none where the model does not fit.
fn services(
    scenario: &Scenario,
    kinds: &[(&DeviceSpec, usize)],
) -> BTreeMap<ModelName, Vec<Option<Service>>> {
    let fleet = scenario.fleet();
    let names = scenario.trace().models();
    let models: Vec<&ModelSpec> = names.into_iter().filter_map(|name| fleet.model(name)).collect();
    let of_model = models.iter().map(|model| {
        let services = kinds.iter().map(|(device, _)| {
            let fits = memory::can_hold(device, model);
            fits.then(|| Service::new(fleet, model, device, &models))
        });
        (model.name.clone(), services.collect())
    });
    of_model.collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bound is from 0 to the number of requests and a bit"
)]
fn whole(bound: f64) -> usize {
    (bound + ROUNDING).floor() as usize
}

/// After the last publish time is cut evenly for this long: most answers have ended by then.
const TAIL_S: f64 = 60.0;
/// What adding up may have lost.
const ROUNDING: f64 = 1e-6;
/// Steps are rounded to whole nanoseconds, and none is shorter than a microsecond or so.
const ROUNDED: f64 = 1.0 + 1e-3;
