//! The workers, as their reports and our assignments show them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flotilla_protocol::assignment::Done;
use flotilla_protocol::fleet::{ModelReport, ModelState, Report, WorkerState};
use flotilla_protocol::{Attempt, ModelName, Moment, RequestId, WorkerId};

use crate::policy::{self, Residency};

/// How many earlier starts of a worker are known as past; a report of one of them is late.
const PAST_COUNT_MAX: usize = 8;
/// Of how many models the size is remembered.
const SIZED_MODEL_COUNT_MAX: usize = 10_000;

/// One worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) report: Report,
    pub(crate) heard: Moment,
    past: VecDeque<u64>,
    running: BTreeMap<RequestId, Attempt>,
    /// Index into the report's models.
    models: BTreeMap<ModelName, usize>,
    /// What we believe it runs.
    pub(crate) assigned: BTreeSet<RequestId>,
    /// Of these, the ones that its newest report cannot know yet: they take slots that it calls free.
    pub(crate) unseen: BTreeSet<RequestId>,
    /// Attempts that it said have ended, while a report that still lists them may be its newest: their slots
    /// are free although it calls them taken.
    ended: BTreeMap<RequestId, Attempt>,
    /// It refused, gave back or did not answer: nothing more until its next report.
    shut: bool,
}

/// What a report is to what is known of its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Novelty {
    /// The worker was not known.
    NewWorker,
    /// Another process than before: the one before is dead.
    NewIncarnation,
    /// The next of the same process.
    Newer,
    /// Overtaken by a newer one.
    Stale,
}

/// All workers.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    workers: BTreeMap<WorkerId, Worker>,
    /// Those with a free slot.
    roomy: BTreeSet<WorkerId>,
    /// Largest size that a report gave for a model.
    weights_bytes: BTreeMap<ModelName, u64>,
}

impl Worker {
    fn new(now: Moment, report: Report) -> Self {
        let mut worker = Self {
            heard: now,
            past: VecDeque::new(),
            running: BTreeMap::new(),
            models: BTreeMap::new(),
            assigned: BTreeSet::new(),
            unseen: BTreeSet::new(),
            ended: BTreeMap::new(),
            shut: false,
            report,
        };
        worker.index();
        worker
    }

    fn replace(&mut self, now: Moment, report: Report) {
        if report.incarnation != self.report.incarnation {
            self.past.push_back(self.report.incarnation);
            self.ended.clear();
            if self.past.len() > PAST_COUNT_MAX {
                self.past.pop_front();
            }
        }
        self.heard = now;
        self.shut = false;
        self.report = report;
        self.index();
    }

    fn index(&mut self) {
        let running = self.report.running.iter();
        self.running = running.map(|run| (run.request.clone(), run.attempt)).collect();
        let models = self.report.models.iter().enumerate();
        self.models = models
            .map(|(index, model)| (model.model.clone(), index))
            .collect();
        let running = &self.running;
        self.ended
            .retain(|request, attempt| running.get(request) == Some(attempt));
    }

    /// The attempt at a request that its newest report lists.
    pub(crate) fn lists(&self, request: &RequestId) -> Option<Attempt> {
        self.running.get(request).copied()
    }

    /// How many more requests it takes, as far as we know.
    pub(crate) fn free_slots(&self) -> u32 {
        if self.shut || self.report.state == WorkerState::Draining {
            return 0;
        }
        let count = |requests: usize| u32::try_from(requests).unwrap_or(u32::MAX);
        let ended = self
            .ended
            .iter()
            .filter(|(request, attempt)| self.running.get(*request) == Some(attempt));
        let free_slots = self.report.free_slots.saturating_add(count(ended.count()));
        free_slots.saturating_sub(count(self.unseen.len()))
    }

    pub(crate) fn model(&self, model: &ModelName) -> Option<&ModelReport> {
        self.models.get(model).map(|index| &self.report.models[*index])
    }
}

impl Fleet {
    /// What this report would be.
    pub(crate) fn novelty(&self, report: &Report) -> Novelty {
        match self.workers.get(&report.worker) {
            None => Novelty::NewWorker,
            Some(worker) if worker.past.contains(&report.incarnation) => Novelty::Stale,
            Some(worker) if worker.report.incarnation != report.incarnation => Novelty::NewIncarnation,
            Some(worker) if report.seq <= worker.report.seq => Novelty::Stale,
            Some(_) => Novelty::Newer,
        }
    }

    /// Takes a report as its worker's newest.
    pub(crate) fn install(&mut self, now: Moment, report: Report) {
        for model in report.models.iter().filter(|model| model.weights_bytes > 0) {
            if let Some(known) = self.weights_bytes.get_mut(&model.model) {
                *known = model.weights_bytes.max(*known);
            } else if self.weights_bytes.len() < SIZED_MODEL_COUNT_MAX {
                self.weights_bytes
                    .insert(model.model.clone(), model.weights_bytes);
            }
        }
        let id = report.worker.clone();
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.replace(now, report);
        } else {
            self.workers.insert(id.clone(), Worker::new(now, report));
        }
        self.refresh(&id);
    }

    /// Forgets a worker.
    pub(crate) fn remove(&mut self, id: &WorkerId) {
        self.workers.remove(id);
        self.roomy.remove(id);
    }

    /// Books a request on a worker. `Listed` says that its newest report lists it.
    pub(crate) fn book(&mut self, id: &WorkerId, request: &RequestId, sight: Sight) {
        let worker = self
            .workers
            .get_mut(id)
            .expect("requests are given to known workers only");
        worker.assigned.insert(request.clone());
        match sight {
            Sight::Listed => {}
            Sight::Unseen => {
                assert!(worker.free_slots() > 0, "{id} would get more than it offered");
                worker.unseen.insert(request.clone());
            }
        }
        self.refresh(id);
    }

    /// Notes that a worker's newest report knows of a request.
    pub(crate) fn saw(&mut self, id: &WorkerId, request: &RequestId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.unseen.remove(request);
            self.refresh(id);
        }
    }

    /// Undoes a booking.
    pub(crate) fn unbook(&mut self, id: &WorkerId, request: &RequestId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.assigned.remove(request);
            worker.unseen.remove(request);
            self.refresh(id);
        }
    }

    /// Notes that an attempt ended on a worker's process, whose slot is free before its next report says so.
    pub(crate) fn ended(&mut self, done: &Done) {
        let worker = self.workers.get_mut(&done.worker);
        if let Some(worker) = worker.filter(|worker| worker.report.incarnation == done.incarnation) {
            worker.ended.insert(done.request.clone(), done.attempt);
            self.refresh(&done.worker);
        }
    }

    /// Gives a worker nothing more until its next report.
    pub(crate) fn shut(&mut self, id: &WorkerId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.shut = true;
            self.refresh(id);
        }
    }

    pub(crate) fn contains(&self, id: &WorkerId) -> bool {
        self.workers.contains_key(id)
    }

    pub(crate) fn worker(&self, id: &WorkerId) -> Option<&Worker> {
        self.workers.get(id)
    }

    pub(crate) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.workers.iter()
    }

    /// Workers with a free slot.
    pub(crate) fn roomy(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.roomy.iter().map(|id| (id, &self.workers[id]))
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.roomy.is_empty()
    }

    /// How well a worker is prepared for a model.
    pub(crate) fn residency(&self, worker: &Worker, model: &ModelName) -> Residency {
        let state = worker.model(model).map(|report| &report.state);
        policy::residency(
            state,
            &worker.report.devices,
            self.weights_bytes.get(model).copied(),
        )
    }

    /// The newest attempt at a request that some worker's report lists, if it is newer than `over`.
    pub(crate) fn newest_run(&self, request: &RequestId, over: Attempt) -> Option<(WorkerId, Attempt)> {
        let runs = self
            .workers
            .iter()
            .filter_map(|(id, worker)| Some((worker.lists(request)?, id)));
        let (attempt, id) = runs.max()?;
        (attempt > over).then(|| (id.clone(), attempt))
    }

    fn refresh(&mut self, id: &WorkerId) {
        if self.workers.get(id).is_some_and(|worker| worker.free_slots() > 0) {
            if !self.roomy.contains(id) {
                self.roomy.insert(id.clone());
            }
        } else {
            self.roomy.remove(id);
        }
    }

    /// # Panics
    /// When the index of workers with room is wrong.
    pub(crate) fn the_roomy_are_those_with_free_slots(&self) {
        let roomy = self.workers.iter().filter(|(_, worker)| worker.free_slots() > 0);
        assert!(roomy.map(|(id, _)| id).eq(self.roomy.iter()));
    }
}

/// Whether a worker's newest report lists a request that is booked there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    Listed,
    Unseen,
}

/// The failure of a model that may not be tried again yet, with the milliseconds until it may.
pub(crate) fn failure(model: &ModelReport) -> Option<(&str, u64)> {
    match &model.state {
        ModelState::Failed {
            reason,
            retry_in_ms: retry_in_ms @ 1..,
        } => Some((reason, *retry_in_ms)),
        ModelState::Failed { .. }
        | ModelState::Loading
        | ModelState::Ready
        | ModelState::Draining
        | ModelState::Unloading => None,
    }
}
