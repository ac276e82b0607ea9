//! Requests meet workers.
//!
//! What happens touches models: one whose queue changed, and those that a worker with new room has. The most
//! urgent of them places one request at a time, until none of them can. Nothing else is looked at, so that a decision
//! costs as much as its candidates, however many wait.

use std::time::Duration;

use flotilla_protocol::{ModelName, Moment, RequestId, WorkerId};

use super::Dispatcher;
use super::candidates::Foresight;
use super::survey::{Census, Survey};
use crate::dispatch::{Dispatch, Losers};
use crate::fleet::Device;
use crate::policy::{self, Aim, Candidate, Choice, Room};
use crate::request::{Held, Job, Outlook};
use crate::timers::Timer;

/// What came of looking at a model's queue.
#[derive(Debug)]
enum Progress {
    /// Something changed: there may be more to do.
    Made,
    /// Nobody serves a request in time any more; in the fleet nothing changed.
    Lost(Option<Census>),
    /// Nothing can be placed now.
    Stuck,
}

/// Where a request goes.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) worker: WorkerId,
    pub(super) device: usize,
    /// Models that have to go for it.
    pub(super) victims: Vec<ModelName>,
    pub(super) dispatch: Dispatch,
    pub(super) manner: Manner,
}

/// What a request has beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Others, or nobody, as it comes.
    Shared,
    /// Nothing, on the whole worker.
    Alone,
}

/// How far the requests of a model were looked at.
#[derive(Debug)]
struct Look {
    /// Those that are looked at, in order.
    requests: Vec<RequestId>,
    /// The one that is next.
    index: usize,
    /// Devices that those so far wait for, which those behind them must leave alone.
    claimed: Vec<(WorkerId, usize)>,
    /// Whether those so far leave room.
    has_room: bool,
    /// Those for which it was found for the first time that there is no room.
    blocked: Vec<RequestId>,
    /// The devices that have the model, as long as nothing changes in the fleet.
    census: Option<Census>,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            requests: Vec::new(),
            index: 0,
            claimed: Vec::new(),
            has_room: true,
            blocked: Vec::new(),
            census: None,
        }
    }
}

/// What was found to be done about the requests of a model.
enum Found {
    /// A request goes somewhere.
    Place(RequestId, Placement),
    /// Nobody can serve a request in time.
    Lost(RequestId),
    /// A device is to be kept for a request.
    Keep(RequestId, (WorkerId, usize)),
    Nothing,
}

/// What was decided about one waiting request.
enum Verdict {
    Run(Placement),
    /// It waits for some devices: those with a slot free must be left alone by those behind it. With the device that
    /// gets free first, where one is to be kept for it.
    WaitFor {
        claimed: Vec<(WorkerId, usize)>,
        first_free: Option<(WorkerId, usize)>,
        rest_has_room: bool,
    },
    Lost,
}

impl Dispatcher {
    /// A model's queue changed at its head.
    pub(super) fn touch(&mut self, model: &ModelName) {
        self.stuck.remove(model);
        if !self.touched.contains(model) {
            self.touched.insert(model.clone());
        }
    }

    /// A worker may have more room than before.
    pub(super) fn open(&mut self, worker: &WorkerId) {
        self.opened.insert(worker.clone());
    }

    /// Gives free capacity to the most urgent requests of the models that were touched.
    pub(super) fn place(&mut self, now: Moment) {
        for model in self.models.take_changed() {
            self.fleet.forget_pace_of(&model);
        }
        let mut lost_left = LOST_COUNT_MAX;
        loop {
            for model in self.fleet.take_left() {
                self.touch(&model);
            }
            self.touch_for_opened();
            self.place_touched(now, &mut lost_left);
            self.touch_for_half_opened();
            self.place_touched(now, &mut lost_left);
            // A request that was placed may have left the device that was kept for it.
            if self.opened.is_empty() || lost_left == 0 {
                break;
            }
        }
        if lost_left == 0 {
            self.timers.set(Timer::Placing, now + PLACING_PAUSE);
        }
    }

    /// A step changes whose turn it is only if something comes of it, and what is known of devices only if somebody is
    /// placed: heads of a queue that are lost come one after the other, and ask the same devices.
    fn place_touched(&mut self, now: Moment, lost_left: &mut usize) {
        let mut turns = Vec::new();
        let mut asked: Option<(ModelName, Option<Census>)> = None;
        while !self.deposed && *lost_left > 0 {
            if !self.fleet.has_room() {
                self.touched.clear();
                break;
            }
            if turns.is_empty() {
                turns = self.touched_by_turn();
            }
            let Some(model) = turns.pop() else { break };
            let census = asked.take().filter(|(of, _)| *of == model);
            match self.place_one_of(now, &model, census.and_then(|(_, census)| census)) {
                Progress::Made => turns.clear(),
                Progress::Lost(census) => {
                    *lost_left -= 1;
                    turns.clear();
                    asked = Some((model, census));
                }
                Progress::Stuck => {
                    self.touched.remove(&model);
                    if !self.is_held_up_by_a_measurement(&model) {
                        self.stuck.insert(model);
                    }
                }
            }
        }
    }

    /// Touches the models that workers with new room may take: what they hold, and on an idle device anything.
    fn touch_for_opened(&mut self) {
        for id in std::mem::take(&mut self.opened) {
            let Some(worker) = self.fleet.worker(&id).filter(|worker| worker.free_slots() > 0) else {
                continue;
            };
            let resident = worker.residents().map(|(_, report)| &report.model);
            let booked = worker.bookings().map(|(_, booking)| &booking.model);
            let held = resident.chain(booked).filter(|model| self.queue.waits_for(model));
            let mut models: Vec<ModelName> = held.cloned().collect();
            if !models.is_empty() {
                // Only if these leave room is it worth looking further.
                self.half_opened.insert(id.clone());
            } else {
                models.extend(self.most_urgent_models());
            }
            models.iter().for_each(|model| self.touch(model));
        }
    }

    /// When those that hold a model leave a worker idle, any model may have it.
    fn touch_for_half_opened(&mut self) {
        let half_opened = std::mem::take(&mut self.half_opened);
        let mut workers = half_opened.iter().filter_map(|id| self.fleet.worker(id));
        let has_idle =
            workers.any(|worker| worker.free_slots() > 0 && worker.devices.iter().any(Device::is_idle));
        if has_idle {
            let models = self.most_urgent_models();
            models.iter().for_each(|model| self.touch(model));
        }
    }

    /// The models whose next requests are most urgent, at most as many as one review looks at.
    fn most_urgent_models(&self) -> Vec<ModelName> {
        let models = self.queue.models();
        let mut turns: Vec<_> = models
            .filter_map(|model| Some((self.queue.turn(model)?, model)))
            .collect();
        turns.sort_by(|(left, _), (right, _)| left.order(right));
        let most = self.settings.policy.review_models_max;
        turns
            .into_iter()
            .take(most)
            .map(|(_, model)| model.clone())
            .collect()
    }

    /// The models that were touched and that somebody waits for, the one whose turn it is last.
    fn touched_by_turn(&mut self) -> Vec<ModelName> {
        let queue = &self.queue;
        let mut turns = Vec::with_capacity(self.touched.len());
        self.touched.retain(|model| {
            let turn = queue.turn(model);
            turns.extend(turn.map(|turn| (turn, model.clone())));
            turn.is_some()
        });
        turns.sort_by(|(left, _), (right, _)| left.order(right));
        turns.into_iter().rev().map(|(_, model)| model).collect()
    }

    /// Places one request of a model: its most urgent one, or one behind it that needs nothing that those before it
    /// wait for.
    fn place_one_of(&mut self, now: Moment, model: &ModelName, census: Option<Census>) -> Progress {
        let mut look = Look {
            census,
            ..Look::default()
        };
        loop {
            let found = self.look(now, model, &mut look);
            for request in std::mem::take(&mut look.blocked) {
                self.note_blocked(now, &request);
            }
            match found {
                Found::Place(request, placement) => {
                    self.assign(now, &request, placement);
                    return Progress::Made;
                }
                Found::Lost(request) => {
                    self.set_outlook(now, &request, Outlook::Late);
                    return Progress::Lost(look.census);
                }
                Found::Nothing => return Progress::Stuck,
                Found::Keep(request, (worker, device)) => self.reserve(model, request, &worker, device),
            }
        }
    }

    /// Looks at the requests of a model, from where `look` stands, until something is to be done.
    fn look(&self, now: Moment, model: &ModelName, look: &mut Look) -> Found {
        let mut survey = self.survey(now, model, look.census.take());
        let found = self.look_with(&mut survey, model, look);
        look.census = Some(survey.census);
        found
    }

    fn look_with<'a>(&'a self, survey: &mut Survey<'a>, model: &ModelName, look: &mut Look) -> Found {
        if look.index == 0
            && let Some(found) = self.look_at_reserved(survey, model)
        {
            return found;
        }
        while let Some(request) = self.next_request(model, look) {
            let job = self.waiting(&request);
            match self.decide(survey, job, &look.claimed) {
                Verdict::Run(placement) => return Found::Place(request, placement),
                Verdict::Lost => return Found::Lost(request),
                Verdict::WaitFor {
                    claimed,
                    first_free,
                    rest_has_room,
                } => {
                    look.has_room &= rest_has_room;
                    look.claimed.extend(claimed);
                    if job.blocked_since.is_none() {
                        look.blocked.push(request.clone());
                    }
                    if let Some(place) = self.to_keep(survey.now, job, first_free) {
                        return Found::Keep(request, place);
                    }
                }
            }
        }
        Found::Nothing
    }

    /// The next request that something is left for. Often the first one is the only one that is looked at.
    fn next_request(&self, model: &ModelName, look: &mut Look) -> Option<RequestId> {
        let look_behind = self.settings.policy.look_behind_max;
        match look.index {
            0 => look.requests = self.queue.next_of(model, 1),
            1 if look.has_room => look.requests = self.queue.next_of(model, look_behind + 1),
            _ => {}
        }
        let next = look.requests.get(look.index).filter(|_| look.has_room)?;
        look.index += 1;
        Some(next.clone())
    }

    /// Looks at the requests of a model that a device is kept for. Whoever stands before one cannot have that device,
    /// so that both would wait for ever if it were not looked at first.
    fn look_at_reserved<'a>(&'a self, survey: &mut Survey<'a>, model: &ModelName) -> Option<Found> {
        let mut reserved = self.reserved.get(model)?.iter();
        reserved.find_map(|request| match self.decide(survey, self.waiting(request), &[]) {
            Verdict::Run(placement) => Some(Found::Place(request.clone(), placement)),
            Verdict::WaitFor { .. } | Verdict::Lost => None,
        })
    }

    /// Whether the first request waits for one worker only: who comes next may go to others.
    fn is_held_up_by_a_measurement(&self, model: &ModelName) -> bool {
        let first = self.queue.next_of(model, 1);
        first
            .iter()
            .any(|request| self.waiting(request).only_worker.is_some())
    }

    fn decide<'a>(&'a self, survey: &mut Survey<'a>, job: &'a Job, claimed: &[(WorkerId, usize)]) -> Verdict {
        let may_reserve = self.may_reserve(survey.now, job);
        let foresight = match may_reserve || job.only_worker.is_some() {
            true => Foresight::All,
            false => Foresight::AnyInTime,
        };
        let candidates = self.candidates(survey, job, claimed, foresight);
        let comfort = self.settings.policy.comfort;
        match policy::choose(survey.policy_of(job), aim(job), comfort, &candidates) {
            Choice::Run(index) => {
                let mut losers = Losers::count(&candidates, index);
                let unlisted = survey.unlisted(&candidates, foresight);
                losers.no_room += u32::try_from(unlisted).unwrap_or(u32::MAX);
                Verdict::Run(self.placement(survey.now, job, &candidates[index], losers))
            }
            Choice::WaitFor(indices) => {
                let waits_for = indices.iter().map(|index| &candidates[*index]);
                let first_free = waits_for.clone().min_by_key(|candidate| candidate.starts_in);
                let place = |candidate: &Candidate<'_>| (candidate.worker.clone(), candidate.device);
                let has_room =
                    |index: usize| candidates[index].room == Room::Now && !indices.contains(&index);
                Verdict::WaitFor {
                    first_free: first_free.filter(|_| may_reserve).map(place),
                    // Those behind one that waits for its only worker may go to others.
                    rest_has_room: job.only_worker.is_some() || (0..candidates.len()).any(has_room),
                    // Nobody behind it could go where there is no slot.
                    claimed: waits_for
                        .filter(|it| it.room != Room::NoSlot)
                        .map(place)
                        .collect(),
                }
            }
            Choice::Lost => Verdict::Lost,
        }
    }

    fn placement(&self, now: Moment, job: &Job, chosen: &Candidate<'_>, losers: Losers) -> Placement {
        let worker = self.fleet.worker(chosen.worker);
        let worker = worker.expect("a candidate is a known worker");
        let kind = worker.devices[chosen.device].kind;
        let price = job.price(kind).expect("a candidate has a price");
        Placement {
            worker: chosen.worker.clone(),
            device: chosen.device,
            victims: chosen.victims.clone(),
            manner: Manner::Shared,
            dispatch: Dispatch {
                at: now,
                kind,
                readiness: chosen.readiness,
                share: price.share,
                load: chosen.load + price.share,
                starts_in: chosen.starts_in,
                ends_in: chosen.ends_in,
                slack_us: chosen.slack_us,
                losers,
            },
        }
    }

    /// A waiting request.
    ///
    /// # Panics
    /// When it does not wait.
    pub(super) fn waiting(&self, request: &RequestId) -> &Job {
        let job = self.held.get(request).and_then(Held::job);
        job.expect("who stands in the queue is held")
    }
}

/// What a request is to meet.
pub(super) fn aim(job: &Job) -> Aim {
    match (job.asked.target, job.outlook) {
        (None, _) => Aim::None,
        (Some(_), Outlook::Hopeful | Outlook::GivenUp) => Aim::Target,
        (Some(_), Outlook::Late) => Aim::Lost,
    }
}

/// How many requests are found to be lost in one call, each at the head of a queue: about as many as take a sixth of a
/// millisecond. The rest is found by the next calls.
const LOST_COUNT_MAX: usize = 16;
/// Time until that is due at the latest.
const PLACING_PAUSE: Duration = Duration::from_millis(1);
