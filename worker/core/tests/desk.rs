//! The front desk: what it takes, what it says and when it is done.
#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

use std::time::Duration;

use flotilla_protocol::assignment::{AssignReply, Assignment, Refusal};
use flotilla_protocol::fleet::WorkerState;
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{Attempt, Class, Encoding, Epoch, ModelName, Moment, RequestId, Strikes, WorkerId};
use flotilla_worker_core::kv::{KvBlock, KvReport};
use flotilla_worker_core::residency::{self, ModelNeeds, ResidencySettings, Unusable};
use flotilla_worker_core::worker::{Action, Desk, DeskSettings, Progress};
use proptest::prelude::*;

const SLOTS: u32 = 3;

fn desk() -> Desk {
    Desk::new(DeskSettings {
        worker: WorkerId::new("w").unwrap(),
        incarnation: 7,
        slots: SLOTS,
        report_interval: Duration::from_secs(1),
        report_pause: Duration::from_millis(20),
        drain_max: Duration::from_secs(30),
        residency: ResidencySettings {
            device_pages: vec![100],
            models_max: 3,
            keep_alive: KeepAlive::Ms(1000),
            min_residency_max: Duration::ZERO,
            load_stall: None,
            host_pages: 0,
        },
    })
}

fn request(number: u64) -> RequestId {
    RequestId::new(format!("r{number}")).unwrap()
}

fn model() -> ModelName {
    ModelName::new("m").unwrap()
}

fn assignment(number: u64, attempt: u32, epoch: u64) -> Assignment {
    Assignment {
        request: request(number),
        attempt: Attempt(attempt),
        strikes: Strikes(0),
        epoch: Epoch(epoch),
        class: Class::Interactive,
        model: model(),
        encoding: Encoding::Json,
        body: b"{}".to_vec().into(),
        queued_ms: 0,
        deadline_in_ms: None,
        evict_first: Vec::new(),
        alone: false,
    }
}

fn at(ms: u64) -> Moment {
    Moment::after_origin(Duration::from_millis(ms))
}

fn accepted(report_seq: u64) -> AssignReply {
    AssignReply::Accepted {
        report_seq,
        incarnation: Some(7),
    }
}

#[test]
fn an_accepted_request_wants_its_model_and_takes_a_slot() {
    let mut desk = desk();
    assert_eq!(
        desk.handle_assignment(at(0), &assignment(1, 1, 5), None),
        accepted(0)
    );
    let inspect = residency::Action::Inspect { model: model() };
    assert_eq!(desk.poll_action(), Some(Action::Residency(inspect)));
    let progress = Progress {
        prompt_tokens: 9,
        output_tokens: 2,
    };
    desk.handle_progress(&request(1), progress);
    let report = desk.report(at(0));
    assert_eq!(
        (report.seq, report.epoch_seen, report.free_slots),
        (1, Epoch(5), SLOTS - 1)
    );
    assert_eq!((report.incarnation, report.state), (7, WorkerState::Ready));
    assert_eq!(
        (report.running[0].prompt_tokens, report.running[0].output_tokens),
        (9, 2)
    );
    assert_eq!(report.models[0].waiting, 1);
    desk.handle_ended(at(1), &request(1));
    assert_eq!(desk.free_slots(), SLOTS);
    assert_eq!(
        desk.residency().requests().count(),
        0,
        "its hold on the model went with its slot"
    );
}

#[test]
fn a_repeated_assignment_is_accepted_with_the_report_before_the_first() {
    let mut desk = desk();
    desk.report(at(0));
    assert_eq!(
        desk.handle_assignment(at(1), &assignment(1, 1, 5), None),
        accepted(1)
    );
    desk.report(at(2));
    assert_eq!(
        desk.handle_assignment(at(3), &assignment(1, 1, 5), None),
        accepted(1)
    );
    let newer = desk.handle_assignment(at(4), &assignment(1, 2, 5), None);
    assert_eq!(
        newer,
        AssignReply::Refused(Refusal::Full),
        "one attempt of a request at a time"
    );
    assert_eq!(desk.attempt(&request(1)), Some(Attempt(1)));
    assert_eq!(desk.free_slots(), SLOTS - 1);
}

#[test]
fn a_full_worker_and_a_deposed_leader_are_refused() {
    let mut desk = desk();
    for number in 0..3 {
        assert_eq!(
            desk.handle_assignment(at(0), &assignment(number, 1, 5), None),
            accepted(0)
        );
    }
    let refused = |reply, refusal| assert_eq!(reply, AssignReply::Refused(refusal));
    refused(
        desk.handle_assignment(at(0), &assignment(3, 1, 6), None),
        Refusal::Full,
    );
    desk.handle_ended(at(0), &request(0));
    let stale = Refusal::StaleEpoch { seen: Epoch(6) };
    refused(desk.handle_assignment(at(0), &assignment(3, 1, 5), None), stale);
    assert_eq!(
        desk.handle_assignment(at(0), &assignment(3, 1, 6), None),
        accepted(0)
    );
}

#[test]
fn a_model_in_back_off_is_refused_with_its_reason_and_takes_no_slot() {
    let mut desk = desk();
    desk.handle_assignment(at(0), &assignment(1, 1, 5), None);
    desk.residency_mut().handle_inspected(
        at(0),
        &model(),
        Err(Unusable {
            reason: "no such folder".to_owned(),
        }),
    );
    desk.handle_ended(at(0), &request(1));
    let reply = desk.handle_assignment(at(400), &assignment(2, 1, 5), None);
    let reason = "no such folder".to_owned();
    let expected = Refusal::ModelUnloadable {
        reason,
        retry_in_ms: 600,
    };
    assert_eq!(reply, AssignReply::Refused(expected));
    assert_eq!(desk.free_slots(), SLOTS);
}

#[test]
fn a_draining_worker_takes_nothing_and_hands_back_what_is_left_at_the_deadline() {
    let mut desk = desk();
    desk.handle_assignment(at(0), &assignment(1, 1, 5), None);
    desk.handle_assignment(at(0), &assignment(2, 1, 5), None);
    load(&mut desk);
    while desk.poll_action().is_some() {}
    desk.handle_drain(at(10));
    desk.handle_drain(at(5000));
    assert_eq!(desk.poll_action(), None, "both run");
    let reply = desk.handle_assignment(at(10), &assignment(3, 1, 5), None);
    assert_eq!(reply, AssignReply::Refused(Refusal::Draining));
    assert_eq!(
        desk.handle_assignment(at(10), &assignment(1, 1, 5), None),
        accepted(0),
        "it is held"
    );
    let report = desk.report(at(30_000));
    assert_eq!((report.state, report.free_slots), (WorkerState::Draining, 0));
    desk.handle_ended(at(30_000), &request(1));
    assert!(!desk.is_drained());
    desk.report(at(30_005));
    assert_eq!(
        desk.poll_timeout(),
        Some(at(30_010)),
        "30 s after the first order"
    );
    desk.handle_timeout(at(30_010));
    assert_eq!(desk.poll_action(), Some(Action::HandBack { request: request(2) }));
    assert_eq!(desk.poll_action(), None);
    desk.handle_ended(at(30_020), &request(2));
    assert!(desk.is_drained());
}

#[test]
fn a_draining_worker_hands_back_at_once_what_waits_for_its_model() {
    let mut desk = desk();
    desk.handle_assignment(at(0), &assignment(1, 1, 5), None);
    load(&mut desk);
    let other = Assignment {
        model: ModelName::new("other").unwrap(),
        ..assignment(2, 1, 5)
    };
    desk.handle_assignment(at(1), &other, None);
    while desk.poll_action().is_some() {}
    desk.handle_drain(at(10));
    assert_eq!(desk.poll_action(), Some(Action::HandBack { request: request(2) }));
    assert_eq!(desk.poll_action(), None, "the other runs");
    desk.handle_ended(at(11), &request(2));
    assert!(!desk.is_drained());
    desk.handle_ended(at(12), &request(1));
    assert!(desk.is_drained());
}

#[test]
fn a_request_is_told_once_that_its_deadline_passed() {
    let mut desk = desk();
    let timed = Assignment {
        deadline_in_ms: Some(500),
        ..assignment(1, 1, 5)
    };
    desk.handle_assignment(at(100), &timed, None);
    while desk.poll_action().is_some() {}
    desk.report(at(590));
    assert_eq!(desk.poll_timeout(), Some(at(600)));
    desk.handle_timeout(at(599));
    assert_eq!(desk.poll_action(), None);
    desk.handle_timeout(at(600));
    desk.handle_timeout(at(601));
    assert_eq!(desk.poll_action(), Some(Action::Expired { request: request(1) }));
    assert_eq!(desk.poll_action(), None);
    assert_eq!(desk.free_slots(), SLOTS - 1, "it is held until it ended");
}

#[test]
fn changes_travel_together_and_silence_is_broken_every_interval() {
    let mut desk = desk();
    assert!(desk.is_report_due(at(0)), "the first report is due at once");
    desk.report(at(0));
    desk.handle_assignment(at(1), &assignment(1, 1, 5), None);
    desk.handle_assignment(at(2), &assignment(2, 1, 5), None);
    assert!(!desk.is_report_due(at(19)));
    assert!(desk.is_report_due(at(20)));
    assert_eq!(desk.report(at(20)).running.len(), 2);
    assert_eq!(desk.poll_timeout(), Some(at(1020)));
    let progress = Progress {
        prompt_tokens: 1,
        output_tokens: 1,
    };
    desk.handle_progress(&request(1), progress);
    assert!(!desk.is_report_due(at(1019)), "tokens alone are no reason");
    desk.residency_mut()
        .handle_inspected(at(500), &model(), Ok(needs()));
    assert!(desk.is_report_due(at(500)), "a model's step is one");
    desk.report(at(500));
    desk.handle_report_asked();
    assert!(desk.is_report_due(at(520)), "a new leader's question is one");
}

/// 11 of 100 pages are the model's own; the others hold 29 slabs of two blocks on three pages.
#[test]
fn a_report_tells_for_how_many_tokens_a_model_has_room_from_its_load_on() {
    let mut desk = desk();
    desk.handle_assignment(at(0), &assignment(1, 1, 5), None);
    let residency = desk.residency_mut();
    assert_eq!(residency.model_reports(at(0))[0].kv_tokens_max, None);
    residency.handle_inspected(at(0), &model(), Ok(needs()));
    assert_eq!(residency.model_reports(at(0))[0].kv_tokens_max, Some(928));
    residency.handle_loaded(at(1), &model(), Ok(()), Duration::from_millis(1));
    assert_eq!(desk.report(at(1)).models[0].kv_tokens_max, Some(928));
}

/// Brings the model into the device.
fn load(desk: &mut Desk) {
    let residency = desk.residency_mut();
    residency.handle_inspected(at(0), &model(), Ok(needs()));
    residency.handle_loaded(at(1), &model(), Ok(()), Duration::from_millis(1));
}

fn needs() -> ModelNeeds {
    ModelNeeds {
        weights_pages: 10,
        workspace_pages: 1,
        kv_pages_min: 1,
        kv_block: Some(KvBlock {
            tokens: 16,
            bytes: 3 << 20,
        }),
        split: None,
    }
}

#[test]
fn a_request_that_runs_alone_has_nothing_beside_it() {
    let mut desk = desk();
    let full = AssignReply::Refused(Refusal::Full);
    let alone = |number| Assignment {
        alone: true,
        ..assignment(number, 2, 5)
    };
    assert_eq!(
        desk.handle_assignment(at(0), &assignment(1, 1, 5), None),
        accepted(0)
    );
    assert_eq!(
        desk.handle_assignment(at(0), &alone(2), None),
        full,
        "another runs"
    );
    desk.handle_ended(at(1), &request(1));
    assert_eq!(desk.handle_assignment(at(1), &alone(2), None), accepted(0));
    assert_eq!(
        desk.handle_assignment(at(1), &alone(2), None),
        accepted(0),
        "the answer was lost"
    );
    assert_eq!(desk.handle_assignment(at(1), &assignment(3, 1, 5), None), full);
    let report = desk.report(at(1));
    assert_eq!((report.free_slots, report.running[0].alone), (0, true));
    desk.handle_ended(at(2), &request(2));
    assert_eq!(desk.free_slots(), SLOTS);
    assert_eq!(
        desk.handle_assignment(at(2), &assignment(3, 1, 5), None),
        accepted(1)
    );
    desk.check_invariants();
}

#[derive(Debug, Clone)]
enum Step {
    Assign {
        number: u64,
        attempt: u32,
        epoch: u64,
        alone: bool,
    },
    End {
        number: u64,
    },
    Drain,
    Wait {
        ms: u64,
    },
    Report,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..8_u64, 1..3_u32, 0..3_u64, prop::bool::weighted(0.2))
            .prop_map(|(number, attempt, epoch, alone)| Step::Assign { number, attempt, epoch, alone }),
        3 => (0..8_u64).prop_map(|number| Step::End { number }),
        1 => prop::bool::weighted(0.2).prop_map(|drains| if drains { Step::Drain } else { Step::Report }),
        2 => (0..2000_u64).prop_map(|ms| Step::Wait { ms }),
        2 => Just(Step::Report),
    ]
}

proptest! {
    #[test]
    fn slots_epochs_and_reports_agree_after_any_history(steps in prop::collection::vec(step(), 0..80)) {
        let mut desk = desk();
        let (mut now, mut epoch_seen, mut reports) = (at(0), Epoch(0), 0);
        let mut held = std::collections::BTreeMap::new();
        let mut runs_alone = None;
        for step in steps {
            match step {
                Step::Assign { number, attempt, epoch, alone } => {
                    let assignment = Assignment { alone, ..assignment(number, attempt, epoch) };
                    match desk.handle_assignment(now, &assignment, None) {
                        AssignReply::Accepted { report_seq, .. } => {
                            prop_assert!(Epoch(epoch) >= epoch_seen && report_seq <= reports);
                            let before = held.insert(request(number), Attempt(attempt));
                            if alone && before.is_none() {
                                runs_alone = Some(request(number));
                            }
                            prop_assert!(before.is_none_or(|before| before == Attempt(attempt)));
                            prop_assert!(desk.state() == WorkerState::Ready || before.is_some());
                        }
                        AssignReply::Refused(Refusal::StaleEpoch { seen }) => {
                            prop_assert!(Epoch(epoch) < epoch_seen && seen == epoch_seen);
                        }
                        AssignReply::Refused(Refusal::Full) => {
                            let has_company = alone && !held.is_empty();
                            let is_full = held.len() == SLOTS as usize || held.contains_key(&request(number));
                            prop_assert!(is_full || has_company || runs_alone.is_some());
                        }
                        AssignReply::Refused(Refusal::Draining) => {
                            prop_assert_eq!(desk.state(), WorkerState::Draining);
                        }
                        AssignReply::Refused(Refusal::ModelUnloadable { .. }) => {
                            prop_assert!(false, "loads succeed here");
                        }
                    }
                    epoch_seen = epoch_seen.max(Epoch(epoch));
                }
                Step::End { number } => {
                    desk.handle_ended(now, &request(number));
                    held.remove(&request(number));
                    runs_alone = runs_alone.filter(|alone| *alone != request(number));
                }
                Step::Drain => desk.handle_drain(now),
                Step::Wait { ms } => {
                    now = now + Duration::from_millis(ms);
                    desk.handle_timeout(now);
                }
                Step::Report => {
                    let report = desk.report(now);
                    reports += 1;
                    prop_assert_eq!(report.seq, reports);
                    prop_assert_eq!(
                        report.running.iter().filter(|run| run.alone).map(|run| &run.request).collect::<Vec<_>>(),
                        runs_alone.iter().collect::<Vec<_>>()
                    );
                    prop_assert!(runs_alone.is_none() || report.running.len() == 1);
                    let running = report.running.into_iter().map(|run| (run.request, run.attempt));
                    prop_assert_eq!(running.collect::<std::collections::BTreeMap<_, _>>(), held.clone());
                    prop_assert!(!desk.is_report_due(now));
                }
            }
            run_models(&mut desk, now);
            desk.check_invariants();
        }
        held.keys().for_each(|request| desk.handle_ended(now, request));
        desk.handle_drain(now);
        prop_assert!(desk.is_drained());
    }
}

/// Does at once what the machine asks for.
fn run_models(desk: &mut Desk, now: Moment) {
    while let Some(action) = desk.poll_action() {
        let residency = desk.residency_mut();
        match action {
            Action::Residency(residency::Action::Inspect { model }) => {
                residency.handle_inspected(now, &model, Ok(needs()));
            }
            Action::Residency(residency::Action::Load { model, .. }) => {
                residency.handle_loaded(now, &model, Ok(()), Duration::from_millis(1));
            }
            Action::Residency(residency::Action::Unload { model, .. }) => {
                residency.handle_unloaded(now, &model, residency::Keep::Nowhere);
            }
            Action::Residency(residency::Action::ResizeKv { device, pages }) => {
                let report = KvReport {
                    pages_target: pages,
                    pages_held: pages,
                    ..KvReport::default()
                };
                residency.handle_kv_resized(now, device, report);
            }
            Action::Residency(
                residency::Action::CancelLoad { .. }
                | residency::Action::Prefetch { .. }
                | residency::Action::DropCopy { .. }
                | residency::Action::LeaseGranted { .. }
                | residency::Action::LeaseLost { .. }
                | residency::Action::ModelFailed { .. },
            )
            | Action::Expired { .. }
            | Action::HandBack { .. } => {}
        }
    }
}
