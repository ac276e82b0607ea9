//! One worker with one device, out of the worker's own cores.
//!
//! [`Desk`] takes assignments, keeps the ledger and decides who is resident; one
//! [`flotilla_worker_core::batch::Batch`] a loaded model says who takes part in a step. Simulated is what the
//! worker's shell has hardware for: a step takes as long as the profile says, a load as long as its tier, a token
//! is any number, and an answer ends where the trace says. Inspecting a model and unloading one take no time of
//! their own; both find the engine between two rounds, as in the worker.

mod engine;
mod loading;
pub(crate) mod memory;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use flotilla_protocol::assignment::{AssignReply, Assignment, AttemptEnd, Done};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::{Attempt, Class, ModelName, Moment, RequestId};
use flotilla_worker_core::ledger::{DeviceIndex, PAGE_BYTES};
use flotilla_worker_core::residency::{self, Keep, LoadFailure, ResidencySettings, UnloadReason, Unusable};
use flotilla_worker_core::worker::{Action, Desk, DeskSettings, Progress};

use crate::fleet::{DeviceSpec, FleetLimits, FleetSpec, INCARNATION, ModelSpec, Start, Timing};
use crate::policy::Intake;
use engine::{Command, Engine, Loaded, NewRun, News};
use loading::Loading;

/// A simulated worker. After each `handle_*` call [`Device::poll_output`] until `None`, and
/// [`Device::handle_timeout`] when [`Device::poll_timeout`] is reached.
#[derive(Debug)]
pub struct Device {
    spec: DeviceSpec,
    models: BTreeMap<ModelName, Known>,
    desk: Desk,
    engine: Engine,
    loading: Loading,
    attempts: BTreeMap<RequestId, Held>,
    outputs: VecDeque<Output>,
    usage: Usage,
}

/// A model of the fleet, as this device has it.
#[derive(Debug)]
struct Known {
    spec: ModelSpec,
    timing: Arc<Timing>,
}

/// A request that the device runs.
#[derive(Debug)]
struct Held {
    attempt: Attempt,
    class: Class,
    model: ModelName,
    work: Work,
    run: Option<u64>,
}

/// What a request costs a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Tokens of the prompt; at least 1.
    pub prompt_tokens: u32,
    /// Tokens of the answer, at least 1. The device alone knows it, and only when the last one is drawn.
    pub output_tokens: u32,
    /// Most tokens of the answer.
    pub output_tokens_max: u32,
}

/// What a device tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// To the dispatcher: the answer to an assignment.
    Reply {
        /// The request.
        request: RequestId,
        /// The attempt.
        attempt: Attempt,
        /// The answer.
        reply: AssignReply,
    },
    /// To the dispatcher.
    Report(Report),
    /// To the dispatcher: an attempt ended.
    Done(Done),
    /// To the client: the first token of its answer.
    FirstToken {
        /// The request.
        request: RequestId,
    },
    /// To the client: the end of its answer.
    Ended {
        /// The request.
        request: RequestId,
        /// Tokens that were made.
        output_tokens: u32,
        /// How.
        ending: Ending,
    },
}

/// How an answer ends on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It is complete.
    Finished,
    /// Its deadline passed.
    DeadlineExceeded,
}

/// What a device has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Models that were loaded.
    pub loads: u64,
    /// Of these, the ones that others were evicted for.
    pub swaps: u64,
    /// Steps that ended.
    pub steps: u64,
    /// Time with at least one request on the device, up to [`Self::busy_since`].
    pub busy: Duration,
    /// Since when there has been a request on it.
    pub busy_since: Option<Moment>,
}

impl Usage {
    /// Time with at least one request on the device.
    #[must_use]
    pub fn busy_until(&self, now: Moment) -> Duration {
        self.busy + self.busy_since.map_or(Duration::ZERO, |since| now.since(since))
    }
}

impl Device {
    /// A device of a fleet, at the origin of time, with its warm models resident.
    #[must_use]
    pub fn new(spec: &DeviceSpec, fleet: &FleetSpec, intake: Intake) -> Self {
        let models = fleet.models.iter().map(|model| {
            let timing = Timing::new(fleet.profile(model, spec), model.weights_bytes);
            let known = Known {
                spec: model.clone(),
                timing: Arc::new(timing),
            };
            (model.name.clone(), known)
        });
        let mut device = Self {
            desk: Desk::new(desk_settings(spec, &fleet.limits, intake)),
            engine: Engine::new(),
            loading: Loading::new(),
            models: models.collect(),
            attempts: BTreeMap::new(),
            outputs: VecDeque::new(),
            usage: Usage::default(),
            spec: spec.clone(),
        };
        device.warm_up();
        device
    }

    /// What it is.
    #[must_use]
    pub fn spec(&self) -> &DeviceSpec {
        &self.spec
    }

    /// What it has done.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The next thing that it tells, if any.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        let due = [
            self.desk.poll_timeout(),
            self.engine.poll_timeout(),
            self.loading.poll_timeout(),
        ];
        due.into_iter().flatten().min()
    }

    /// An assignment came in.
    pub fn handle_assignment(&mut self, now: Moment, assignment: &Assignment, work: Work) {
        let was_held = self.attempts.contains_key(&assignment.request);
        let reply = self.desk.handle_assignment(now, assignment, None);
        if !was_held && matches!(reply, AssignReply::Accepted { .. }) {
            self.usage.busy_since.get_or_insert(now);
            let held = Held {
                attempt: assignment.attempt,
                class: assignment.class,
                model: assignment.model.clone(),
                work,
                run: None,
            };
            self.attempts.insert(assignment.request.clone(), held);
        }
        self.outputs.push_back(Output::Reply {
            request: assignment.request.clone(),
            attempt: assignment.attempt,
            reply,
        });
        self.settle(now);
    }

    /// A model's weights are to be brought into host memory.
    pub fn handle_prefetch(&mut self, now: Moment, model: &ModelName) {
        if let Some(known) = self.models.get(model) {
            self.loading.prefetch(now, model, &known.timing);
        }
    }

    /// A model is to leave the device when no request holds it any more.
    pub fn handle_unload(&mut self, now: Moment, model: &ModelName) {
        self.desk
            .residency_mut()
            .handle_unload_order(now, model, UnloadReason::Ordered);
        self.settle(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        self.desk.handle_timeout(now);
        self.settle(now);
    }

    /// Checks everything that must hold between inputs.
    ///
    /// # Panics
    /// When something does not.
    pub fn check_invariants(&self) {
        self.desk.check_invariants();
        self.engine.check_invariants();
        for request in self.desk.residency().requests() {
            assert!(
                self.attempts.contains_key(request),
                "{request} waits for a model and runs nowhere"
            );
        }
    }

    fn warm_up(&mut self) {
        let start = Moment::default();
        let models = self.models.values().map(|known| &known.spec);
        let warm = models.filter(|model| model.start == Start::Warm);
        let warm: Vec<_> = warm.map(|model| model.name.clone()).collect();
        for model in warm {
            self.loading.is_instant = true;
            self.desk.residency_mut().handle_load_order(start, &model, None);
            self.settle_models(start);
        }
        self.loading.is_instant = false;
        self.usage = Usage::default();
    }

    /// What every input ends with: everything is done that takes no time, and a report goes out when it is due.
    fn settle(&mut self, now: Moment) {
        self.settle_models(now);
        if self.desk.is_report_due(now) {
            for (request, progress) in self.engine.progress() {
                self.desk.handle_progress(request, progress);
            }
            let report = self.desk.report(now);
            self.outputs.push_back(Output::Report(report));
        }
    }

    fn settle_models(&mut self, now: Moment) {
        loop {
            let mut moved = false;
            while let Some(action) = self.desk.poll_action() {
                self.carry_out(now, action);
                moved = true;
            }
            for (model, batch) in self.loading.ended(now) {
                let timing = Arc::clone(&self.models[&model].timing);
                let loaded = Box::new(Loaded { batch, timing });
                self.engine.command(Command::Install { model, loaded });
            }
            self.engine.advance(now);
            while let Some(news) = self.engine.poll_news() {
                self.learn(now, news);
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }

    fn carry_out(&mut self, now: Moment, action: Action) {
        match action {
            Action::Residency(action) => self.carry_out_for_model(now, action),
            Action::Expired { request } => self.expire(now, &request),
            Action::HandBack { request } => unreachable!("no worker drains, and {request} is given back"),
        }
    }

    fn carry_out_for_model(&mut self, now: Moment, action: residency::Action) {
        match action {
            residency::Action::Inspect { model } => {
                let needs = self.models.get(&model).map(|known| {
                    self.loading.note_wanted(&model);
                    memory::needs(&known.spec)
                });
                let needs = needs.ok_or_else(|| Unusable {
                    reason: "it is not in the catalog".to_owned(),
                });
                self.desk.residency_mut().handle_inspected(now, &model, needs);
            }
            residency::Action::Load { model, .. } => {
                self.usage.loads += 1;
                self.usage.swaps += u64::from(self.loading.evicted_for_others());
                let Known { spec, timing } = &self.models[&model];
                let settings = memory::batch_settings(spec, &self.spec);
                self.loading.begin(now, &model, timing, settings);
            }
            residency::Action::CancelLoad { model } => {
                // One that has ended is on its way to the engine, and is told from there.
                if let Some(elapsed) = self.loading.cancel(now, &model) {
                    let residency = self.desk.residency_mut();
                    residency.handle_loaded(now, &model, Err(LoadFailure::Cancelled), elapsed);
                }
            }
            residency::Action::Unload { model, .. } => {
                self.loading.note_unload();
                self.engine.command(Command::Unload { model });
            }
            residency::Action::ResizeKv { pages, .. } => self.engine.command(Command::ResizeKv { pages }),
            residency::Action::LeaseGranted { request, .. } => self.join(&request),
            residency::Action::Prefetch { model } | residency::Action::DropCopy { model } => {
                unreachable!("residency has no host memory for {model}")
            }
            residency::Action::LeaseLost { request, .. } => {
                unreachable!("no device fails, and {request} lost its lease")
            }
            residency::Action::ModelFailed {
                request,
                reason,
                retry_in,
            } => {
                let retry_in_ms = u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX);
                self.end(now, &request, AttemptEnd::ModelUnloadable { reason, retry_in_ms });
            }
        }
    }

    /// Puts a request whose model is there into its batch.
    fn join(&mut self, request: &RequestId) {
        let Some(held) = self.attempts.get_mut(request) else {
            return;
        };
        held.run = Some(self.engine.join(NewRun {
            request: request.clone(),
            class: held.class,
            model: held.model.clone(),
            work: held.work,
        }));
    }

    fn learn(&mut self, now: Moment, news: News) {
        match news {
            News::Installed { model } => {
                let elapsed = self.loading.installed(now, &model);
                let residency = self.desk.residency_mut();
                residency.handle_loaded(now, &model, Ok(()), elapsed);
            }
            News::Unloaded { model } => self
                .desk
                .residency_mut()
                .handle_unloaded(now, &model, Keep::Nowhere),
            News::KvChanged { report } => {
                let residency = self.desk.residency_mut();
                residency.handle_kv_resized(now, DeviceIndex::default(), report);
            }
            News::Stepped => self.usage.steps += 1,
            News::FirstToken { request } => self.outputs.push_back(Output::FirstToken { request }),
            News::Finished { request, progress } => {
                self.desk.handle_progress(&request, progress);
                self.conclude(now, &request, progress, Ending::Finished);
            }
            News::Impossible { request, reason } => {
                // The request fits no batch of this model, here or elsewhere on such a device.
                let retry_in_ms = u64::MAX;
                self.end(now, &request, AttemptEnd::ModelUnloadable { reason, retry_in_ms });
            }
        }
    }

    fn expire(&mut self, now: Moment, request: &RequestId) {
        let Some(held) = self.attempts.get(request) else {
            return;
        };
        let progress = Progress {
            prompt_tokens: held.work.prompt_tokens,
            output_tokens: held.run.map_or(0, |run| self.engine.leave(run)),
        };
        self.conclude(now, request, progress, Ending::DeadlineExceeded);
    }

    /// An answer is complete, or will never be.
    fn conclude(&mut self, now: Moment, request: &RequestId, progress: Progress, ending: Ending) {
        self.outputs.push_back(Output::Ended {
            request: request.clone(),
            output_tokens: progress.output_tokens,
            ending,
        });
        self.end_with(now, request, AttemptEnd::Terminal, progress);
    }

    /// An attempt ended without an answer.
    fn end(&mut self, now: Moment, request: &RequestId, end: AttemptEnd) {
        let nothing = Progress {
            prompt_tokens: 0,
            output_tokens: 0,
        };
        self.end_with(now, request, end, nothing);
    }

    fn end_with(&mut self, now: Moment, request: &RequestId, end: AttemptEnd, progress: Progress) {
        let Some(held) = self.attempts.remove(request) else {
            return;
        };
        self.desk.handle_ended(now, request);
        if self.attempts.is_empty()
            && let Some(since) = self.usage.busy_since.take()
        {
            self.usage.busy += now.since(since);
        }
        self.outputs.push_back(Output::Done(Done {
            worker: self.spec.worker.clone(),
            incarnation: INCARNATION,
            request: request.clone(),
            attempt: held.attempt,
            end,
            prompt_tokens: progress.prompt_tokens,
            output_tokens: progress.output_tokens,
        }));
    }
}

fn desk_settings(spec: &DeviceSpec, limits: &FleetLimits, intake: Intake) -> DeskSettings {
    DeskSettings {
        worker: spec.worker.clone(),
        incarnation: INCARNATION,
        slots: match intake {
            Intake::ByFreeSlots => spec.slots,
            Intake::Unbounded => u32::MAX,
        },
        report_interval: limits.report_interval,
        report_pause: limits.report_pause,
        drain_max: Duration::ZERO,
        residency: ResidencySettings {
            device_pages: vec![spec.memory_bytes / PAGE_BYTES],
            models_max: spec.models_max.unwrap_or(usize::MAX),
            keep_alive: limits.keep_alive,
            // Rivals name no victims, and what keeps them from thrashing is their own business.
            min_residency_max: Duration::ZERO,
            // A load takes as long as its profile says.
            load_stall: None,
            // Host memory is simulated with the loads, and has room for everything.
            host_pages: 0,
        },
    }
}
