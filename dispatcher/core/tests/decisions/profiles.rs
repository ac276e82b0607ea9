//! What profiles, and their absence, mean for decisions.

use std::collections::BTreeSet;

use flotilla_dispatcher_core::StreamSequence;
use flotilla_protocol::admin::Standing;
use flotilla_protocol::assignment::{AssignReply, Refusal};
use flotilla_protocol::catalog::CatalogEntry;
use flotilla_protocol::profile::{Profile, ProfileSlos, ProfileSource};
use flotilla_protocol::request::Slo;

use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::shared::{request, worker};
use crate::words::{Takes, ask, entry, flat, grid, per_token};

/// A model so large that an estimate of it lies in the range of these tests: with the 20 GB/s that are assumed of an
/// unknown device, 0.1 s for a token.
fn large(name: &str) -> CatalogEntry {
    let mut entry = entry(name);
    entry.facts.weights_bytes = 2_000_000_000;
    entry
}

/// AIBrix case 25: theirs has nothing for a group without a profile. Here it is estimated.
#[test]
fn a_device_without_a_profile_takes_what_the_others_leave_and_what_it_can_serve_in_time() {
    let mut fleet = Fleet::new();
    fleet.catalog(large("m"));
    let measured = flat("known", 1.0, 1.0);
    fleet.profile(
        "m",
        Profile {
            cost: 0.1,
            ..measured
        },
    );
    fleet.join(Machine::new("a", "other").with("m").slots(2));
    fleet.join(Machine::new("b", "known").with("m"));
    fleet.send(ask("first").within(9.0));
    fleet.send(ask("second").within(9.0));
    assert_eq!(fleet.placed(), ["first on b", "second on a"]);
    fleet.wait(0.9);
    fleet.send(ask("tight").within(1.3));
    assert!(fleet.placed().is_empty(), "16 tokens take 1.6 s there");
    fleet.end("first");
    assert_eq!(fleet.placed(), ["tight on b"]);
    let source = |kind| fleet.status("m", kind).source;
    assert_eq!(
        [source("known"), source("other")],
        [ProfileSource::Measured, ProfileSource::Estimated]
    );
}

/// AIBrix case 25, second half.
#[test]
fn without_any_profile_or_target_the_order_is_that_of_arrival() {
    let mut fleet = Fleet::new();
    fleet.join(Machine::new("w", "k").with("m").slots(1));
    for id in ["a", "b", "c", "d"] {
        fleet.send(ask(id));
    }
    for id in ["a", "b", "c"] {
        assert_eq!(fleet.order(), [id]);
        fleet.end(id);
    }
    assert_eq!(fleet.order(), ["d"]);
}

/// AIBrix case 32: theirs gives up its queue, its limit and its targets for want of a profile, of targets in it or of
/// times to the first token.
#[test]
fn no_profile_no_target_and_no_times_to_the_first_token_change_the_figures_and_not_the_rules() {
    let mut fleet = Fleet::new();
    fleet.catalog(large("m"));
    let lent = Machine::new("a", "k").with("m").slots(4);
    fleet.join(lent.running("x", "m").running("y", "m"));
    fleet.join(Machine::new("b", "k").with("m").slots(2));
    fleet.send(ask("target").within(9.0));
    assert_eq!(
        fleet.placed(),
        ["target on b"],
        "at once, and where least is booked"
    );
    fleet.send(ask("none"));
    fleet.send(ask("none2"));
    fleet.send(ask("none3"));
    assert_eq!(fleet.order().len(), 3);
    fleet.send(ask("loose").within(30.0));
    fleet.send(ask("tight").within(9.0));
    assert!(fleet.order().is_empty(), "slots are the limit of an estimate");
    fleet.end("none");
    assert_eq!(fleet.order(), ["tight"]);
    let silent = flat("k", 1.0, 3.0);
    let prefill_tokens_per_s = None;
    fleet.profile(
        "m",
        Profile {
            prefill_tokens_per_s,
            ..silent
        },
    );
    fleet.send(ask("first-token").slo(Slo {
        ttft_ms: Some(5000.0),
        ..Slo::default()
    }));
    // The shortest answer of the profile has one token, a sixteenth of a second.
    let (line, slack_ms) = fleet.line("first-token");
    assert_eq!((line.as_str(), slack_ms), ("in_time", Some(4937)));
}

/// AIBrix case 33: theirs refuses the request, as its cell has no throughput. Here it is late and runs when it can.
#[test]
fn a_request_that_no_device_serves_in_time_is_late_and_runs() {
    let slos = Some(ProfileSlos {
        e2e: Some(5.0),
        ..ProfileSlos::default()
    });
    let takes = |output: f64, input: f64| Takes {
        seconds: output * input / 100_000.0,
        work: output * input / 1_000_000.0,
    };
    let mut profile = grid("k", &[64.0, 512.0], &[128.0, 2048.0], takes);
    profile.tputs[1][1] = 0.0;
    let mut fleet = Fleet::new();
    fleet.profile("m", Profile { slos, ..profile });
    fleet.join(Machine::new("w", "k").with("m").slots(1));
    fleet.send(ask("answered").tokens(2048, 512));
    fleet.end("answered");
    fleet.send(ask("short").tokens(128, 64));
    fleet.send(ask("long").tokens(2048, 512));
    fleet.send(ask("shorter").tokens(128, 64));
    assert_eq!(fleet.line("long"), ("late".into(), None));
    assert_eq!(fleet.order(), ["answered", "short"]);
    fleet.end("short");
    let next = fleet.order();
    fleet.end(&next[0]);
    let mut both = [next, fleet.order()].concat();
    both.sort();
    assert_eq!(both, ["long", "shorter"]);
    assert!(fleet.told().is_empty(), "nobody is refused");
}

/// AIBrix case 34.
#[test]
fn the_first_request_of_all_is_served_and_counted_once() {
    let mut fleet = Fleet::new();
    fleet.join(Machine::new("v", "k").with("m"));
    fleet.join(Machine::new("w", "k").with("m"));
    fleet.send(ask("a"));
    assert_eq!(fleet.placed(), ["a on v"]);
    let mut again = ask("a").arrival;
    again.sequence = StreamSequence(77);
    fleet.bench.arrive_as(again.clone());
    fleet.bench.arrive_as(again);
    fleet.end("a");
    let stats = fleet.bench.dispatcher.stats();
    let counted = (stats.arrivals, stats.duplicates, stats.redeliveries);
    assert_eq!((counted, stats.assigned, stats.acked), ((3, 1, 1), 1, 2));
}

/// AIBrix case 35: a target of theirs is set once; here an assignment is answered once.
#[test]
fn the_second_answer_to_an_assignment_changes_nothing() {
    let mut fleet = Fleet::new();
    fleet.join(Machine::new("w", "k").with("m"));
    fleet.send(ask("a"));
    let Standing::Assigned { attempt, .. } = fleet.why("a").standing else {
        panic!("it runs")
    };
    fleet.report("w");
    let replies = [
        AssignReply::Refused(Refusal::Full),
        AssignReply::Accepted {
            report_seq: 1,
            incarnation: None,
        },
    ];
    for reply in replies {
        let outcome = flotilla_dispatcher_core::AssignOutcome::Replied(reply);
        let now = fleet.bench.now;
        fleet
            .bench
            .dispatcher
            .handle_assign_reply(now, &worker("w"), &request("a"), attempt, outcome);
    }
    fleet.report("w");
    assert_eq!(fleet.placed(), ["a on w"]);
    fleet.end("a");
    assert_eq!(fleet.bench.dispatcher.held_count(), 0);
}

/// A device that is taken, and two who wait for it: `long` has less slack while tokens take a hundredth of a second.
fn two_wait() -> Fleet {
    let mut fleet = Fleet::new();
    fleet.catalog(large("m"));
    fleet.profile("m", per_token("k", 0.01, 1.0));
    fleet.join(Machine::new("w", "k").with("m").slots(1));
    fleet.send(ask("blocker").tokens(5, 10));
    fleet.send(ask("short").tokens(5, 10).within(12.5));
    fleet.send(ask("long").tokens(5, 100).within(13.0));
    fleet.order();
    fleet
}

#[test]
fn a_new_profile_prices_those_who_wait_anew() {
    let mut fleet = two_wait();
    assert_eq!(
        (fleet.line("short").1, fleet.line("long").1),
        (Some(12_400), Some(12_000))
    );
    let faster = per_token("k", 0.001, 1.0);
    fleet.profile(
        "m",
        Profile {
            created: 2.0,
            ..faster
        },
    );
    assert_eq!(
        (fleet.line("short").1, fleet.line("long").1),
        (Some(12_490), Some(12_900))
    );
    assert_eq!(fleet.bench.dispatcher.stats().repricings, 1);
    fleet.end("blocker");
    assert_eq!(fleet.order(), ["short"]);
    let older = per_token("k", 0.01, 1.0);
    fleet.profile("m", older);
    assert_eq!(
        fleet.line("long").1,
        Some(12_900),
        "an older profile changes nothing"
    );
}

#[test]
fn a_lost_cause_is_none_any_more_when_a_new_profile_says_so() {
    let mut fleet = two_wait();
    fleet.send(ask("lost").tokens(5, 100).within(0.5));
    assert_eq!(fleet.line("lost").0, "late");
    let faster = per_token("k", 0.001, 1.0);
    fleet.profile(
        "m",
        Profile {
            created: 2.0,
            ..faster
        },
    );
    assert_eq!(fleet.line("lost"), ("in_time".into(), Some(400)));
    assert_eq!(fleet.bench.dispatcher.stats().late, 1);
}

/// Theirs falls back to first come, first served; here the estimate of 0.1 s for a token rules.
#[test]
fn without_its_profile_a_model_runs_on_an_estimate_and_keeps_its_order() {
    let mut fleet = two_wait();
    fleet.forget_profile("m", "k");
    let status = fleet.status("m", "k");
    assert_eq!((status.source, status.samples), (ProfileSource::Estimated, 0));
    // Less than 16 tokens count as 16 in an estimate.
    let slacks = [fleet.line("short").1, fleet.line("long").1].map(Option::unwrap);
    assert!((10_800..10_900).contains(&slacks[0]), "{slacks:?}");
    assert!((2850..2950).contains(&slacks[1]), "{slacks:?}");
    fleet.end("blocker");
    assert_eq!(fleet.order(), ["long"]);
}

/// Where reading a prompt takes no time at all, dividing by it made spans that no sum could hold.
#[test]
fn a_profile_with_absurd_figures_stops_nobody() {
    for prefill in [1e-9, 1e15, f64::MAX] {
        let mut fleet = Fleet::new();
        let prefill_tokens_per_s = Some(prefill);
        let absurd = flat("k", 1.0, 1.0);
        fleet.profile(
            "m",
            Profile {
                prefill_tokens_per_s,
                ..absurd
            },
        );
        fleet.join(Machine::new("w", "k").with("m"));
        fleet.send(ask("a").within(9.0));
        fleet.send(ask("b"));
        fleet.wait(1.0);
        assert_eq!(fleet.order(), ["a"], "{prefill}");
        fleet.end("a");
        assert_eq!(fleet.order(), ["b"], "{prefill}");
    }
}

/// A profile that is wrong by a factor is corrected by 50 requests, and then decides otherwise.
#[test]
fn a_wrong_profile_is_corrected_within_fifty_requests_and_decisions_follow() {
    // Each waits behind one that has just begun, so that the bound is twice the time of one.
    for (truth, within, before, after) in [(2.0, 3.0, "in_time", "late"), (0.5, 1.5, "late", "in_time")] {
        let mut fleet = Fleet::new();
        fleet.profile("m", flat("k", 1.0, 1.0));
        fleet.join(Machine::new("w", "k").with("m"));
        fleet.send(ask("blocker"));
        fleet.send(ask("early").within(within));
        assert_eq!(fleet.line("early").0, before, "{truth}");
        fleet.cancel("early");
        fleet.end("blocker");
        for index in 0..50 {
            fleet.send(ask(&format!("r{index}")).takes(truth));
        }
        fleet.wait_for_all(110.0);
        let status = fleet.status("m", "k");
        assert_eq!(status.samples, 50);
        let error = (status.correction / truth).ln().abs();
        assert!(error < 0.05, "{} for {truth}", status.correction);
        assert!(status.is_drifting, "it is off by more than half");
        fleet.send(ask("blocker-again"));
        fleet.send(ask("now").within(within));
        assert_eq!(fleet.line("now").0, after, "{truth}");
    }
}

#[test]
fn a_corrected_profile_prices_those_who_wait_anew() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 1.0));
    fleet.join(Machine::new("w", "k").with("m"));
    for index in 0..30 {
        fleet.send(ask(&format!("r{index}")).takes(1.5));
    }
    fleet.send(ask("waits").within(1000.0));
    let slack = |fleet: &Fleet| (fleet.line("waits").1.unwrap() as f64) / 1e3;
    let before = slack(&fleet);
    fleet.wait(30.0);
    let lost = before - 30.0 - slack(&fleet);
    assert!(
        (0.4..0.6).contains(&lost),
        "it takes {lost} s longer than was thought"
    );
    assert!(fleet.bench.dispatcher.stats().repricings > 0);
}

/// Prices of a long queue follow in parts, and those who move behind others on the way are not left out.
#[test]
fn a_corrected_profile_prices_every_one_of_many_who_wait_anew() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 1.0));
    fleet.join(Machine::new("w", "k").with("m"));
    for index in 0..30 {
        fleet.send(ask(&format!("r{index}")).takes(0.5));
    }
    for index in 0..600 {
        fleet.send(ask(&format!("waits{index}")).within(10_000.0));
    }
    fleet.wait(17.0);
    // The first of them runs by now.
    let slack = |index: i32| fleet.line(&format!("waits{index}")).1;
    let slacks: BTreeSet<_> = (1..600).map(slack).collect();
    let as_priced_at_first = (10_000 - 17 - 1) * 1000;
    assert_eq!(slacks.len(), 1, "all have the same price: {slacks:?}");
    assert!(slacks.first().unwrap().unwrap() > as_priced_at_first + 300);
}
