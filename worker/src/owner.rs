//! The owner of the worker's state: one task, one `select!`, and no decision of its own.
//!
//! What happens goes into [`Desk`]; what it says is carried out: jobs for models, switches for attempts,
//! messages to the outbox. Nothing in here waits for NATS, a disk or the engine.

mod attempts;
mod inbox;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_client::{Catalog, CatalogChange, Connection};
use flotilla_protocol::assignment::{Assignment, Cancel, Control, ControlReply, Done};
use flotilla_protocol::catalog::CatalogEntry;
use flotilla_protocol::fleet::WorkerState;
use flotilla_protocol::request::InferenceRequest;
use flotilla_protocol::{ModelName, Moment};
use flotilla_worker_core::residency::{Action as ModelAction, Pin};
use flotilla_worker_core::worker::{Action, Desk};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::attempt::{AttemptContext, LeaseAnswer};
use crate::engine::{EngineEnded, LoadLimits};
use crate::error::{WorkerError, chain};
use crate::identity::Identity;
use crate::jobs::{Inspection, JobDone, JobFault, load_model, unload_model};
use crate::model::{ModelText, OpenedModel};
use crate::outbox::Outbox;
use crate::stop::Stop;
use crate::watch::watch;
use attempts::{Attempts, Finished};
pub(crate) use inbox::Inbox;
use inbox::Letter;

/// What the owner needs to know of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct OwnerSettings {
    /// Bytes of one request.
    pub(crate) request_bytes_max: usize,
    /// Requests that run at once.
    pub(crate) slots: usize,
    /// Tokens of one step.
    pub(crate) batch_tokens_max: usize,
    /// Pages of the device.
    pub(crate) device_pages: u64,
    /// Time that any load may take.
    pub(crate) load_timeout_floor: Duration,
    /// Slowest load that is not given up.
    pub(crate) load_bytes_per_s_min: u64,
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
    /// Closed when the engine's thread ends.
    pub(crate) engine_ended: oneshot::Receiver<()>,
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
    engine_ended: oneshot::Receiver<()>,
    changes: mpsc::Receiver<CatalogChange>,
    _following: AbortOnDropHandle<()>,
    /// The catalog as far as it was seen.
    entries: HashMap<ModelName, CatalogEntry>,
    /// Models that were inspected and not loaded yet.
    opened: HashMap<ModelName, Arc<OpenedModel>>,
    /// What requests need of the loaded models.
    texts: HashMap<ModelName, Arc<ModelText>>,
    attempts: Attempts,
    jobs: JoinSet<JobDone>,
    cancel_loads: CancellationToken,
    _cancel_loads_at_end: DropGuard,
    /// Time zero of the desk.
    origin: Instant,
}

/// What the owner waits for.
enum Happened {
    Letter(Letter),
    ConnectionClosed,
    Catalog(CatalogChange),
    Job(Result<JobDone, JoinError>),
    Attempt(Finished),
    Due,
    Drain,
    StopNow,
    EngineEnded,
}

impl Owner {
    pub(crate) fn new(parts: OwnerParts) -> Self {
        let (changes, following) = watch(parts.catalog.clone(), parts.connection.request_timeout * 2);
        let cancel_loads = CancellationToken::new();
        Self {
            settings: parts.settings,
            identity: parts.identity,
            desk: parts.desk,
            connection: parts.connection,
            catalog: parts.catalog,
            context: Arc::new(parts.context),
            outbox: parts.outbox,
            inbox: parts.inbox,
            engine_ended: parts.engine_ended,
            changes,
            _following: following,
            entries: HashMap::new(),
            opened: HashMap::new(),
            texts: HashMap::new(),
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
    /// [`WorkerError`] when the connection is closed for good or the engine is gone. What ran is dropped then
    /// and its journals stay open for other workers.
    pub(crate) async fn run(mut self, stop: Stop) -> Result<(), WorkerError> {
        let mut is_stopping = false;
        loop {
            self.carry_out();
            self.report_if_due();
            if self.desk.is_drained() {
                break;
            }
            match self.wait(&stop, is_stopping).await {
                Happened::Letter(letter) => self.handle_letter(letter),
                Happened::ConnectionClosed => return Err(WorkerError::ConnectionClosed),
                Happened::Catalog(change) => self.handle_change(change),
                Happened::Job(done) => self.handle_job(done),
                Happened::Attempt(finished) => self.handle_finished(finished),
                Happened::Due => {
                    let now = self.now();
                    self.desk.handle_timeout(now);
                }
                Happened::Drain => self.drain(),
                Happened::StopNow => {
                    is_stopping = true;
                    self.drain();
                    self.attempts.hand_back_all();
                }
                Happened::EngineEnded => return Err(EngineEnded.into()),
            }
        }
        self.report();
        self.outbox.close().await;
        Ok(())
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
            finished = self.attempts.next_finished() => Happened::Attempt(finished),
            () = at(due) => Happened::Due,
            () = stop.now.cancelled(), if !is_stopping => Happened::StopNow,
            () = stop.drain.cancelled(), if is_ready => Happened::Drain,
            _ = &mut self.engine_ended => Happened::EngineEnded,
        }
    }

    fn now(&self) -> Moment {
        Moment::after_origin(self.origin.elapsed())
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
                Action::HandBack { request } => self.attempts.hand_back(&request),
            }
        }
    }

    fn carry_out_for_model(&mut self, action: ModelAction) {
        match action {
            ModelAction::Inspect { model } => self.inspect(model),
            ModelAction::Load { model, grant, .. } => {
                let opened = self.opened.get(&model).map(Arc::clone);
                let opened = opened.expect("a model is inspected before it is loaded");
                let weights_bytes = opened.weights_bytes();
                info!(%model, weights_bytes, kv_pages = grant.kv_pages, "loading");
                let engine = self.context.engine.clone();
                self.jobs
                    .spawn(load_model(model, opened, grant, self.load_limits(), engine));
            }
            ModelAction::Unload { model, .. } => {
                info!(%model, "unloading");
                self.texts.remove(&model);
                self.jobs.spawn(unload_model(model, self.context.engine.clone()));
            }
            ModelAction::LeaseGranted { request, model } => {
                let text = self.texts.get(&model).map(Arc::clone);
                let text = text.expect("only a loaded model grants leases");
                self.attempts.answer_lease(&request, LeaseAnswer::Granted(text));
            }
            ModelAction::ModelFailed {
                request,
                reason,
                retry_in,
            } => {
                let answer = LeaseAnswer::ModelFailed { reason, retry_in };
                self.attempts.answer_lease(&request, answer);
            }
        }
    }

    fn inspect(&mut self, model: ModelName) {
        let inspection = Inspection {
            entry: self.entries.get(&model).cloned(),
            model,
            catalog: self.catalog.clone(),
            catalog_timeout: self.connection.request_timeout,
            slots: self.settings.slots,
            batch_tokens_max: self.settings.batch_tokens_max,
            device_pages: self.settings.device_pages,
        };
        self.jobs.spawn(inspection.run());
    }

    fn load_limits(&self) -> LoadLimits {
        LoadLimits {
            timeout_floor: self.settings.load_timeout_floor,
            bytes_per_s_min: self.settings.load_bytes_per_s_min,
            cancel: self.cancel_loads.clone(),
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
        let report = self.desk.report(self.now());
        let subject = self.connection.subjects.report(&self.identity.worker);
        self.outbox.send(subject, &report);
    }

    fn handle_letter(&mut self, letter: Letter) {
        match letter {
            Letter::Assign { assignment, reply } => self.handle_assignment(*assignment, reply),
            Letter::Cancel(Cancel { request }) => self.attempts.cancel(&request),
            Letter::Control { order, reply } => {
                let answer = self.handle_order(order);
                if let Some(reply) = reply {
                    self.outbox.send(reply, &answer);
                }
            }
            Letter::ReportNow => self.desk.handle_report_asked(),
        }
    }

    fn handle_assignment(&mut self, assignment: Assignment, reply: Option<async_nats::Subject>) {
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
        if let Some(reply) = reply {
            self.outbox.send(reply, &answer);
        }
        if is_held && !was_held {
            self.attempts
                .start(assignment, request, Arc::clone(&self.context));
        }
    }

    fn handle_order(&mut self, order: Control) -> ControlReply {
        let now = self.now();
        info!(?order, "control");
        match order {
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
            Control::Unload { model } => self.desk.residency_mut().handle_unload_order(now, &model),
            Control::Prefetch { .. } => {
                return ControlReply::Refused {
                    reason: "this worker keeps no weights in host memory".to_owned(),
                };
            }
            Control::Drain => self.drain(),
        }
        ControlReply::Accepted
    }

    fn handle_change(&mut self, change: CatalogChange) {
        let now = self.now();
        match change {
            CatalogChange::Put(entry) => {
                let pin = if entry.pin { Pin::Pinned } else { Pin::Evictable };
                self.desk.residency_mut().handle_pin(now, &entry.name, pin);
                let name = entry.name.clone();
                let before = self.entries.insert(name.clone(), *entry);
                if before.is_some_and(|before| self.is_outdated(&before)) {
                    info!(model = %name, "the model is another one now");
                    self.desk.residency_mut().handle_unload_order(now, &name);
                }
            }
            CatalogChange::Removed(model) => {
                self.entries.remove(&model);
                let residency = self.desk.residency_mut();
                residency.handle_pin(now, &model, Pin::Evictable);
                residency.handle_unload_order(now, &model);
            }
        }
    }

    /// Whether the catalog has other weights by now under an entry's name.
    fn is_outdated(&self, entry: &CatalogEntry) -> bool {
        let now = self.entries.get(&entry.name);
        now.is_some_and(|now| !now.is_same_model(entry))
    }

    fn handle_job(&mut self, done: Result<JobDone, JoinError>) {
        let now = self.now();
        match done.expect("a job turns panics into reasons, and nobody aborts it") {
            JobDone::Inspected {
                model,
                entry: Some(entry),
                ..
            } if self.is_outdated(&entry) => self.inspect(model),
            JobDone::Inspected { model, result, .. } => {
                let needs = result.map(|(opened, needs)| {
                    self.opened.insert(model.clone(), opened);
                    needs
                });
                let needs = needs.map_err(|fault| reason(&model, &fault));
                self.desk.residency_mut().handle_inspected(now, &model, needs);
            }
            JobDone::Loaded {
                model,
                result,
                elapsed,
            } => {
                let opened = self.opened.remove(&model);
                if let (Ok(()), Some(opened)) = (&result, opened) {
                    info!(%model, elapsed_ms = elapsed.as_millis(), "model ready");
                    self.texts.insert(model.clone(), Arc::clone(&opened.text));
                }
                let result = result.map_err(|fault| reason(&model, &fault));
                self.desk
                    .residency_mut()
                    .handle_loaded(now, &model, result, elapsed);
            }
            JobDone::Unloaded {
                model,
                result: Ok(()),
            } => {
                self.desk.residency_mut().handle_unloaded(now, &model);
            }
            // The engine's end is noticed for itself, and ends the worker.
            JobDone::Unloaded {
                result: Err(error), ..
            } => debug!(%error, "a model was not unloaded"),
        }
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

fn reason(model: &ModelName, fault: &JobFault) -> String {
    let reason = chain(fault);
    warn!(%model, error = reason, "a model cannot be served");
    reason
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
