//! The clock, and everything that is on its way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use flotilla_protocol::assignment::{AssignReply, Assignment, Done};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::{Attempt, ModelName, Moment, RequestId, WorkerId};
use thiserror::Error;

use crate::device::{Device, Ending, Output, Work};
use crate::fleet::FleetSpec;
use crate::outcome::{DeviceRecord, Outcome, RequestEnd, RequestRecord};
use crate::policy::{Arriving, EndReason, Order, Policy};
use crate::trace::{Trace, TraceRequest};

/// A trace and the fleet that it meets; they fit together.
#[derive(Debug, Clone)]
pub struct Scenario {
    trace: Trace,
    fleet: FleetSpec,
}

/// Why a trace and a fleet do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScenarioError {
    /// There is nothing to simulate.
    #[error("the trace {trace} has no request")]
    NoRequest {
        /// The trace.
        trace: String,
    },
    /// There is nobody to serve.
    #[error("the fleet has no device; add [[devices]]")]
    NoDevice,
    /// Requests ask for a model that the fleet does not have.
    #[error(
        "request {request} asks for the model {model}, which the fleet does not have; add it to [[models]]"
    )]
    UnknownModel {
        /// The first such request.
        request: RequestId,
        /// The model.
        model: ModelName,
    },
    /// A request is longer than its model's context.
    #[error(
        "request {request} has {tokens} tokens with its longest answer, the context of {model} has \
         {context_tokens_max}; raise context_tokens_max"
    )]
    ContextExceeded {
        /// The request.
        request: RequestId,
        /// Its model.
        model: ModelName,
        /// Tokens of prompt and longest answer.
        tokens: u64,
        /// The model's context.
        context_tokens_max: u32,
    },
}

impl Scenario {
    /// Puts a trace before a fleet.
    ///
    /// # Errors
    /// [`ScenarioError`]: the first reason why they do not fit.
    pub fn new(trace: Trace, fleet: FleetSpec) -> Result<Self, ScenarioError> {
        if trace.requests.is_empty() {
            return Err(ScenarioError::NoRequest { trace: trace.name });
        }
        if fleet.devices.is_empty() {
            return Err(ScenarioError::NoDevice);
        }
        for request in &trace.requests {
            let (id, model) = (request.id.clone(), request.model.clone());
            let Some(spec) = fleet.model(&request.model) else {
                return Err(ScenarioError::UnknownModel { request: id, model });
            };
            let tokens = u64::from(request.prompt_tokens) + u64::from(request.output_tokens_max);
            if tokens > u64::from(spec.context_tokens_max) {
                return Err(ScenarioError::ContextExceeded {
                    request: id,
                    model,
                    tokens,
                    context_tokens_max: spec.context_tokens_max,
                });
            }
        }
        Ok(Self { trace, fleet })
    }

    /// The same trace before the same devices and models with other limits.
    pub(crate) fn on(self, fleet: FleetSpec) -> Self {
        Self { fleet, ..self }
    }

    /// The trace.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The fleet.
    #[must_use]
    pub fn fleet(&self) -> &FleetSpec {
        &self.fleet
    }
}

/// Lets a policy serve a trace on a fleet, to the end of the last request, or for an hour after the last publish.
pub fn run(scenario: &Scenario, policy: &mut dyn Policy) -> Outcome {
    let mut run = Run::new(scenario, policy);
    while run.advance() {}
    run.outcome()
}

/// A simulation under way. [`run`] is all that most callers need; this lets a test look at each step.
pub struct Run<'a> {
    scenario: &'a Scenario,
    policy: &'a mut dyn Policy,
    now: Moment,
    /// From here on nothing is simulated any more.
    gives_up: Moment,
    /// What is on its way, by arrival and then by departure.
    under_way: BTreeMap<(Moment, u64), Parcel>,
    parcel_count: u64,
    devices: Vec<Device>,
    /// When each device is due.
    due: BTreeSet<(Moment, usize)>,
    due_of: Vec<Option<Moment>>,
    device_of: BTreeMap<WorkerId, usize>,
    request_of: HashMap<RequestId, usize>,
    records: Vec<RequestRecord>,
    open_count: usize,
    /// Inputs in a row without time passing.
    inputs_at_once: u64,
}

/// Something on its way.
#[derive(Debug)]
enum Parcel {
    Publish(usize),
    Assignment {
        device: usize,
        assignment: Assignment,
    },
    Prefetch {
        device: usize,
        model: ModelName,
    },
    Unload {
        device: usize,
        model: ModelName,
    },
    Reply {
        worker: WorkerId,
        request: RequestId,
        attempt: Attempt,
        reply: AssignReply,
    },
    Report(Report),
    Done(Done),
}

/// Who is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Parcel,
    Device(usize),
    Policy,
}

impl<'a> Run<'a> {
    /// At the origin of time, nothing published.
    pub fn new(scenario: &'a Scenario, policy: &'a mut dyn Policy) -> Self {
        let Scenario { trace, fleet } = scenario;
        let intake = policy.intake();
        let devices = fleet.devices.iter();
        let devices: Vec<_> = devices.map(|spec| Device::new(spec, fleet, intake)).collect();
        let workers = (0..).zip(&fleet.devices);
        let requests = (0..).zip(&trace.requests);
        let mut run = Self {
            now: Moment::default(),
            gives_up: Moment::after_origin(trace.duration() + PATIENCE),
            under_way: BTreeMap::new(),
            parcel_count: 0,
            due: BTreeSet::new(),
            due_of: vec![None; devices.len()],
            devices,
            device_of: workers
                .map(|(index, device)| (device.worker.clone(), index))
                .collect(),
            request_of: requests
                .map(|(index, request)| (request.id.clone(), index))
                .collect(),
            records: trace.requests.iter().map(RequestRecord::new).collect(),
            open_count: trace.requests.len(),
            inputs_at_once: 0,
            scenario,
            policy,
        };
        for (index, request) in trace.requests.iter().enumerate() {
            run.send_at(Moment::after_origin(request.at), Parcel::Publish(index));
        }
        (0..run.devices.len()).for_each(|index| run.learn_due(index));
        run
    }

    /// Lets the next thing happen; tells whether anything did.
    ///
    /// # Panics
    /// When the policy goes on for ever without time passing.
    pub fn advance(&mut self) -> bool {
        let Some((at, next)) = self.next().filter(|_| self.open_count > 0) else {
            return false;
        };
        if at > self.gives_up {
            return false;
        }
        self.inputs_at_once = if at > self.now { 0 } else { self.inputs_at_once + 1 };
        assert!(
            self.inputs_at_once < INPUTS_AT_ONCE_MAX,
            "the policy goes round for ever at {:?}",
            self.now
        );
        self.now = self.now.max(at);
        match next {
            Next::Parcel => {
                if let Some((_, parcel)) = self.under_way.pop_first() {
                    self.deliver(parcel);
                }
            }
            Next::Device(index) => {
                self.devices[index].handle_timeout(self.now);
                self.hear(index);
            }
            Next::Policy => self.policy.handle_timeout(self.now),
        }
        self.obey();
        true
    }

    /// The devices.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// What became of everything; requests without an end are marked so.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        let devices = self.devices.iter().map(|device| {
            let usage = device.usage();
            let busy = usage.busy_until(self.now);
            DeviceRecord {
                worker: device.spec().worker.clone(),
                loads: usage.loads,
                swaps: usage.swaps,
                steps: usage.steps,
                busy,
                cost: device.spec().cost_per_hour * busy.as_secs_f64() / SECONDS_PER_HOUR,
            }
        });
        Outcome {
            devices: devices.collect(),
            requests: self.records,
            ended: self.now,
        }
    }

    /// What comes next, and when: messages before devices before the policy's timer.
    fn next(&self) -> Option<(Moment, Next)> {
        let parcel = self.under_way.first_key_value();
        let parcel = parcel.map(|((at, _), _)| (*at, Next::Parcel));
        let device = self.due.first().map(|(at, index)| (*at, Next::Device(*index)));
        let policy = self.policy.poll_timeout().map(|at| (at, Next::Policy));
        [parcel, device, policy].into_iter().flatten().min()
    }

    fn deliver(&mut self, parcel: Parcel) {
        let now = self.now;
        match parcel {
            Parcel::Publish(index) => {
                let arriving = arriving(index, &self.scenario.trace.requests[index]);
                self.policy.handle_arrival(now, &arriving);
            }
            Parcel::Assignment { device, assignment } => {
                let request = &self.scenario.trace.requests[self.request_of[&assignment.request]];
                let work = Work {
                    prompt_tokens: request.prompt_tokens,
                    output_tokens: request.output_tokens,
                    output_tokens_max: request.output_tokens_max,
                };
                self.devices[device].handle_assignment(now, &assignment, work);
                self.hear(device);
            }
            Parcel::Prefetch { device, model } => {
                self.devices[device].handle_prefetch(now, &model);
                self.hear(device);
            }
            Parcel::Unload { device, model } => {
                self.devices[device].handle_unload(now, &model);
                self.hear(device);
            }
            Parcel::Reply {
                worker,
                request,
                attempt,
                reply,
            } => self.policy.handle_reply(now, &worker, &request, attempt, reply),
            Parcel::Report(report) => self.policy.handle_report(now, report),
            Parcel::Done(done) => self.policy.handle_done(now, done),
        }
    }

    /// Sends on what a device tells.
    fn hear(&mut self, index: usize) {
        while let Some(output) = self.devices[index].poll_output() {
            match output {
                Output::Reply {
                    request,
                    attempt,
                    reply,
                } => {
                    let worker = self.devices[index].spec().worker.clone();
                    self.send(Parcel::Reply {
                        worker,
                        request,
                        attempt,
                        reply,
                    });
                }
                Output::Report(report) => self.send(Parcel::Report(report)),
                Output::Done(done) => self.send(Parcel::Done(done)),
                Output::FirstToken { request } => {
                    let record = &mut self.records[self.request_of[&request]];
                    record.first_token.get_or_insert(self.now);
                }
                Output::Ended {
                    request,
                    output_tokens,
                    ending,
                } => self.conclude(index, &request, output_tokens, ending),
            }
        }
        self.learn_due(index);
    }

    /// Notes how an answer ended on a device.
    fn conclude(&mut self, device: usize, request: &RequestId, output_tokens: u32, ending: Ending) {
        let record = &mut self.records[self.request_of[request]];
        record.output_tokens = output_tokens;
        record.worker = Some(self.devices[device].spec().worker.clone());
        let end = match ending {
            Ending::Finished => RequestEnd::Finished,
            Ending::DeadlineExceeded => RequestEnd::DeadlineExceeded,
        };
        self.end(request, end);
    }

    /// Does what the policy wants.
    fn obey(&mut self) {
        while let Some(order) = self.policy.poll_order() {
            match order {
                Order::Assign { worker, assignment } => {
                    let device = self.device(&worker);
                    let record = &mut self.records[self.request_of[&assignment.request]];
                    record.assigned.get_or_insert(self.now);
                    self.send(Parcel::Assignment { device, assignment });
                }
                Order::Prefetch { worker, model } => {
                    let device = self.device(&worker);
                    self.send(Parcel::Prefetch { device, model });
                }
                Order::Unload { worker, model } => {
                    let device = self.device(&worker);
                    self.send(Parcel::Unload { device, model });
                }
                Order::End { request, reason } => self.end(
                    &request,
                    match reason {
                        EndReason::DeadlineExceeded => RequestEnd::DeadlineExceeded,
                        EndReason::Refused => RequestEnd::Refused,
                    },
                ),
            }
        }
    }

    /// Notes the first end of a request.
    fn end(&mut self, request: &RequestId, end: RequestEnd) {
        let record = &mut self.records[self.request_of[request]];
        if record.end == RequestEnd::Unfinished {
            record.end = end;
            record.ended = Some(self.now);
            self.open_count -= 1;
        }
    }

    fn device(&self, worker: &WorkerId) -> usize {
        let device = self.device_of.get(worker).copied();
        device.expect("a policy knows workers from reports and the fleet alone")
    }

    fn send(&mut self, parcel: Parcel) {
        self.send_at(self.now + self.scenario.fleet.limits.network_latency, parcel);
    }

    fn send_at(&mut self, at: Moment, parcel: Parcel) {
        self.under_way.insert((at, self.parcel_count), parcel);
        self.parcel_count += 1;
    }

    fn learn_due(&mut self, index: usize) {
        let due = self.devices[index].poll_timeout();
        if let Some(before) = std::mem::replace(&mut self.due_of[index], due) {
            self.due.remove(&(before, index));
        }
        if let Some(due) = due {
            self.due.insert((due, index));
        }
    }
}

fn arriving(index: usize, request: &TraceRequest) -> Arriving {
    let published = Moment::after_origin(request.at);
    Arriving {
        id: request.id.clone(),
        index,
        published,
        tenant: request.tenant.clone(),
        class: request.class,
        model: request.model.clone(),
        prompt_tokens: request.prompt_tokens,
        output_tokens_max: request.output_tokens_max,
        slo: request.slo,
        deadline: request.deadline.map(|deadline| published + deadline),
    }
}

/// What has not ended this long after the last publish is called unfinished: no target is as loose.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3_600);
/// More inputs at one moment than any trace of a simulation has.
const INPUTS_AT_ONCE_MAX: u64 = 10_000_000;
const SECONDS_PER_HOUR: f64 = 3_600.0;
