//! A dispatcher and its workers under one clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_dispatcher_core::{
    Action, Arrival, AssignOutcome, Dispatcher, JournalState, PolicySettings, Settings, StreamSequence,
};
use flotilla_profile::DeviceProfile;
use flotilla_protocol::admin::{Explanation, ProfileStatus, Standing};
use flotilla_protocol::assignment::{AssignReply, Assignment, AttemptEnd};
use flotilla_protocol::catalog::CatalogEntry;
use flotilla_protocol::event::Event;
use flotilla_protocol::profile::Profile;
use flotilla_protocol::{Epoch, Moment, RequestId, Strikes, WorkerId};

use crate::machine::Machine;
use crate::shared::{Bench, model, request, settings, worker};
use crate::words::Ask;

pub struct Fleet {
    pub bench: Bench,
    settings: Settings,
    machines: Vec<Machine>,
    profiles: Vec<(String, Profile)>,
    entries: Vec<CatalogEntry>,
    /// Requests that are not acknowledged.
    asked: BTreeMap<RequestId, Ask>,
    /// Published later.
    coming: BTreeMap<(Moment, u64), Ask>,
    /// What loads take.
    pub load: Duration,
    /// Who got an answer, and when it was complete.
    pub answered: BTreeMap<RequestId, Moment>,
    placed: Vec<(String, String)>,
    /// The models that each placement named as victims.
    pub victims: Vec<String>,
    told: Vec<String>,
    sequence: u64,
    reports_at: Moment,
}

impl Fleet {
    pub fn new() -> Self {
        Self::with(PolicySettings::default())
    }

    pub fn with(policy: PolicySettings) -> Self {
        let settings = Settings {
            policy,
            workers_max: 64,
            held_max: 20_000,
            ..settings()
        };
        let bench = Bench::with(settings.clone());
        Self {
            reports_at: bench.now,
            bench,
            settings,
            machines: Vec::new(),
            profiles: Vec::new(),
            entries: Vec::new(),
            asked: BTreeMap::new(),
            coming: BTreeMap::new(),
            load: Duration::from_secs(1),
            answered: BTreeMap::new(),
            placed: Vec::new(),
            victims: Vec::new(),
            told: Vec::new(),
            sequence: 0,
        }
    }

    pub fn profile(&mut self, name: &str, profile: Profile) {
        self.profiles.push((name.to_owned(), profile.clone()));
        let profile = DeviceProfile::try_from(profile).unwrap();
        self.bench
            .dispatcher
            .handle_profile(self.bench.now, &model(name), profile);
        self.react();
    }

    pub fn forget_profile(&mut self, name: &str, kind: &str) {
        self.profiles
            .retain(|(of, profile)| (of.as_str(), profile.gpu.as_str()) != (name, kind));
        self.bench
            .dispatcher
            .handle_profile_removed(self.bench.now, &model(name), kind);
        self.react();
    }

    pub fn catalog(&mut self, entry: CatalogEntry) {
        self.bench.dispatcher.handle_catalog(self.bench.now, &entry);
        self.entries.push(entry);
        self.react();
    }

    /// A worker registers and reports.
    pub fn join(&mut self, machine: Machine) {
        let registration = machine.registration();
        self.bench
            .dispatcher
            .handle_registration(self.bench.now, &registration);
        self.join_unregistered(machine);
    }

    /// A worker reports, and nothing is known of its devices.
    pub fn join_unregistered(&mut self, machine: Machine) {
        let id = machine.id.clone();
        self.machines.push(machine);
        self.report(&id);
    }

    pub fn report(&mut self, id: &str) {
        let now = self.bench.now;
        let report = self.machine(id).report(now);
        self.bench.report(report);
        self.react();
    }

    pub fn machine(&mut self, id: &str) -> &mut Machine {
        self.machines.iter_mut().find(|machine| machine.id == id).unwrap()
    }

    /// Publishes a request, and tells it to the dispatcher at once.
    pub fn send(&mut self, ask: Ask) {
        self.sequence += 1;
        let arrival = Arrival {
            sequence: StreamSequence(self.sequence),
            ..ask.arrival.clone()
        };
        self.asked.insert(arrival.request.clone(), ask);
        self.bench.arrive_as(arrival);
        self.react();
    }

    /// Publishes a request so many seconds from now.
    pub fn send_in(&mut self, seconds: f64, ask: Ask) {
        self.sequence += 1;
        let at = self.bench.now + Duration::from_secs_f64(seconds);
        self.coming.insert((at, self.sequence), ask);
    }

    pub fn cancel(&mut self, id: &str) {
        let now = self.bench.now;
        let _answer = self.bench.dispatcher.handle_cancel(now, &request(id));
        self.react();
    }

    /// A request's answer is complete.
    pub fn end(&mut self, id: &str) {
        self.end_with(id, AttemptEnd::Terminal);
    }

    pub fn end_with(&mut self, id: &str, end: AttemptEnd) {
        let (id, now) = (request(id), self.bench.now);
        if end == AttemptEnd::Terminal {
            self.answered.insert(id.clone(), now);
        }
        let machine = self.machines.iter_mut().find(|it| it.runs.contains_key(&id));
        let done = machine.unwrap().end(&id, end);
        self.bench.dispatcher.handle_done(now, done);
        self.react();
    }

    /// A request has made so many tokens, and its worker reports it.
    pub fn made(&mut self, id: &str, tokens: u32) {
        let id = request(id);
        let machine = self.machines.iter_mut().find(|it| it.runs.contains_key(&id));
        let machine = machine.unwrap();
        machine.runs.get_mut(&id).unwrap().made_tokens = tokens;
        let machine = machine.id.clone();
        self.report(&machine);
    }

    /// The leader dies. Its successor knows what is stored, and hears of everything that is not acknowledged and of
    /// every worker.
    pub fn new_leader(&mut self) {
        self.settings.epoch = Epoch(self.settings.epoch.0 + 1);
        self.bench.dispatcher = Dispatcher::new(self.bench.now, self.settings.clone());
        let now = self.bench.now;
        for entry in &self.entries {
            self.bench.dispatcher.handle_catalog(now, entry);
        }
        for (name, profile) in &self.profiles {
            let profile = DeviceProfile::try_from(profile.clone()).unwrap();
            self.bench.dispatcher.handle_profile(now, &model(name), profile);
        }
        let machines: Vec<_> = self.machines.iter().map(Machine::registration).collect();
        for registration in machines {
            self.bench.dispatcher.handle_registration(now, &registration);
            self.report(registration.worker.as_str());
        }
        for ask in std::mem::take(&mut self.asked).into_values() {
            self.send(ask.seen_before());
        }
    }

    /// Lets time pass: requests come, run for as long as they take and end, models are loaded, workers report.
    pub fn wait(&mut self, seconds: f64) {
        let until = self.bench.now + Duration::from_secs_f64(seconds);
        while let Some(at) = self.next_event().filter(|at| *at <= until) {
            self.bench.now = self.bench.now.max(at);
            self.happen();
        }
        self.bench.now = until;
    }

    /// Lets time pass until everything that was sent is answered, or for at most so many seconds.
    pub fn wait_for_all(&mut self, seconds_max: f64) {
        let until = self.bench.now + Duration::from_secs_f64(seconds_max);
        while !(self.asked.is_empty() && self.coming.is_empty()) && self.bench.now < until {
            self.wait(0.1);
        }
        assert!(self.asked.is_empty(), "{} wait for ever", self.asked.len());
    }

    fn next_event(&self) -> Option<Moment> {
        let now = self.bench.now;
        let runs = self.machines.iter().flat_map(|machine| machine.runs.values());
        let ends = runs.filter_map(|run| run.ends_at());
        let ready = self.machines.iter().filter_map(|machine| machine.ready_next(now));
        let coming = self.coming.keys().next().map(|(at, _)| *at);
        let timeout = self.bench.dispatcher.poll_timeout();
        let reports = Some(self.reports_at).filter(|_| !self.machines.is_empty());
        ends.chain(ready)
            .chain(coming)
            .chain(timeout)
            .chain(reports)
            .min()
    }

    fn happen(&mut self) {
        let now = self.bench.now;
        let ended = self.machines.iter().flat_map(|machine| &machine.runs);
        let ended = ended.filter(|(_, run)| run.ends_at().is_some_and(|at| at <= now));
        let ended: Vec<RequestId> = ended.map(|(id, _)| id.clone()).collect();
        ended.iter().for_each(|id| self.end(id.as_str()));
        let is_time = self.reports_at <= now;
        let mut reporting: Vec<String> = Vec::new();
        for machine in &self.machines {
            if is_time || machine.is_ready_since(now) {
                reporting.push(machine.id.clone());
            }
        }
        if is_time {
            self.reports_at = now + REPORT_INTERVAL;
        }
        reporting.iter().for_each(|id| self.report(id));
        while let Some(first) = self.coming.first_entry().filter(|first| first.key().0 <= now) {
            let ask = first.remove();
            self.send(ask);
        }
        self.bench.dispatcher.handle_timeout(now);
        self.react();
    }

    /// Does what the dispatcher wants done, all of it at once.
    fn react(&mut self) {
        let (now, mut answered) = (self.bench.now, BTreeSet::new());
        while let Some(action) = self.bench.dispatcher.poll_action() {
            match action {
                Action::Assign { worker, assignment } => self.assign(&worker, &assignment),
                Action::ReadJournal { request } => {
                    let state = self.journal(&request);
                    self.bench.dispatcher.handle_journal(now, &request, state);
                }
                Action::End { request, event, .. } => {
                    if let Event::Failed(failed) = event {
                        self.told.push(format!("end {request}: {}", failed.error.code));
                    }
                    self.bench.dispatcher.handle_ended(now, &request);
                }
                Action::Ack { request, .. } => {
                    assert!(
                        answered.insert(request.clone()),
                        "{request} is acknowledged twice"
                    );
                    self.asked.remove(&request);
                }
                Action::Prefetch { worker, model } => self.told.push(format!("prefetch {model} on {worker}")),
                Action::CancelOnWorker { worker, request } => {
                    self.told.push(format!("cancel {request} on {worker}"));
                }
                Action::DeadLetter { request, .. } => self.told.push(format!("bury {request}")),
                // Its machines are never silent for long.
                Action::Progress { .. } | Action::AskForReport { .. } => {}
                Action::StepDown { seen } => panic!("epoch {seen} was seen by nobody"),
            }
        }
    }

    fn assign(&mut self, id: &WorkerId, assignment: &Assignment) {
        let ask = &self.asked[&assignment.request];
        let work = (ask.takes, (ask.arrival.prompt_tokens, ask.answer_tokens));
        let (now, load) = (self.bench.now, self.load);
        self.placed.push((assignment.request.to_string(), id.to_string()));
        self.victims
            .extend(assignment.evict_first.iter().map(ToString::to_string));
        let machine = self.machine(id.as_str());
        let report_seq = machine.take(now, assignment, load, work);
        let reply = AssignOutcome::Replied(AssignReply::Accepted {
            report_seq,
            incarnation: None,
        });
        let (request, attempt) = (&assignment.request, assignment.attempt);
        self.bench
            .dispatcher
            .handle_assign_reply(now, id, request, attempt, reply);
    }

    fn journal(&self, id: &RequestId) -> JournalState {
        let running = self
            .machines
            .iter()
            .find_map(|machine| Some((machine, machine.runs.get(id)?)));
        match running {
            Some((machine, run)) => JournalState::Open {
                attempt: run.attempt,
                strikes: Strikes(0),
                worker: worker(&machine.id),
                incarnation: None,
                alone: false,
            },
            None if self.answered.contains_key(id) => JournalState::Terminal,
            None => JournalState::Empty,
        }
    }

    /// What was placed since this was last asked, in order.
    pub fn placed(&mut self) -> Vec<String> {
        self.bench.dispatcher.check_invariants();
        let placed = std::mem::take(&mut self.placed);
        placed.iter().map(|(id, on)| format!("{id} on {on}")).collect()
    }

    /// The requests that were placed since this or [`Self::placed`] was last asked, in order.
    pub fn order(&mut self) -> Vec<String> {
        self.bench.dispatcher.check_invariants();
        let placed = std::mem::take(&mut self.placed);
        placed.into_iter().map(|(id, _)| id).collect()
    }

    /// What else the dispatcher said since this was last asked.
    pub fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    pub fn why(&self, id: &str) -> Explanation {
        let explanation = self.bench.dispatcher.why(self.bench.now, &request(id));
        explanation.expect("it is held")
    }

    /// The line that a waiting request stands in, and its slack in milliseconds.
    pub fn line(&self, id: &str) -> (String, Option<i64>) {
        match self.why(id).standing {
            Standing::Queued { line, slack_ms, .. } => (line, slack_ms),
            other => panic!("{id} does not wait: {other:?}"),
        }
    }

    /// What is booked on a worker's device, as a waiting request finds it.
    pub fn load_seen_by(&self, id: &str, on: &str) -> f64 {
        let candidates = self.why(id).candidates;
        let candidate = candidates.iter().find(|it| it.worker == worker(on));
        candidate.expect("it may go there").load
    }

    pub fn status(&self, name: &str, kind: &str) -> ProfileStatus {
        let mut statuses = self.bench.dispatcher.profiles();
        let found = statuses.find(|it| it.model == model(name) && it.device_kind == kind);
        found.expect("the profile is in use")
    }

    /// Whether a request was answered, and so many seconds after `since` at the latest.
    pub fn is_answered_within(&self, id: &str, since: Moment, seconds: f64) -> bool {
        let within = Duration::from_secs_f64(seconds);
        let at = self.answered.get(&request(id));
        at.is_some_and(|at| at.since(since) <= within)
    }
}

/// How often workers report when nothing happens.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
