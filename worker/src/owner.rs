//! The owner of the worker's state: one task, one `select!`, and no decision of its own.
//!
//! What happens goes into [`Desk`]; what it says is carried out: jobs for models, switches for attempts,
//! messages to the outbox. Nothing in here waits for NATS, a disk or the engine.

mod attempts;
mod inbox;
mod models;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_client::{Catalog, Connection};
use flotilla_protocol::assignment::{Assignment, Cancel, Control, ControlReply, Done};
use flotilla_protocol::catalog::CatalogEntry;
use flotilla_protocol::fleet::WorkerState;
use flotilla_protocol::request::InferenceRequest;
use flotilla_protocol::{ModelName, Moment};
use flotilla_worker_core::worker::{Action, Desk};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info};

use crate::attempt::AttemptContext;
use crate::engine::EngineEnded;
use crate::error::WorkerError;
use crate::hardware::Hardware;
use crate::identity::Identity;
use crate::jobs::JobDone;
use crate::outbox::Outbox;
use crate::stop::Stop;
use crate::watch::Change;
use attempts::{Attempts, Finished};
pub(crate) use inbox::Inbox;
use inbox::Letter;
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
    /// What the models run on.
    pub(crate) hardware: Hardware,
    /// What happens to the catalog.
    pub(crate) changes: mpsc::Receiver<Change>,
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
    changes: mpsc::Receiver<Change>,
    /// The catalog as far as it was seen.
    entries: HashMap<ModelName, Arc<CatalogEntry>>,
    hardware: Hardware,
    models: Models,
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
    Catalog(Change),
    Job(Result<JobDone, JoinError>),
    Attempt(Finished),
    Due,
    Drain,
    StopNow,
    EngineEnded,
}

impl Owner {
    pub(crate) fn new(parts: OwnerParts) -> Self {
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
            changes: parts.changes,
            entries: HashMap::new(),
            hardware: parts.hardware,
            models: Models::default(),
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
            Control::Prefetch { model } => {
                if let Err(refusal) = self.prefetch(now, &model) {
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

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
