//! Profiles of simulated devices, measured as one would measure a real one.
//!
//! For each cell of a grid a device is kept busy with a number of requests of that length: whenever one ends, the
//! next one begins. The largest number for which the targets hold at the percentile, each request's time counted from
//! when it is given to the device, is what the device sustains of this length; throughput and times are the
//! means meanwhile. That is how a dispatcher uses a device: it holds back what would be too much. A cell
//! whose targets not even a request alone meets has throughput 0 and the times of that request.

use std::collections::VecDeque;
use std::time::Duration;

use flotilla_protocol::assignment::{AssignReply, Assignment, Done};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::profile::{Profile, ProfileSlos, ProfileSource};
use flotilla_protocol::request::{KeepAlive, Slo};
use flotilla_protocol::{Attempt, Class, Moment, RequestId, WorkerId};

use crate::fleet::{DeviceSpec, FleetLimits, FleetSpec, ModelSpec, Start};
use crate::outcome::hold;
use crate::policy::{Arriving, Intake, Order, Policy};
use crate::random::Random;
use crate::run::{Scenario, run};
use crate::trace::{Trace, TraceRequest};

/// What is measured.
#[derive(Debug, Clone)]
pub struct Measurement<'a> {
    /// The device; its steps and loads are those of its profile.
    pub device: &'a DeviceSpec,
    /// The model.
    pub model: &'a ModelSpec,
    /// Targets of every request.
    pub slo: Slo,
    /// Of how many requests in a hundred the targets have to hold, from 1 to 100.
    pub percentile: u32,
    /// Lengths of answers, ascending.
    pub outputs: Vec<u32>,
    /// Lengths of prompts, ascending.
    pub inputs: Vec<u32>,
    /// Of when the first requests begin.
    pub seed: u64,
}

/// What was measured of one cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// Requests that the device runs at once while the targets hold; 0 when they never do.
    pub requests: u32,
    /// Mean seconds of a whole request.
    pub e2e_s: f64,
    /// Mean seconds to the first token.
    pub ttft_s: f64,
}

impl Cell {
    /// Requests a second, by Little's law.
    #[must_use]
    pub fn rate(&self) -> f64 {
        f64::from(self.requests) / self.e2e_s
    }
}

impl Measurement<'_> {
    /// Measures every cell; `created` is the time of the profile, in Unix seconds.
    #[must_use]
    pub fn profile(&self, created: f64) -> Profile {
        let row = |output: &u32| {
            self.inputs
                .iter()
                .map(|input| self.cell(*output, *input))
                .collect()
        };
        let cells: Vec<Vec<Cell>> = self.outputs.iter().map(row).collect();
        let matrix = |figure: fn(&Cell) -> f64| {
            let row = |row: &Vec<Cell>| row.iter().map(figure).collect();
            cells.iter().map(row).collect::<Vec<Vec<f64>>>()
        };
        let ticks = |counts: &[u32]| counts.iter().copied().map(f64::from).collect();
        let known = self.device.profile.document();
        let seconds = |ms: Option<f64>| ms.map(|ms| ms / 1e3);
        Profile {
            gpu: self.device.kind.clone(),
            cost: self.device.cost_per_hour,
            tputs: matrix(Cell::rate),
            indexes: vec![ticks(&self.outputs), ticks(&self.inputs)],
            created,
            e2e: Some(matrix(|cell| cell.e2e_s)),
            ttft: Some(matrix(|cell| cell.ttft_s)),
            tpot: None,
            slos: Some(ProfileSlos {
                percentile: Some(f64::from(self.percentile)),
                e2e: seconds(self.slo.e2e_ms),
                ttft: seconds(self.slo.ttft_ms),
                tpot: seconds(self.slo.tpot_ms),
                tpat: seconds(self.slo.tpat_ms),
                ..ProfileSlos::default()
            }),
            tpot_by_batch: known.tpot_by_batch.clone(),
            prefill_tokens_per_s: known.prefill_tokens_per_s,
            load_seconds_by_tier: known.load_seconds_by_tier.clone(),
            samples: None,
            source: Some(ProfileSource::Measured),
        }
    }

    /// Measures one cell.
    #[must_use]
    pub fn cell(&self, output_tokens: u32, prompt_tokens: u32) -> Cell {
        let alone = self.probe(output_tokens, prompt_tokens, 1, Duration::ZERO);
        if !alone.holds {
            let requests = 0;
            return Cell {
                requests,
                ..alone.cell
            };
        }
        let e2e = Duration::from_secs_f64(alone.cell.e2e_s);
        let probe = |requests| self.probe(output_tokens, prompt_tokens, requests, e2e);
        let (mut best, mut most) = (alone.cell, self.device.slots);
        while best.requests < most {
            let middle = best.requests + (most - best.requests).div_ceil(2);
            let tried = probe(middle);
            match tried.holds {
                true => best = tried.cell,
                false => most = middle - 1,
            }
        }
        best
    }

    /// Keeps so many requests running. The first ones begin within a time in which they would have run one after the
    /// other, so that they do not stay in step.
    fn probe(&self, output_tokens: u32, prompt_tokens: u32, requests: u32, alone: Duration) -> Probe {
        let mut random = Random::new(
            self.seed,
            u64::from(output_tokens) << 32 | u64::from(prompt_tokens),
        );
        let begin = alone * requests;
        let mut begins: Vec<_> = (1..requests).map(|_| begin.mul_f64(random.unit())).collect();
        begins.push(begin);
        begins.sort_unstable();
        let samples = (requests * ROUNDS).clamp(SAMPLES_MIN, SAMPLES_MAX);
        let all = begins.len() + samples as usize + begins.len();
        let at = |index: usize| begins.get(index).copied().unwrap_or(begin);
        let trace = (0..all).map(|index| self.request(index, at(index), output_tokens, prompt_tokens));
        let scenario = self.scenario(trace.collect());
        let mut policy = KeptBusy::new(self.device.worker.clone(), begins.len());
        let outcome = run(&scenario, &mut policy);

        let pairs = scenario.trace().requests.iter().zip(&outcome.requests);
        let measured = pairs.skip(begins.len()).take(samples as usize);
        let (mut met, mut e2e_s, mut ttft_s) = (0, 0.0, 0.0);
        for (request, record) in measured {
            let since = |to: Option<Moment>| Some(to?.since(record.assigned?));
            let spans = since(record.ended).zip(since(record.first_token));
            let (total, first) = spans.expect("without a deadline every request ends with tokens");
            met += u32::from(hold(&self.slo, request, total, first));
            e2e_s += total.as_secs_f64();
            ttft_s += first.as_secs_f64();
        }
        Probe {
            holds: met * 100 >= samples * self.percentile,
            cell: Cell {
                requests,
                e2e_s: e2e_s / f64::from(samples),
                ttft_s: ttft_s / f64::from(samples),
            },
        }
    }

    fn request(&self, index: usize, at: Duration, output_tokens: u32, prompt_tokens: u32) -> TraceRequest {
        TraceRequest {
            at,
            id: RequestId::from_random(index as u128),
            tenant: None,
            class: Class::Interactive,
            model: self.model.name.clone(),
            prompt_tokens,
            output_tokens,
            output_tokens_max: output_tokens,
            slo: Some(self.slo),
            deadline: None,
        }
    }

    fn scenario(&self, requests: Vec<TraceRequest>) -> Scenario {
        let longest = requests
            .iter()
            .map(|request| request.prompt_tokens + request.output_tokens);
        let context_tokens_max = longest.fold(self.model.context_tokens_max, u32::max);
        let trace = Trace {
            name: "profile".to_owned(),
            requests,
        };
        let fleet = FleetSpec {
            devices: vec![self.device.clone()],
            models: vec![ModelSpec {
                context_tokens_max,
                start: Start::Warm,
                ..self.model.clone()
            }],
            // A device is measured, not the way to it.
            limits: FleetLimits {
                network_latency: Duration::ZERO,
                keep_alive: KeepAlive::UntilEvicted,
                ..FleetLimits::default()
            },
        };
        Scenario::new(trace, fleet).expect("there are requests and a device, and the context was made to fit")
    }
}

/// How a number of requests at once was borne.
struct Probe {
    holds: bool,
    cell: Cell,
}

/// Keeps a number of requests on one worker.
struct KeptBusy {
    worker: WorkerId,
    free: usize,
    waiting: VecDeque<Assignment>,
}

impl KeptBusy {
    fn new(worker: WorkerId, requests: usize) -> Self {
        Self {
            worker,
            free: requests,
            waiting: VecDeque::new(),
        }
    }
}

impl Policy for KeptBusy {
    fn intake(&self) -> Intake {
        Intake::Unbounded
    }

    fn handle_arrival(&mut self, now: Moment, arriving: &Arriving) {
        self.waiting.push_back(arriving.assignment(now));
    }

    fn handle_report(&mut self, _now: Moment, _report: Report) {}

    fn handle_done(&mut self, _now: Moment, _done: Done) {
        self.free += 1;
    }

    fn handle_reply(
        &mut self,
        _now: Moment,
        _worker: &WorkerId,
        _request: &RequestId,
        _attempt: Attempt,
        _reply: AssignReply,
    ) {
    }

    fn handle_timeout(&mut self, _now: Moment) {}

    fn poll_timeout(&self) -> Option<Moment> {
        None
    }

    fn poll_order(&mut self) -> Option<Order> {
        self.free.checked_sub(1)?;
        let assignment = self.waiting.pop_front()?;
        self.free -= 1;
        let worker = self.worker.clone();
        Some(Order::Assign { worker, assignment })
    }
}

/// Each place of a device is taken that many times, while a probe looks: what the first requests had of each other
/// is even then.
const ROUNDS: u32 = 16;
/// A percentile of 99 is that of the slowest request then.
const SAMPLES_MIN: u32 = 100;
/// More tell nothing new about requests of one length.
const SAMPLES_MAX: u32 = 400;
