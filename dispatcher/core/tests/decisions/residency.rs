//! Which models are brought where, and what goes for them.

use flotilla_protocol::catalog::CatalogEntry;
use flotilla_protocol::profile::{LoadSeconds, Profile};

use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::words::{ask, entry, flat};

/// Longer than every model has to stay.
const LONG: f64 = 40.0;

#[test]
fn a_cold_model_takes_the_place_that_is_missed_least() {
    for [hot_on, idle_on] in [["v", "w"], ["w", "v"]] {
        let mut fleet = Fleet::new();
        fleet.join(Machine::new(hot_on, "k").room_for(1).with("hot"));
        fleet.join(Machine::new(idle_on, "k").room_for(1).with("idle"));
        fleet.wait(LONG);
        for index in 0..20 {
            fleet.send(ask(&format!("hot{index}")).of("hot").takes(0.1));
            fleet.wait(0.2);
        }
        fleet.order();
        fleet.catalog(entry("cold"));
        fleet.send(ask("c").of("cold"));
        assert_eq!(fleet.placed(), [format!("c on {idle_on}")]);
        assert_eq!(fleet.victims, ["idle"]);
        let stats = fleet.bench.dispatcher.stats();
        assert_eq!((stats.assigned_cold, stats.victims), (1, 1));
    }
}

#[test]
fn a_cold_model_goes_where_nothing_has_to_go_for_it() {
    let mut fleet = Fleet::new();
    fleet.join(Machine::new("v", "k").room_for(1).with("idle"));
    fleet.join(Machine::new("w", "k").room_for(2).with("other"));
    fleet.wait(LONG);
    fleet.catalog(entry("cold"));
    fleet.send(ask("c").of("cold"));
    assert_eq!(fleet.placed(), ["c on w"]);
    assert!(fleet.victims.is_empty());
}

#[test]
fn a_cold_model_goes_where_its_weights_are_in_host_memory() {
    for keeper in ["v", "w"] {
        let load_seconds_by_tier = Some(LoadSeconds {
            host: Some(2.0),
            origin: Some(20.0),
            ..LoadSeconds::default()
        });
        let mut fleet = Fleet::new();
        let profile = Profile {
            load_seconds_by_tier,
            ..flat("k", 1.0, 1.0)
        };
        fleet.profile("cold", profile);
        for id in ["v", "w"] {
            let machine = Machine::new(id, "k");
            fleet.join(match id == keeper {
                true => machine.keeping("cold"),
                false => machine.keeping("other"),
            });
        }
        fleet.send(ask("c").of("cold"));
        assert_eq!(fleet.placed(), [format!("c on {keeper}")]);
    }
}

#[test]
fn a_device_that_failed_gets_no_model() {
    for broken in ["v", "w"] {
        let mut fleet = Fleet::new();
        fleet.catalog(entry("cold"));
        let mut sound = "";
        for id in ["v", "w"] {
            let machine = Machine::new(id, "k");
            if id == broken {
                fleet.join(machine.broken());
            } else {
                sound = id;
                fleet.join(machine);
            }
        }
        fleet.send(ask("c").of("cold"));
        assert_eq!(fleet.placed(), [format!("c on {sound}")]);
    }
}

/// The least wanted goes, and no more than has to.
#[test]
fn victims_are_named_the_least_wanted_first_and_only_as_many_as_make_room() {
    let mut fleet = Fleet::new();
    fleet.join(Machine::new("w", "k").room_for(3).with("x").with("y").with("z"));
    fleet.wait(LONG);
    for (name, count) in [("x", 8), ("y", 2), ("z", 4)] {
        for index in 0..count {
            fleet.send(ask(&format!("{name}{index}")).of(name).takes(0.1));
        }
    }
    fleet.wait(1.0);
    fleet.catalog(entry("cold"));
    fleet.send(ask("c").of("cold"));
    assert_eq!(fleet.victims, ["y"]);
    fleet.catalog(entry("colder"));
    fleet.send(ask("d").of("colder"));
    assert_eq!(fleet.victims, ["y", "z"], "what has just come stays");
}

/// A fleet whose only worker holds one model and has room for no other; the request for another one has come.
fn cold_behind(prepare: impl FnOnce(&mut Fleet)) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.catalog(entry("cold"));
    fleet.join(Machine::new("w", "k").room_for(1).with("m"));
    fleet.wait(LONG);
    prepare(&mut fleet);
    fleet.order();
    fleet.send(ask("c").of("cold"));
    fleet
}

#[test]
fn a_pinned_model_stays() {
    let pinned = |pin| CatalogEntry { pin, ..entry("m") };
    let mut fleet = cold_behind(|fleet| fleet.catalog(pinned(true)));
    fleet.wait(LONG);
    assert!(fleet.order().is_empty());
    fleet.catalog(pinned(false));
    fleet.wait(0.3);
    assert_eq!(fleet.order(), ["c"]);
}

#[test]
fn a_model_that_is_used_stays_until_it_is_not() {
    let mut fleet = cold_behind(|fleet| fleet.send(ask("user")));
    fleet.wait(1.5);
    assert!(fleet.order().is_empty());
    fleet.end("user");
    fleet.report("w");
    assert_eq!(fleet.order(), ["c"]);
    assert_eq!(fleet.victims, ["m"]);
}

#[test]
fn a_model_that_others_wait_for_stays() {
    let mut fleet = Fleet::new();
    fleet.catalog(entry("cold"));
    for name in ["m", "busy"] {
        fleet.profile(name, flat("k", 1.0, 1.0));
    }
    fleet.join(Machine::new("w", "k").room_for(2).with("m").with("busy"));
    fleet.wait(LONG);
    fleet.send(ask("user").of("busy"));
    fleet.send(ask("waits"));
    fleet.send(ask("c").of("cold"));
    assert_eq!(fleet.order(), ["user"]);
    fleet.wait(1.5);
    assert!(fleet.order().is_empty());
    fleet.cancel("waits");
    fleet.wait(0.3);
    assert_eq!(fleet.order(), ["c"]);
    assert_eq!(fleet.victims, ["m"]);
}

#[test]
fn a_model_that_was_just_loaded_stays_for_four_times_its_load() {
    let mut fleet = Fleet::new();
    for name in ["first", "second"] {
        fleet.catalog(entry(name));
    }
    fleet.join(Machine::new("w", "k").room_for(1));
    fleet.send(ask("a").of("first").takes(0.1));
    fleet.send(ask("b").of("second").takes(0.1));
    fleet.wait(1.2);
    assert_eq!(fleet.order(), ["a"]);
    // Ready after 1 s, so that it stays until 5 s.
    fleet.wait(3.7);
    assert!(fleet.order().is_empty());
    fleet.wait(0.6);
    assert_eq!(fleet.order(), ["b"]);
}

/// With a load of 3 s and a gain of 2, another copy is worth a queue of more than 6 s.
#[test]
fn a_hot_model_gets_one_more_copy_when_its_queue_is_worth_it_and_not_before() {
    let load_seconds_by_tier = Some(LoadSeconds {
        host: Some(3.01),
        origin: Some(3.01),
        ..LoadSeconds::default()
    });
    let mut fleet = Fleet::new();
    let profile = Profile {
        load_seconds_by_tier,
        ..flat("k", 1.0, 1.0)
    };
    fleet.profile("m", profile);
    fleet.join(Machine::new("v", "k").with("m"));
    fleet.join(Machine::new("w", "k"));
    for index in 0..6 {
        fleet.send(ask(&format!("r{index}")));
    }
    assert_eq!(
        fleet.placed(),
        ["r0 on v"],
        "1 s until it ends, and 5 s of others"
    );
    fleet.send(ask("r6"));
    assert_eq!(fleet.placed(), ["r1 on w"]);
    for index in 7..20 {
        fleet.send(ask(&format!("r{index}")));
    }
    assert!(fleet.placed().is_empty(), "one copy is on its way");
    assert_eq!(fleet.bench.dispatcher.stats().assigned_cold, 1);
}

/// The worker's newest report cannot know of what was given to it a moment ago.
#[test]
fn room_is_given_to_one_model_and_a_model_that_goes_gets_no_more_requests() {
    let mut fleet = Fleet::new();
    for name in ["first", "second"] {
        fleet.catalog(entry(name));
    }
    fleet.join(Machine::new("v", "k").room_for(1));
    fleet.send(ask("a").of("first"));
    fleet.send(ask("b").of("second"));
    assert_eq!(fleet.placed(), ["a on v"]);
    let mut fleet = Fleet::new();
    fleet.catalog(entry("cold"));
    fleet.join(Machine::new("w", "k").room_for(1).with("m"));
    fleet.wait(LONG);
    fleet.send(ask("c").of("cold"));
    fleet.send(ask("r"));
    assert_eq!(fleet.placed(), ["c on w"], "m is on its way out");
}

#[test]
fn requests_of_a_cold_model_share_one_load() {
    let mut fleet = Fleet::new();
    fleet.catalog(entry("cold"));
    fleet.profile("cold", flat("k", 1.0, 4.0));
    fleet.join(Machine::new("v", "k"));
    fleet.join(Machine::new("w", "k"));
    for id in ["a", "b", "c", "d"] {
        fleet.send(ask(id).of("cold").takes(1.0));
    }
    assert_eq!(fleet.placed(), ["a on v", "b on v", "c on v", "d on v"]);
    fleet.wait(2.5);
    assert_eq!(fleet.answered.len(), 4);
    assert_eq!(fleet.bench.dispatcher.stats().assigned_cold, 1);
}

/// A model whose requests never stop keeps its device: the cold one gets a reservation.
#[test]
fn a_cold_model_behind_a_busy_one_starts_within_a_bounded_time() {
    let mut fleet = Fleet::new();
    fleet.catalog(entry("cold"));
    fleet.profile("m", flat("k", 1.0, 2.0));
    fleet.join(Machine::new("w", "k").room_for(1).with("m"));
    for index in 0..150 {
        fleet.send_in(f64::from(index) * 0.4, ask(&format!("m{index}")).takes(1.0));
    }
    fleet.wait(10.0);
    fleet.order();
    let since = fleet.bench.now;
    fleet.send(ask("c").of("cold").takes(0.5));
    fleet.wait(6.0);
    assert!(fleet.is_answered_within("c", since, 5.5), "{:?}", fleet.why("c"));
    assert!(fleet.bench.dispatcher.stats().reservations > 0);
    fleet.wait_for_all(200.0);
}

#[test]
fn a_model_that_nobody_has_room_for_is_prefetched_once_in_a_while() {
    let mut fleet = cold_behind(|fleet| {
        let pin = true;
        fleet.catalog(CatalogEntry { pin, ..entry("m") });
    });
    fleet.send(ask("d").of("cold"));
    fleet.wait(59.0);
    assert_eq!(fleet.told(), ["prefetch cold on w"]);
    fleet.wait(5.0);
    assert_eq!(fleet.told(), ["prefetch cold on w"]);
    assert_eq!(fleet.bench.dispatcher.stats().prefetches, 2);
}
