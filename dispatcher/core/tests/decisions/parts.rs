//! Workers with several devices, and models that lie on several of them.

use flotilla_protocol::admin::{Decision, Standing};

use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::shared::model;
use crate::words::{ask, entry, flat};

fn decision(fleet: &Fleet, id: &str) -> Decision {
    match fleet.why(id).standing {
        Standing::Assigned { decision, .. } => decision.expect("it was decided here"),
        other => panic!("{id} does not run: {other:?}"),
    }
}

/// Two devices with a model in parts on both, and a small one on the second.
fn fleet(share_large: f64, share_small: f64) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.profile("large", flat("2xk", 1.0, 1.0 / share_large));
    fleet.profile("small", flat("k", 1.0, 1.0 / share_small));
    let machine = Machine::new("w", "k").of_devices(2);
    fleet.join(machine.with_on("large", &[0, 1]).with_on("small", &[1]));
    fleet
}

#[test]
fn model_in_parts_has_the_profile_of_a_kind_of_its_own() {
    let mut fleet = fleet(0.5, 0.1);
    for id in ["a", "b", "c"] {
        fleet.send(ask(id).of("large"));
    }
    assert_eq!(
        fleet.placed(),
        ["a on w", "b on w"],
        "each takes half of both devices"
    );
    assert_eq!(decision(&fleet, "a").device_kind, "2xk");
    fleet.end("a");
    assert_eq!(fleet.placed(), ["c on w"]);
}

#[test]
fn what_runs_in_parts_takes_time_of_each_of_its_devices() {
    let mut fleet = fleet(0.6, 0.6);
    fleet.send(ask("a").of("large"));
    fleet.send(ask("b").of("small"));
    assert_eq!(
        fleet.placed(),
        ["a on w"],
        "the second device has not so much left"
    );
    fleet.end("a");
    assert_eq!(fleet.placed(), ["b on w"]);
    fleet.send(ask("c").of("large"));
    assert_eq!(fleet.placed(), [""; 0], "nor has it for the other one now");
    fleet.end("b");
    assert_eq!(fleet.placed(), ["c on w"]);
}

/// Nobody knows before where a worker will load a model: its report tells, and what was booked follows.
#[test]
fn bookings_move_to_the_device_that_the_worker_has_chosen() {
    let mut fleet = Fleet::new();
    for name in ["m", "other"] {
        fleet.profile(name, flat("k", 1.0, 1.0));
    }
    fleet.join(Machine::new("w", "k").of_devices(2).with_on("other", &[0]));
    fleet.machine("w").places.insert(model("m"), vec![0]);
    fleet.send(ask("a"));
    assert_eq!(
        fleet.placed(),
        ["a on w"],
        "it was thought to come to the empty device"
    );
    fleet.report("w");
    fleet.send(ask("b").of("other"));
    assert_eq!(
        fleet.placed(),
        [""; 0],
        "the first device is taken, as it turned out"
    );
    fleet.end("a");
    assert_eq!(fleet.placed(), ["b on w"]);
}

#[test]
fn parts_of_a_model_are_victims_on_each_device_by_what_they_have_there() {
    let mut fleet = Fleet::new();
    let machine = Machine::new("w", "k").of_devices(2).room_for(1);
    fleet.join(machine.with_on("large", &[0, 1]).with_on("small", &[1]));
    fleet.wait(120.0);
    fleet.catalog(entry("m"));
    fleet.send(ask("a"));
    assert_eq!(fleet.placed(), ["a on w"]);
    assert_eq!(
        fleet.victims,
        ["large"],
        "half of it is enough on the first device"
    );
}
