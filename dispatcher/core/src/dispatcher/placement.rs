//! Requests meet workers.
//!
//! What happens touches models: one whose queue changed, and those that a worker with new room has. The most
//! urgent of them places one request at a time, until none of them can. Nothing else is looked at, so that a decision
//! costs as much as its candidates, however many wait.

use std::time::Duration;

use flotilla_protocol::assignment::Assignment;
use flotilla_protocol::catalog::Policy;
use flotilla_protocol::{ModelName, Moment, RequestId, WorkerId};

use super::Dispatcher;
use crate::action::Action;
use crate::dispatch::{Dispatch, Losers};
use crate::fleet::{Booking, Device, Giver, Sight};
use crate::policy::{self, Aim, Choice, Readiness, Room};
use crate::queue::Line;
use crate::request::{Held, Job, Outlook, Run};

/// What came of looking at a model's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Something changed: there may be more to do.
    Made,
    /// Nothing can be placed now.
    Stuck,
}

/// Where a request goes.
#[derive(Debug)]
struct Placement {
    worker: WorkerId,
    device: usize,
    victims: Vec<ModelName>,
    dispatch: Dispatch,
}

/// What was decided about one waiting request.
enum Verdict {
    Run(Placement),
    /// It waits for some devices, which those behind it must leave alone. With the device that gets free first.
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
        loop {
            for model in self.fleet.take_left() {
                self.touch(&model);
            }
            self.touch_for_opened();
            self.place_touched(now);
            self.touch_for_half_opened();
            self.place_touched(now);
            // A request that was placed may have left the device that was kept for it.
            if self.opened.is_empty() {
                break;
            }
        }
    }

    fn place_touched(&mut self, now: Moment) {
        while !self.deposed {
            if !self.fleet.has_room() {
                self.touched.clear();
                break;
            }
            let Some(model) = self.next_touched() else { break };
            match self.place_one_of(now, &model) {
                Progress::Made => {}
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

    fn next_touched(&mut self) -> Option<ModelName> {
        let queue = &self.queue;
        self.touched.retain(|model| queue.waits_for(model));
        let turns = self
            .touched
            .iter()
            .filter_map(|model| Some((queue.turn(model)?, model)));
        let first = turns.min_by(|(left, _), (right, _)| left.order(right));
        first.map(|(_, model)| model.clone())
    }

    /// Places one request of a model: its most urgent one, or one behind it that needs nothing that those before it
    /// wait for.
    fn place_one_of(&mut self, now: Moment, model: &ModelName) -> Progress {
        if self.place_reserved(now, model) == Progress::Made {
            return Progress::Made;
        }
        let look_behind = self.settings.policy.look_behind_max;
        let mut requests = self.queue.next_of(model, 1);
        let mut claimed: Vec<(WorkerId, usize)> = Vec::new();
        let mut index = 0;
        while let Some(request) = requests.get(index).cloned() {
            match self.decide(now, &request, &claimed) {
                Verdict::Run(placement) => {
                    self.assign(now, &request, placement);
                    return Progress::Made;
                }
                Verdict::Lost => {
                    self.set_outlook(now, &request, Outlook::Late);
                    return Progress::Made;
                }
                Verdict::WaitFor {
                    claimed: more,
                    first_free,
                    rest_has_room,
                } => {
                    self.note_blocked(now, &request, first_free);
                    if !rest_has_room {
                        return Progress::Stuck;
                    }
                    claimed.extend(more);
                }
            }
            if index == 0 {
                requests = self.queue.next_of(model, look_behind + 1);
            }
            index += 1;
        }
        Progress::Stuck
    }

    /// Places one request of a model that a device is kept for. Whoever stands before it cannot have that device, so
    /// that both would wait for ever if it were not looked at first.
    fn place_reserved(&mut self, now: Moment, model: &ModelName) -> Progress {
        let of_model = self.reserved.iter().filter(|it| self.waiting(it).model == *model);
        let placed = of_model
            .filter_map(|request| match self.decide(now, request, &[]) {
                Verdict::Run(placement) => Some((request.clone(), placement)),
                Verdict::WaitFor { .. } | Verdict::Lost => None,
            })
            .next();
        let Some((request, placement)) = placed else {
            return Progress::Stuck;
        };
        self.assign(now, &request, placement);
        Progress::Made
    }

    /// Whether the first request waits for one worker only: who comes next may go to others.
    fn is_held_up_by_a_measurement(&self, model: &ModelName) -> bool {
        let first = self.queue.next_of(model, 1);
        first
            .iter()
            .any(|request| self.waiting(request).only_worker.is_some())
    }

    fn decide(&self, now: Moment, request: &RequestId, claimed: &[(WorkerId, usize)]) -> Verdict {
        let job = self.waiting(request);
        let policy = self.policy_of(job);
        let aim = aim(job);
        let candidates = self.candidates(now, job, claimed);
        let comfort = self.settings.policy.comfort;
        match policy::choose(policy, aim, comfort, &candidates) {
            Choice::Run(index) => {
                let chosen = &candidates[index];
                let kind = self
                    .fleet
                    .worker(chosen.worker)
                    .map(|worker| worker.devices[chosen.device].kind);
                let kind = kind.expect("a candidate is a known worker");
                let share = job
                    .price(kind)
                    .map(|price| price.share)
                    .expect("a candidate has a price");
                Verdict::Run(Placement {
                    worker: chosen.worker.clone(),
                    device: chosen.device,
                    victims: chosen.victims.clone(),
                    dispatch: Dispatch {
                        at: now,
                        kind,
                        readiness: chosen.readiness,
                        share,
                        load: chosen.load + share,
                        starts_in: chosen.starts_in,
                        ends_in: chosen.ends_in,
                        slack_us: chosen.slack_us,
                        losers: Losers::count(&candidates, index),
                    },
                })
            }
            Choice::WaitFor(indices) => {
                let first = indices.iter().min_by_key(|index| candidates[**index].starts_in);
                let place = |index: &usize| (candidates[*index].worker.clone(), candidates[*index].device);
                let has_room =
                    |index: usize| candidates[index].room == Room::Now && !indices.contains(&index);
                Verdict::WaitFor {
                    first_free: first.map(place),
                    // Those behind one that waits for its only worker may go to others.
                    rest_has_room: job.only_worker.is_some() || (0..candidates.len()).any(has_room),
                    claimed: indices.iter().map(place).collect(),
                }
            }
            Choice::Lost => Verdict::Lost,
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

    /// Notes that there is no room for a request. When that has been so for long enough, a device is kept for it.
    fn note_blocked(&mut self, now: Moment, request: &RequestId, first_free: Option<(WorkerId, usize)>) {
        let reserve_after = self.settings.policy.reserve_after;
        let Some(Held::Queued { job, .. }) = self.held.get_mut(request) else {
            return;
        };
        let since = *job.blocked_since.get_or_insert(now);
        let may_reserve = job.outlook == Outlook::Hopeful && now.since(since) >= reserve_after;
        let reserved_max = (self.fleet.device_count() / RESERVED_PART).max(1);
        if !may_reserve || self.reserved.contains(request) || self.fleet.reserved_count() >= reserved_max {
            return;
        }
        let Some((worker, device)) = first_free.or_else(|| self.emptiest_device(request)) else {
            return;
        };
        if self.fleet.reserve(&worker, device, request) {
            self.stats.reservations += 1;
            self.reserved.insert(request.clone());
        }
    }

    /// The device with least load among those that may take a request whose model nobody has.
    fn emptiest_device(&self, request: &RequestId) -> Option<(WorkerId, usize)> {
        let job = self.waiting(request);
        let excluded = self.exclusions.of(&job.model);
        let workers = self
            .fleet
            .roomy()
            .filter(|(id, _)| job.may_go_to(id) && !excluded.is_some_and(|ids| ids.contains_key(*id)));
        let devices = workers.flat_map(|(id, worker)| {
            let devices = worker.devices.iter().enumerate();
            devices.map(move |(index, device)| (device.load, id, index))
        });
        devices.min().map(|(_, id, index)| (id.clone(), index))
    }

    fn assign(&mut self, now: Moment, request: &RequestId, placement: Placement) {
        let Placement {
            worker,
            device,
            victims,
            dispatch,
        } = placement;
        let line = self.line_of(request);
        let mut job = self.take(request).expect("who waits is held");
        self.queue.charge(&line, tokens(&job));
        let incarnation = self
            .fleet
            .worker(&worker)
            .expect("the chosen worker is known")
            .report
            .incarnation;
        self.stats.assigned += 1;
        self.stats.assigned_cold += u64::from(dispatch.readiness == Readiness::Absent);
        self.stats.victims += u64::try_from(victims.len()).unwrap_or(u64::MAX);
        job.used = job.used.next();
        job.avoid = None;
        job.blocked_since = None;
        let attempt = job.used;
        let assignment = Assignment {
            request: request.clone(),
            attempt,
            strikes: job.strikes,
            epoch: self.settings.epoch,
            class: job.class,
            model: job.model.clone(),
            encoding: job.encoding,
            body: job.body.clone(),
            queued_ms: milliseconds(job.age(now)),
            deadline_in_ms: job.deadline.map(|deadline| milliseconds(deadline.since(now))),
            evict_first: victims.clone(),
        };
        let mut booking = self.booking(&job, device, &dispatch, victims);
        booking.is_measured &= self.policy_of(&job) != Policy::Fifo;
        self.fleet.book(&worker, request, booking, Sight::Unseen);
        let run = Run {
            job,
            worker: worker.clone(),
            incarnation,
            attempt,
            known_at_seq: None,
            cancel_told: None,
            dispatch: Some(dispatch),
        };
        self.put(request.clone(), Held::Assigned(run));
        self.push(Action::Assign { worker, assignment });
    }

    /// The capacity that a request takes on a device.
    fn booking(&self, job: &Job, device: usize, dispatch: &Dispatch, victims: Vec<ModelName>) -> Booking {
        let price = job.price(dispatch.kind);
        Booking {
            device,
            model: job.model.clone(),
            asked: job.asked,
            published: job.published,
            reads: self.reads(&job.model, dispatch.kind, job.asked.prompt_tokens),
            began: dispatch.at,
            made: 0,
            made_at: dispatch.at,
            share: dispatch.share,
            kv_tokens: job.kv_tokens(),
            ends_at: dispatch.at + dispatch.ends_in,
            is_measured: price.is_some_and(|price| price.is_measured()),
            giver: Giver::Us,
            victims,
        }
    }

    fn line_of(&self, request: &RequestId) -> Line {
        match self.held.get(request) {
            Some(Held::Queued { place, .. }) => place.line.clone(),
            Some(Held::Reading(_) | Held::Awaiting { .. } | Held::Assigned(_) | Held::Ending { .. })
            | None => {
                unreachable!("only who waits is placed")
            }
        }
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

/// What a request is charged for: prompt and answer.
fn tokens(job: &Job) -> f64 {
    f64::from(job.asked.prompt_tokens) + f64::from(job.asked.prediction.high)
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// At most one device of this many is kept for a request, and always one may be.
const RESERVED_PART: usize = 4;
