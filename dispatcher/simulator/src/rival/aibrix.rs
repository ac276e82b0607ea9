//! AIBrix's SLO router: `slo` (the same as `slo-least-load-pulling`) and `slo-pack-load`.
//!
//! What it does, as published and as its code of autumn 2026 does it:
//!
//! * One queue router a model. Requests wait in a line for each pair of rounded log2 of predicted answer and
//!   prompt, first in first out; the heads are ranked by time waited + time expected - target on their best
//!   deployment, lost ones first; a head that finds no room lets the next one pass.
//! * A deployment is a device kind. The one with the most slack is always tried, another while its rank says
//!   that the target is met. Within it the pod with the least (or, packed, the most) load that stays within
//!   1.0.
//! * A request's load is 1 / (throughput x time) of its nearest cell, booked when it is routed and given back
//!   when it ends, nothing in between. Lengths beyond the grid are those of its last cell.
//! * The answer's length is drawn from what such prompts got within 240 s, anew at each call: for the line,
//!   for each rank, for each target, for each pod, and for the booking. Without history it is 1.
//! * Lines move when a request of the model arrives or one ends whose pod is below 1.0 then, and at no other
//!   time.
//! * A request whose pick fails for another reason than load is answered with an error. Without any profile
//!   that can rank, the earliest head goes to the pod with the fewest requests. With one pod there is no
//!   queue.
//! * Whoever waits for 60 s gets an error from the proxy in front.
//!
//! What it is given beyond that: every device is a pod of every model that fits, although AIBrix itself gives
//! a pod one model; whose client has left is dropped when it comes to the head of its line, where the code
//! routes it; and a profile's targets are replaced by those that the trace's requests agree on, as its
//! operator would have written them; and cells that only the dispatcher's own reading of its targets calls
//! infeasible are not (`generated`). Targets of single requests are unknown to it. Only one gateway is
//! modelled, and no restart.

mod generated;
mod picker;
mod predictor;
mod profile;
mod queue;
mod router;
mod targets;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use flotilla_protocol::assignment::{AssignReply, AttemptEnd, Done};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::profile::ProfileSlos;
use flotilla_protocol::{Attempt, ModelName, Moment, RequestId, WorkerId};

use super::assignment;
use super::departures::Departures;
use super::placed::Placed;
use crate::device::memory;
use crate::fleet::{FleetSpec, ModelSpec};
use crate::policy::{Arriving, EndReason, Intake, Order, Policy};
use crate::random::Random;
use crate::run::Scenario;
use generated::generated;
pub use picker::Picker;
use predictor::Predictor;
use profile::GpuProfile;
use queue::{SubQueues, Waiting};
use router::{Group, Peeked, Router};

/// The gateway.
#[derive(Debug)]
pub struct Aibrix {
    picker: Picker,
    routers: BTreeMap<ModelName, Router>,
    /// Load booked on each pod; a whole one is 1.
    loads: Vec<f64>,
    placed: Placed,
    running: HashMap<RequestId, Running>,
    departures: Departures,
    random: Random,
    orders: VecDeque<Order>,
}

/// A request on a pod.
#[derive(Debug)]
struct Running {
    model: ModelName,
    /// What is given back when it ends.
    load: f64,
    /// From here on its client is gone, and nobody tells how long its answer was.
    deadline: Option<Moment>,
}

impl Aibrix {
    /// A gateway before the fleet of a scenario.
    #[must_use]
    pub fn before(scenario: &Scenario, picker: Picker, seed: u64) -> Self {
        let fleet = scenario.fleet();
        let targets = targets::agreed(scenario);
        let routers = fleet.models.iter().map(|model| {
            let router = Router {
                groups: groups(fleet, model, targets.get(&model.name)),
                queues: SubQueues::default(),
                predictor: Predictor::new(),
            };
            (model.name.clone(), router)
        });
        Self {
            picker,
            routers: routers.collect(),
            loads: vec![0.0; fleet.devices.len()],
            placed: Placed::new(fleet),
            running: HashMap::new(),
            departures: Departures::default(),
            random: Random::new(seed, RANDOM_STREAM),
            orders: VecDeque::new(),
        }
    }

    /// Load booked on each pod, in the order of the fleet.
    #[must_use]
    pub fn loads(&self) -> &[f64] {
        &self.loads
    }

    /// Routes the heads of a model's lines until none can go.
    fn serve(&mut self, now: Moment, model: &ModelName) {
        while let Some(router) = self.routers.get_mut(model) {
            router.queues.drop_heads(now);
            let peeked = router.peek(now, &mut self.random, self.picker, &self.loads);
            let (line, pod) = match peeked {
                None => return,
                Some(Peeked::Routed { line, pod }) => (line, Some(pod)),
                Some(Peeked::Unranked { line }) => {
                    let candidates = self.placed.least_of(router.pods());
                    (line, self.random.choose(&candidates))
                }
                Some(Peeked::Failed { line }) => (line, None),
            };
            let waiting = router.queues.pop(line).expect("a line that has a head");
            self.departures.forget(waiting.leaves_at, &waiting.arriving.id);
            match pod {
                Some(pod) => self.route(now, &waiting.arriving, pod),
                None => self.fail(waiting.arriving.id),
            }
        }
    }

    /// Books a request's load, by a prediction of its own, and sends it to a pod.
    fn route(&mut self, now: Moment, arriving: &Arriving, pod: usize) {
        let router = &self.routers[&arriving.model];
        let consumption = router.consumption(&mut self.random, pod, arriving.prompt_tokens);
        // An error is logged there, and the request runs without a booking.
        self.send(now, arriving, pod, consumption.unwrap_or(0.0));
    }

    fn send(&mut self, now: Moment, arriving: &Arriving, pod: usize, load: f64) {
        self.loads[pod] += load;
        self.placed.place(arriving.id.clone(), pod);
        let running = Running {
            model: arriving.model.clone(),
            load,
            deadline: arriving.deadline,
        };
        self.running.insert(arriving.id.clone(), running);
        self.orders.push_back(Order::Assign {
            worker: self.placed.worker(pod).clone(),
            assignment: assignment(now, arriving),
        });
    }

    fn fail(&mut self, request: RequestId) {
        let reason = EndReason::Refused;
        self.orders.push_back(Order::End { request, reason });
    }

    /// Gives back what a request has booked. The lines of its model move if that was something and its pod is
    /// below its capacity now; those of other models do not.
    fn end(&mut self, now: Moment, request: &RequestId, tokens: Option<(u32, u32)>) {
        let (Some(running), Some(pod)) = (self.running.remove(request), self.placed.end(request)) else {
            return;
        };
        self.loads[pod] -= running.load;
        let has_client = running.deadline.is_none_or(|deadline| now < deadline);
        if let (Some(router), Some((prompt, output)), true) =
            (self.routers.get_mut(&running.model), tokens, has_client)
        {
            router.predictor.learn(now, prompt, output);
        }
        if running.load != 0.0 && self.loads[pod] < picker::CAPACITY {
            self.serve(now, &running.model);
        }
    }
}

impl Policy for Aibrix {
    fn intake(&self) -> Intake {
        Intake::Unbounded
    }

    fn handle_arrival(&mut self, now: Moment, arriving: &Arriving) {
        let Some(router) = self.routers.get_mut(&arriving.model) else {
            return self.fail(arriving.id.clone());
        };
        let (first, more) = {
            let mut pods = router.pods();
            (pods.next(), pods.next())
        };
        match (first, more) {
            (None, _) => return self.fail(arriving.id.clone()),
            (Some(only), None) => return self.send(now, arriving, only, 0.0),
            (Some(_), Some(_)) => {}
        }
        let features = router.features(&mut self.random, arriving.prompt_tokens);
        let (leaves_at, reason) = leaves(now, arriving.deadline);
        self.departures.expect(leaves_at, &arriving.id, reason);
        let waiting = Waiting {
            arriving: arriving.clone(),
            since: now,
            leaves_at,
        };
        router.queues.push(features, waiting);
        self.serve(now, &arriving.model);
    }

    fn handle_report(&mut self, _now: Moment, _report: Report) {}

    fn handle_done(&mut self, now: Moment, done: Done) {
        let tokens = match done.end {
            AttemptEnd::Terminal => Some((done.prompt_tokens, done.output_tokens)),
            AttemptEnd::Fenced { .. }
            | AttemptEnd::HandedBack { .. }
            | AttemptEnd::ModelUnloadable { .. }
            | AttemptEnd::Panicked { .. }
            | AttemptEnd::JournalBroken { .. } => {
                self.fail(done.request.clone());
                None
            }
        };
        self.end(now, &done.request, tokens);
    }

    fn handle_reply(
        &mut self,
        now: Moment,
        _worker: &WorkerId,
        request: &RequestId,
        _attempt: Attempt,
        reply: AssignReply,
    ) {
        if let AssignReply::Refused(_) = reply {
            self.fail(request.clone());
            self.end(now, request, None);
        }
    }

    fn handle_timeout(&mut self, now: Moment) {
        while let Some((request, reason)) = self.departures.next(now) {
            self.orders.push_back(Order::End { request, reason });
        }
    }

    fn poll_timeout(&self) -> Option<Moment> {
        self.departures.poll_timeout()
    }

    fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }
}

/// A model's deployments: one for each kind of the devices that have room for it.
fn groups(fleet: &FleetSpec, model: &ModelSpec, targets: Option<&ProfileSlos>) -> Vec<Group> {
    let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
    for (pod, device) in fleet.devices.iter().enumerate() {
        if memory::can_hold(device, model) {
            let group = groups.entry(&device.kind).or_insert_with(|| {
                let profile = fleet.profile(model, device);
                let targets = targets.unwrap_or(profile.slos());
                Group {
                    profile: GpuProfile::new(&generated(profile, targets)),
                    pods: Vec::new(),
                }
            });
            group.pods.push(pod);
        }
    }
    groups.into_values().collect()
}

/// When a client that waits gets an error, and which.
fn leaves(now: Moment, deadline: Option<Moment>) -> (Moment, EndReason) {
    let by_proxy = (now + PROXY_TIMEOUT, EndReason::Refused);
    match deadline {
        Some(deadline) if deadline < by_proxy.0 => (deadline, EndReason::DeadlineExceeded),
        Some(_) | None => by_proxy,
    }
}

/// The message timeout of the shipped gateway.
const PROXY_TIMEOUT: Duration = Duration::from_secs(60);
/// Of the numbers that predictions are drawn with.
const RANDOM_STREAM: u64 = 0xa1b;

#[cfg(test)]
mod tests;
