//! How much a device takes, and when it takes more.

use std::time::Duration;

use flotilla_dispatcher_core::PolicySettings;
use flotilla_protocol::admin::{Decision, Standing};
use flotilla_protocol::assignment::AttemptEnd;
use flotilla_protocol::catalog::Policy;
use flotilla_protocol::fleet::WorkerState;
use flotilla_protocol::profile::{Profile, ProfileSlos};
use flotilla_protocol::request::Slo;

use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::words::{Ask, Takes, ask, flat, grid, with_policy};

/// A worker that runs so many requests of others, each of which takes a tenth of its device.
fn with_tenths(id: &str, count: usize) -> Machine {
    let machine = Machine::new(id, "k").with("m");
    (0..count).fold(machine, |machine, index| {
        machine.running(&format!("{id}{index}"), "m")
    })
}

fn decision(fleet: &Fleet, id: &str) -> Decision {
    match fleet.why(id).standing {
        Standing::Assigned { decision, .. } => decision.expect("it was decided here"),
        other => panic!("{id} does not run: {other:?}"),
    }
}

fn waits_for(fleet: &Fleet, id: &str) -> String {
    match fleet.why(id).standing {
        Standing::Queued { waits_for, .. } => waits_for,
        other => panic!("{id} does not wait: {other:?}"),
    }
}

/// AIBrix case 16: of equal devices theirs takes the last, here it is the first by name, and where theirs fails for
/// want of a pod the request waits.
#[test]
fn spread_takes_the_emptiest_device_of_those_that_take_work() {
    let mut fleet = Fleet::new();
    fleet.catalog(with_policy("m", Policy::Spread));
    fleet.profile("m", flat("k", 1.0, 10.0));
    fleet.send(ask("early"));
    assert!(fleet.placed().is_empty());
    for (id, tenths) in [("a", 3), ("b", 1), ("c", 5)] {
        fleet.join(with_tenths(id, tenths));
    }
    assert_eq!(fleet.placed(), ["early on a"], "it was the first to come");
    let mut draining = with_tenths("d", 0);
    draining.state = WorkerState::Draining;
    fleet.join(draining);
    fleet.send(ask("r"));
    assert_eq!(fleet.placed(), ["r on b"]);
    for id in ["e", "f"] {
        fleet.join(with_tenths(id, 0));
    }
    fleet.send(ask("s"));
    assert_eq!(fleet.placed(), ["s on e"]);
}

/// AIBrix case 17.
#[test]
fn a_request_goes_where_it_takes_less_and_waits_where_it_exceeds_the_device() {
    let loaded = |load: [f64; 2]| {
        let mut fleet = Fleet::new();
        fleet.catalog(with_policy("m", Policy::Spread));
        for (kind, load, share) in [("a", load[0], 0.2), ("b", load[1], 0.1)] {
            fleet.profile("m", flat(kind, 1.0, 1.0 / share));
            fleet.profile("other", flat(kind, 1.0, 1.0 / load));
            let machine = Machine::new(kind, kind).with("m");
            fleet.join(machine.running(&format!("of-{kind}"), "other"));
        }
        fleet
    };
    let placed = |mut fleet: Fleet| {
        fleet.send(ask("r").within(9.0));
        fleet.placed()
    };
    assert_eq!(placed(loaded([0.3, 0.1])), ["r on b"]);
    assert_eq!(placed(loaded([0.95, 0.95])), [""; 0]);
    assert_eq!(placed(loaded([0.8, 0.95])), ["r on a"], "0.8 and 0.2 are a whole");
    let mut cheapest = loaded([0.3, 0.3]);
    cheapest.catalog(with_policy("m", Policy::Slo));
    assert_eq!(placed(cheapest), ["r on b"]);
}

/// AIBrix case 18.
#[test]
fn pack_gives_the_second_request_to_the_device_of_the_first() {
    let mut fleet = Fleet::new();
    fleet.catalog(with_policy("m", Policy::Pack));
    fleet.profile("m", flat("k", 1.0, 3.0));
    fleet.join(Machine::new("v", "k").with("m"));
    fleet.join(Machine::new("w", "k").with("m"));
    for id in ["a", "b", "c", "d"] {
        fleet.send(ask(id));
    }
    assert_eq!(fleet.placed(), ["a on v", "b on v", "c on v", "d on w"]);
}

/// AIBrix cases 19 and 20, the latter with its figures: six of these fit a device.
#[test]
fn who_waits_for_full_devices_gets_the_place_of_the_first_that_ends() {
    let mut fleet = Fleet::new();
    fleet.catalog(with_policy("m", Policy::Pack));
    let (rate, seconds) = (62.477, 0.099_53);
    fleet.profile("m", flat("k", seconds, rate * seconds));
    fleet.join(Machine::new("v", "k").with("m"));
    fleet.join(Machine::new("w", "k").with("m"));
    for index in 0..13 {
        fleet.send(ask(&format!("r{index}")));
    }
    let placed = fleet.placed();
    assert_eq!(placed.len(), 12);
    assert!(placed[..6].iter().all(|it| it.ends_with("on v")), "{placed:?}");
    assert!(placed[6..].iter().all(|it| it.ends_with("on w")), "{placed:?}");
    fleet.wait(0.01);
    assert!(fleet.placed().is_empty());
    fleet.end("r9");
    assert_eq!(fleet.placed(), ["r12 on w"]);
}

/// AIBrix case 21, whose half is in the tests of profiles: theirs never admits such a request.
#[test]
fn an_idle_device_takes_a_request_that_needs_more_than_it_has() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 0.0967, 8.56 * 0.0967));
    fleet.join(Machine::new("w", "k").with("m"));
    fleet.send(ask("a"));
    fleet.send(ask("b"));
    assert_eq!(fleet.placed(), ["a on w"]);
    fleet.end("a");
    assert_eq!(fleet.placed(), ["b on w"]);
}

/// AIBrix case 22: theirs lets rounding add up; here the sum is one of whole numbers.
#[test]
fn whatever_ends_a_request_its_booking_is_released_once_and_to_the_last_bit() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 7.3));
    fleet.join(Machine::new("w", "k").with("m"));
    for index in 0..100_000 {
        let id = format!("r{index}");
        fleet.send(ask(&id).answers(0));
        match index % 997 {
            1 => fleet.end_with(
                &id,
                AttemptEnd::Panicked {
                    message: "boom".into(),
                },
            ),
            2 => {
                fleet.end_with(
                    &id,
                    AttemptEnd::HandedBack {
                        reason: "full".into(),
                    },
                );
                fleet.report("w");
            }
            3 => {
                fleet.machine("w").restart();
                fleet.report("w");
            }
            4 => {
                fleet.bench.wait(5.0);
                fleet.machine("w").restart();
                fleet.report("w");
            }
            5 => {
                fleet.cancel(&id);
                fleet.end_with(
                    &id,
                    AttemptEnd::HandedBack {
                        reason: "cancelled".into(),
                    },
                );
                fleet.report("w");
                continue;
            }
            6 => fleet.new_leader(),
            _ => {}
        }
        fleet.end(&id);
    }
    fleet.bench.dispatcher.check_invariants();
    fleet.send(ask("last"));
    let Decision { share, load, .. } = decision(&fleet, "last");
    assert_eq!(share, load, "nothing is left of the others");
}

/// AIBrix case 36: theirs then gives everything to the only pod at once.
#[test]
fn a_single_worker_has_a_queue_a_limit_and_an_account() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 4.0));
    fleet.join(Machine::new("w", "k").with("m"));
    for id in ["a", "b", "c", "d", "e"] {
        fleet.send(ask(id));
    }
    assert_eq!(fleet.order(), ["a", "b", "c", "d"]);
    assert!(fleet.load_seen_by("e", "w") > FULL);
    assert_eq!(waits_for(&fleet, "e"), "a share of a device that has the model");
    fleet.end("c");
    assert_eq!(fleet.order(), ["e"]);
}

/// AIBrix case 37, first half: theirs forgets with its process what it has given away.
#[test]
fn a_new_leader_gives_a_full_fleet_nothing_until_something_ends() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 4.0));
    fleet.join(Machine::new("v", "k").with("m"));
    fleet.join(Machine::new("w", "k").with("m"));
    for index in 0..12 {
        fleet.send(ask(&format!("r{index:02}")));
    }
    assert_eq!(fleet.order().len(), 8);
    for _ in 0..3 {
        fleet.new_leader();
        fleet.wait(0.5);
        assert!(fleet.order().is_empty());
        assert_eq!(fleet.bench.dispatcher.stats().adopted, 8);
    }
    fleet.end("r03");
    assert_eq!(fleet.order(), ["r08"]);
}

/// AIBrix case 37, second half: what another leader has given to a worker takes its device as well.
#[test]
fn what_strangers_run_takes_the_device_until_its_worker_lists_it_no_more() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 4.0));
    let machine = Machine::new("w", "k").with("m");
    let strangers = ["x", "y", "z"];
    fleet.join(strangers.into_iter().fold(machine, |it, id| it.running(id, "m")));
    fleet.send(ask("a"));
    fleet.send(ask("b"));
    assert_eq!(fleet.order(), ["a"]);
    assert!(fleet.load_seen_by("b", "w") > FULL);
    fleet.machine("w").runs.retain(|id, _| id.as_str() != "y");
    fleet.report("w");
    assert_eq!(fleet.order(), ["b"]);
}

/// A leader may hear a worker's report before it has read what the worker's devices are.
#[test]
fn what_strangers_run_is_booked_by_the_devices_that_the_worker_registers_later() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 2.0));
    let machine = Machine::new("w", "k").with("m");
    let registration = machine.registration();
    fleet.join_unregistered(machine.running("x", "m").running("y", "m"));
    fleet
        .bench
        .dispatcher
        .handle_registration(fleet.bench.now, &registration);
    fleet.send(ask("a"));
    assert!(fleet.order().is_empty());
    assert!(fleet.load_seen_by("a", "w") > FULL);
}

/// Before its first token a request was taken to have just begun with each report.
#[test]
fn a_request_without_a_token_ends_no_later_for_being_reported_again() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 10.0, 1.0));
    fleet.join(Machine::new("w", "k").with("m"));
    fleet.send(ask("a"));
    fleet.send(ask("b"));
    fleet.wait(8.0);
    let starts_in_ms = fleet.why("b").candidates[0].starts_in_ms;
    assert!((2000..2010).contains(&starts_in_ms), "{starts_in_ms}");
}

/// A device that reads a prompt with all that it has and makes the tokens of ten answers at once.
fn prompts_first() -> Profile {
    let outputs: Vec<f64> = (0..12).map(f64::from).map(f64::exp2).collect();
    grid("k", &outputs, &[1.0, 5000.0], |output, input| Takes {
        seconds: input / 1000.0 + output * 0.01,
        work: input / 1000.0 + output * 0.001,
    })
}

/// It shrank with what was left, and made room for more than the device bore.
#[test]
fn a_booking_stays_what_was_admitted_until_its_request_ends() {
    let mut fleet = Fleet::new();
    fleet.profile("m", prompts_first());
    fleet.join(Machine::new("w", "k").with("m"));
    fleet.send(ask("a").tokens(5000, 512));
    fleet.send(ask("b").tokens(5000, 512));
    assert_eq!(fleet.order(), ["a"]);
    let admitted = decision(&fleet, "a").share;
    assert!(admitted > 0.5);
    for tokens in [1, 16, 64, 256, 511, 512, 513, 2000, 1_000_000] {
        fleet.made("a", tokens);
        let load = fleet.load_seen_by("b", "w");
        assert!((load - admitted).abs() < 1e-9, "{tokens}: {load}");
        assert!(fleet.order().is_empty(), "{tokens}");
    }
    fleet.end("a");
    assert_eq!(fleet.order(), ["b"]);
}

/// A profile whose targets are a second for a request, of which each takes a quarter of a device.
fn within_a_second() -> Profile {
    let slos = ProfileSlos {
        e2e: Some(1.0),
        ..ProfileSlos::default()
    };
    Profile {
        slos: Some(slos),
        ..flat("k", 1.0, 4.0)
    }
}

#[test]
fn who_has_more_time_than_the_profile_was_measured_with_takes_less_and_never_next_to_nothing() {
    let share_of = |ask: Ask| {
        let mut fleet = Fleet::new();
        fleet.profile("m", within_a_second());
        fleet.join(Machine::new("w", "k").with("m"));
        fleet.send(ask);
        decision(&fleet, "a").share
    };
    let close_to = |share: f64, expected: f64| assert!((share - expected).abs() < 1e-6, "{share}");
    close_to(share_of(ask("a")), 0.25);
    close_to(share_of(ask("a").within(1.0)), 0.25);
    close_to(share_of(ask("a").within(0.1)), 0.25);
    close_to(share_of(ask("a").within(2.0)), 0.125);
    let least = 0.25 * PolicySettings::default().share_part_min;
    close_to(share_of(ask("a").within(60.0)), least);
    let first_token_only = Slo {
        ttft_ms: Some(500.0),
        ..Slo::default()
    };
    close_to(share_of(ask("a").slo(first_token_only)), least);
}

#[test]
fn who_runs_is_made_late_by_no_more_than_is_tolerated() {
    // 16 tokens take 1.6 s alone and 2.4 s beside another: 300 ms too long for whoever has 2.1 s.
    for (tolerated_ms, second) in [(100, None), (290, None), (310, Some("b"))] {
        let mut fleet = Fleet::with(PolicySettings {
            harm_tolerance: Duration::from_millis(tolerated_ms),
            ..PolicySettings::default()
        });
        fleet.profile(
            "m",
            Profile {
                tpot_by_batch: Some(vec![(1.0, 0.1), (2.0, 0.15)]),
                ..flat("k", 1.0, 2.0)
            },
        );
        fleet.join(Machine::new("w", "k").with("m"));
        fleet.send(ask("a").within(2.1));
        assert_eq!(fleet.order(), ["a"]);
        fleet.send(ask("b"));
        assert_eq!(fleet.order(), Vec::from_iter(second), "{tolerated_ms}");
    }
}

#[test]
fn keys_and_values_are_a_limit_of_their_own() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 10.0));
    fleet.join(Machine::new("w", "k").with_kv("m", Some(100)));
    fleet.send(ask("alone").tokens(5, 400));
    assert_eq!(
        fleet.order(),
        ["alone"],
        "whether it is too long is for admission to say"
    );
    for id in ["a", "b", "c"] {
        fleet.send(ask(id).tokens(10, 40));
    }
    assert!(fleet.order().is_empty());
    assert_eq!(waits_for(&fleet, "a"), "memory for its keys and values");
    fleet.end("alone");
    assert_eq!(fleet.order(), ["a", "b"], "50 tokens each");
    fleet.end("b");
    assert_eq!(fleet.order(), ["c"]);
}

#[test]
fn slots_are_a_limit_of_their_own() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 10.0));
    fleet.join(Machine::new("w", "k").with("m").slots(2));
    for id in ["a", "b", "c"] {
        fleet.send(ask(id));
    }
    assert_eq!(fleet.order(), ["a", "b"]);
    assert_eq!(waits_for(&fleet, "c"), "a slot");
    fleet.end("b");
    assert_eq!(fleet.order(), ["c"]);
}

/// A device on which nothing is free but what rounding left.
const FULL: f64 = 1.0 - 1e-6;
