//! The owner of the worker's state: one task, one `select!`, and no decision of its own.
//!
//! What happens goes into [`Desk`]; what it says is carried out: jobs for models, switches for attempts,
//! messages to the outbox. Nothing in here waits for NATS, a disk or the engine.

mod attempts;
mod devices;
mod fetches;
mod inbox;
mod metrics;
mod models;
mod recent;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_client::{Catalog, Connection};
use flotilla_protocol::assignment::{Assignment, Cancel, Control, ControlReply, Done};
use flotilla_protocol::catalog::CatalogEntry;
use flotilla_protocol::fleet::WorkerState;
use flotilla_protocol::request::InferenceRequest;
use flotilla_protocol::{ModelName, Moment, TraceParent};
use flotilla_telemetry::{Ask, Part, Source};
use flotilla_worker_core::ledger::DeviceIndex;
use flotilla_worker_core::residency::{DeviceFault, UnloadReason};
use flotilla_worker_core::worker::{Action, Desk};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, info};

use crate::attempt::{AttemptContext, DRAINS};
use crate::engine::{Engine, EngineEnded};
use crate::error::WorkerError;
use crate::hardware::Hardware;
use crate::identity::Identity;
use crate::jobs::{JobDone, Looks};
use crate::memory::ResidentMemory;
use crate::outbox::Outbox;
use crate::stop::Stop;
use crate::watch::Change;
use crate::weights::Weights;
use attempts::{Attempts, Finished};
use devices::{DeviceNews, Devices};
pub(crate) use fetches::{Fetches, FetchesUnderWay};
pub(crate) use inbox::Inbox;
use inbox::Letter;
use metrics::count_refusal;
use models::Models;

/// What the owner needs to know of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct OwnerSettings {
    /// Bytes of one request.
    pub(crate) request_bytes_max: usize,
    /// Requests that run at once.
    pub(crate) slots: usize,
    /// Tokens of one step.
    pub(crate) batch_tokens_max: usize,
    /// How the files of models are looked at.
    pub(crate) looks: Looks,
}

/// What the owner is given at its start.
pub(crate) struct OwnerParts {
    pub(crate) settings: OwnerSettings,
    pub(crate) identity: Identity,
    pub(crate) desk: Desk,
    pub(crate) connection: Connection,
    pub(crate) catalog: Catalog,
    pub(crate) context: AttemptContext,
    pub(crate) outbox: Outbox,
    pub(crate) inbox: Inbox,
    /// What runs each device, and gets what broke it or is closed when its engine ends.
    pub(crate) engines: Vec<(Engine, oneshot::Receiver<String>)>,
    /// What the models run on.
    pub(crate) hardware: Hardware,
    /// What happens to the catalog.
    pub(crate) changes: mpsc::Receiver<Change>,
    /// Where weights come from and go to, if they are shared.
    pub(crate) weights: Option<Weights>,
    /// Files on their way here.
    pub(crate) fetches: Fetches,
    /// Questions for metrics.
    pub(crate) scrapes: Source,
}

/// The state of a worker and everything that changes it.
pub(crate) struct Owner {
    settings: OwnerSettings,
    identity: Identity,
    desk: Desk,
    connection: Connection,
    catalog: Catalog,
    context: Arc<AttemptContext>,
    outbox: Outbox,
    inbox: Inbox,
    devices: Devices,
    changes: mpsc::Receiver<Change>,
    /// The catalog as far as it was seen.
    entries: HashMap<ModelName, Arc<CatalogEntry>>,
    hardware: Hardware,
    weights: Option<Weights>,
    resident: Option<ResidentMemory>,
    models: Models,
    fetches: Fetches,
    attempts: Attempts,
    jobs: JoinSet<JobDone>,
    cancel_loads: CancellationToken,
    _cancel_loads_at_end: DropGuard,
    scrapes: Source,
    turns: Interval,
    /// Time zero of the desk.
    origin: Instant,
}

/// What the owner waits for.
enum Happened {
    Letter(Letter),
    ConnectionClosed,
    Catalog(Change),
    Job(Result<JobDone, JoinError>),
    Device(DeviceNews),
    Attempt(Finished),
    Scrape(Ask),
    Due,
    /// Nothing, for a while.
    Turn,
    Drain,
    StopNow,
}

impl Owner {
    pub(crate) fn new(parts: OwnerParts) -> Self {
        let cancel_loads = CancellationToken::new();
        let mut turns = interval(TURN_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            scrapes: parts.scrapes,
            turns,
            settings: parts.settings,
            identity: parts.identity,
            desk: parts.desk,
            connection: parts.connection,
            catalog: parts.catalog,
            devices: Devices::new(parts.engines),
            context: Arc::new(parts.context),
            outbox: parts.outbox,
            inbox: parts.inbox,
            changes: parts.changes,
            entries: HashMap::new(),
            resident: parts.hardware.resident_memory(),
            hardware: parts.hardware,
            weights: parts.weights,
            models: Models::default(),
            fetches: parts.fetches,
            attempts: Attempts::default(),
            jobs: JoinSet::new(),
            _cancel_loads_at_end: cancel_loads.clone().drop_guard(),
            cancel_loads,
            origin: Instant::now(),
        }
    }

    /// Works until the worker is drained.
    ///
    /// # Errors
    /// [`WorkerError`] when the connection is closed for good: what ran is dropped then and its journals stay open
    /// for other workers. Or when every device has failed: what ran is handed back before.
    pub(crate) async fn run(mut self, stop: Stop, health: &Part) -> Result<(), WorkerError> {
        let mut is_stopping = false;
        let mut outcome = Ok(());
        loop {
            self.carry_out();
            self.report_if_due();
            self.note_turn(health);
            if self.desk.is_drained() {
                break;
            }
            match self.wait(&stop, is_stopping).await {
                Happened::Letter(letter) => self.handle_letter(letter),
                Happened::ConnectionClosed => return Err(WorkerError::ConnectionClosed),
                Happened::Catalog(change) => self.handle_change(change),
                Happened::Job(done) => self.handle_job(done),
                Happened::Device(DeviceNews::Pool { device, report }) => {
                    let now = self.now();
                    let residency = self.desk.residency_mut();
                    residency.handle_kv_resized(now, device, report);
                }
                Happened::Device(DeviceNews::PartsEnded(model)) => self.handle_parts_ended(&model),
                Happened::Device(DeviceNews::Ended { device, fault }) => {
                    let ended = self.handle_engine_ended(device, fault);
                    outcome = outcome.and(ended);
                }
                Happened::Attempt(finished) => self.handle_finished(finished),
                Happened::Scrape(ask) => self.answer_scrape(ask),
                Happened::Turn => {}
                Happened::Due => self.handle_due(),
                Happened::Drain => self.drain(),
                Happened::StopNow => {
                    is_stopping = true;
                    self.drain();
                    self.attempts.hand_back_all(DRAINS);
                }
            }
        }
        self.report();
        health.while_waiting(self.outbox.close()).await;
        outcome
    }

    /// A device is lost, and what ran there goes elsewhere at once. Without any device left the worker has nothing to
    /// work with and ends; a new process finds out whether they can be used again, which this one cannot know.
    ///
    /// # Errors
    /// What became of the last device.
    fn handle_engine_ended(&mut self, device: DeviceIndex, fault: Option<String>) -> Result<(), WorkerError> {
        let ended = match fault {
            Some(reason) => WorkerError::DeviceFailed { reason },
            None => WorkerError::Engine(EngineEnded),
        };
        let reason = ended.to_string();
        error!(device = device.0, error = reason, "a device is lost");
        let now = self.now();
        let fault = DeviceFault {
            reason: reason.clone(),
        };
        self.desk.residency_mut().handle_device_fault(now, device, fault);
        if self.devices.has_any() {
            return Ok(());
        }
        self.drain();
        self.attempts.hand_back_all(&reason);
        Err(ended)
    }

    async fn wait(&mut self, stop: &Stop, is_stopping: bool) -> Happened {
        let is_ready = self.desk.state() == WorkerState::Ready;
        let due = self
            .desk
            .poll_timeout()
            .map(|at| self.origin + at.since(Moment::default()));
        tokio::select! {
            letter = self.inbox.next() => letter.map_or(Happened::ConnectionClosed, Happened::Letter),
            Some(change) = self.changes.recv() => Happened::Catalog(change),
            Some(done) = self.jobs.join_next() => Happened::Job(done),
            news = self.devices.next() => Happened::Device(news),
            finished = self.attempts.next_finished() => Happened::Attempt(finished),
            ask = self.scrapes.asked() => Happened::Scrape(ask),
            _ = self.turns.tick() => Happened::Turn,
            () = at(due) => Happened::Due,
            () = stop.now.cancelled(), if !is_stopping => Happened::StopNow,
            () = stop.drain.cancelled(), if is_ready => Happened::Drain,
        }
    }

    fn now(&self) -> Moment {
        Moment::after_origin(self.origin.elapsed())
    }

    fn handle_due(&mut self) {
        let now = self.now();
        for (model, progress) in self.models.loads_under_way(self.origin) {
            self.desk
                .residency_mut()
                .handle_load_progress(now, model, progress);
        }
        self.desk.handle_timeout(now);
    }

    fn drain(&mut self) {
        if self.desk.state() == WorkerState::Ready {
            info!(held = self.attempts.len(), "draining");
        }
        let now = self.now();
        self.desk.handle_drain(now);
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.desk.poll_action() {
            match action {
                Action::Residency(action) => self.carry_out_for_model(action),
                Action::Expired { request } => self.attempts.expire(&request),
                Action::HandBack { request } => self.attempts.hand_back(&request, DRAINS),
            }
        }
    }

    fn report_if_due(&mut self) {
        if self.desk.is_report_due(self.now()) {
            self.report();
        }
    }

    fn report(&mut self) {
        for (request, progress) in self.attempts.progress() {
            self.desk.handle_progress(request, progress);
        }
        let mut report = self.desk.report(self.now());
        report.fetches = self.fetches.reports(self.now());
        let resident_bytes = self.resident.as_ref().and_then(ResidentMemory::bytes);
        match report.devices.as_mut_slice() {
            [device] => device.resident_bytes = resident_bytes,
            // They are in one process, whose memory the system counts as a whole.
            _ => report.resident_bytes = resident_bytes,
        }
        if let Some(weights) = &self.weights {
            weights.set_serving(!report.running.is_empty());
        }
        let subject = self.connection.subjects.report(&self.identity.worker);
        self.outbox.send(subject, &report);
    }

    fn handle_letter(&mut self, letter: Letter) {
        match letter {
            Letter::Assign {
                assignment,
                trace,
                reply,
            } => self.handle_assignment(*assignment, trace, reply),
            Letter::Cancel(Cancel { request }) => self.attempts.cancel(&request),
            Letter::Control { order, reply } => {
                let answer = match order {
                    Ok(order) => self.handle_order(order),
                    Err(fault) => ControlReply::Refused {
                        reason: format!(
                            "worker {} does not know the order: {fault}",
                            env!("CARGO_PKG_VERSION")
                        ),
                    },
                };
                if let Some(reply) = reply {
                    self.outbox.send(reply, &answer);
                }
            }
            Letter::ReportNow => self.desk.handle_report_asked(),
        }
    }

    fn handle_assignment(
        &mut self,
        assignment: Assignment,
        trace: Option<TraceParent>,
        reply: Option<async_nats::Subject>,
    ) {
        let now = self.now();
        let request = InferenceRequest::decode(
            &assignment.model,
            assignment.encoding,
            &assignment.body,
            self.settings.request_bytes_max,
        );
        let asked = request.as_ref().ok().and_then(|request| request.keep_alive);
        let entry = self.entries.get(&assignment.model);
        let keep_alive = asked.or(entry.and_then(|entry| entry.keep_alive));
        let was_held = self.desk.attempt(&assignment.request).is_some();
        let answer = self.desk.handle_assignment(now, &assignment, keep_alive);
        let is_held = self.desk.attempt(&assignment.request).is_some();
        let (request_id, attempt) = (&assignment.request, assignment.attempt.0);
        debug!(%request_id, model = %assignment.model, attempt, ?answer, "assignment");
        count_refusal(&answer);
        if let Some(reply) = reply {
            self.outbox.send(reply, &answer);
        }
        if is_held && !was_held {
            self.attempts
                .start(assignment, request, trace, Arc::clone(&self.context));
        }
    }

    fn handle_order(&mut self, order: Control) -> ControlReply {
        let now = self.now();
        info!(?order, "control");
        match order {
            Control::Report => self.desk.handle_report_asked(),
            Control::Load { .. } if self.desk.state() == WorkerState::Draining => {
                return ControlReply::Refused {
                    reason: "the worker drains".to_owned(),
                };
            }
            Control::Load { model, keep_alive } => {
                let entry = self.entries.get(&model);
                let keep_alive = keep_alive.or(entry.and_then(|entry| entry.keep_alive));
                self.desk
                    .residency_mut()
                    .handle_load_order(now, &model, keep_alive);
            }
            Control::Unload { model } => {
                self.desk
                    .residency_mut()
                    .handle_unload_order(now, &model, UnloadReason::Ordered)
            }
            Control::Prefetch { model } => {
                if let Err(refusal) = self.prefetch(now, &model) {
                    let reason = refusal.to_string();
                    return ControlReply::Refused { reason };
                }
            }
            Control::Fetch { model } => {
                if let Err(refusal) = self.fetch(&model) {
                    let reason = refusal.to_string();
                    return ControlReply::Refused { reason };
                }
            }
            Control::Drain => self.drain(),
        }
        ControlReply::Accepted
    }

    fn handle_finished(&mut self, finished: Finished) {
        let now = self.now();
        self.desk.handle_ended(now, &finished.request);
        let done = Done {
            worker: self.identity.worker.clone(),
            incarnation: self.identity.incarnation,
            request: finished.request,
            attempt: finished.attempt,
            end: finished.end,
            prompt_tokens: finished.progress.prompt_tokens,
            output_tokens: finished.progress.output_tokens,
        };
        self.outbox.send(self.connection.subjects.done(), &done);
    }
}

/// An owner without anything to do turns so often, as whoever watches it wants to see.
const TURN_EVERY: Duration = Duration::from_secs(1);

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
