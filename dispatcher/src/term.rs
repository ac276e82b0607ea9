//! One term of leadership: the owner of the core, with the one `select!` around it.
//!
//! Everything that waits is a child task; what it finds comes back here as a value and goes into the core,
//! and what the core wants goes out again. Dropping a term stops all of it at once.

mod begin;
mod clients;
mod happened;
mod metrics;
mod queries;
mod reconciling;

use std::collections::{HashMap, VecDeque};

use flotilla_client::{CatalogChange, ProfileChange};
use flotilla_dispatcher_core::{Action, Admission, Arrival, Dispatcher, Reconciler, StreamSequence};
use flotilla_protocol::fleet::Registration;
use flotilla_protocol::{Epoch, Moment, RequestId, TraceParent, WorkerId};
use flotilla_telemetry::{Part, Source};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, Span, info, info_span};

use crate::admission::{self, Admitted, Desk};
use crate::courier::{Courier, Errand, Outcome};
use crate::dead::Letter;
use crate::deliveries::{Deliveries, Receipt, extend};
use crate::error::DispatcherError;
use crate::ground::Ground;
use crate::intake::Pulled;
use crate::lanes::Lanes;
use crate::listen::Heard;
use crate::listeners::{self, Listeners};
use crate::metrics::{Counted, Observed};
use crate::models::Models;
use crate::scout::Scout;
use crate::services::Query;
use happened::{Happened, Ticks};

use self::reconciling::{Looked, Swept};

/// How a term ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TermEnd {
    /// The lease is gone.
    LeaseLost,
    /// A worker has seen a newer leader.
    Deposed {
        /// Its epoch, or a newer one.
        seen: Epoch,
    },
    /// NATS did not let it begin.
    NotBegun,
}

/// One term of leadership.
#[derive(Debug)]
pub(crate) struct Term {
    ground: Ground,
    /// What the core's moments are counted from.
    origin: Instant,
    core: Dispatcher,
    /// Most messages held; the core has the same limit.
    held_max: usize,
    /// Newest message of the stream when the term began.
    last_before_term: StreamSequence,
    deliveries: Deliveries,
    models: Models,
    registrations: HashMap<WorkerId, Registration>,
    courier: Courier,
    desk: Desk,
    lanes: Lanes<Outcome>,
    admissions: JoinSet<Checked>,
    /// The signs of life that are being sent; at most one task.
    extension: JoinSet<()>,
    /// Traces that requests belong to, of those that have one.
    traces: HashMap<RequestId, TraceParent>,
    /// Requests that end with their clients.
    listeners: Listeners,
    /// The round of probes under way; at most one task.
    probes: JoinSet<Vec<listeners::Heard>>,
    /// Hints and questions on their way to workers.
    errands: JoinSet<Errand>,
    reconciler: Reconciler,
    /// Who looks at the streams; away while a look is under way.
    scout: Option<Box<Scout>>,
    looks: JoinSet<Looked>,
    /// Stuck messages that are being got out of the stream.
    sweeps: JoinSet<Swept>,
    /// Requests that were acknowledged since the last look began.
    acked: Vec<RequestId>,
    /// Messages that we removed lately.
    removed: VecDeque<StreamSequence>,
    /// Tasks that last as long as the term: intakes and listeners.
    children: JoinSet<()>,
    pulled: mpsc::Receiver<Pulled>,
    heard: mpsc::Receiver<Heard>,
    queries: mpsc::Receiver<Query>,
    /// Questions for metrics.
    scrapes: Source,
    observed: Observed,
    counted: Counted,
}

/// What became of a message at admission.
#[derive(Debug)]
enum Checked {
    /// It names a request.
    Admitted(Admitted),
    /// It did not, was kept as a dead letter and is gone from the stream.
    Discarded(StreamSequence),
}

/// Whether the core still leads.
#[derive(Debug, PartialEq)]
enum Standing {
    Leads,
    Deposed { seen: Epoch },
}

impl Term {
    /// Leads until a newer leader shows up. The caller drops the future when the lease is lost.
    ///
    /// # Errors
    /// [`DispatcherError`] when the client was closed or a task panicked.
    pub(crate) async fn run(mut self, health: &Part) -> Result<TermEnd, DispatcherError> {
        let settings = &self.ground.config.dispatcher;
        let mut ticks = Ticks::new(
            settings.ack_wait / 3,
            self.listeners.round_interval(),
            settings.reconcile_interval,
        );
        let mut woken = None;
        loop {
            if let Standing::Deposed { seen } = self.carry_out() {
                info!(epoch = self.core.epoch().0, seen = seen.0, stats = ?self.core.stats(), "a newer epoch was seen");
                return Ok(TermEnd::Deposed { seen });
            }
            self.note_turn(woken);
            health.turned();
            let happened = self.wait(&mut ticks).await;
            woken = happened.concerns_core().then(Instant::now);
            self.handle(happened)?;
        }
    }

    async fn wait(&mut self, ticks: &mut Ticks) -> Happened {
        let timer = self.timer();
        tokio::select! {
            _ = ticks.turns.tick() => Happened::Turn,
            ask = self.scrapes.asked() => Happened::Scrape(ask),
            () = until(timer) => Happened::Due,
            Some(done) = self.lanes.next() => Happened::Outcome(done),
            Some(done) = self.admissions.join_next() => Happened::Checked(done),
            Some(pulled) = self.pulled.recv(), if self.has_room() => Happened::Pulled(pulled),
            Some(heard) = self.heard.recv() => Happened::Heard(heard),
            Some(query) = self.queries.recv() => Happened::Asked(query),
            _ = ticks.signs_of_life.tick() => Happened::SignOfLifeDue,
            _ = ticks.client_rounds.tick() => Happened::ClientRoundDue,
            Some(done) = self.probes.join_next() => Happened::Probed(done),
            Some(done) = self.extension.join_next() => Happened::Extended(done),
            Some(done) = self.errands.join_next() => Happened::ErrandRun(done),
            _ = ticks.reconcilings.tick() => Happened::ReconcilingDue,
            Some(done) = self.looks.join_next() => Happened::Looked(done),
            Some(done) = self.sweeps.join_next() => Happened::Swept(done),
            Some(done) = self.children.join_next() => Happened::ChildEnded(done),
        }
    }

    fn handle(&mut self, happened: Happened) -> Result<(), DispatcherError> {
        match happened {
            Happened::Turn => {}
            Happened::Scrape(ask) => self.answer_scrape(ask),
            Happened::Due => self.core.handle_timeout(self.now()),
            Happened::Outcome(done) => self.take_outcome(done)?,
            Happened::Checked(done) => self.take_checked(done)?,
            Happened::Pulled(pulled) => self.take_pulled(pulled),
            Happened::Heard(heard) => self.take_heard(heard),
            Happened::Asked(query) => self.answer(query),
            Happened::SignOfLifeDue => self.extend_ack_waits(),
            Happened::ClientRoundDue => self.ask_after_clients(),
            Happened::Probed(done) => self.take_probed(done.map_err(panicked("asked after clients"))?),
            Happened::Extended(done) => done.map_err(panicked("extended ack waits"))?,
            Happened::ErrandRun(done) => {
                if let Errand::Absent(worker) = done.map_err(panicked("ran an errand"))? {
                    self.core.handle_absent(self.now(), &worker);
                }
            }
            Happened::ReconcilingDue => self.reconcile(),
            Happened::Looked(done) => self.take_looked(done.map_err(panicked("looked at the streams"))?),
            Happened::Swept(done) => self.take_swept(done.map_err(panicked("got a stuck message"))?),
            Happened::ChildEnded(done) => {
                done.map_err(panicked("listened"))?;
                return Err(DispatcherError::Closed);
            }
        }
        Ok(())
    }

    fn now(&self) -> Moment {
        Moment::after_origin(self.origin.elapsed())
    }

    fn timer(&self) -> Option<Instant> {
        let due = self.core.poll_timeout()?;
        Some(self.origin + due.since(Moment::default()))
    }

    fn has_room(&self) -> bool {
        self.admissions.len() < ADMISSIONS_MAX && self.deliveries.len() < self.held_max
    }

    /// Starts everything that the core wants done.
    fn carry_out(&mut self) -> Standing {
        while let Some(action) = self.core.poll_action() {
            if let deposed @ Standing::Deposed { .. } = self.start(action) {
                return deposed;
            }
        }
        Standing::Leads
    }

    fn start(&mut self, action: Action) -> Standing {
        let courier = self.courier.clone();
        match action {
            Action::Assign { worker, assignment } => {
                let request = assignment.request.clone();
                let trace = self.traces.get(&request).cloned();
                let span = span_of(trace.as_ref());
                self.lanes.push(
                    request,
                    courier.assign(worker, assignment, trace).instrument(span),
                );
            }
            Action::ReadJournal { request } => {
                self.lanes.push(request.clone(), courier.read_journal(request));
            }
            Action::End {
                request,
                encoding,
                event,
            } => {
                let trace = self.traces.get(&request).cloned();
                let span = span_of(trace.as_ref());
                let end = courier.end(request.clone(), encoding, event, trace);
                self.lanes.push(request, end.instrument(span));
            }
            letter @ Action::DeadLetter { .. } => self.send_letter(letter),
            Action::Ack { request, sequences } => {
                let receipts = self.take_receipts(&request, &sequences);
                self.lanes.push(request.clone(), courier.ack(request, receipts));
            }
            Action::CancelOnWorker { worker, request } => {
                self.lanes.push(request.clone(), courier.cancel(worker, request));
            }
            Action::Prefetch { worker, model } => {
                self.errands.spawn(courier.prefetch(worker, model));
            }
            Action::AskForReport { worker } => {
                self.errands.spawn(courier.ask_for_report(worker));
            }
            Action::Progress {
                request,
                encoding,
                progress,
            } => {
                let trace = self.traces.get(&request).cloned();
                let told = courier.progress(request.clone(), encoding, progress, trace);
                self.lanes.push(request, told);
            }
            Action::StepDown { seen } => return Standing::Deposed { seen },
        }
        Standing::Leads
    }

    /// Gives up a request whose journal is terminal; tells how its messages leave the stream.
    fn take_receipts(&mut self, request: &RequestId, sequences: &[StreamSequence]) -> Vec<Receipt> {
        self.listeners.forget(request);
        self.traces.remove(request);
        self.note_acked(request);
        let receipts = sequences.iter().filter_map(|it| self.deliveries.remove(*it));
        let receipts: Vec<Receipt> = receipts.collect();
        self.note_removed(&receipts);
        receipts
    }

    fn send_letter(&mut self, action: Action) {
        let Action::DeadLetter {
            request,
            sequences,
            class,
            model,
            body,
            encoding,
            reason,
        } = action
        else {
            return;
        };
        let subjects = &self.ground.connection.subjects;
        let letter = Letter {
            subject: subjects.dead(class, &model),
            published_to: subjects.request(class, &model),
            sequence: *sequences.first().expect("a request came with a message"),
            request: Some(request.clone()),
            content_type: Some(encoding.content_type().to_owned()),
            body,
            reason,
        };
        self.lanes.push(request, self.courier.clone().dead_letter(letter));
    }

    fn take_outcome(&mut self, done: Result<(RequestId, Outcome), JoinError>) -> Result<(), DispatcherError> {
        let (request, outcome) = done.map_err(panicked("carried out an order"))?;
        let now = self.now();
        match outcome {
            Outcome::Assigned {
                worker,
                attempt,
                outcome,
            } => self
                .core
                .handle_assign_reply(now, &worker, &request, attempt, outcome),
            Outcome::Journal(state) => self.core.handle_journal(now, &request, state),
            Outcome::Ended => self.core.handle_ended(now, &request),
            Outcome::Done => {}
        }
        Ok(())
    }

    /// Answers for a message from here on, and has it checked.
    fn take_pulled(&mut self, pulled: Pulled) {
        self.deliveries.insert(pulled.sequence, pulled.receipt.clone());
        let subjects = &self.ground.connection.subjects;
        match admission::open(subjects, pulled) {
            Ok(envelope) => {
                let origin = envelope.pulled.origin(self.last_before_term);
                let (entry, text) = self.models.lookup(&envelope.model);
                let desk = self.desk.clone();
                if let Some(trace) = envelope.pulled.trace() {
                    self.traces.insert(envelope.request.clone(), trace);
                }
                self.admissions
                    .spawn(async move { Checked::Admitted(desk.admit(envelope, origin, entry, text).await) });
            }
            Err((pulled, unreadable)) => {
                let (sequence, receipt) = (pulled.sequence, pulled.receipt.clone());
                let letter = Letter::of_unreadable(subjects, &pulled, &unreadable);
                let courier = self.courier.clone();
                self.note_removed(std::slice::from_ref(&receipt));
                self.admissions.spawn(async move {
                    courier.discard(letter, receipt).await;
                    Checked::Discarded(sequence)
                });
            }
        }
    }

    fn take_checked(&mut self, done: Result<Checked, JoinError>) -> Result<(), DispatcherError> {
        match done.map_err(panicked("checked a request"))? {
            Checked::Admitted(Admitted::Valid {
                arrival,
                cancel_on_disconnect,
            }) => self.take_arrival(*arrival, cancel_on_disconnect),
            Checked::Admitted(Admitted::Invalid {
                sequence,
                request,
                encoding,
                error,
                seen,
            }) => {
                info!(request_id = %request, code = %error.code, param = error.param, "request refused");
                let admission = match seen {
                    Some(arrival) => self.core.handle_refused(self.now(), *arrival, error),
                    None => self.core.handle_rejected(sequence, &request, encoding, error),
                };
                self.give_back_unless_held(admission, sequence, request);
            }
            Checked::Discarded(sequence) => {
                self.deliveries.remove(sequence);
            }
        }
        Ok(())
    }

    fn take_arrival(&mut self, arrival: Arrival, cancel_on_disconnect: bool) {
        let (sequence, request) = (arrival.sequence, arrival.request.clone());
        let encoding = arrival.encoding;
        let admission = self.core.handle_arrival(self.now(), arrival);
        if cancel_on_disconnect && admission == Admission::Held {
            self.listeners.watch(request.clone(), encoding);
        }
        self.give_back_unless_held(admission, sequence, request);
    }

    fn give_back_unless_held(&mut self, admission: Admission, sequence: StreamSequence, request: RequestId) {
        match admission {
            Admission::Held => {}
            Admission::Full => {
                if !self.core.holds(&request) {
                    self.traces.remove(&request);
                }
                if let Some(receipt) = self.deliveries.remove(sequence) {
                    self.lanes.push(request, self.courier.clone().give_back(receipt));
                }
            }
        }
    }

    fn take_heard(&mut self, heard: Heard) {
        let now = self.now();
        match heard {
            Heard::Report(report) => self.core.handle_report(now, *report),
            Heard::Done(done) => self.core.handle_done(now, *done),
            Heard::Cancel(cancel) => {
                let reply = self.core.handle_cancel(now, &cancel.request);
                info!(request_id = %cancel.request, ?reply, "cancelled by a client");
            }
            Heard::Catalog(CatalogChange::Put(entry)) => {
                self.core.handle_catalog(now, &entry);
                self.models.put(*entry);
            }
            Heard::Catalog(CatalogChange::Removed(model)) => {
                self.models.remove(&model);
                self.core.handle_model_removed(now, &model);
            }
            Heard::Profile(ProfileChange::Put { model, kind, profile }) => {
                info!(%model, kind, source = ?profile.source(), "profile");
                self.core.handle_profile(now, &model, *profile);
            }
            Heard::Profile(ProfileChange::Removed { model, kind }) => {
                info!(%model, kind, "profile removed: its times are estimated from now on");
                self.core.handle_profile_removed(now, &model, &kind);
            }
            Heard::Registered(registration) => {
                self.core.handle_registration(now, &registration);
                self.register(*registration);
            }
            Heard::Unregistered(worker) => {
                self.registrations.remove(&worker);
            }
            Heard::Advisory(advisory) => self.take_advisory(&advisory),
        }
    }

    /// Starts a round of signs of life, unless the one before is still under way.
    fn extend_ack_waits(&mut self) {
        if self.extension.is_empty() && self.deliveries.len() > 0 {
            let patience = self.ground.config.dispatcher.ack_wait / 3;
            let client = self.ground.connection.client.clone();
            self.extension
                .spawn(extend(client, self.deliveries.acks(), patience));
        }
    }
}

async fn until(timer: Option<Instant>) {
    match timer {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What is logged of a request is found by its trace.
fn span_of(trace: Option<&TraceParent>) -> Span {
    trace.map_or_else(Span::none, |trace| {
        info_span!("request", trace_id = trace.trace_id())
    })
}

fn panicked(doing: &'static str) -> impl FnOnce(JoinError) -> DispatcherError {
    move |source| DispatcherError::Panicked { doing, source }
}

/// Messages checked at once: enough to hide one slow tokenizer, few enough that their bodies and threads
/// do not matter.
const ADMISSIONS_MAX: usize = 32;
