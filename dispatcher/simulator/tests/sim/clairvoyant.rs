//! How near the bound somebody comes who knows the length of every answer, and is merely greedy.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use flotilla_profile::StepTimes;
use flotilla_protocol::assignment::{AssignReply, Done};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::{Attempt, Moment, RequestId, WorkerId};
use flotilla_simulator::bound::Bound;
use flotilla_simulator::outcome::Figures;
use flotilla_simulator::policy::{Arriving, EndReason, Intake, Order, Policy};
use flotilla_simulator::run::{Scenario, run};
use flotilla_simulator::trace::{BuiltinTrace, Recipe, TraceRequest};

/// Gives each request, the least work first, to the server that can still serve it in time without making
/// anybody late; of several to the one that leaves the most time to spare. Who cannot be in time any more is
/// let go.
struct Clairvoyant<'a> {
    scenario: &'a Scenario,
    servers: Vec<Server>,
    waiting: Vec<Arriving>,
    /// Server and place in the trace of each request that runs.
    running: HashMap<RequestId, (usize, usize)>,
    orders: VecDeque<Order>,
}

/// A forecast of one device with one model: the state at the end of some step.
#[derive(Clone)]
struct Server {
    worker: WorkerId,
    steps: StepTimes,
    slots: usize,
    batch_tokens: u32,
    at_s: f64,
    line: Vec<Sequence>,
    /// Who takes part from the next step on.
    joining: Vec<Sequence>,
}

#[derive(Clone)]
struct Sequence {
    /// Its place in the trace.
    index: usize,
    prompt_left: u32,
    /// Tokens after the first.
    answer_left: u32,
    first_token_by_s: f64,
    ends_by_s: f64,
}

/// How much is forecast at once.
#[derive(Clone, Copy)]
enum Pace {
    One,
    UntilSomebodyEnds,
}

impl Server {
    fn is_idle(&self) -> bool {
        self.line.is_empty() && self.joining.is_empty()
    }

    fn count(&self) -> usize {
        self.line.len() + self.joining.len()
    }

    /// The same device without work.
    fn idle(&self) -> Self {
        Self {
            line: Vec::new(),
            joining: Vec::new(),
            ..self.clone()
        }
    }

    /// One step, or all that are alike; tells what those that were due had to spare.
    fn step(&mut self, pace: Pace) -> Vec<(usize, f64)> {
        if self.line.is_empty() {
            self.line.append(&mut self.joining);
        }
        let decoding = self.line.iter().filter(|one| one.prompt_left == 0).count();
        let is_steady = decoding == self.line.len() && self.joining.is_empty();
        let rounds = match pace {
            Pace::UntilSomebodyEnds if is_steady => self.line.iter().map(|one| one.answer_left).min(),
            Pace::UntilSomebodyEnds | Pace::One => None,
        };
        let rounds = rounds.unwrap_or(0).max(1);
        let decoding = u32::try_from(decoding).unwrap();
        let (mut budget, mut read, mut due) = (self.batch_tokens - decoding, 0, Vec::new());
        for one in &mut self.line {
            if one.prompt_left == 0 {
                one.answer_left = one.answer_left.saturating_sub(rounds);
                continue;
            }
            let chunk = one.prompt_left.min(budget);
            (one.prompt_left, budget, read) = (one.prompt_left - chunk, budget - chunk, read + chunk);
            if one.prompt_left == 0 {
                due.push((one.index, one.first_token_by_s));
            }
        }
        self.at_s += f64::from(rounds) * self.steps.step(read, decoding).as_secs_f64();
        let ended = |one: &Sequence| one.prompt_left == 0 && one.answer_left == 0;
        let ends = self.line.iter().filter(|one| ended(one));
        due.extend(ends.map(|one| (one.index, one.ends_by_s)));
        due.iter_mut().for_each(|(_, by_s)| *by_s -= self.at_s);
        self.line.retain(|one| !ended(one));
        self.line.append(&mut self.joining);
        due
    }

    /// Follows the device to a moment.
    fn advance(&mut self, now_s: f64) {
        while !self.is_idle() {
            let mut next = self.clone();
            next.step(Pace::One);
            if next.at_s > now_s {
                break;
            }
            *self = next;
        }
        self.at_s = if self.is_idle() { now_s } else { self.at_s };
    }

    /// Whoever will be late as it stands is lost: nobody has to wait for its sake.
    fn give_up_the_lost(&mut self) {
        let mut forecast = self.clone();
        while !forecast.is_idle() {
            for (lost, _) in forecast
                .step(Pace::UntilSomebodyEnds)
                .into_iter()
                .filter(|(_, spare_s)| *spare_s < 0.0)
            {
                let all = self.line.iter_mut().chain(&mut self.joining);
                let lost = all.filter(|one| one.index == lost);
                lost.for_each(|one| (one.first_token_by_s, one.ends_by_s) = (f64::INFINITY, f64::INFINITY));
            }
        }
    }

    /// The least time to spare with one more; none when that makes somebody late.
    fn spare_with(&self, one: &Sequence) -> Option<f64> {
        let mut forecast = self.clone();
        forecast.joining.push(one.clone());
        let mut least_s = f64::INFINITY;
        while !forecast.is_idle() {
            let spare_s = forecast
                .step(Pace::UntilSomebodyEnds)
                .into_iter()
                .map(|(_, spare_s)| spare_s);
            least_s = spare_s.fold(least_s, f64::min);
            if least_s < MARGIN_S {
                return None;
            }
        }
        Some(least_s)
    }
}

impl<'a> Clairvoyant<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let fleet = scenario.fleet();
        let servers = fleet.devices.iter().map(|device| Server {
            worker: device.worker.clone(),
            steps: StepTimes::from_profile(fleet.profile(&fleet.models[0], device)),
            slots: device.slots as usize,
            batch_tokens: device.batch_tokens_max,
            at_s: 0.0,
            line: Vec::new(),
            joining: Vec::new(),
        });
        Self {
            scenario,
            servers: servers.collect(),
            waiting: Vec::new(),
            running: HashMap::new(),
            orders: VecDeque::new(),
        }
    }

    fn request(&self, arriving: &Arriving) -> &TraceRequest {
        &self.scenario.trace().requests[arriving.index]
    }

    fn sequence(&self, arriving: &Arriving) -> Sequence {
        let request = self.request(arriving);
        let slo = request.slo.unwrap_or_default();
        let tokens = f64::from(request.output_tokens);
        let per_token_ms = slo.tpot_ms.map(|tpot| tpot * tokens + slo.ttft_ms.unwrap_or(0.0));
        let limits_ms = [per_token_ms, slo.e2e_ms].into_iter().flatten();
        let published_s = request.at.as_secs_f64();
        Sequence {
            index: arriving.index,
            prompt_left: request.prompt_tokens,
            answer_left: request.output_tokens - 1,
            first_token_by_s: published_s + slo.ttft_ms.unwrap_or(f64::INFINITY) / 1e3,
            ends_by_s: published_s + limits_ms.fold(f64::INFINITY, f64::min) / 1e3,
        }
    }

    /// The server on which the most time is to spare.
    fn choose(&self, one: &Sequence) -> Option<usize> {
        let free = self.servers.iter().enumerate();
        let free = free.filter(|(_, server)| server.count() < server.slots);
        let able = free.filter_map(|(index, server)| Some((index, server.spare_with(one)?)));
        let best = able.max_by(|one, other| one.1.total_cmp(&other.1));
        best.map(|(index, _)| index)
    }

    fn place(&mut self, now: Moment) {
        let now_s = now.since(Moment::default()).as_secs_f64();
        for server in &mut self.servers {
            server.advance(now_s);
            server.give_up_the_lost();
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let work = |request: &TraceRequest| request.prompt_tokens + 12 * request.output_tokens;
        waiting.sort_by_key(|arriving| work(self.request(arriving)));
        for arriving in waiting {
            if self.waiting.len() > TRIES_MAX {
                self.waiting.push(arriving);
                continue;
            }
            let one = self.sequence(&arriving);
            if !self
                .servers
                .iter()
                .any(|server| server.idle().spare_with(&one).is_some())
            {
                let (request, reason) = (arriving.id, EndReason::Refused);
                self.orders.push_back(Order::End { request, reason });
                continue;
            }
            let Some(index) = self.choose(&one) else {
                self.waiting.push(arriving);
                continue;
            };
            self.orders.push_back(Order::Assign {
                worker: self.servers[index].worker.clone(),
                assignment: arriving.assignment(now),
            });
            self.servers[index].joining.push(one);
            self.running.insert(arriving.id, (index, arriving.index));
        }
    }
}

impl Policy for Clairvoyant<'_> {
    fn intake(&self) -> Intake {
        Intake::Unbounded
    }

    fn handle_arrival(&mut self, now: Moment, arriving: &Arriving) {
        self.waiting.push(arriving.clone());
        self.place(now);
    }

    fn handle_report(&mut self, now: Moment, _report: Report) {
        self.place(now);
    }

    fn handle_done(&mut self, now: Moment, done: Done) {
        if let Some((server, index)) = self.running.remove(&done.request) {
            let server = &mut self.servers[server];
            server.line.retain(|one| one.index != index);
            server.joining.retain(|one| one.index != index);
        }
        self.place(now);
    }

    fn handle_reply(&mut self, _: Moment, _: &WorkerId, _: &RequestId, _: Attempt, _: AssignReply) {}

    fn handle_timeout(&mut self, _now: Moment) {}

    fn poll_timeout(&self) -> Option<Moment> {
        None
    }

    fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }
}

/// What the greedy clairvoyant has of the bound.
fn part_of_bound(built_in: BuiltinTrace, seconds: u64) -> f64 {
    let recipe = Recipe {
        seed: 1,
        rate: 1.0,
        duration: Duration::from_secs(seconds),
    };
    let scenario = Scenario::new(built_in.make(&recipe), built_in.fleet()).unwrap();
    let outcome = run(&scenario, &mut Clairvoyant::new(&scenario));
    let figures = Figures::of(&scenario, &outcome);
    let bound = Bound::of(&scenario);
    assert!(figures.goodput_rps <= bound.goodput_rps);
    figures.goodput_rps / bound.goodput_rps
}

#[test]
fn who_knows_all_lengths_and_is_greedy_has_nearly_as_much_as_the_bound() {
    let bursts = part_of_bound(BuiltinTrace::Bursts, 100);
    assert!(bursts > 0.97, "{bursts}");
    let composite = part_of_bound(BuiltinTrace::Composite, 40);
    assert!(composite > 0.9, "{composite}");
}

/// What a forecast may be wrong by: messages and reports that are under way.
const MARGIN_S: f64 = 0.003;
/// Requests that find no server, until the rest is not tried.
const TRIES_MAX: usize = 12;
