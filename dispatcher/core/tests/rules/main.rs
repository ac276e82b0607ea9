//! One test a rule, by what goes in and what comes out.

#![expect(
    clippy::unwrap_used,
    reason = "all of this crate is test code, its bench and world included"
)]

mod bench;
mod suspects;

use std::time::Duration;

use flotilla_dispatcher_core::{
    Action, Admission, Arrival, AssignOutcome, JournalState, Origin, StreamSequence,
};
use flotilla_profile::DeviceProfile;
use flotilla_protocol::admin::CancelReply;
use flotilla_protocol::assignment::{AttemptEnd, Refusal};
use flotilla_protocol::event::{ErrorCode, Event, FinishReason, RequestError, Usage};
use flotilla_protocol::fleet::{DeviceDescription, ModelState, Registration, Report, WorkerState};
use flotilla_protocol::{Attempt, Class, Encoding, Epoch, Strikes};

use bench::{Bench, arrival, done, model, open, report, request, with_model, worker};

/// A bench whose worker `w` runs request `a`, first attempt, seen by report 2.
fn running() -> Bench {
    let mut bench = Bench::new();
    bench.report(report("w", 1, 1, &[]));
    bench.arrive("a", 1);
    assert_eq!(bench.actions(), ["assign a to w: attempt 1, 0 strikes"]);
    bench.accept("w", "a", 1, 1);
    bench.report(report("w", 2, 0, &[("a", 1)]));
    assert!(bench.actions().is_empty());
    bench
}

fn unloadable(reason: &str, retry_in_ms: u64) -> Refusal {
    let reason = reason.into();
    Refusal::ModelUnloadable { reason, retry_in_ms }
}

#[test]
fn a_finished_request_is_acknowledged_with_every_message_that_stands_for_it() {
    let mut bench = running();
    bench.arrive("a", 4);
    bench.arrive("a", 1);
    bench.done(done("w", "a", 1, AttemptEnd::Terminal));
    assert_eq!(bench.actions(), ["ack a: 1 4"]);
    assert!(!bench.dispatcher.holds(&request("a")));
    bench.done(done("w", "a", 1, AttemptEnd::Terminal));
    assert!(bench.actions().is_empty());
}

#[test]
fn a_message_beyond_the_limit_is_turned_away_and_not_remembered() {
    let mut bench = Bench::new();
    for sequence in 0..2000 {
        bench.arrive(&format!("r{sequence}"), sequence);
    }
    assert_eq!(
        bench.dispatcher.handle_arrival(bench.now, arrival("late", 2000)),
        Admission::Full
    );
    assert_eq!(
        bench.dispatcher.handle_arrival(bench.now, arrival("r5", 5)),
        Admission::Held
    );
    assert!(!bench.dispatcher.holds(&request("late")));
}

#[test]
fn an_invalid_request_is_ended_and_then_acknowledged() {
    let mut bench = Bench::new();
    let error = RequestError {
        code: ErrorCode::InvalidRequest,
        message: "no".into(),
        param: None,
    };
    let admission = bench
        .dispatcher
        .handle_rejected(StreamSequence(9), &request("a"), Encoding::Json, error);
    assert_eq!(admission, Admission::Held);
    assert_eq!(bench.actions(), ["end a: invalid_request"]);
    bench.ended("a");
    assert_eq!(bench.actions(), ["ack a: 9"]);
}

#[test]
fn the_journal_is_read_before_a_request_that_may_have_been_seen_runs() {
    let mut bench = Bench::new();
    bench.report(report("w", 1, 2, &[]));
    bench.arrive_again("a", 1);
    bench.arrive_again("b", 2);
    assert_eq!(bench.actions(), ["read a", "read b"]);
    bench.journal("a", JournalState::Terminal);
    bench.journal("b", JournalState::Empty);
    assert_eq!(
        bench.actions(),
        ["ack a: 1", "assign b to w: attempt 1, 0 strikes"]
    );
}

/// Its model left the catalog while it ran, and then its leader died: the next one ended it in the middle of its answer.
#[test]
fn a_request_that_runs_may_finish_although_a_new_leader_would_refuse_it() {
    let mut bench = Bench::new();
    bench.report(report("w", 5, 1, &[("runs", 3)]));
    for (sequence, id) in (1..).zip(["runs", "waits", "ended"]) {
        let origin = Origin::MaybeSeen;
        let error = RequestError {
            code: ErrorCode::UnknownModel,
            message: "gone".into(),
            param: None,
        };
        let arrival = Arrival {
            origin,
            ..arrival(id, sequence)
        };
        let admission = bench.dispatcher.handle_refused(bench.now, arrival, error);
        assert_eq!(admission, Admission::Held);
    }
    bench.journal("runs", open(3, 0, "w"));
    bench.journal("waits", JournalState::Empty);
    bench.journal("ended", JournalState::Terminal);
    assert_eq!(
        bench.actions(),
        [
            "read runs",
            "read waits",
            "read ended",
            "end waits: unknown_model",
            "ack ended: 3"
        ]
    );
    bench.done(done("w", "runs", 3, AttemptEnd::Terminal));
    assert_eq!(bench.actions(), ["ack runs: 1"]);
}

#[test]
fn a_new_leader_adopts_what_the_journals_worker_lists() {
    let mut bench = Bench::new();
    bench.report(report("w", 5, 1, &[("a", 3)]));
    bench.arrive_again("a", 1);
    bench.journal("a", open(3, 1, "w"));
    assert_eq!(bench.actions(), ["read a"]);
    let assigned: Vec<_> = bench.dispatcher.assigned(bench.now).collect();
    assert_eq!((assigned.len(), assigned[0].attempt), (1, Attempt(3)));
    bench.done(done("w", "a", 3, AttemptEnd::Terminal));
    assert_eq!(bench.actions(), ["ack a: 1"]);
}

#[test]
fn an_open_attempt_that_its_worker_does_not_list_is_over_without_a_strike() {
    let mut bench = Bench::new();
    bench.report(report("w", 5, 1, &[]));
    bench.arrive_again("a", 1);
    bench.journal("a", open(3, 1, "w"));
    assert_eq!(bench.actions(), ["read a", "assign a to w: attempt 4, 1 strikes"]);
}

#[test]
fn a_worker_that_has_not_reported_in_this_term_is_awaited_and_then_lost() {
    let mut bench = Bench::new();
    for (id, sequence, by) in [("a", 1, "late"), ("b", 2, "gone"), ("c", 3, "late")] {
        bench.arrive_again(id, sequence);
        bench.journal(id, open(1, 0, by));
    }
    bench.actions();
    bench.wait(3.0);
    bench.report(report("late", 1, 3, &[("a", 1)]));
    assert_eq!(bench.actions(), ["assign c to late: attempt 2, 0 strikes"]);
    bench.wait(1.0);
    assert_eq!(bench.actions(), ["assign b to late: attempt 2, 1 strikes"]);
    assert_eq!(bench.dispatcher.stats().adopted, 1);
}

#[test]
fn an_assignment_without_an_answer_goes_elsewhere_without_a_strike() {
    let mut bench = Bench::new();
    bench.report(with_model(report("v", 1, 1, &[]), "m", ModelState::Ready));
    bench.report(with_model(report("w", 1, 2, &[]), "m", ModelState::Ready));
    bench.arrive("a", 1);
    assert_eq!(bench.actions(), ["assign a to w: attempt 1, 0 strikes"]);
    bench.outcome("w", "a", 1, AssignOutcome::NoAnswer);
    assert_eq!(bench.actions(), ["assign a to v: attempt 2, 0 strikes"]);
    bench.arrive("b", 2);
    assert!(
        bench.actions().is_empty(),
        "a worker that does not answer gets nothing until it reports"
    );
    bench.report(with_model(report("w", 2, 1, &[]), "m", ModelState::Ready));
    assert_eq!(bench.actions(), ["assign b to w: attempt 1, 0 strikes"]);
}

#[test]
fn a_run_whose_answer_was_lost_is_adopted_from_the_report() {
    let mut bench = Bench::new();
    bench.report(report("w", 1, 1, &[]));
    bench.arrive("a", 1);
    bench.outcome("w", "a", 1, AssignOutcome::NoAnswer);
    bench.actions();
    bench.report(report("w", 2, 1, &[("a", 1)]));
    assert!(bench.actions().is_empty());
    bench.done(done("w", "a", 1, AttemptEnd::Terminal));
    assert_eq!(bench.actions(), ["ack a: 1"]);
}

#[test]
fn slots_that_a_report_cannot_know_to_be_taken_are_not_given_twice() {
    let mut bench = Bench::new();
    bench.report(report("w", 1, 2, &[]));
    for (id, sequence) in [("a", 1), ("b", 2), ("c", 3)] {
        bench.arrive(id, sequence);
    }
    assert_eq!(bench.actions().len(), 2);
    bench.accept("w", "a", 1, 1);
    bench.report(report("w", 2, 1, &[("a", 1)]));
    assert!(bench.actions().is_empty(), "b is still on its way");
    bench.report(report("w", 3, 0, &[("a", 1), ("b", 1)]));
    bench.report(report("w", 4, 1, &[("a", 1), ("b", 1)]));
    assert_eq!(bench.actions(), ["assign c to w: attempt 1, 0 strikes"]);
}

#[test]
fn a_slot_is_used_again_as_soon_as_its_attempt_has_ended() {
    let mut bench = Bench::new();
    bench.report(report("w", 1, 1, &[]));
    for (id, sequence) in [("a", 1), ("b", 2), ("c", 3)] {
        bench.arrive(id, sequence);
    }
    bench.accept("w", "a", 1, 1);
    bench.report(report("w", 2, 0, &[("a", 1)]));
    bench.actions();
    bench.done(done("w", "a", 1, AttemptEnd::Terminal));
    assert_eq!(
        bench.actions(),
        ["ack a: 1", "assign b to w: attempt 1, 0 strikes"]
    );
    bench.report(report("w", 3, 0, &[("a", 1)]));
    assert!(
        bench.actions().is_empty(),
        "a report made before the end frees nothing again"
    );
}

#[test]
fn a_refusal_is_no_attempt_and_a_full_worker_waits_for_its_next_report() {
    let mut bench = Bench::new();
    bench.report(report("w", 1, 3, &[]));
    bench.arrive("a", 1);
    bench.actions();
    bench.refuse("w", "a", 1, Refusal::Full);
    assert!(bench.actions().is_empty());
    bench.report(report("w", 2, 1, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 1, 0 strikes"]);
}

#[test]
fn a_draining_worker_gets_nothing() {
    let mut bench = Bench::new();
    bench.report(Report {
        state: WorkerState::Draining,
        ..report("w", 1, 3, &[])
    });
    bench.arrive("a", 1);
    assert!(bench.actions().is_empty());
}

#[test]
fn a_newer_leader_silences_this_one() {
    let mut refused = Bench::new();
    refused.report(report("w", 1, 2, &[]));
    refused.arrive("a", 1);
    refused.actions();
    refused.refuse("w", "a", 1, Refusal::StaleEpoch { seen: Epoch(8) });
    assert_eq!(refused.actions(), ["step down: epoch 8 was seen"]);
    refused.arrive("b", 2);
    assert!(refused.actions().is_empty());
    assert_eq!(refused.dispatcher.poll_timeout(), None);

    let mut told = Bench::new();
    told.report(Report {
        epoch_seen: Epoch(8),
        ..report("w", 1, 2, &[])
    });
    assert_eq!(told.actions(), ["step down: epoch 8 was seen"]);
}

#[test]
fn a_model_that_one_worker_cannot_load_goes_to_another_and_others_pass_by() {
    let mut bench = Bench::new();
    bench.report(report("v", 1, 1, &[("x", 1)]));
    bench.report(Report {
        free_slots: 0,
        ..report("v", 2, 0, &[("x", 1)])
    });
    bench.report(report("w", 1, 1, &[]));
    bench.arrive("a", 1);
    bench.actions();
    bench.refuse("w", "a", 1, unloadable("too large", 3000));
    assert!(bench.actions().is_empty(), "v may still take it");
    bench.arrive_as(Arrival {
        model: model("other"),
        ..arrival("b", 2)
    });
    assert_eq!(bench.actions(), ["assign b to w: attempt 1, 0 strikes"]);
    bench.report(report("v", 3, 1, &[]));
    assert_eq!(bench.actions(), ["assign a to v: attempt 1, 0 strikes"]);
}

#[test]
fn a_model_that_no_worker_can_load_ends_its_requests_with_the_reasons() {
    let mut bench = Bench::new();
    bench.report(report("w", 1, 1, &[]));
    let failed = ModelState::Failed {
        reason: "bad shape".into(),
        retry_in_ms: 9000,
    };
    bench.report(with_model(report("v", 1, 1, &[]), "m", failed));
    bench.arrive("a", 1);
    bench.arrive("b", 2);
    bench.actions();
    bench.refuse("w", "a", 1, unloadable("too large", 3000));
    let Event::Failed(failed) = bench.end() else {
        panic!("a failure")
    };
    assert_eq!(failed.error.code, ErrorCode::ModelUnloadable);
    assert_eq!(
        failed.error.message,
        "no worker can load m: v: bad shape; w: too large"
    );
    assert_eq!(bench.dispatcher.queued_count(), 0);
}

#[test]
fn an_exclusion_ends_with_its_time() {
    let mut bench = Bench::new();
    bench.report(report("v", 1, 0, &[]));
    bench.report(report("w", 1, 1, &[]));
    bench.arrive("a", 1);
    bench.actions();
    bench.refuse("w", "a", 1, unloadable("no room", 3000));
    bench.wait(2.9);
    assert!(bench.actions().is_empty());
    bench.wait(0.1);
    assert_eq!(bench.actions(), ["assign a to w: attempt 1, 0 strikes"]);
}

#[test]
fn a_report_without_the_request_means_that_its_done_was_lost() {
    let mut bench = running();
    bench.report(report("w", 3, 1, &[]));
    assert_eq!(bench.actions(), ["read a"]);
    bench.journal("a", JournalState::Terminal);
    assert_eq!(bench.actions(), ["ack a: 1"]);
}

#[test]
fn a_report_that_overtook_the_answer_counts_when_the_answer_comes() {
    let mut bench = Bench::new();
    bench.report(report("w", 1, 1, &[]));
    bench.arrive("a", 1);
    bench.report(report("w", 2, 1, &[]));
    bench.actions();
    bench.accept("w", "a", 1, 1);
    assert_eq!(bench.actions(), ["read a"]);
    bench.journal("a", open(1, 0, "w"));
    assert!(bench.actions().is_empty());
    bench.report(report("w", 3, 1, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 2, 0 strikes"]);
}

/// A worker that started anew accepted before its first report, and the report of its former self, with a
/// larger number, was taken for a newer one: the request went round and round at the speed of the network.
#[test]
fn a_worker_whose_attempt_vanished_is_not_asked_again_before_it_reports() {
    let mut bench = Bench::new();
    bench.report(report("w", 50, 1, &[]));
    bench.arrive("a", 1);
    bench.actions();
    bench.accept("w", "a", 1, 0);
    bench.journal("a", JournalState::Empty);
    assert_eq!(bench.actions(), ["read a"]);
}

#[test]
fn a_late_report_changes_nothing() {
    let mut bench = running();
    bench.report(report("w", 1, 5, &[]));
    bench.arrive("b", 2);
    assert!(bench.actions().is_empty());
    assert_eq!(bench.dispatcher.stats().reports_stale, 1);
}

#[test]
fn a_restarted_workers_requests_go_on_at_once() {
    let mut bench = running();
    bench.report(Report {
        incarnation: 2,
        ..report("w", 1, 1, &[])
    });
    assert_eq!(bench.actions(), ["assign a to w: attempt 2, 1 strikes"]);
    bench.report(report("w", 9, 4, &[("a", 1)]));
    assert_eq!(
        bench.dispatcher.stats().reports_stale,
        1,
        "the dead process's last report came late"
    );
}

#[test]
fn a_silent_worker_is_lost_and_its_requests_go_elsewhere() {
    let mut bench = running();
    bench.wait(3.0);
    bench.report(report("v", 1, 1, &[]));
    bench.wait(0.9);
    assert!(bench.actions().is_empty());
    bench.wait(0.1);
    assert_eq!(bench.actions(), ["assign a to v: attempt 2, 1 strikes"]);
    assert_eq!(bench.dispatcher.fleet(bench.now).count(), 1);
}

#[test]
fn a_late_worker_whose_connection_is_gone_is_lost_when_it_is_missed_again() {
    let mut bench = running();
    bench.wait(1.0);
    bench.report(report("v", 1, 1, &[]));
    assert!(bench.asked_for_reports().is_empty());
    bench.wait(0.4);
    assert_eq!(bench.asked_for_reports(), ["w"]);
    bench.absent("w");
    // The same news twice, as when our own connection comes back.
    bench.absent("w");
    bench.wait(0.8);
    bench.report(report("v", 2, 1, &[]));
    assert!(bench.actions().is_empty());
    bench.wait(0.2);
    assert_eq!(bench.asked_for_reports(), ["w"]);
    bench.absent("w");
    assert_eq!(bench.actions(), ["assign a to v: attempt 2, 1 strikes"]);
    let stats = bench.dispatcher.stats();
    assert_eq!((stats.workers_lost, stats.workers_absent), (1, 1));
    bench.absent("w");
    bench.wait(0.3);
    assert!(bench.asked_for_reports().is_empty(), "who is lost is not asked");
}

#[test]
fn a_worker_that_reports_between_two_times_that_it_is_missed_is_there() {
    let mut bench = running();
    bench.wait(1.4);
    bench.absent("w");
    bench.report(report("w", 9, 0, &[("a", 1)]));
    bench.wait(1.4);
    bench.absent("w");
    bench.wait(0.6);
    bench.absent("w");
    assert_eq!(bench.dispatcher.stats().workers_lost, 0);
    bench.wait(0.1);
    bench.absent("w");
    assert_eq!(bench.dispatcher.stats().workers_lost, 1);
}

#[test]
fn a_worker_that_was_only_cut_off_gets_its_waiting_request_back() {
    let mut bench = running();
    bench.wait(5.0);
    assert!(bench.actions().is_empty());
    bench.report(report("w", 9, 0, &[("a", 1)]));
    bench.done(done("w", "a", 1, AttemptEnd::Terminal));
    assert_eq!(bench.actions(), ["ack a: 1"]);
}

#[test]
fn a_done_of_another_attempt_or_process_is_ignored() {
    let mut bench = running();
    let panicked = || AttemptEnd::Panicked {
        message: "boom".into(),
    };
    bench.done(done("w", "a", 2, panicked()));
    bench.done(done("v", "a", 1, panicked()));
    let mut former = done("w", "a", 1, panicked());
    former.incarnation = 9;
    bench.done(former);
    assert!(bench.actions().is_empty());
    assert_eq!(bench.dispatcher.stats().strikes, 0);
}

#[test]
fn a_fenced_attempt_takes_over_the_journals_numbers() {
    let mut bench = running();
    let end = AttemptEnd::Fenced {
        attempt: Attempt(6),
        strikes: Strikes(2),
    };
    bench.done(done("w", "a", 1, end));
    assert_eq!(bench.actions(), ["read a"]);
    bench.report(report("v", 1, 1, &[("a", 6)]));
    bench.journal("a", open(6, 2, "v"));
    assert!(bench.actions().is_empty());
    bench.done(done(
        "v",
        "a",
        6,
        AttemptEnd::HandedBack {
            reason: "drain".into(),
        },
    ));
    bench.report(report("w", 3, 1, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 7, 2 strikes"]);
}

#[test]
fn a_request_handed_back_keeps_its_place() {
    let mut bench = running();
    bench.arrive("b", 2);
    bench.done(done(
        "w",
        "a",
        1,
        AttemptEnd::HandedBack {
            reason: "drain".into(),
        },
    ));
    bench.report(report("w", 3, 1, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 2, 0 strikes"]);
}

#[test]
fn the_last_strike_makes_a_dead_letter_before_the_end() {
    let mut bench = running();
    bench.done(done(
        "w",
        "a",
        1,
        AttemptEnd::Panicked {
            message: "index out of bounds".into(),
        },
    ));
    bench.report(report("w", 3, 1, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 2, 1 strikes"]);
    bench.accept("w", "a", 2, 3);
    bench.report(Report {
        incarnation: 2,
        ..report("w", 1, 1, &[])
    });
    assert_eq!(bench.actions(), ["assign a to w: attempt 3, 2 strikes, alone"]);
    bench.accept("w", "a", 3, 1);
    bench.wait(3.9);
    assert!(!bench.asked_for_reports().is_empty());
    bench.wait(0.1);
    let reason = match bench.dispatcher.poll_action() {
        Some(Action::DeadLetter { reason, .. }) => reason,
        other => panic!("{other:?} is no dead letter"),
    };
    assert_eq!(
        reason,
        "the request has 3 strikes: worker w panicked: index out of bounds; \
         worker w died and started again; worker w fell silent"
    );
    assert_eq!(bench.actions(), ["end a: poisoned"]);
    bench.ended("a");
    assert_eq!(bench.actions(), ["ack a: 1"]);
}

#[test]
fn a_waiting_request_is_cancelled_at_once() {
    let mut bench = Bench::new();
    bench.arrive("a", 1);
    assert_eq!(
        bench.dispatcher.handle_cancel(bench.now, &request("a")),
        CancelReply::Ended
    );
    let Event::Finished(finished) = bench.end() else {
        panic!("a cancelled answer is finished")
    };
    assert_eq!(finished.finish_reason, FinishReason::Cancelled);
    assert_eq!(finished.usage, Usage::new(5, 0));
}

#[test]
fn a_running_request_is_cancelled_by_its_worker_and_never_runs_again() {
    let mut bench = running();
    assert_eq!(
        bench.dispatcher.handle_cancel(bench.now, &request("a")),
        CancelReply::Told
    );
    assert_eq!(bench.actions(), ["cancel a on w"]);
    bench.wait(1.0);
    bench.report(report("w", 3, 0, &[("a", 1)]));
    assert_eq!(bench.actions(), ["cancel a on w"], "the first may have been lost");
    bench.done(done(
        "w",
        "a",
        1,
        AttemptEnd::HandedBack {
            reason: "drain".into(),
        },
    ));
    assert_eq!(bench.actions(), ["end a: finished"]);
}

#[test]
fn a_cancellation_that_came_first_is_applied_on_arrival_for_ten_minutes() {
    let mut bench = Bench::new();
    for id in ["a", "b"] {
        assert_eq!(
            bench.dispatcher.handle_cancel(bench.now, &request(id)),
            CancelReply::Unknown
        );
    }
    bench.wait(599.0);
    bench.report(report("w", 1, 2, &[]));
    bench.arrive("a", 1);
    assert_eq!(bench.actions(), ["end a: finished"]);
    bench.wait(1.0);
    bench.arrive("b", 2);
    assert_eq!(bench.actions(), ["assign b to w: attempt 1, 0 strikes"]);
}

#[test]
fn a_waiting_request_ends_at_its_deadline_and_says_how_long_it_waited() {
    let mut bench = Bench::new();
    let age = Duration::from_millis(500);
    let deadline_in = Some(Duration::from_secs(2));
    bench.arrive_as(Arrival {
        age,
        deadline_in,
        ..arrival("a", 1)
    });
    bench.wait(1.9);
    assert!(bench.actions().is_empty());
    bench.wait(0.2);
    let Event::Failed(failed) = bench.end() else {
        panic!("a failure")
    };
    assert_eq!(failed.error.code, ErrorCode::DeadlineExceeded);
    assert_eq!(
        failed.error.message,
        "the deadline passed after 2500 ms without an answer"
    );
}

#[test]
fn an_assignment_tells_the_time_that_passed_and_the_time_that_is_left() {
    let mut bench = Bench::new();
    let age = Duration::from_millis(500);
    let deadline_in = Some(Duration::from_secs(5));
    bench.arrive_as(Arrival {
        age,
        deadline_in,
        ..arrival("a", 1)
    });
    bench.wait(2.0);
    bench.report(report("w", 1, 1, &[]));
    let assignment = bench.assignment();
    assert_eq!(
        (assignment.queued_ms, assignment.deadline_in_ms),
        (2500, Some(3000))
    );
    assert_eq!(assignment.epoch, Epoch(7));
}

#[test]
fn requests_of_a_removed_model_end_unless_they_run() {
    let mut bench = running();
    bench.arrive("b", 2);
    bench.arrive_as(Arrival {
        model: model("other"),
        ..arrival("c", 3)
    });
    bench.dispatcher.handle_model_removed(bench.now, &model("m"));
    assert_eq!(bench.actions(), ["end b: unknown_model"]);
    bench.done(done(
        "w",
        "a",
        1,
        AttemptEnd::HandedBack {
            reason: "gone".into(),
        },
    ));
    assert_eq!(bench.actions(), ["end a: unknown_model"]);
    assert_eq!(bench.dispatcher.queued_count(), 1);
}

#[test]
fn interactive_requests_go_before_batch_and_older_before_newer() {
    let mut bench = Bench::new();
    bench.arrive_as(Arrival {
        class: Class::Batch,
        age: Duration::from_secs(9),
        ..arrival("batch", 1)
    });
    bench.arrive("new", 2);
    bench.arrive_as(Arrival {
        age: Duration::from_secs(1),
        ..arrival("old", 3)
    });
    let queued: Vec<_> = bench
        .dispatcher
        .queued(bench.now)
        .map(|queued| queued.request.to_string())
        .collect();
    assert_eq!(queued, ["old", "new", "batch"]);
}

#[test]
fn clients_hear_of_their_places_at_first_and_then_when_they_change() {
    let mut bench = Bench::new();
    bench.arrive("a", 1);
    bench.arrive("b", 2);
    assert!(bench.places().is_empty(), "nobody notices so short a wait");
    bench.wait(0.05);
    assert_eq!(bench.places(), [("a".to_owned(), 0), ("b".to_owned(), 1)]);
    bench.wait(1.0);
    assert!(bench.places().is_empty());
    bench.dispatcher.handle_cancel(bench.now, &request("a"));
    assert!(bench.places().is_empty());
    bench.wait(1.0);
    assert_eq!(bench.places(), [("b".to_owned(), 0)]);
}

#[test]
fn a_worker_beyond_the_limit_is_ignored() {
    let mut bench = Bench::new();
    for id in ["v", "w", "x", "y", "z"] {
        bench.report(report(id, 1, 0, &[]));
    }
    assert_eq!(bench.dispatcher.fleet(bench.now).count(), 4);
    assert_eq!(bench.dispatcher.stats().workers_turned_away, 1);
}

#[test]
fn a_request_that_measures_a_worker_waits_for_it_and_holds_up_nobody() {
    let mut bench = Bench::new();
    bench.report(with_model(report("v", 1, 4, &[]), "m", ModelState::Ready));
    bench.report(with_model(report("w", 1, 0, &[]), "m", ModelState::Ready));
    bench.arrive_as(Arrival {
        only_worker: Some(worker("w")),
        ..arrival("measuring", 1)
    });
    bench.arrive_as(Arrival {
        only_worker: Some(worker("gone")),
        ..arrival("lost", 2)
    });
    bench.wait(3.0);
    assert!(bench.actions().is_empty(), "v has room, and is not the one");
    bench.arrive("other", 3);
    assert_eq!(bench.actions(), ["assign other to v: attempt 1, 0 strikes"]);
    bench.report(with_model(report("w", 2, 1, &[]), "m", ModelState::Ready));
    assert_eq!(bench.actions(), ["assign measuring to w: attempt 1, 0 strikes"]);
}

#[test]
fn what_a_profile_says_of_a_worker_is_no_limit_to_who_measures_it() {
    let mut bench = Bench::new();
    bench.report(with_model(report("w", 1, 9, &[]), "m", ModelState::Ready));
    bench
        .dispatcher
        .handle_registration(bench.now, &registration("w"));
    // One request a second of one second: one at a time.
    bench
        .dispatcher
        .handle_profile(bench.now, &model("m"), profile_of_one_at_a_time());
    bench.arrive("a", 1);
    assert_eq!(bench.actions(), ["assign a to w: attempt 1, 0 strikes"]);
    bench.arrive_as(Arrival {
        only_worker: Some(worker("w")),
        ..arrival("measuring", 2)
    });
    assert_eq!(bench.actions(), ["assign measuring to w: attempt 1, 0 strikes"]);
    bench.arrive("b", 3);
    assert!(bench.actions().is_empty(), "for others it is one");
}

fn registration(id: &str) -> Registration {
    Registration {
        worker: worker(id),
        incarnation: 1,
        host: "host".into(),
        version: "1".into(),
        devices: vec![DeviceDescription {
            index: 0,
            kind: "kind".into(),
            name: "device".into(),
            memory_bytes: 100,
            memory_bytes_per_s: None,
            cost: None,
        }],
    }
}

fn profile_of_one_at_a_time() -> DeviceProfile {
    let document = r#"{"gpu": "kind", "cost": 1.0, "created": 1.0, "indexes": [[16], [16]], "tputs": [[1.0]],
        "e2e": [[1.0]]}"#;
    DeviceProfile::from_json(document.as_bytes(), None).unwrap()
}
