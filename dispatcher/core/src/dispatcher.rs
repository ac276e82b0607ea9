//! The state machine: what comes in, what goes out, and where a request goes next.

mod arrivals;
mod assign;
mod attempts;
mod cancel;
mod candidates;
mod endings;
mod invariants;
mod isolating;
mod learning;
mod ordering;
mod overview;
mod placement;
mod progress;
mod queries;
mod reserving;
mod review;
mod survey;
mod why;
mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flotilla_protocol::{Epoch, ModelName, Moment, RequestId, WorkerId};

use self::review::Review;
use crate::action::Action;
use crate::cancelled::Cancelled;
use crate::exclusions::Exclusions;
use crate::fleet::Fleet;
use crate::input::StreamSequence;
use crate::isolation::Isolation;
use crate::models::{Kind, Models};
use crate::observation::Observations;
use crate::queue::Queue;
use crate::request::{Held, Job, StrikeReason};
use crate::settings::Settings;
use crate::stats::Stats;
use crate::timers::{Timer, Timers};

/// One leader's term.
///
/// Call a `handle_*` for whatever happens, then [`poll_action`](Self::poll_action) until `None`, then wait
/// at most until [`poll_timeout`](Self::poll_timeout) for the next happening; when that moment comes, call
/// [`handle_timeout`](Self::handle_timeout). Every `now` is of one monotonic clock. A term is never
/// continued by another value: a new leader starts with [`Dispatcher::new`] and learns from redelivered
/// messages, journals and reports.
#[derive(Debug)]
pub struct Dispatcher {
    settings: Settings,
    /// From here on a worker that has not reported is lost.
    settles: Moment,
    held: BTreeMap<RequestId, Held>,
    sequences: BTreeMap<StreamSequence, RequestId>,
    queue: Queue,
    /// Requests in [`Held::Awaiting`] by the worker that they wait to hear of.
    awaiting: BTreeMap<WorkerId, BTreeSet<RequestId>>,
    fleet: Fleet,
    models: Models,
    /// Kinds of the fleet's devices, which waiting requests are priced for.
    priced_kinds: BTreeSet<Kind>,
    /// The kind of devices whose worker has not registered.
    unknown_kind: Kind,
    /// Models whose queues may have something to place.
    touched: BTreeSet<ModelName>,
    /// Models for which nothing could be placed since they were last touched.
    stuck: BTreeSet<ModelName>,
    /// Workers that may have more room than when they were last looked at.
    opened: BTreeSet<WorkerId>,
    /// Of these, the ones whose own models are looked at before all others.
    half_opened: BTreeSet<WorkerId>,
    /// Waiting requests that a device is kept for, by model.
    reserved: BTreeMap<ModelName, BTreeSet<RequestId>>,
    /// Models whose waiting requests the next review prices anew, as their profiles were corrected.
    mispriced: BTreeSet<ModelName>,
    review: Review,
    /// Models that a worker was asked to prefetch, and when.
    prefetched: BTreeMap<ModelName, Moment>,
    exclusions: Exclusions,
    isolation: Isolation,
    cancelled: Cancelled,
    timers: Timers,
    actions: VecDeque<Action>,
    /// Somebody was queued a moment ago, and is still to be told the place.
    newly_queued: bool,
    /// So many at the front of the queue have heard of their places in this round.
    told_until: usize,
    /// A newer leader exists.
    deposed: bool,
    stats: Stats,
    observations: Observations,
}

impl Dispatcher {
    /// Begins a term, with nothing known.
    #[must_use]
    pub fn new(now: Moment, settings: Settings) -> Self {
        let settles = now + settings.worker_lost_after;
        let mut timers = Timers::default();
        timers.set(Timer::TermSettled, settles);
        let mut models = Models::new(settings.policy.clone());
        let unknown_kind = models.kind(UNKNOWN_KIND);
        Self {
            queue: Queue::new(settings.policy.weights),
            models,
            priced_kinds: BTreeSet::from([unknown_kind]),
            unknown_kind,
            touched: BTreeSet::new(),
            stuck: BTreeSet::new(),
            opened: BTreeSet::new(),
            half_opened: BTreeSet::new(),
            reserved: BTreeMap::new(),
            mispriced: BTreeSet::new(),
            review: Review::default(),
            prefetched: BTreeMap::new(),
            settings,
            settles,
            held: BTreeMap::new(),
            sequences: BTreeMap::new(),
            awaiting: BTreeMap::new(),
            fleet: Fleet::default(),
            exclusions: Exclusions::default(),
            isolation: Isolation::default(),
            cancelled: Cancelled::default(),
            timers,
            actions: VecDeque::new(),
            newly_queued: false,
            told_until: 0,
            deposed: false,
            stats: Stats::default(),
            observations: Observations::default(),
        }
    }

    /// The next thing to do; call until `None` after every `handle_*`.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called, unless something else is handled before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        if self.deposed { None } else { self.timers.next() }
    }

    /// Does what is due at `now`; harmless when nothing is.
    pub fn handle_timeout(&mut self, now: Moment) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::TermSettled => self.lose_awaited_workers(now),
                Timer::WorkerLost(worker) => self.lose_worker(now, &worker, StrikeReason::WorkerLost),
                Timer::WorkerLate(worker) => self.ask_for_report(now, worker),
                Timer::ExclusionEnds(model, worker) => {
                    self.exclusions.remove(&model, &worker);
                    self.touch(&model);
                }
                Timer::Deadline(request) => self.end_late(now, &request),
                Timer::Review => self.review(now),
                // Every input ends with it.
                Timer::Placing => {}
                Timer::Newcomers => self.tell_newcomers(),
                Timer::Progress => self.tell_positions(),
            }
        }
        self.settle(now);
    }

    /// What every input ends with: free slots are used, those who wait will hear of their places.
    fn settle(&mut self, now: Moment) {
        self.isolate(now);
        self.place(now);
        // Nobody may wait any more for whom a worker was left.
        self.isolate(now);
        self.schedule_review(now);
        self.schedule_news(now);
    }

    fn push(&mut self, action: Action) {
        if !self.deposed {
            self.actions.push_back(action);
        }
    }

    /// Gives up: what was decided and not yet polled is the newer leader's to decide.
    fn step_down(&mut self, seen: Epoch) {
        if !self.deposed {
            self.actions.clear();
            self.actions.push_back(Action::StepDown { seen });
            self.deposed = true;
        }
    }

    /// Takes a request out of where it stands. `None` when it is ending or not held.
    fn take(&mut self, request: &RequestId) -> Option<Box<Job>> {
        self.held.get(request)?.job()?;
        if matches!(self.held.get(request), Some(Held::Suspect(_))) {
            let job = self.take_apart(request);
            self.end_isolation(request);
            return Some(job);
        }
        match self.held.remove(request)? {
            Held::Ending { .. } | Held::Suspect(_) => None,
            Held::Reading(job) => Some(job),
            Held::Awaiting { job, begun } => {
                if let Some(requests) = self.awaiting.get_mut(&begun.worker) {
                    requests.remove(request);
                    if requests.is_empty() {
                        self.awaiting.remove(&begun.worker);
                    }
                }
                Some(job)
            }
            Held::Queued { job, place, .. } => {
                self.queue.remove(&job.model, &place);
                self.timers.clear(&Timer::Deadline(request.clone()));
                self.end_reservation(&job.model, request);
                self.touch(&job.model);
                Some(job)
            }
            Held::Assigned(run) => {
                self.fleet.unbook(&run.worker, request);
                self.end_isolation(request);
                self.open(&run.worker);
                Some(run.job)
            }
        }
    }

    /// Puts a request where it stands from now on.
    ///
    /// # Panics
    /// When it stands somewhere already.
    fn put(&mut self, request: RequestId, held: Held) {
        let earlier = self.held.insert(request, held);
        assert!(earlier.is_none(), "a request stands in one place");
    }
}

/// What devices are called whose worker has not registered.
const UNKNOWN_KIND: &str = "unknown";
