//! Who leaves for a newcomer when the dispatcher has said whom nobody wants.
#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

use std::collections::BTreeSet;
use std::time::Duration;

use flotilla_protocol::assignment::Assignment;
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{Attempt, Class, Encoding, Epoch, ModelName, Moment, RequestId, Strikes, WorkerId};
use flotilla_worker_core::residency::{
    Action, Keep, ModelNeeds, Pin, Residency, ResidencySettings, UnloadReason,
};
use flotilla_worker_core::worker::{self, Desk, DeskSettings};
use proptest::prelude::*;

/// Models that are resident, all of one size, before the newcomer comes.
const RESIDENT: u8 = 6;
const PAGES: u64 = 10;

/// One resident model, as a test sets it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Idle,
    Pinned,
    /// So many requests hold it.
    InUse(u8),
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        4 => Just(Standing::Idle),
        1 => Just(Standing::Pinned),
        2 => (1..3_u8).prop_map(Standing::InUse),
    ]
}

fn name(model: u8) -> ModelName {
    ModelName::new(format!("m{model}")).unwrap()
}

fn settings() -> ResidencySettings {
    ResidencySettings {
        device_pages: vec![u64::from(RESIDENT) * PAGES],
        models_max: usize::from(RESIDENT),
        keep_alive: KeepAlive::UntilEvicted,
        min_residency_max: Duration::ZERO,
        load_stall: None,
        host_pages: 0,
    }
}

fn needs(models: u64) -> ModelNeeds {
    ModelNeeds {
        weights_pages: models * PAGES,
        workspace_pages: 0,
        kv_pages_min: 0,
        kv_block: None,
        split: None,
    }
}

/// A device full of models, used in the order of their names; the first is the least recently used.
struct Full {
    residency: Residency,
    next_request: u128,
}

impl Full {
    fn new(standings: &[Standing]) -> Self {
        let mut full = Self {
            residency: Residency::new(settings()),
            next_request: 0,
        };
        for (number, standing) in (0..).zip(standings) {
            let first = full.want(number, &[]);
            full.residency
                .handle_inspected(now(), &name(number), Ok(needs(1)));
            full.residency
                .handle_loaded(now(), &name(number), Ok(()), Duration::ZERO);
            let more = match standing {
                Standing::InUse(leases) => leases - 1,
                Standing::Idle | Standing::Pinned => {
                    full.residency.handle_released(now(), &first);
                    0
                }
            };
            (0..more).for_each(|_| drop(full.want(number, &[])));
            if *standing == Standing::Pinned {
                full.residency.handle_pin(now(), &name(number), Pin::Pinned);
            }
        }
        full.unloads();
        full
    }

    fn want(&mut self, model: u8, evict_first: &[ModelName]) -> RequestId {
        self.next_request += 1;
        let request = RequestId::from_random(self.next_request);
        self.residency.handle_evict_first(&name(model), evict_first);
        self.residency.handle_wanted(now(), &request, &name(model), None);
        request
    }

    /// A model that takes the room of so many others comes.
    fn come(&mut self, models: u64, evict_first: &[ModelName]) -> Vec<ModelName> {
        self.want(RESIDENT, evict_first);
        self.residency
            .handle_inspected(now(), &name(RESIDENT), Ok(needs(models)));
        self.residency.check_invariants();
        self.unloads()
    }

    /// Models that are told to leave at once, in order.
    fn unloads(&mut self) -> Vec<ModelName> {
        let mut unloads = Vec::new();
        while let Some(action) = self.residency.poll_action() {
            if let Action::Unload { model, .. } = action {
                unloads.push(model);
            }
        }
        unloads
    }

    /// Models that leave when their requests end.
    fn draining(&self) -> usize {
        let reports = self.residency.model_reports(now());
        let draining = |state| matches!(state, flotilla_protocol::fleet::ModelState::Draining);
        reports
            .into_iter()
            .filter(|report| draining(report.state.clone()))
            .count()
    }
}

fn now() -> Moment {
    Moment::default()
}

/// A list of names, of models that are there and others, in which a name may come twice.
fn hint() -> impl Strategy<Value = Vec<ModelName>> {
    prop::collection::vec((0..RESIDENT + 2).prop_map(name), 0..8)
}

proptest! {
    #[test]
    fn idle_models_leave_in_the_order_of_the_hint_and_then_of_their_use(
        standings in prop::collection::vec(standing(), usize::from(RESIDENT)),
        room in 1..u64::from(RESIDENT),
        hint in hint(),
    ) {
        let mut full = Full::new(&standings);
        let left = full.come(room, &hint);
        let idle = (0..).zip(&standings).filter(|(_, standing)| **standing == Standing::Idle);
        let idle: Vec<ModelName> = idle.map(|(number, _)| name(number)).collect();
        let mut expected: Vec<ModelName> = Vec::new();
        for model in hint.iter().chain(&idle) {
            if idle.contains(model) && !expected.contains(model) {
                expected.push(model.clone());
            }
        }
        let busy = standings.iter().filter(|standing| matches!(standing, Standing::InUse(_))).count();
        let room = usize::try_from(room).unwrap();
        if idle.len() + busy < room {
            prop_assert_eq!((left.len(), full.draining()), (0, 0), "nobody leaves in vain");
        } else {
            expected.truncate(room);
            prop_assert_eq!(full.draining(), room - expected.len(), "others only when no more are idle");
            prop_assert_eq!(left, expected);
        }
    }

    #[test]
    fn models_that_are_pinned_or_in_use_are_not_unloaded_whatever_the_hint(
        standings in prop::collection::vec(standing(), usize::from(RESIDENT)),
        room in 1..u64::from(RESIDENT),
        hint in hint(),
    ) {
        let mut full = Full::new(&standings);
        for model in full.come(room, &hint) {
            let number = (0..RESIDENT).find(|number| name(*number) == model).unwrap();
            prop_assert_eq!(standings[usize::from(number)], Standing::Idle);
        }
    }

    #[test]
    fn busy_models_drain_in_their_own_order_whatever_the_hint(
        leases in prop::collection::vec(1..3_u8, usize::from(RESIDENT)),
        room in 1..u64::from(RESIDENT),
        hint in hint(),
    ) {
        let standings: Vec<Standing> = leases.into_iter().map(Standing::InUse).collect();
        let draining = |hint: &[ModelName]| {
            let mut full = Full::new(&standings);
            full.come(room, hint);
            full.residency.model_reports(now())
        };
        prop_assert_eq!(draining(&hint), draining(&[]));
    }
}

#[test]
fn a_hint_is_forgotten_for_a_model_that_was_wanted_since() {
    let mut full = Full::new(&[Standing::Idle; RESIDENT as usize]);
    full.want(RESIDENT, &[name(5), name(4)]);
    let request = full.want(5, &[]);
    full.residency.handle_released(now(), &request);
    full.residency
        .handle_inspected(now(), &name(RESIDENT), Ok(needs(2)));
    assert_eq!(full.unloads(), [name(4), name(0)]);
}

#[test]
fn the_newest_hint_counts() {
    let mut full = Full::new(&[Standing::Idle; RESIDENT as usize]);
    full.want(RESIDENT, &[name(5), name(4)]);
    assert_eq!(full.come(2, &[name(3)]), [name(3), name(0)]);
}

#[test]
fn a_hint_lasts_for_one_load() {
    let mut full = Full::new(&[Standing::Idle; RESIDENT as usize]);
    assert_eq!(full.come(1, &[name(5), name(4)]), [name(5)]);
    full.residency.handle_unloaded(now(), &name(5), Keep::Nowhere);
    full.residency
        .handle_loaded(now(), &name(RESIDENT), Ok(()), Duration::ZERO);
    full.residency
        .handle_unload_order(now(), &name(RESIDENT), UnloadReason::Ordered);
    let waiting: BTreeSet<RequestId> = full.residency.requests().cloned().collect();
    waiting
        .iter()
        .for_each(|request| full.residency.handle_released(now(), request));
    assert_eq!(full.unloads(), [name(RESIDENT)]);
    full.residency
        .handle_unloaded(now(), &name(RESIDENT), Keep::Nowhere);
    let next = RequestId::from_random(1000);
    full.residency.handle_wanted(now(), &next, &name(RESIDENT), None);
    full.residency
        .handle_inspected(now(), &name(RESIDENT), Ok(needs(2)));
    assert_eq!(
        full.unloads(),
        [name(0)],
        "one place is free, and the first word is used up"
    );
}

#[test]
fn the_hint_of_an_assignment_reaches_the_models() {
    let mut desk = Desk::new(DeskSettings {
        worker: WorkerId::new("w").unwrap(),
        incarnation: 7,
        slots: 8,
        report_interval: Duration::from_secs(1),
        report_pause: Duration::from_millis(20),
        drain_max: Duration::from_secs(30),
        residency: settings(),
    });
    for number in 0..RESIDENT {
        let residency = desk.residency_mut();
        residency.handle_load_order(now(), &name(number), None);
        residency.handle_inspected(now(), &name(number), Ok(needs(1)));
        residency.handle_loaded(now(), &name(number), Ok(()), Duration::ZERO);
    }
    desk.handle_assignment(now(), &assignment(vec![name(3)]), None);
    desk.residency_mut()
        .handle_inspected(now(), &name(RESIDENT), Ok(needs(1)));
    let mut left = None;
    while let Some(action) = desk.poll_action() {
        if let worker::Action::Residency(Action::Unload { model, .. }) = action {
            left = Some(model);
        }
    }
    assert_eq!(left, Some(name(3)));
}

fn assignment(evict_first: Vec<ModelName>) -> Assignment {
    Assignment {
        request: RequestId::from_random(1),
        attempt: Attempt(1),
        strikes: Strikes(0),
        epoch: Epoch(1),
        class: Class::Interactive,
        model: name(RESIDENT),
        encoding: Encoding::Json,
        body: b"{}".to_vec().into(),
        queued_ms: 0,
        deadline_in_ms: None,
        evict_first,
        alone: false,
    }
}
