//! Where a request runs: pure functions over the workers that may take it.

use std::cmp::Ordering;
use std::time::Duration;

use flotilla_protocol::catalog::Policy;
use flotilla_protocol::{ModelName, WorkerId};

use crate::micros::micros;
use crate::share::Share;

/// One device that may take a request, now or later.
#[derive(Debug, Clone)]
pub(crate) struct Candidate<'a> {
    pub(crate) worker: &'a WorkerId,
    pub(crate) device: usize,
    /// Whether the request has just come back from there.
    pub(crate) is_avoided: bool,
    /// Whether it can be given there now.
    pub(crate) room: Room,
    /// Whether the model has to come first.
    pub(crate) readiness: Readiness,
    /// Time until it can run there: for a device without room until one of its requests ends, and for one without
    /// the model until that is resident.
    pub(crate) starts_in: Duration,
    /// Time until it would end.
    pub(crate) ends_in: Duration,
    /// How much later it could run and still meet its target, in microseconds; negative when it misses.
    pub(crate) slack_us: i64,
    /// What it costs there, device time times price, with what loading its model costs.
    pub(crate) cost: f64,
    /// What is booked on the device without it.
    pub(crate) load: Share,
    /// Whether capacity is a matter of shares; otherwise the emptiest device is preferred, as nobody knows how much a
    /// full one still takes.
    pub(crate) is_measured: bool,
    pub(crate) free_slots: u32,
    /// Models that have to go for it, the least wanted first.
    pub(crate) victims: Vec<ModelName>,
}

/// Whether a request can be given to a device now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// It can.
    Now,
    /// Its share is more than what is free.
    NoShare,
    /// The worker has no slot free.
    NoSlot,
    /// The model's memory for keys and values is booked.
    NoKv,
    /// Somebody who runs there would be late because of it.
    Harm,
    /// The device is kept for another request.
    Reserved,
    /// The model is absent, and there is no reason for one more copy of it, or no room.
    NoCopy,
}

/// How far a model is on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    Ready,
    Loading,
    Absent,
}

/// Whether a request has a time to meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// It has, and may still meet it.
    Target,
    /// It has none.
    None,
    /// It had.
    Lost,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Choice {
    /// It goes to this candidate.
    Run(usize),
    /// It waits for one of these, which others behind it must leave alone.
    WaitFor(Vec<usize>),
    /// Nobody can serve it in time.
    Lost,
}

impl Candidate<'_> {
    fn is_on_time(&self) -> bool {
        self.slack_us >= 0
    }

    fn has_room(&self) -> bool {
        self.room == Room::Now
    }
}

/// Chooses among all devices that may ever take the request.
pub(crate) fn choose(policy: Policy, aim: Aim, comfort: f64, candidates: &[Candidate<'_>]) -> Choice {
    match (policy, aim) {
        (Policy::Fifo, _) => best(candidates, |it| it.has_room(), by_preparation)
            .map_or_else(|| wait_for(candidates, |_| true), Choice::Run),
        (_, Aim::Target) => in_time(policy, comfort, candidates),
        (Policy::Pack, Aim::None | Aim::Lost) => as_soon_as(candidates, fullest_first),
        (Policy::Slo | Policy::Spread, Aim::None | Aim::Lost) => as_soon_as(candidates, soonest_first),
    }
}

/// Among those that meet the target and have room the policy's favourite; otherwise whoever meets it is waited for.
///
/// With the policy slo the cheapest is taken where that leaves comfort: time to spare, as a part of the time that the
/// request takes. Where it does not, the one that leaves most: what will come after it is not known.
fn in_time(policy: Policy, comfort: f64, candidates: &[Candidate<'_>]) -> Choice {
    let is_comfortable =
        |it: &Candidate<'_>| it.has_room() && it.slack_us >= micros(it.ends_in.mul_f64(comfort));
    let is_on_time = |it: &Candidate<'_>| it.has_room() && it.is_on_time();
    let now = match policy {
        Policy::Slo | Policy::Fifo => best(candidates, is_comfortable, cheapest_first)
            .or_else(|| best(candidates, is_on_time, most_slack_first)),
        Policy::Pack => best(candidates, is_on_time, fullest_first),
        Policy::Spread => best(candidates, is_on_time, emptiest_first),
    };
    if let Some(index) = now {
        return Choice::Run(index);
    }
    match wait_for(candidates, |it| it.is_on_time()) {
        Choice::WaitFor(indices) if indices.is_empty() => Choice::Lost,
        waits => waits,
    }
}

/// Without a target whoever has room is better than a wait.
fn as_soon_as(candidates: &[Candidate<'_>], order: Order) -> Choice {
    best(candidates, |it| it.has_room(), order).map_or_else(|| wait_for(candidates, |_| true), Choice::Run)
}

type Order = fn(&Candidate<'_>, &Candidate<'_>) -> Ordering;

fn best(
    candidates: &[Candidate<'_>],
    eligible: impl Fn(&Candidate<'_>) -> bool,
    order: Order,
) -> Option<usize> {
    let eligible = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| eligible(candidate));
    let best = eligible.min_by(|(_, left), (_, right)| {
        let somewhere_new = left.is_avoided.cmp(&right.is_avoided);
        somewhere_new
            .then_with(|| order(left, right))
            .then_with(|| left.victims.len().cmp(&right.victims.len()))
            .then_with(|| (left.worker, left.device).cmp(&(right.worker, right.device)))
    });
    best.map(|(index, _)| index)
}

fn wait_for(candidates: &[Candidate<'_>], eligible: impl Fn(&Candidate<'_>) -> bool) -> Choice {
    let later = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| eligible(candidate));
    Choice::WaitFor(later.map(|(index, _)| index).collect())
}

/// Cost, then the fullest, so that whole devices stay free for what needs one.
fn cheapest_first(left: &Candidate<'_>, right: &Candidate<'_>) -> Ordering {
    let fill = |candidate: &Candidate<'_>| match candidate.is_measured {
        true => std::cmp::Reverse(candidate.load),
        false => std::cmp::Reverse(Share::NONE),
    };
    left.cost
        .total_cmp(&right.cost)
        .then_with(|| fill(left).cmp(&fill(right)))
        .then_with(|| emptiest_first(left, right))
}

fn most_slack_first(left: &Candidate<'_>, right: &Candidate<'_>) -> Ordering {
    (right.slack_us.cmp(&left.slack_us)).then_with(|| cheapest_first(left, right))
}

fn fullest_first(left: &Candidate<'_>, right: &Candidate<'_>) -> Ordering {
    (left.readiness.cmp(&right.readiness)).then_with(|| right.load.cmp(&left.load))
}

fn emptiest_first(left: &Candidate<'_>, right: &Candidate<'_>) -> Ordering {
    (left.readiness.cmp(&right.readiness))
        .then_with(|| left.load.cmp(&right.load))
        .then_with(|| right.free_slots.cmp(&left.free_slots))
}

fn soonest_first(left: &Candidate<'_>, right: &Candidate<'_>) -> Ordering {
    (left.ends_in.cmp(&right.ends_in)).then_with(|| emptiest_first(left, right))
}

/// As somebody without any profile would choose.
fn by_preparation(left: &Candidate<'_>, right: &Candidate<'_>) -> Ordering {
    (left.readiness.cmp(&right.readiness)).then_with(|| right.free_slots.cmp(&left.free_slots))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICIES: [Policy; 4] = [Policy::Slo, Policy::Pack, Policy::Spread, Policy::Fifo];

    fn ids() -> Vec<WorkerId> {
        let ids = ["a", "b", "c", "d", "e"];
        ids.map(|id| WorkerId::new(id).unwrap()).into()
    }

    fn candidate(worker: &WorkerId) -> Candidate<'_> {
        Candidate {
            worker,
            device: 0,
            is_avoided: false,
            room: Room::Now,
            readiness: Readiness::Ready,
            starts_in: Duration::ZERO,
            ends_in: Duration::from_secs(1),
            slack_us: 0,
            cost: 1.0,
            load: Share::NONE,
            is_measured: true,
            free_slots: 1,
            victims: Vec::new(),
        }
    }

    /// Which of two is chosen, whatever their order and names.
    fn second_wins(policy: Policy, aim: Aim, change: impl Fn(&mut Candidate<'_>, &mut Candidate<'_>)) {
        let ids = ids();
        for [left, right] in [[0, 1], [1, 0]] {
            let (mut loser, mut winner) = (candidate(&ids[left]), candidate(&ids[right]));
            change(&mut loser, &mut winner);
            let choice = choose(policy, aim, 0.0, &[loser, winner]);
            assert_eq!(choice, Choice::Run(1), "{policy} {aim:?}");
        }
    }

    #[test]
    fn each_policy_has_its_favourite_among_those_in_time() {
        second_wins(Policy::Slo, Aim::Target, |loser, _| loser.cost = 2.0);
        second_wins(Policy::Slo, Aim::Target, |_, winner| winner.load = Share::of(0.5));
        second_wins(Policy::Pack, Aim::Target, |_, winner| {
            winner.load = Share::of(0.5)
        });
        second_wins(Policy::Spread, Aim::Target, |loser, _| {
            loser.load = Share::of(0.5)
        });
        second_wins(Policy::Spread, Aim::Target, |_, winner| winner.free_slots = 2);
        second_wins(Policy::Fifo, Aim::Target, |_, winner| winner.free_slots = 2);
    }

    #[test]
    fn an_estimate_is_no_reason_to_fill_a_device() {
        second_wins(Policy::Slo, Aim::Target, |loser, winner| {
            (loser.is_measured, winner.is_measured) = (false, false);
            loser.load = Share::of(0.5);
        });
    }

    #[test]
    fn without_a_target_the_soonest_end_rules_except_with_pack() {
        for aim in [Aim::None, Aim::Lost] {
            for policy in [Policy::Slo, Policy::Spread] {
                second_wins(policy, aim, |loser, _| loser.ends_in *= 2);
            }
            second_wins(Policy::Pack, aim, |_, winner| {
                winner.ends_in *= 2;
                winner.load = Share::of(0.1);
            });
        }
    }

    #[test]
    fn where_a_request_has_just_come_back_from_is_the_last_choice() {
        for policy in POLICIES {
            second_wins(policy, Aim::None, |loser, winner| {
                loser.is_avoided = true;
                winner.readiness = Readiness::Absent;
                winner.ends_in *= 9;
            });
        }
    }

    #[test]
    fn of_two_places_that_cost_the_same_the_free_one_is_taken() {
        let victim = ModelName::new("m").unwrap();
        for policy in POLICIES {
            for aim in [Aim::Target, Aim::None] {
                second_wins(policy, aim, |loser, _| loser.victims.push(victim.clone()));
            }
        }
    }

    #[test]
    fn who_has_a_target_waits_for_those_that_meet_it_and_is_lost_without_any() {
        let ids = ids();
        let late = Candidate {
            slack_us: -1,
            ..candidate(&ids[0])
        };
        let full = Candidate {
            room: Room::NoShare,
            ..candidate(&ids[1])
        };
        let both = [late.clone(), full];
        assert_eq!(
            choose(Policy::Slo, Aim::Target, 0.0, &both),
            Choice::WaitFor(vec![1])
        );
        assert_eq!(choose(Policy::Slo, Aim::Target, 0.0, &both[..1]), Choice::Lost);
        assert_eq!(choose(Policy::Slo, Aim::Lost, 0.0, &both), Choice::Run(0));
        assert_eq!(choose(Policy::Fifo, Aim::Target, 0.0, &both), Choice::Run(0));
    }

    proptest! {
        #[test]
        fn who_is_chosen_has_room_and_is_in_time_if_that_is_the_aim(
            shapes in prop::collection::vec((any::<bool>(), -2_i64..2, 0_u32..3, 0_u32..4), 0..5),
            policy in prop::sample::select(POLICIES.to_vec()),
            aim in prop::sample::select(vec![Aim::Target, Aim::None, Aim::Lost]),
        ) {
            let ids = ids();
            let candidates: Vec<_> = shapes.iter().zip(&ids).map(|(&(has_room, slack_us, cost, tenths), id)| Candidate {
                room: if has_room { Room::Now } else { Room::NoShare },
                slack_us,
                cost: f64::from(cost),
                load: Share::of(f64::from(tenths) / 10.0),
                ..candidate(id)
            }).collect();
            let must_be_in_time = aim == Aim::Target && policy != Policy::Fifo;
            let serves = |it: &Candidate<'_>| !must_be_in_time || it.slack_us >= 0;
            match choose(policy, aim, 0.0, &candidates) {
                Choice::Run(index) => {
                    prop_assert!(candidates[index].has_room() && serves(&candidates[index]));
                }
                Choice::WaitFor(indices) => {
                    let eligible = (0..candidates.len()).filter(|index| serves(&candidates[*index]));
                    prop_assert!(indices.iter().copied().eq(eligible));
                    prop_assert!(!candidates.iter().any(|it| it.has_room() && serves(it)));
                }
                Choice::Lost => {
                    prop_assert!(must_be_in_time && !candidates.iter().any(serves));
                }
            }
        }
    }
}
