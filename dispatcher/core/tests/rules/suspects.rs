//! Who runs alone after a worker died, and who is to blame for it.

use std::time::Duration;

use flotilla_dispatcher_core::{Arrival, AssignOutcome, JournalState, Settings};
use flotilla_protocol::assignment::{AssignReply, AttemptEnd};
use flotilla_protocol::fleet::{ModelState, Report};
use flotilla_protocol::{Attempt, Strikes};

use crate::bench::{Bench, arrival, done, report, request, settings, with_model, worker};

/// A report of another start of a worker.
fn restarted(id: &str, incarnation: u64, seq: u64, free_slots: u32, running: &[(&str, u32)]) -> Report {
    Report {
        incarnation,
        ..report(id, seq, free_slots, running)
    }
}

/// A report of a worker that runs one request alone.
fn alone(id: &str, incarnation: u64, seq: u64, running: (&str, u32)) -> Report {
    let mut report = restarted(id, incarnation, seq, 0, &[running]);
    report.running[0].alone = true;
    report
}

fn done_by(
    incarnation: u64,
    from: &str,
    id: &str,
    attempt: u32,
    end: AttemptEnd,
) -> flotilla_protocol::assignment::Done {
    flotilla_protocol::assignment::Done {
        incarnation,
        ..done(from, id, attempt, end)
    }
}

/// A bench on which so many strikes make a dead letter.
fn with_strikes_max(strikes_max: u32) -> Bench {
    Bench::with(Settings {
        strikes_max: Strikes(strikes_max),
        ..settings()
    })
}

/// A bench whose worker `w` has died with these, each at its first attempt, and is back with three slots. The first
/// death makes suspects.
fn died_with(ids: &[&str]) -> Bench {
    let mut bench = with_strikes_max(1);
    bench.report(report("w", 1, 3, &[]));
    let mut running = Vec::new();
    for (sequence, id) in (1..).zip(ids) {
        bench.arrive(id, sequence);
        bench.accept("w", id, 1, 1);
        running.push((*id, 1));
    }
    bench.report(report("w", 2, 0, &running));
    assert_eq!(bench.actions().len(), ids.len());
    bench.report(restarted("w", 2, 1, 3, &[]));
    bench
}

#[test]
fn those_who_ran_when_a_worker_died_run_alone_one_after_the_other() {
    let mut bench = died_with(&["a", "b"]);
    assert_eq!(bench.actions(), ["assign a to w: attempt 2, 0 strikes, alone"]);
    bench.accept("w", "a", 2, 1);
    bench.report(alone("w", 2, 2, ("a", 2)));
    assert!(bench.actions().is_empty());
    bench.done(done_by(2, "w", "a", 2, AttemptEnd::Terminal));
    assert_eq!(
        bench.actions(),
        ["ack a: 1", "assign b to w: attempt 2, 0 strikes, alone"]
    );
    bench.accept("w", "b", 2, 2);
    bench.done(done_by(2, "w", "b", 2, AttemptEnd::Terminal));
    assert_eq!(bench.actions(), ["ack b: 2"]);
    let stats = bench.dispatcher.stats();
    assert_eq!((stats.suspects, stats.alone, stats.strikes), (2, 2, 0));
}

#[test]
fn nothing_is_given_to_a_worker_that_is_kept_for_a_suspect() {
    let mut bench = died_with(&["a"]);
    bench.accept("w", "a", 2, 1);
    bench.actions();
    // As a worker of the version before would report, which knows nothing of running alone.
    bench.report(restarted("w", 2, 2, 2, &[("a", 2)]));
    bench.arrive("b", 2);
    assert!(bench.actions().is_empty());
    bench.done(done_by(2, "w", "a", 2, AttemptEnd::Terminal));
    assert_eq!(
        bench.actions(),
        ["ack a: 1", "assign b to w: attempt 1, 0 strikes"]
    );
}

/// The worker that is kept goes on with what it has, and the suspect does not wait for those that come later.
#[test]
fn a_busy_worker_is_kept_and_waited_for() {
    let mut bench = with_strikes_max(1);
    let ready = |report| with_model(report, "m", ModelState::Ready);
    bench.report(ready(report("v", 1, 1, &[])));
    bench.arrive("x", 1);
    bench.accept("v", "x", 1, 1);
    bench.report(ready(report("w", 1, 1, &[])));
    bench.arrive("y", 2);
    bench.accept("w", "y", 1, 1);
    assert_eq!(
        bench.actions(),
        [
            "assign x to v: attempt 1, 0 strikes",
            "assign y to w: attempt 1, 0 strikes"
        ]
    );
    bench.wait(3.9);
    bench.report(ready(report("v", 2, 1, &[("x", 1)])));
    bench.wait(0.1);
    bench.arrive("z", 3);
    assert!(
        bench.actions().is_empty(),
        "v is kept for y, although it has a slot"
    );
    bench.done(done("v", "x", 1, AttemptEnd::Terminal));
    assert_eq!(
        bench.actions(),
        ["ack x: 1", "assign y to v: attempt 2, 0 strikes, alone"]
    );
}

/// With one worker and answers that take long, those that come later would wait for all suspects.
#[test]
fn suspects_and_others_take_turns() {
    let mut bench = died_with(&["a", "b"]);
    bench.accept("w", "a", 2, 1);
    bench.arrive("c", 3);
    bench.arrive("d", 4);
    bench.actions();
    for seq in 2..5 {
        bench.wait(1.0);
        bench.report(alone("w", 2, seq, ("a", 2)));
    }
    assert!(bench.actions().is_empty());
    bench.done(done_by(2, "w", "a", 2, AttemptEnd::Terminal));
    bench.report(restarted("w", 2, 5, 1, &[]));
    assert_eq!(
        bench.actions(),
        ["ack a: 1", "assign c to w: attempt 1, 0 strikes"]
    );
    bench.accept("w", "c", 1, 5);
    bench.wait(2.9);
    bench.done(done_by(2, "w", "c", 1, AttemptEnd::Terminal));
    assert_eq!(
        bench.actions(),
        ["ack c: 3", "assign d to w: attempt 1, 0 strikes"]
    );
    bench.accept("w", "d", 1, 5);
    bench.arrive("e", 5);
    bench.wait(0.2);
    bench.report(restarted("w", 2, 6, 0, &[("d", 1)]));
    bench.done(done_by(2, "w", "d", 1, AttemptEnd::Terminal));
    assert_eq!(
        bench.actions(),
        ["ack d: 4", "assign b to w: attempt 2, 0 strikes, alone"]
    );
}

/// Most workers die for other reasons, and all that ran would wait for each other.
#[test]
fn those_who_ran_when_a_worker_died_go_on_at_once_beside_others_but_for_the_last_strike() {
    let mut bench = Bench::new();
    bench.report(report("w", 1, 3, &[]));
    for (id, sequence) in [("a", 1), ("b", 2)] {
        bench.arrive(id, sequence);
        bench.accept("w", id, 1, 1);
    }
    bench.actions();
    bench.report(restarted("w", 2, 1, 3, &[]));
    let beside = [
        "assign a to w: attempt 2, 1 strikes",
        "assign b to w: attempt 2, 1 strikes",
    ];
    assert_eq!(bench.actions(), beside);
    for id in ["a", "b"] {
        bench.accept("w", id, 2, 1);
    }
    bench.report(restarted("w", 3, 1, 3, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 3, 2 strikes, alone"]);
    bench.accept("w", "a", 3, 1);
    bench.done(done_by(3, "w", "a", 3, AttemptEnd::Terminal));
    assert_eq!(
        bench.actions(),
        ["ack a: 1", "assign b to w: attempt 3, 2 strikes, alone"]
    );
}

#[test]
fn only_who_kills_its_worker_alone_becomes_a_dead_letter() {
    let mut bench = died_with(&["a", "b", "c"]);
    assert_eq!(bench.actions(), ["assign a to w: attempt 2, 0 strikes, alone"]);
    bench.accept("w", "a", 2, 1);
    bench.wait(1.0);
    bench.report(restarted("w", 3, 1, 3, &[]));
    assert_eq!(
        bench.actions(),
        [
            "bury a",
            "end a: poisoned",
            "assign b to w: attempt 2, 0 strikes",
            "assign c to w: attempt 2, 0 strikes"
        ],
        "it was found who is to blame: the others need not run alone"
    );
    assert_eq!(bench.dispatcher.stats().cleared, 2);
}

#[test]
fn who_is_cleared_has_one_strike_less() {
    let mut bench = with_strikes_max(2);
    bench.report(report("w", 1, 3, &[]));
    for (id, sequence) in [("a", 1), ("b", 2)] {
        bench.arrive(id, sequence);
        bench.accept("w", id, 1, 1);
    }
    bench.actions();
    bench.report(restarted("w", 2, 1, 3, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 2, 1 strikes, alone"]);
    bench.accept("w", "a", 2, 1);
    bench.report(restarted("w", 3, 1, 3, &[]));
    assert_eq!(
        bench.actions(),
        ["bury a", "end a: poisoned", "assign b to w: attempt 2, 0 strikes"]
    );
}

#[test]
fn a_new_leader_finds_in_the_journal_who_is_a_suspect_and_who_ran_alone() {
    let mut bench = with_strikes_max(2);
    bench.report(restarted("w", 2, 1, 3, &[]));
    let open = |incarnation, alone| JournalState::Open {
        attempt: Attempt(1),
        strikes: Strikes(0),
        worker: worker("w"),
        incarnation: Some(incarnation),
        alone,
    };
    for (id, sequence, incarnation, is_alone, then) in [
        ("same", 1, 2, false, "assign same to w: attempt 2, 0 strikes"),
        (
            "dead",
            2,
            1,
            false,
            "assign dead to w: attempt 2, 1 strikes, alone",
        ),
        (
            "struck",
            3,
            1,
            true,
            "assign struck to w: attempt 2, 1 strikes, alone",
        ),
        (
            "back",
            4,
            2,
            true,
            "assign back to w: attempt 2, 0 strikes, alone",
        ),
    ] {
        bench.arrive_again(id, sequence);
        bench.journal(id, open(incarnation, is_alone));
        assert_eq!(bench.actions(), [&format!("read {id}"), then]);
        bench.accept("w", id, 2, 1);
        bench.done(done_by(2, "w", id, 2, AttemptEnd::Terminal));
        assert_eq!(bench.actions(), [format!("ack {id}: {sequence}")]);
    }
}

#[test]
fn a_new_leader_takes_over_who_runs_alone() {
    let mut bench = Bench::new();
    bench.report(alone("w", 1, 5, ("a", 3)));
    bench.arrive_again("a", 1);
    bench.journal(
        "a",
        JournalState::Open {
            attempt: Attempt(3),
            strikes: Strikes(1),
            worker: worker("w"),
            incarnation: Some(1),
            alone: true,
        },
    );
    bench.arrive("b", 2);
    assert_eq!(bench.actions(), ["read a"]);
    bench.report(restarted("w", 2, 1, 3, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 4, 2 strikes, alone"]);
}

#[test]
fn a_worker_that_runs_one_request_alone_is_not_kept_for_another() {
    let mut bench = with_strikes_max(1);
    bench.report(report("w", 1, 1, &[]));
    bench.arrive("a", 1);
    bench.accept("w", "a", 1, 1);
    bench.report(alone("w", 2, 1, ("x", 2)));
    bench.arrive_again("x", 2);
    bench.journal("x", JournalState::Empty);
    assert_eq!(
        bench.actions(),
        ["assign a to w: attempt 1, 0 strikes", "read x"],
        "x was given there by another leader"
    );
    bench.done(done_by(2, "w", "x", 2, AttemptEnd::Terminal));
    bench.report(restarted("w", 2, 2, 1, &[]));
    assert_eq!(
        bench.actions(),
        ["ack x: 2", "assign a to w: attempt 2, 0 strikes, alone"]
    );
}

#[test]
fn a_worker_that_was_only_cut_off_has_killed_nobody() {
    let mut bench = Bench::new();
    bench.report(report("w", 1, 1, &[]));
    bench.arrive("a", 1);
    bench.accept("w", "a", 1, 1);
    bench.actions();
    bench.report(report("w", 2, 0, &[("a", 1)]));
    bench.wait(5.0);
    assert_eq!(bench.dispatcher.stats().strikes, 1);
    bench.report(report("w", 9, 0, &[("a", 1)]));
    bench.report(restarted("w", 3, 1, 3, &[]));
    let stroke = bench.actions().pop();
    assert_eq!(
        stroke.as_deref(),
        Some("assign a to w: attempt 2, 1 strikes"),
        "the strike for its silence is taken back, the one for its death is not"
    );
}

#[test]
fn a_suspect_is_cancelled_and_has_a_deadline_as_others_have() {
    let mut bench = with_strikes_max(1);
    bench.report(report("w", 1, 3, &[]));
    for (id, sequence, deadline_ms) in [("a", 1, None), ("b", 2, Some(9000)), ("c", 3, None)] {
        bench.arrive_as(Arrival {
            deadline_in: deadline_ms.map(Duration::from_millis),
            ..arrival(id, sequence)
        });
        bench.accept("w", id, 1, 1);
    }
    bench.actions();
    bench.wait(4.0);
    assert_eq!(bench.dispatcher.queued_count(), 3);
    let queued = bench.dispatcher.queued(bench.now).count();
    assert_eq!(queued, 3, "operators see them");
    bench.dispatcher.handle_cancel(bench.now, &request("a"));
    assert_eq!(bench.actions(), ["end a: finished"]);
    bench.wait(5.1);
    assert_eq!(bench.actions(), ["end b: deadline_exceeded"]);
    bench
        .dispatcher
        .handle_model_removed(bench.now, &crate::bench::model("m"));
    assert_eq!(bench.actions(), ["end c: unknown_model"]);
}

/// A stopped process that went on had the request, and its reports were taken for late ones for ever.
#[test]
fn an_answer_of_an_earlier_start_of_the_worker_is_not_believed() {
    let mut bench = Bench::new();
    bench.report(report("w", 70, 1, &[]));
    bench.report(restarted("w", 2, 1, 1, &[]));
    bench.arrive("a", 1);
    assert_eq!(bench.actions(), ["assign a to w: attempt 1, 0 strikes"]);
    bench.outcome("w", "a", 1, accepted(70, 1));
    assert!(bench.actions().is_empty());
    assert_eq!(bench.dispatcher.stats().unanswered, 1);
    bench.report(restarted("w", 2, 2, 1, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 2, 0 strikes"]);
}

/// The reports of its former self, with larger numbers, seemed to say that the attempt was over.
#[test]
fn an_answer_of_a_start_that_has_not_reported_yet_is_not_compared_with_reports_of_the_one_before() {
    let mut bench = Bench::new();
    bench.report(report("w", 50, 1, &[]));
    bench.arrive("a", 1);
    bench.outcome("w", "a", 1, accepted(0, 2));
    bench.report(report("w", 51, 1, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 1, 0 strikes"]);
    bench.report(restarted("w", 2, 1, 0, &[("a", 1)]));
    bench.done(done_by(2, "w", "a", 1, AttemptEnd::Terminal));
    assert_eq!(bench.actions(), ["ack a: 1"]);
}

#[test]
fn an_attempt_of_a_start_that_never_reported_is_broken_by_the_next_one() {
    let mut bench = Bench::new();
    bench.report(report("w", 50, 1, &[]));
    bench.arrive("a", 1);
    bench.outcome("w", "a", 1, accepted(0, 2));
    bench.actions();
    bench.report(restarted("w", 3, 1, 1, &[]));
    assert_eq!(bench.actions(), ["assign a to w: attempt 2, 1 strikes"]);
}

#[test]
fn a_broken_journal_is_no_strike_and_nobody_tries_to_go_on_with_it() {
    let mut bench = died_with(&["a"]);
    bench.actions();
    bench.accept("w", "a", 2, 1);
    let reason = "an event of nobody".to_owned();
    bench.done(done_by(2, "w", "a", 2, AttemptEnd::JournalBroken { reason }));
    assert_eq!(bench.actions(), ["bury a", "end a: internal"]);
    bench.ended("a");
    assert_eq!(bench.actions(), ["ack a: 1"]);
    bench.arrive_again("b", 2);
    let reason = "an event of nobody".to_owned();
    bench.journal("b", JournalState::Broken { reason });
    assert_eq!(bench.actions(), ["read b", "bury b", "end b: internal"]);
    assert_eq!(bench.dispatcher.stats().strikes, 0);
}

fn accepted(report_seq: u64, incarnation: u64) -> AssignOutcome {
    AssignOutcome::Replied(AssignReply::Accepted {
        report_seq,
        incarnation: Some(incarnation),
    })
}
