//! Why a request stands where it stands.

use std::time::Duration;

use flotilla_protocol::admin::{
    Decision, Explanation, ProfileStatus, Standing, WHY_CANDIDATE_COUNT_MAX, WhyCandidate,
};
use flotilla_protocol::fleet::WorkerState;
use flotilla_protocol::{Moment, RequestId, WorkerId};

use super::Dispatcher;
use super::candidates::Foresight;
use crate::dispatch::Dispatch;
use crate::fleet::Worker;
use crate::micros::Micros;
use crate::policy::{Candidate, Readiness, Room};
use crate::queue::Line;
use crate::request::{Held, Job};

impl Dispatcher {
    /// Where a request stands, what it waits for, and what each device would make of it. `None` when it is not held.
    #[must_use]
    pub fn why(&self, now: Moment, request: &RequestId) -> Option<Explanation> {
        let held = self.held.get(request)?;
        let (standing, candidates) = self.standing(now, held);
        let job = held.job()?;
        let target = job.asked.target;
        let prediction = job.asked.prediction;
        let ends_within = target.and_then(|it| it.end_within(job.asked.prompt_tokens, prediction.high));
        Some(Explanation {
            model: job.model.clone(),
            class: job.class,
            tenant: job.tenant.clone(),
            age_ms: milliseconds(job.age(now)),
            prompt_tokens: job.asked.prompt_tokens,
            prompt_estimated: job.prompt_count == crate::input::PromptCount::Estimated,
            output_tokens: (prediction.low, prediction.high),
            target_ms: ends_within.map(milliseconds),
            standing,
            candidates_total: u32::try_from(candidates.len()).unwrap_or(u32::MAX),
            candidates: candidates.into_iter().take(WHY_CANDIDATE_COUNT_MAX).collect(),
        })
    }

    fn standing(&self, now: Moment, held: &Held) -> (Standing, Vec<WhyCandidate>) {
        match held {
            Held::Reading(_) | Held::Awaiting { .. } => (Standing::Checking, Vec::new()),
            Held::Queued { job, place, .. } => {
                let candidates = self.explain_candidates(now, job);
                let is_late = matches!(place.line, Line::GivenUp | Line::Late);
                let target = job.asked.target.filter(|_| !is_late);
                let standing = Standing::Queued {
                    line: line_name(&place.line).to_owned(),
                    slack_ms: target.map(|_| place.urgency.at.since(Micros::from(now)) / 1000),
                    reserved: self.is_reserved(job),
                    waits_for: waits_for(&candidates).to_owned(),
                };
                (standing, candidates)
            }
            Held::Suspect(job) => (self.standing_of_suspect(job), self.explain_candidates(now, job)),
            Held::Assigned(run) => {
                let decision = run.dispatch.as_ref().map(|dispatch| self.decision(dispatch));
                let standing = Standing::Assigned {
                    worker: run.worker.clone(),
                    attempt: run.attempt,
                    decision,
                };
                (standing, Vec::new())
            }
            Held::Ending { .. } => (Standing::Ending, Vec::new()),
        }
    }

    fn standing_of_suspect(&self, job: &Job) -> Standing {
        let worker = self.isolation.worker_of(&job.request);
        let waits_for = worker.map_or_else(
            || "a worker of its own, as it was on one that died".to_owned(),
            |worker| format!("{worker} to be free of others, as it was on a worker that died"),
        );
        Standing::Queued {
            line: "suspect".to_owned(),
            slack_ms: None,
            reserved: worker.is_some(),
            waits_for,
        }
    }

    /// The profiles in use, with what was learnt about them.
    pub fn profiles(&self) -> impl Iterator<Item = ProfileStatus> {
        self.models.iter().flat_map(|(name, model)| {
            model.profiles().map(|(kind, profiled)| ProfileStatus {
                model: name.clone(),
                device_kind: self.models.kind_name(kind).to_owned(),
                source: profiled.profile.source(),
                correction: profiled.correction.factor(),
                samples: profiled.correction.samples(),
                is_drifting: profiled.correction.drift().is_alarming,
                extrapolated: profiled.extrapolated,
            })
        })
    }

    /// Every worker's word on a waiting request, those that were considered first.
    fn explain_candidates(&self, now: Moment, job: &Job) -> Vec<WhyCandidate> {
        let mut survey = self.survey(now, &job.model, None);
        let mut considered = self.candidates(&mut survey, job, &[], Foresight::All);
        considered.sort_by(|left, right| {
            let order = |it: &Candidate<'_>| (it.room != Room::Now, it.ends_in);
            order(left).cmp(&order(right))
        });
        let mut explained: Vec<_> = considered.iter().map(|it| self.explain(job, it)).collect();
        let others = self
            .fleet
            .iter()
            .filter(|(id, _)| !considered.iter().any(|it| it.worker == *id));
        explained.extend(others.map(|(id, worker)| self.explain_other(job, id, worker)));
        explained
    }

    fn explain(&self, job: &Job, candidate: &Candidate<'_>) -> WhyCandidate {
        let worker = self
            .fleet
            .worker(candidate.worker)
            .expect("a candidate is a known worker");
        let device = &worker.devices[candidate.device];
        let price = job.price(device.kind);
        WhyCandidate {
            worker: candidate.worker.clone(),
            device: first_device(worker, candidate.device),
            device_kind: self.models.kind_name(device.kind).to_owned(),
            profile: price.map(|price| price.source),
            room: room_name(candidate.room).to_owned(),
            model: readiness_name(candidate.readiness).to_owned(),
            load: candidate.load.fraction(),
            share: price.map_or(0.0, |price| price.share.fraction()),
            starts_in_ms: milliseconds(candidate.starts_in),
            ends_in_ms: milliseconds(candidate.ends_in),
            slack_ms: slack_ms(candidate.slack_us),
            cost: candidate.cost,
            victims: candidate.victims.clone(),
        }
    }

    /// A worker that was not considered.
    fn explain_other(&self, job: &Job, id: &WorkerId, worker: &Worker) -> WhyCandidate {
        let device_index = worker.device_for(&job.model);
        let device = &worker.devices[device_index];
        let price = job.price(device.kind);
        let is_excluded = self
            .exclusions
            .of(&job.model)
            .is_some_and(|ids| ids.contains_key(id));
        let room = match worker.report.state {
            WorkerState::Draining => "draining",
            WorkerState::Ready if is_excluded => "excluded",
            WorkerState::Ready if worker.free_slots() == 0 => room_name(Room::NoSlot),
            WorkerState::Ready => room_name(Room::NoCopy),
        };
        let readiness = match worker.model(&job.model) {
            Some(_) => Readiness::Loading,
            None => Readiness::Absent,
        };
        WhyCandidate {
            worker: id.clone(),
            device: first_device(worker, device_index),
            device_kind: self.models.kind_name(device.kind).to_owned(),
            profile: price.map(|price| price.source),
            room: room.to_owned(),
            model: readiness_name(readiness).to_owned(),
            load: device.load.fraction(),
            share: price.map_or(0.0, |price| price.share.fraction()),
            starts_in_ms: 0,
            ends_in_ms: price.map_or(0, |price| milliseconds(price.expected)),
            slack_ms: None,
            cost: price.map_or(0.0, |price| price.cost_with(Duration::ZERO)),
            victims: Vec::new(),
        }
    }

    fn decision(&self, dispatch: &Dispatch) -> Decision {
        Decision {
            device_kind: self.models.kind_name(dispatch.kind).to_owned(),
            starts_in_ms: milliseconds(dispatch.starts_in),
            ends_in_ms: milliseconds(dispatch.ends_in),
            slack_ms: slack_ms(dispatch.slack_us),
            share: dispatch.share.fraction(),
            load: dispatch.load.fraction(),
            not_preferred: dispatch.losers.not_preferred,
            too_late: dispatch.losers.too_late,
            no_room: dispatch.losers.no_room,
            no_copy: dispatch.losers.no_copy,
        }
    }
}

fn waits_for(candidates: &[WhyCandidate]) -> &'static str {
    let any = |room: Room| {
        candidates
            .iter()
            .any(|candidate| candidate.room == room_name(room))
    };
    if candidates.is_empty() {
        "a worker"
    } else if any(Room::Now) {
        "a faster device, or its turn"
    } else if any(Room::NoShare) {
        "a share of a device that has the model"
    } else if any(Room::Harm) {
        "a device where it makes nobody late"
    } else if any(Room::NoKv) {
        "memory for its keys and values"
    } else if any(Room::NoSlot) {
        "a slot"
    } else if any(Room::Reserved) {
        "a device that is kept for another request"
    } else {
        "a device that can load the model"
    }
}

fn line_name(line: &Line) -> &'static str {
    match line {
        Line::Live { .. } => "in_time",
        Line::GivenUp => "given_up",
        Line::Late => "late",
    }
}

fn room_name(room: Room) -> &'static str {
    match room {
        Room::Now => "now",
        Room::NoShare => "no_share",
        Room::NoSlot => "no_slot",
        Room::NoKv => "no_kv",
        Room::Harm => "harm",
        Room::Reserved => "reserved",
        Room::NoCopy => "no_copy",
    }
}

fn readiness_name(readiness: Readiness) -> &'static str {
    match readiness {
        Readiness::Ready => "ready",
        Readiness::Loading => "loading",
        Readiness::Absent => "absent",
    }
}

fn slack_ms(slack_us: i64) -> Option<i64> {
    (slack_us != i64::MAX).then_some(slack_us / 1000)
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The number of a device, or of the first of a set.
fn first_device(worker: &Worker, device: usize) -> u32 {
    let first = worker.members(device).next().unwrap_or(device);
    u32::try_from(first).unwrap_or(u32::MAX)
}
