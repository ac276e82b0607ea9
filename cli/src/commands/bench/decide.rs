//! `flotilla bench decide`: what one decision of the dispatcher costs, and one waiting request.
//!
//! The dispatcher's core alone, without NATS: a full fleet with a long queue. Each round one request of some worker
//! ends; the time until the dispatcher has said what to do with the room is a decision. What else it handles meanwhile
//! is told beside it: arrivals, timers, and at the end a report of every worker.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use flotilla_dispatcher_core::{
    Action, Arrival, AssignOutcome, Dispatcher, Origin, PolicySettings, PromptCount, Settings, StreamSequence,
};
use flotilla_protocol::assignment::{AssignReply, AttemptEnd, Done};
use flotilla_protocol::fleet::{
    DeviceDescription, DeviceReport, DeviceState, ModelReport, ModelState, Registration, Report,
    RunningRequest, WorkerState,
};
use flotilla_protocol::request::Slo;
use flotilla_protocol::{
    Attempt, Class, Encoding, Epoch, ModelName, Moment, RequestId, Strikes, Tenant, WorkerId,
};
use serde_json::{Map, Value, json};

use super::{Outcome, machine};

/// Arguments of `flotilla bench decide`.
#[derive(Debug, Args)]
pub(crate) struct DecideArguments {
    /// Requests that wait
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    queued: u32,
    /// Workers, each with one device and room for three models
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workers: u32,
    /// Models; the lower its number, the more workers have one
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    models: u32,
    /// Decisions that are timed
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    decisions: u32,
}

/// Measures in this process.
///
/// # Errors
/// When the process's memory cannot be read.
pub(super) fn run(arguments: &DecideArguments) -> anyhow::Result<Outcome<Map<String, Value>>> {
    let mut stand = Stand::new(arguments);
    stand.report_all();
    let before = resident_bytes()?;
    // What the fleet takes at once is not what waits.
    let running = u64::from(arguments.workers) * u64::from(SLOTS);
    let arrivals = stand.arrive(running + u64::from(arguments.queued));
    let bytes = resident_bytes()?.saturating_sub(before);
    let waiting = stand.core.queued_count();
    let Rounds {
        mut decisions,
        mut timers,
    } = stand.finish(arguments.decisions);
    let mut reports = stand.report_all();
    let mut arrivals = arrivals;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let bytes_per_request = bytes as f64 / waiting.max(1) as f64;
    let figures = json!({
        "queued": waiting,
        "workers": arguments.workers,
        "models": arguments.models,
        "decision_us_p50": percentile_us(&mut decisions, 50),
        "decision_us_p99": percentile_us(&mut decisions, 99),
        "arrival_us_p50": percentile_us(&mut arrivals, 50),
        "arrival_us_p99": percentile_us(&mut arrivals, 99),
        "timer_us_p50": percentile_us(&mut timers, 50),
        "timer_us_p99": percentile_us(&mut timers, 99),
        "report_us_p50": percentile_us(&mut reports, 50),
        "report_us_p99": percentile_us(&mut reports, 99),
        "bytes_per_request": bytes_per_request,
    });
    let Value::Object(figures) = figures else {
        unreachable!("it was written as an object")
    };
    Ok(Outcome {
        name: "decide",
        machine: machine::machine(),
        commit: machine::commit(),
        ratios: Map::new(),
        figures,
    })
}

/// A dispatcher with a fleet that does what it is told at once.
struct Stand {
    core: Dispatcher,
    now: Moment,
    models: u32,
    reports: Vec<Report>,
    /// Index into `reports`.
    workers: HashMap<WorkerId, usize>,
    /// What runs, oldest first.
    running: VecDeque<Running>,
    sequence: u64,
    /// Of a linear congruential generator.
    state: u64,
}

/// What the rounds took.
#[derive(Default)]
struct Rounds {
    decisions: Vec<Duration>,
    /// Calls when a timer was due.
    timers: Vec<Duration>,
}

struct Running {
    worker: WorkerId,
    request: RequestId,
    attempt: Attempt,
}

impl Stand {
    fn new(arguments: &DecideArguments) -> Self {
        let held_max = usize::try_from(arguments.queued).unwrap_or(usize::MAX);
        let workers_max = usize::try_from(arguments.workers).unwrap_or(usize::MAX);
        let settings = Settings {
            epoch: Epoch(1),
            worker_lost_after: Duration::from_secs(3600),
            strikes_max: Strikes(3),
            held_max: held_max.saturating_add(workers_max.saturating_mul(SLOTS_AND_MORE)),
            workers_max,
            progress_interval: Duration::from_secs(1),
            policy: PolicySettings::default(),
        };
        let mut stand = Self {
            core: Dispatcher::new(Moment::default(), settings),
            now: Moment::default(),
            models: arguments.models,
            reports: Vec::new(),
            workers: HashMap::new(),
            running: VecDeque::new(),
            sequence: 0,
            state: 1,
        };
        for index in 0..arguments.workers {
            let report = stand.worker(index);
            stand
                .core
                .handle_registration(stand.now, &registration(&report.worker));
            stand.workers.insert(report.worker.clone(), stand.reports.len());
            stand.reports.push(report);
        }
        stand
    }

    /// A worker with three models: one of all, so that each has a worker, and two more, popular ones more often.
    fn worker(&mut self, index: u32) -> Report {
        let mut names = vec![model(index % self.models)];
        while names.len() < MODELS_ON_WORKER.min(usize::try_from(self.models).unwrap_or(1)) {
            let popular = model(self.popular());
            if !names.contains(&popular) {
                names.push(popular);
            }
        }
        Report {
            worker: WorkerId::new(format!("worker-{index:05}")).expect("a short name of letters and digits"),
            incarnation: 1,
            seq: 0,
            epoch_seen: Epoch(1),
            state: WorkerState::Ready,
            free_slots: SLOTS,
            running: Vec::new(),
            models: names.into_iter().map(resident).collect(),
            devices: vec![DeviceReport {
                device: 0,
                page_bytes: 2 << 20,
                pages_total: 40_000,
                pages_weights: 30_000,
                pages_kv: 9_000,
                pages_workspace: 500,
                pages_kv_kept: None,
                resident_bytes: None,
                state: DeviceState::Working,
            }],
            host: None,
            resident_bytes: None,
            departures: Vec::new(),
            fetches: Vec::new(),
        }
    }

    /// A model's number, small ones more often: half of all requests are for the first twentieth.
    fn popular(&mut self) -> u32 {
        let part = self.random();
        let of = if self.random() < 0.5 {
            (self.models / 20).max(1)
        } else {
            self.models
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is below the number of models"
        )]
        let index = (part * f64::from(of)) as u32;
        index
    }

    fn random(&mut self) -> f64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        #[expect(clippy::cast_precision_loss, reason = "31 bits fit")]
        let part = (self.state >> 33) as f64 / f64::from(1_u32 << 31);
        part
    }

    fn arrive(&mut self, count: u64) -> Vec<Duration> {
        (0..count).map(|_| self.arrive_one()).collect()
    }

    fn arrive_one(&mut self) -> Duration {
        self.sequence += 1;
        self.now = self.now + Duration::from_micros(10);
        let is_batch = self.random() < 0.1;
        let tenant = format!("tenant-{}", self.popular() % 7);
        let arrival = Arrival {
            sequence: StreamSequence(self.sequence),
            request: request(self.sequence),
            class: if is_batch {
                Class::Batch
            } else {
                Class::Interactive
            },
            model: model(self.popular()),
            encoding: Encoding::Json,
            body: Bytes::from(vec![b'x'; BODY_BYTES]),
            prompt_tokens: 50 + u32::from(is_batch) * 1000,
            prompt_count: PromptCount::Counted,
            output_tokens_max: 256,
            tenant: Tenant::new(tenant).ok(),
            slo: Some(Slo {
                e2e_ms: Some(60_000.0),
                ..Slo::default()
            }),
            only_worker: None,
            age: Duration::ZERO,
            deadline_in: None,
            origin: Origin::Fresh,
        };
        let begun = Instant::now();
        let admission = self.core.handle_arrival(self.now, arrival);
        let actions = self.take_actions();
        let took = begun.elapsed();
        debug_assert!(matches!(admission, flotilla_dispatcher_core::Admission::Held));
        self.obey(actions);
        took
    }

    /// Ends what runs longest, one at a time; in its place comes one more request.
    fn finish(&mut self, count: u32) -> Rounds {
        let mut rounds = Rounds::default();
        for _ in 0..count {
            let Some(oldest) = self.running.pop_front() else {
                break;
            };
            self.now = self.now + Duration::from_millis(1);
            let report = &mut self.reports[self.workers[&oldest.worker]];
            report.running.retain(|run| run.request != oldest.request);
            report.free_slots += 1;
            let done = Done {
                worker: oldest.worker,
                incarnation: 1,
                request: oldest.request,
                attempt: oldest.attempt,
                end: AttemptEnd::Terminal,
                prompt_tokens: 50,
                output_tokens: 100,
            };
            let begun = Instant::now();
            self.core.handle_done(self.now, done);
            let actions = self.take_actions();
            rounds.decisions.push(begun.elapsed());
            self.obey(actions);
            rounds.timers.extend(self.time_passes());
            self.arrive_one();
        }
        rounds
    }

    /// Timers are due as in a running dispatcher. Tells what they took when one was.
    fn time_passes(&mut self) -> Option<Duration> {
        self.core.poll_timeout().filter(|due| *due <= self.now)?;
        let begun = Instant::now();
        self.core.handle_timeout(self.now);
        let actions = self.take_actions();
        let took = begun.elapsed();
        self.obey(actions);
        Some(took)
    }

    fn report_all(&mut self) -> Vec<Duration> {
        let mut took = Vec::new();
        for index in 0..self.reports.len() {
            self.reports[index].seq += 1;
            let report = self.reports[index].clone();
            let begun = Instant::now();
            self.core.handle_report(self.now, report);
            let actions = self.take_actions();
            took.push(begun.elapsed());
            self.obey(actions);
        }
        took
    }

    fn take_actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.core.poll_action()).collect()
    }

    fn obey(&mut self, actions: Vec<Action>) {
        for action in actions {
            let Action::Assign { worker, assignment } = action else {
                continue;
            };
            let (request, attempt) = (assignment.request, assignment.attempt);
            let report = &mut self.reports[self.workers[&worker]];
            let report_seq = report.seq;
            report.running.push(RunningRequest {
                request: request.clone(),
                attempt,
                model: assignment.model,
                prompt_tokens: 50,
                output_tokens: 10,
                alone: false,
            });
            report.free_slots -= 1;
            self.running.push_back(Running {
                worker: worker.clone(),
                request: request.clone(),
                attempt,
            });
            let reply = AssignOutcome::Replied(AssignReply::Accepted {
                report_seq,
                incarnation: None,
            });
            self.core
                .handle_assign_reply(self.now, &worker, &request, attempt, reply);
        }
    }
}

/// The id of a request: bits that are spread as random ones are, the same in every run.
fn request(sequence: u64) -> RequestId {
    RequestId::from_random(u128::from(sequence).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn registration(worker: &WorkerId) -> Registration {
    Registration {
        worker: worker.clone(),
        incarnation: 1,
        host: "bench".to_owned(),
        version: String::new(),
        devices: vec![DeviceDescription {
            index: 0,
            kind: "bench".to_owned(),
            name: "bench".to_owned(),
            memory_bytes: 80 << 30,
            memory_bytes_per_s: Some(2_000_000_000_000),
            cost: Some(1.0),
        }],
    }
}

fn resident(model: ModelName) -> ModelReport {
    ModelReport {
        model,
        state: ModelState::Ready,
        device: Some(0),
        leases: 0,
        waiting: 0,
        weights_bytes: 16 << 30,
        expires_in_ms: None,
        load_ms: Some(10_000),
        shards: Vec::new(),
        kv_tokens_max: None,
        loaded_from: None,
    }
}

fn model(index: u32) -> ModelName {
    ModelName::new(format!("model-{index:05}")).expect("a short name of letters and digits")
}

/// Memory of this process, in bytes.
fn resident_bytes() -> anyhow::Result<u64> {
    let path = "/proc/self/status";
    let status = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kib: u64 = kib
        .with_context(|| format!("{path} has no VmRSS"))?
        .trim()
        .parse()?;
    Ok(kib << 10)
}

fn percentile_us(spans: &mut [Duration], percent: usize) -> f64 {
    spans.sort_unstable();
    let index = (spans.len().saturating_sub(1)) * percent / 100;
    spans.get(index).map_or(0.0, |span| span.as_secs_f64() * 1e6)
}

/// Requests that a worker takes at once.
const SLOTS: u32 = 8;
/// Messages held besides the queue: those on workers, with some to spare.
const SLOTS_AND_MORE: usize = 16;
/// Models on each worker.
const MODELS_ON_WORKER: usize = 3;
/// A short prompt with its options.
const BODY_BYTES: usize = 200;
