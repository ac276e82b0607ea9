//! One term of leadership: the owner of the core, with the one `select!` around it.
//!
//! Everything that waits is a child task; what it finds comes back here as a value and goes into the core,
//! and what the core wants goes out again. Dropping a term stops all of it at once.

mod begin;
mod queries;

use std::collections::HashMap;

use flotilla_client::{CatalogChange, ProfileChange};
use flotilla_dispatcher_core::{Action, Admission, Arrival, Dispatcher, StreamSequence};
use flotilla_protocol::event::Phase;
use flotilla_protocol::fleet::Registration;
use flotilla_protocol::{Encoding, Epoch, Moment, RequestId, WorkerId};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::info;

use crate::admission::{self, Admitted, Desk};
use crate::courier::{Courier, Outcome};
use crate::dead::Letter;
use crate::deliveries::{Deliveries, extend};
use crate::error::DispatcherError;
use crate::ground::Ground;
use crate::intake::Pulled;
use crate::lanes::Lanes;
use crate::listen::Heard;
use crate::listeners::{self, Listeners, Probe};
use crate::models::Models;
use crate::services::Query;

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
    /// Requests that end with their clients.
    listeners: Listeners,
    /// The round of probes under way; at most one task.
    probes: JoinSet<Vec<listeners::Heard>>,
    /// Hints on their way to workers.
    errands: JoinSet<()>,
    /// Tasks that last as long as the term: intakes and listeners.
    children: JoinSet<()>,
    pulled: mpsc::Receiver<Pulled>,
    heard: mpsc::Receiver<Heard>,
    queries: mpsc::Receiver<Query>,
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
    pub(crate) async fn run(mut self) -> Result<TermEnd, DispatcherError> {
        let mut signs_of_life = interval(self.ground.config.dispatcher.ack_wait / 3);
        signs_of_life.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut client_rounds = interval(self.listeners.round_interval());
        client_rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Standing::Deposed { seen } = self.carry_out() {
                info!(epoch = self.core.epoch().0, seen = seen.0, stats = ?self.core.stats(), "a newer epoch was seen");
                return Ok(TermEnd::Deposed { seen });
            }
            let timer = self.timer();
            tokio::select! {
                () = until(timer) => self.core.handle_timeout(self.now()),
                Some(done) = self.lanes.next() => self.take_outcome(done)?,
                Some(done) = self.admissions.join_next() => self.take_checked(done)?,
                Some(pulled) = self.pulled.recv(), if self.has_room() => self.take_pulled(pulled),
                Some(heard) = self.heard.recv() => self.take_heard(heard),
                Some(query) = self.queries.recv() => self.answer(query),
                _ = signs_of_life.tick() => self.extend_ack_waits(),
                _ = client_rounds.tick() => self.ask_after_clients(),
                Some(done) = self.probes.join_next() => self.take_probed(done.map_err(panicked("asked after clients"))?),
                Some(done) = self.extension.join_next() => done.map_err(panicked("extended ack waits"))?,
                Some(done) = self.errands.join_next() => done.map_err(panicked("ran an errand"))?,
                Some(done) = self.children.join_next() => {
                    done.map_err(panicked("listened"))?;
                    return Err(DispatcherError::Closed);
                }
            }
        }
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
                self.lanes.push(request, courier.assign(worker, assignment));
            }
            Action::ReadJournal { request } => {
                self.lanes.push(request.clone(), courier.read_journal(request));
            }
            Action::End {
                request,
                encoding,
                event,
            } => self
                .lanes
                .push(request.clone(), courier.end(request, encoding, event)),
            letter @ Action::DeadLetter { .. } => self.send_letter(letter),
            Action::Ack { request, sequences } => {
                self.listeners.forget(&request);
                let acks = sequences
                    .into_iter()
                    .filter_map(|it| self.deliveries.remove(it))
                    .collect();
                self.lanes.push(request.clone(), courier.ack(request, acks));
            }
            Action::CancelOnWorker { worker, request } => {
                self.lanes.push(request.clone(), courier.cancel(worker, request));
            }
            Action::Prefetch { worker, model } => {
                self.errands.spawn(courier.prefetch(worker, model));
            }
            Action::Progress {
                request,
                encoding,
                progress,
            } => self
                .lanes
                .push(request.clone(), courier.progress(request, encoding, progress)),
            Action::StepDown { seen } => return Standing::Deposed { seen },
        }
        Standing::Leads
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
        self.deliveries.insert(pulled.sequence, pulled.ack.clone());
        let subjects = &self.ground.connection.subjects;
        match admission::open(subjects, pulled) {
            Ok(envelope) => {
                let origin = envelope.pulled.origin(self.last_before_term);
                let (entry, text) = self.models.lookup(&envelope.model);
                let desk = self.desk.clone();
                self.admissions
                    .spawn(async move { Checked::Admitted(desk.admit(envelope, origin, entry, text).await) });
            }
            Err((pulled, unreadable)) => {
                let (sequence, ack) = (pulled.sequence, pulled.ack.clone());
                let letter = Letter::of_unreadable(subjects, &pulled, &unreadable);
                let courier = self.courier.clone();
                self.admissions.spawn(async move {
                    courier.discard(letter, ack).await;
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
            }) => self.take_invalid(sequence, &request, encoding, error),
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

    fn take_invalid(
        &mut self,
        sequence: StreamSequence,
        request: &RequestId,
        encoding: Encoding,
        error: flotilla_protocol::event::RequestError,
    ) {
        info!(request_id = %request, code = %error.code, param = error.param, "request refused");
        let admission = self.core.handle_rejected(sequence, request, encoding, error);
        self.give_back_unless_held(admission, sequence, request.clone());
    }

    fn give_back_unless_held(&mut self, admission: Admission, sequence: StreamSequence, request: RequestId) {
        match admission {
            Admission::Held => {}
            Admission::Full => {
                if let Some(ack) = self.deliveries.remove(sequence) {
                    self.lanes.push(request, self.courier.clone().give_back(ack));
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
        }
    }

    /// Asks after the clients of requests that end with them, unless the round before is still under way.
    fn ask_after_clients(&mut self) {
        if !self.probes.is_empty() {
            return;
        }
        let round = self.listeners.next_round().into_iter();
        let in_phase = |probe: Probe| Some((self.core.phase(&probe.request)?, probe));
        let round: Vec<(Phase, Probe)> = round.filter_map(in_phase).collect();
        if !round.is_empty() {
            self.probes
                .spawn(listeners::probe(self.ground.connection.clone(), round));
        }
    }

    fn take_probed(&mut self, found: Vec<listeners::Heard>) {
        for request in self.listeners.handle_round(Instant::now(), found) {
            let reply = self.core.handle_cancel(self.now(), &request);
            info!(request_id = %request, ?reply, "cancelled, as its client is gone");
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

fn panicked(doing: &'static str) -> impl FnOnce(JoinError) -> DispatcherError {
    move |source| DispatcherError::Panicked { doing, source }
}

/// Messages checked at once: enough to hide one slow tokenizer, few enough that their bodies and threads
/// do not matter.
const ADMISSIONS_MAX: usize = 32;
