//! The worker's front desk: which assignments it takes, what it reports and when it is done.
//!
//! It owns [`Residency`]: an accepted request wants its model at once. Inputs that concern models alone go
//! to [`Desk::residency_mut`]; what changes there is noticed for the next report. Tokenising, running and
//! writing the journal are the caller's business.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flotilla_protocol::assignment::{AssignReply, Assignment, Refusal};
use flotilla_protocol::fleet::{Report, RunningRequest, WorkerState};
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{Attempt, Epoch, ModelName, Moment, RequestId, WorkerId};

use crate::residency::{self, Residency, ResidencySettings, Unloadable};

/// Who the worker is, and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeskSettings {
    /// The worker.
    pub worker: WorkerId,
    /// Which start of the worker, random.
    pub incarnation: u64,
    /// Most requests that it holds at once.
    pub slots: u32,
    /// Longest time between two reports.
    pub report_interval: Duration,
    /// Shortest time between two reports: changes within it travel together.
    pub report_pause: Duration,
    /// Longest time that running requests are given when the worker drains.
    pub drain_max: Duration,
    /// Limits of its models.
    pub residency: ResidencySettings,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Something about a model.
    Residency(residency::Action),
    /// The request's deadline has passed: stop it and end its answer with `deadline_exceeded`.
    Expired {
        /// The request.
        request: RequestId,
    },
    /// The worker drains, and this request waits for its model or the drain's time is over: stop it and give it back,
    /// its journal open.
    HandBack {
        /// The request.
        request: RequestId,
    },
}

impl Action {
    /// The request that it stops.
    fn stops(&self) -> Option<&RequestId> {
        match self {
            Self::Expired { request } | Self::HandBack { request } => Some(request),
            Self::Residency(_) => None,
        }
    }
}

/// Everything that a worker decides about requests as a whole.
///
/// A request that is told to stop is held until [`Desk::handle_ended`]. The first stop counts for the caller:
/// a later one finds the request ending already.
#[derive(Debug)]
pub struct Desk {
    settings: DeskSettings,
    residency: Residency,
    epoch_seen: Epoch,
    intake: Intake,
    runs: BTreeMap<RequestId, Run>,
    /// Requests that are to be told to stop, and how.
    stops: VecDeque<Action>,
    reporting: Reporting,
}

/// Whether new work is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intake {
    Open,
    /// None; at this moment running requests are handed back.
    Draining {
        until: Moment,
    },
    /// None, and running requests were told to come back.
    Closed,
}

/// A request that the worker holds.
#[derive(Debug)]
struct Run {
    attempt: Attempt,
    model: ModelName,
    prompt_tokens: u32,
    output_tokens: u32,
    /// Last report before it was taken.
    report_seq: u64,
    /// When it is to be stopped; none once that was told.
    deadline: Option<Moment>,
    /// Nothing runs beside it.
    alone: bool,
}

/// What was reported last, to know when the next report is due.
#[derive(Debug, Default)]
struct Reporting {
    seq: u64,
    last_at: Option<Moment>,
    /// Changes of the desk, and those of them that were reported.
    changes: u64,
    reported: (u64, u64),
}

impl Desk {
    /// Opens the desk; its first report is due at once.
    #[must_use]
    pub fn new(settings: DeskSettings) -> Self {
        Self {
            residency: Residency::new(settings.residency.clone()),
            settings,
            epoch_seen: Epoch::default(),
            intake: Intake::Open,
            runs: BTreeMap::new(),
            stops: VecDeque::new(),
            reporting: Reporting::default(),
        }
    }

    /// The models.
    #[must_use]
    pub fn residency(&self) -> &Residency {
        &self.residency
    }

    /// The models, for inputs that concern them alone: inspected, loaded, unloaded, orders and pins. What
    /// becomes of requests goes through the desk.
    pub fn residency_mut(&mut self) -> &mut Residency {
        &mut self.residency
    }

    /// The next thing to do, if any.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        let stop = self.stops.pop_front();
        stop.or_else(|| self.residency.poll_action().map(Action::Residency))
    }

    /// When [`Self::handle_timeout`] or a report is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        let drain = match self.intake {
            Intake::Draining { until } => Some(until),
            Intake::Open | Intake::Closed => None,
        };
        let deadline = self.runs.values().filter_map(|run| run.deadline).min();
        let due = [
            Some(self.report_due_at()),
            self.residency.poll_timeout(),
            drain,
            deadline,
        ];
        due.into_iter().flatten().min()
    }

    /// Decides on an assignment. One that is held already is accepted again, because its answer may have been
    /// lost; another attempt of a held request gets no slot, as the report lists the one that runs.
    ///
    /// `keep_alive` is the request's own or else the catalog's.
    pub fn handle_assignment(
        &mut self,
        now: Moment,
        assignment: &Assignment,
        keep_alive: Option<KeepAlive>,
    ) -> AssignReply {
        if assignment.epoch < self.epoch_seen {
            let seen = self.epoch_seen;
            return AssignReply::Refused(Refusal::StaleEpoch { seen });
        }
        if assignment.epoch > self.epoch_seen {
            self.epoch_seen = assignment.epoch;
            self.reporting.changes += 1;
        }
        let held = self.runs.get(&assignment.request);
        if let Some(run) = held.filter(|run| run.attempt == assignment.attempt) {
            return self.accepted(run.report_seq);
        }
        if let Some(refusal) = self.refusal(now, assignment) {
            return AssignReply::Refused(refusal);
        }
        let report_seq = self.reporting.seq;
        let run = Run {
            attempt: assignment.attempt,
            model: assignment.model.clone(),
            prompt_tokens: 0,
            output_tokens: 0,
            report_seq,
            deadline: assignment
                .deadline_in_ms
                .map(|ms| now + Duration::from_millis(ms)),
            alone: assignment.alone,
        };
        self.runs.insert(assignment.request.clone(), run);
        self.reporting.changes += 1;
        let (request, model) = (&assignment.request, &assignment.model);
        self.residency.handle_evict_first(model, &assignment.evict_first);
        self.residency.handle_wanted(now, request, model, keep_alive);
        self.accepted(report_seq)
    }

    /// How far a request is, for the next report; no reason for an early one.
    pub fn handle_progress(&mut self, request: &RequestId, progress: Progress) {
        if let Some(run) = self.runs.get_mut(request) {
            run.prompt_tokens = progress.prompt_tokens;
            run.output_tokens = progress.output_tokens;
        }
    }

    /// A request's attempt ended: its slot is free, and its hold on the model if it still had one.
    pub fn handle_ended(&mut self, now: Moment, request: &RequestId) {
        if self.runs.remove(request).is_some() {
            self.reporting.changes += 1;
        }
        self.stops.retain(|stop| stop.stops() != Some(request));
        self.residency.handle_released(now, request);
    }

    /// The worker takes no new work. What runs has some time to finish and is handed back after it; what waits for a
    /// model is handed back at once, since others have the model, or will, before the time is over.
    pub fn handle_drain(&mut self, now: Moment) {
        if self.intake == Intake::Open {
            let until = now + self.settings.drain_max;
            self.intake = Intake::Draining { until };
            self.reporting.changes += 1;
            let waiting = self.residency.waiting().cloned();
            self.stops
                .extend(waiting.map(|request| Action::HandBack { request }));
        }
    }

    /// A new leader asks for a report at once.
    pub fn handle_report_asked(&mut self) {
        self.reporting.changes += 1;
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        for (request, run) in &mut self.runs {
            if run.deadline.take_if(|deadline| *deadline <= now).is_some() {
                let request = request.clone();
                self.stops.push_back(Action::Expired { request });
            }
        }
        if matches!(self.intake, Intake::Draining { until } if until <= now) {
            self.intake = Intake::Closed;
            let requests = self.runs.keys().cloned();
            self.stops
                .extend(requests.map(|request| Action::HandBack { request }));
        }
        self.residency.handle_timeout(now);
    }

    /// Whether a report has to be sent: something changed and the last one is a pause ago, or the interval is
    /// over.
    #[must_use]
    pub fn is_report_due(&self, now: Moment) -> bool {
        self.report_due_at() <= now
    }

    /// Makes the next report; the caller sends it.
    pub fn report(&mut self, now: Moment) -> Report {
        let reporting = &mut self.reporting;
        reporting.seq += 1;
        reporting.last_at = Some(now);
        reporting.reported = (reporting.changes, self.residency.changes());
        let running = self.runs.iter().map(|(request, run)| RunningRequest {
            request: request.clone(),
            attempt: run.attempt,
            model: run.model.clone(),
            prompt_tokens: run.prompt_tokens,
            output_tokens: run.output_tokens,
            alone: run.alone,
        });
        Report {
            worker: self.settings.worker.clone(),
            incarnation: self.settings.incarnation,
            seq: self.reporting.seq,
            epoch_seen: self.epoch_seen,
            state: self.state(),
            free_slots: self.free_slots(),
            running: running.collect(),
            models: self.residency.model_reports(now),
            devices: self.residency.device_reports(),
            host: self.residency.host_report(),
            resident_bytes: None,
            departures: self.residency.departure_reports(now),
            fetches: Vec::new(),
        }
    }

    /// Whether the worker takes work.
    #[must_use]
    pub fn state(&self) -> WorkerState {
        match self.intake {
            Intake::Open => WorkerState::Ready,
            Intake::Draining { .. } | Intake::Closed => WorkerState::Draining,
        }
    }

    /// How many more requests it takes; 0 while it drains, and while a request runs alone.
    #[must_use]
    pub fn free_slots(&self) -> u32 {
        match self.intake {
            Intake::Open if self.runs.values().any(|run| run.alone) => 0,
            Intake::Open => {
                let held = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
                self.settings.slots.saturating_sub(held)
            }
            Intake::Draining { .. } | Intake::Closed => 0,
        }
    }

    /// The attempt of a request that it holds.
    #[must_use]
    pub fn attempt(&self, request: &RequestId) -> Option<Attempt> {
        self.runs.get(request).map(|run| run.attempt)
    }

    /// How many requests it holds.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.runs.len()
    }

    /// The newest epoch of a leader that has spoken to it.
    #[must_use]
    pub fn epoch_seen(&self) -> Epoch {
        self.epoch_seen
    }

    /// Whether it drains and holds no request any more.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.state() == WorkerState::Draining && self.runs.is_empty()
    }

    /// Checks everything that must hold between inputs.
    ///
    /// # Panics
    /// When something does not.
    pub fn check_invariants(&self) {
        self.residency.check_invariants();
        let slots = usize::try_from(self.settings.slots);
        assert!(
            slots.is_ok_and(|slots| self.runs.len() <= slots),
            "no more requests than slots"
        );
        for request in self.residency.requests() {
            assert!(
                self.runs.contains_key(request),
                "{request} holds a model and no slot"
            );
        }
        let is_shared = self.runs.len() > 1;
        assert!(
            !is_shared || self.runs.values().all(|run| !run.alone),
            "who runs alone has nothing beside it"
        );
    }

    fn accepted(&self, report_seq: u64) -> AssignReply {
        AssignReply::Accepted {
            report_seq,
            incarnation: Some(self.settings.incarnation),
        }
    }

    fn refusal(&self, now: Moment, assignment: &Assignment) -> Option<Refusal> {
        if self.state() == WorkerState::Draining {
            return Some(Refusal::Draining);
        }
        let has_company = assignment.alone && !self.runs.is_empty();
        if self.free_slots() == 0 || has_company || self.runs.contains_key(&assignment.request) {
            return Some(Refusal::Full);
        }
        let Unloadable { fault, retry_in } = self.residency.unloadable(now, &assignment.model)?;
        let retry_in_ms = u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX);
        let reason = fault.to_string();
        Some(Refusal::ModelUnloadable { reason, retry_in_ms })
    }

    /// When the next report is due: the origin of time for the first.
    fn report_due_at(&self) -> Moment {
        let reporting = &self.reporting;
        let has_changed = reporting.reported != (reporting.changes, self.residency.changes());
        let wait = if has_changed {
            self.settings.report_pause
        } else {
            self.settings.report_interval
        };
        reporting.last_at.map_or(Moment::default(), |at| at + wait)
    }
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens made so far, earlier attempts included.
    pub output_tokens: u32,
}
