//! Who is next.

use flotilla_protocol::catalog::Policy;
use flotilla_protocol::profile::{Profile, ProfileSlos};

use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::words::{Ask, Takes, ask, flat, grid, per_token, with_policy};

/// A fleet of one device that runs one request at a time, and runs one now.
fn busy(profile: Profile) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.profile("m", profile);
    fleet.join(Machine::new("w", "k").with("m"));
    fleet.send(ask("blocker"));
    assert_eq!(fleet.order(), ["blocker"]);
    fleet
}

/// The order in which requests are placed on such a fleet, each when the one before it ends.
fn drained(fleet: &mut Fleet, first: &str) -> Vec<String> {
    let mut order = vec![first.to_owned()];
    while let Some(running) = order.last().cloned() {
        fleet.end(&running);
        let next = fleet.order();
        assert!(next.len() < 2);
        if next.is_empty() {
            break;
        }
        order.extend(next);
    }
    order.split_off(1)
}

/// AIBrix case 23: theirs is a ring that moves and doubles; here it is that nobody is lost, doubled or overtaken.
#[test]
fn requests_alike_leave_in_the_order_in_which_they_came() {
    let mut fleet = busy(flat("k", 1.0, 1.0));
    let ids: Vec<String> = (0..1000).map(|index| format!("r{index}")).collect();
    ids.iter().for_each(|id| fleet.send(ask(id)));
    for _ in 0..2 {
        let queued = fleet.bench.dispatcher.queued(fleet.bench.now);
        let queued: Vec<String> = queued.map(|it| it.request.to_string()).collect();
        assert_eq!(queued, ids, "looking at the queue takes nobody out");
    }
    assert_eq!(drained(&mut fleet, "blocker"), ids);
    assert_eq!(fleet.bench.dispatcher.held_count(), 0);
    assert!(fleet.bench.dispatcher.poll_action().is_none());
}

/// AIBrix case 24: theirs puts the first two into one line by arrival; here nobody is taken for another.
#[test]
fn requests_of_nearly_the_same_length_are_told_apart_by_their_slack() {
    let mut fleet = busy(per_token("k", 0.01, 1.0));
    fleet.wait(0.15);
    fleet.send(ask("a").tokens(100, 100).within(10.0));
    fleet.send(ask("b").tokens(120, 120).within(8.0));
    fleet.send(ask("c").tokens(1000, 400).within(6.0));
    let slacks = ["a", "b", "c"].map(|id| fleet.line(id).1.unwrap());
    assert_eq!(slacks, [9000, 6800, 2000]);
    assert_eq!(drained(&mut fleet, "blocker"), ["c", "b", "a"]);
}

/// AIBrix case 26, first half: theirs serves the one that was lost two seconds ago first, and then all are late.
#[test]
fn who_can_be_in_time_goes_before_those_that_cannot_and_these_go_by_arrival() {
    let mut fleet = busy(flat("k", 1.0, 1.0));
    fleet.wait(0.9);
    fleet.send(ask("lost").aged(2.0).within(1.0));
    fleet.send(ask("nearly").within(0.9));
    fleet.send(ask("later").within(2.5));
    fleet.send(ask("live").within(1.5));
    assert_eq!(fleet.line("live"), ("in_time".into(), Some(500)));
    assert_eq!(fleet.line("lost"), ("late".into(), None));
    assert_eq!(fleet.line("nearly"), ("late".into(), None));
    assert_eq!(fleet.bench.dispatcher.stats().late, 2);
    fleet.end("blocker");
    assert_eq!(fleet.order(), ["live"]);
    // A seventeenth of the device is for those that are late, and they have had nothing yet.
    assert_eq!(drained(&mut fleet, "live"), ["lost", "later", "nearly"]);
}

/// AIBrix case 26, second half.
#[test]
fn under_twice_the_load_more_are_in_time_than_first_come_first_served() {
    let in_time = |policy| {
        let mut fleet = Fleet::new();
        fleet.catalog(with_policy("m", policy));
        fleet.profile("m", per_token("k", 0.01, 4.0));
        fleet.join(Machine::new("v", "k").with("m").slots(4));
        fleet.join(Machine::new("w", "k").with("m").slots(4));
        // Two devices do 8 seconds a second; a second of these needs 16.
        let requests = 400;
        let since = fleet.bench.now;
        let at = |index: u32| f64::from(index) / 20.0;
        let seconds = |index: u32| [0.32, 1.28][usize::from(index % 2 == 1)];
        for index in 0..requests {
            let (prompt, tokens) = [(5, 32), (500, 128)][usize::from(index % 2 == 1)];
            let it = ask(&format!("r{index}"))
                .tokens(prompt, tokens)
                .takes(seconds(index));
            fleet.send_in(at(index), it.within(1.0 + 2.0 * seconds(index)));
        }
        fleet.wait_for_all(120.0);
        let is_met = |index: &u32| {
            let within = at(*index) + 1.0 + 2.0 * seconds(*index);
            fleet.is_answered_within(&format!("r{index}"), since, within + 1e-6)
        };
        (0..requests).filter(is_met).count()
    };
    let (ours, fifo) = (in_time(Policy::Slo), in_time(Policy::Fifo));
    assert!(ours > 3 * fifo, "{ours} against {fifo}");
    assert!(ours >= 200, "{ours}: the short ones alone could all be in time");
}

/// A fast and a slow device, the fast one taken, with the ids of their workers.
fn fast_taken(slow: Profile, [fast_id, slow_id]: [&str; 2]) -> Fleet {
    let mut fleet = Fleet::new();
    let fast = flat("fast", 1.0, 1.0);
    fleet.profile("m", Profile { cost: 3.0, ..fast });
    fleet.profile("m", slow);
    fleet.join(Machine::new(fast_id, "fast").with("m"));
    fleet.send(ask("blocker"));
    fleet.join(Machine::new(slow_id, "slow").with("m"));
    assert_eq!(fleet.order(), ["blocker"]);
    fleet
}

/// AIBrix case 27.
#[test]
fn a_slow_device_takes_what_it_can_serve_in_time_and_the_rest_waits_for_the_fast_one() {
    for [fast, slow] in [["a", "b"], ["b", "a"]] {
        let mut fleet = fast_taken(flat("slow", 3.0, 1.0), [fast, slow]);
        fleet.send(ask("tight").within(2.5));
        fleet.send(ask("loose").within(4.0));
        assert_eq!(fleet.placed(), [format!("loose on {slow}")]);
        fleet.end("blocker");
        assert_eq!(fleet.placed(), [format!("tight on {fast}")]);
    }
}

/// AIBrix case 28: theirs refuses the request when the slow group was asked last.
#[test]
fn a_request_waits_for_a_full_device_whatever_another_one_cannot_do() {
    let takes = |output: f64, _| Takes {
        seconds: output,
        work: output,
    };
    for [fast, slow] in [["a", "b"], ["b", "a"]] {
        let mut infeasible = grid("slow", &[1.0, 16.0], &[1.0, 8.0], takes);
        infeasible.tputs[1] = vec![0.0, 0.0];
        let mut fleet = fast_taken(infeasible, [fast, slow]);
        fleet.send(ask("r").within(2.5));
        fleet.wait(0.9);
        assert!(fleet.placed().is_empty() && fleet.told().is_empty());
        fleet.end("blocker");
        assert_eq!(fleet.placed(), [format!("r on {fast}")]);
    }
}

/// AIBrix case 29: theirs wakes up for an arrival and for nothing else. Here it is the same moment.
#[test]
fn a_worker_a_slot_and_a_profile_are_used_at_the_moment_they_come() {
    let mut fleet = fast_taken(flat("slow", 3.0, 1.0), ["a", "b"]);
    fleet.send(ask("by-profile").within(2.5));
    fleet.send(ask("by-slot").within(2.6));
    assert!(fleet.placed().is_empty());
    let faster = flat("slow", 1.0, 1.0);
    fleet.profile(
        "m",
        Profile {
            created: 2.0,
            ..faster
        },
    );
    assert_eq!(fleet.placed(), ["by-profile on b"]);
    fleet.end("blocker");
    assert_eq!(fleet.placed(), ["by-slot on a"]);
    fleet.send(ask("by-worker").within(2.5));
    assert!(fleet.placed().is_empty());
    fleet.join(Machine::new("c", "fast").with("m"));
    assert_eq!(fleet.placed(), ["by-worker on c"]);
}

/// AIBrix case 30: theirs keeps it until it is at the head of its line.
#[test]
fn a_cancelled_request_leaves_the_queue_at_once_and_nobody_else_notices() {
    let mut fleet = busy(flat("k", 1.0, 1.0));
    for id in ["a", "b", "c"] {
        fleet.send(ask(id));
    }
    fleet.cancel("b");
    assert_eq!(fleet.bench.dispatcher.queued_count(), 2);
    assert_eq!(drained(&mut fleet, "blocker"), ["a", "c"]);
}

/// Small requests that never leave a device empty, for a minute.
fn keep_busy(fleet: &mut Fleet, small: impl Fn(Ask) -> Ask) {
    for index in 0..400 {
        let it = ask(&format!("small{index}")).takes(1.0);
        fleet.send_in(f64::from(index) * 0.15, small(it));
    }
    fleet.wait(5.0);
}

/// AIBrix case 31, for one model: theirs lets small ones pass by for ever.
#[test]
fn a_large_urgent_request_starts_when_what_runs_has_ended() {
    let mut fleet = Fleet::new();
    let takes = |output: f64, _| Takes {
        seconds: 1.0,
        work: if output > 16.0 { 1.0 } else { 0.25 },
    };
    fleet.profile("m", grid("k", &[1.0, 16.0, 17.0, 1024.0], &[1.0, 1e6], takes));
    fleet.join(Machine::new("w", "k").with("m"));
    keep_busy(&mut fleet, |it| it.within(60.0));
    fleet.order();
    fleet.send(ask("large").tokens(5000, 400).takes(1.0).within(4.0));
    assert!(fleet.order().is_empty());
    fleet.wait(1.1);
    assert!(
        fleet.order().contains(&"large".to_owned()),
        "{:?}",
        fleet.why("large")
    );
}

/// AIBrix case 31, for another model.
#[test]
fn a_large_request_gets_a_device_to_itself_behind_small_ones_of_another_model() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 4.0));
    fleet.profile("large", flat("k", 1.0, 1.0));
    fleet.join(Machine::new("w", "k").with("m").with("large"));
    keep_busy(&mut fleet, |it| it);
    fleet.order();
    fleet.send(ask("it").of("large").takes(1.0));
    fleet.wait(3.5);
    assert!(fleet.order().contains(&"it".to_owned()), "{:?}", fleet.why("it"));
    assert_eq!(fleet.bench.dispatcher.stats().reservations, 1);
    fleet.wait(2.0);
    assert!(!fleet.order().is_empty(), "the device is open to all again");
}

/// Who stood before it could not have the device, and it was never looked at behind them: both waited for ever.
#[test]
fn a_device_that_is_kept_for_a_request_is_its_own_whoever_comes_before_it() {
    let mut fleet = busy(flat("k", 1.0, 1.0));
    fleet.send(ask("reserved").batch());
    fleet.wait(2.5);
    assert_eq!(fleet.bench.dispatcher.stats().reservations, 1);
    fleet.send(ask("first"));
    assert_eq!(drained(&mut fleet, "blocker"), ["reserved", "first"]);
}

/// AIBrix case 38: theirs knows no targets but the profile's.
#[test]
fn a_requests_own_deadline_rules_over_the_profiles_target() {
    let slos = ProfileSlos {
        e2e: Some(10.0),
        ..ProfileSlos::default()
    };
    let mut fleet = busy(Profile {
        slos: Some(slos),
        ..flat("k", 1.0, 1.0)
    });
    fleet.send(ask("of-profile"));
    fleet.send(ask("own").deadline(3.0));
    fleet.send(ask("looser").within(60.0));
    let targets = ["of-profile", "own", "looser"].map(|id| fleet.why(id).target_ms);
    assert_eq!(targets, [Some(10_000), Some(3000), Some(60_000)]);
    fleet.send(ask("passed").deadline(0.5));
    fleet.wait(0.6);
    assert_eq!(fleet.told(), ["end passed: deadline_exceeded"]);
    assert_eq!(drained(&mut fleet, "blocker"), ["own", "of-profile", "looser"]);
}

#[test]
fn least_slack_goes_first_whatever_came_first() {
    let mut fleet = busy(per_token("k", 0.01, 1.0));
    let lengths = [(50, 9.0), (400, 8.0), (100, 4.0), (10, 6.0), (200, 30.0)];
    let mut expected: Vec<(f64, String)> = Vec::new();
    for (index, (tokens, within)) in lengths.into_iter().enumerate() {
        let id = format!("r{index}");
        fleet.send(ask(&id).tokens(5, tokens).within(within));
        expected.push((within - f64::from(tokens) * 0.01, id));
    }
    expected.sort_by(|left, right| left.0.total_cmp(&right.0));
    let expected: Vec<String> = expected.into_iter().map(|(_, id)| id).collect();
    assert_eq!(drained(&mut fleet, "blocker"), expected);
}

#[test]
fn who_has_no_target_is_as_urgent_as_somebody_whose_patience_ends() {
    let mut fleet = busy(flat("k", 1.0, 1.0));
    fleet.send(ask("newcomer"));
    fleet.send(ask("with-target").within(3.5));
    fleet.send(ask("patient").aged(28.0));
    assert_eq!(
        drained(&mut fleet, "blocker"),
        ["patient", "with-target", "newcomer"]
    );
    let mut fleet = busy(flat("k", 1.0, 1.0));
    fleet.send(ask("young").batch().aged(590.0));
    fleet.send(ask("with-target").batch().within(6.0));
    fleet.send(ask("old").batch().aged(599.0));
    assert_eq!(drained(&mut fleet, "blocker"), ["old", "with-target", "young"]);
}

/// Moore and Hodgson: of five short ones and a long one that together cannot be in time, the long one is given up.
#[test]
fn the_longest_is_given_up_when_not_all_can_be_in_time_and_taken_back_when_there_is_room() {
    let mut fleet = busy(per_token("k", 0.01, 1.0));
    for index in 0..5 {
        fleet.send(ask(&format!("short{index}")).tokens(5, 100).within(8.0));
    }
    fleet.send(ask("long").tokens(5, 512).within(9.0));
    assert_eq!(fleet.line("long").0, "in_time");
    fleet.wait(0.3);
    assert_eq!(fleet.line("long"), ("given_up".into(), None));
    assert_eq!(fleet.bench.dispatcher.stats().given_up, 1);
    for index in 0..5 {
        assert_eq!(fleet.line(&format!("short{index}")).0, "in_time");
    }
    for index in 0..3 {
        fleet.cancel(&format!("short{index}"));
    }
    fleet.wait(0.3);
    assert_eq!(fleet.line("long").0, "in_time");
}

/// A long queue is gone through in parts, so that nothing else waits for long meanwhile.
#[test]
fn of_a_long_queue_some_are_given_up_at_a_time_until_all_are_that_have_to_be() {
    let mut fleet = busy(per_token("k", 0.01, 1.0));
    for index in 0..1000 {
        fleet.send(ask(&format!("r{index}")).tokens(5, 100).within(8.0));
    }
    let mut parts = Vec::new();
    let mut given_up = 0;
    for _ in 0..500 {
        fleet.wait(0.001);
        let before = std::mem::replace(&mut given_up, fleet.bench.dispatcher.stats().given_up);
        parts.extend((given_up > before).then_some(given_up - before));
    }
    assert!(
        parts.len() > 4 && parts.iter().all(|part| *part < 200),
        "{parts:?}"
    );
    let kept = 1000 - given_up;
    assert!(
        (5..8).contains(&kept),
        "there is time for 6 or so, and {kept} are kept"
    );
}

/// Each is found at the head of the queue, and a call that found them all would stop everything else for as long.
#[test]
fn of_many_that_have_become_late_unseen_some_are_found_at_a_time_and_the_slot_is_used() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 1.0));
    fleet.join(Machine::new("w", "k").with("m").slots(1));
    fleet.send(ask("blocker"));
    for index in 0..300 {
        fleet.send(ask(&format!("r{index}")).within(3.0));
    }
    fleet.wait(4.0);
    assert_eq!(fleet.order(), ["blocker"]);
    let before = fleet.bench.dispatcher.stats().late;
    fleet.end("blocker");
    let found = fleet.bench.dispatcher.stats().late - before;
    assert!((10..30).contains(&found), "{found}");
    fleet.wait(0.05);
    assert_eq!(fleet.order().len(), 1);
}
