//! Whose turn it is among classes and tenants.

use std::collections::BTreeMap;

use flotilla_dispatcher_core::{PolicySettings, Weights};

use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::words::{Ask, ask, flat};

/// One device that runs one request at a time, and runs one now.
fn one_by_one(weights: Weights) -> Fleet {
    let mut fleet = Fleet::with(PolicySettings {
        weights,
        ..PolicySettings::default()
    });
    for name in ["m", "other"] {
        fleet.profile(name, flat("k", 1.0, 1.0));
    }
    fleet.join(Machine::new("w", "k").with("m").with("other"));
    fleet.send(ask("blocker"));
    assert_eq!(fleet.order(), ["blocker"]);
    fleet
}

/// How many of the next `count` requests belong to whom; ids begin with the owner's name and a dash.
fn served(fleet: &mut Fleet, running: &str, count: usize) -> BTreeMap<String, usize> {
    let mut running = running.to_owned();
    let mut owners = BTreeMap::new();
    for _ in 0..count {
        fleet.end(&running);
        let next = fleet.order();
        assert_eq!(next.len(), 1, "one ends, one begins");
        running.clone_from(&next[0]);
        let owner = running.split('-').next().unwrap();
        *owners.entry(owner.to_owned()).or_default() += 1;
    }
    owners
}

fn send_many(fleet: &mut Fleet, owner: &str, count: usize, like: impl Fn(Ask) -> Ask) {
    for index in 0..count {
        fleet.send(like(ask(&format!("{owner}-{index}"))));
    }
}

/// Who runs on the only worker.
fn running(fleet: &mut Fleet) -> String {
    let mut runs = fleet.machine("w").runs.keys();
    runs.next().expect("it is never idle").to_string()
}

#[test]
fn classes_get_tokens_in_proportion_to_their_weights() {
    for interactive in [3.0, 16.0] {
        let weights = Weights {
            interactive,
            batch: 1.0,
            ..Weights::default()
        };
        let mut fleet = one_by_one(weights);
        send_many(&mut fleet, "interactive", 300, |it| it);
        send_many(&mut fleet, "batch", 300, Ask::batch);
        let turns = served(&mut fleet, "blocker", 170);
        let expected = 170.0 * interactive / (interactive + 1.0);
        let got = f64::from(u32::try_from(turns["interactive"]).unwrap());
        assert!((got - expected).abs() <= 2.0, "{turns:?} for {interactive}");
    }
}

#[test]
fn a_tenant_with_ten_times_the_requests_gets_no_more_than_another() {
    let mut fleet = one_by_one(Weights::default());
    send_many(&mut fleet, "loud", 400, |it| it.tenant("loud"));
    send_many(&mut fleet, "quiet", 40, |it| it.tenant("quiet"));
    let turns = served(&mut fleet, "blocker", 60);
    assert!(turns["quiet"].abs_diff(turns["loud"]) <= 1, "{turns:?}");
}

#[test]
fn tenants_are_equal_in_tokens_and_not_in_requests() {
    let mut fleet = one_by_one(Weights::default());
    send_many(&mut fleet, "long", 200, |it| it.tenant("long").tokens(5, 195));
    send_many(&mut fleet, "short", 200, |it| it.tenant("short").tokens(5, 15));
    let turns = served(&mut fleet, "blocker", 110);
    assert!(turns["long"].abs_diff(10) <= 2, "{turns:?}");
}

#[test]
fn the_turn_is_a_tenants_whatever_model_it_asks_for() {
    let mut fleet = one_by_one(Weights::default());
    send_many(&mut fleet, "loud", 300, |it| it.tenant("loud"));
    send_many(&mut fleet, "quiet", 30, |it| it.tenant("quiet").of("other"));
    let turns = served(&mut fleet, "blocker", 40);
    assert!(turns["quiet"].abs_diff(turns["loud"]) <= 2, "{turns:?}");
}

#[test]
fn a_tenant_that_was_idle_has_no_claim_on_what_it_did_not_use() {
    let mut fleet = one_by_one(Weights::default());
    send_many(&mut fleet, "old", 200, |it| it.tenant("old"));
    served(&mut fleet, "blocker", 100);
    send_many(&mut fleet, "new", 100, |it| it.tenant("new"));
    let first = running(&mut fleet);
    let turns = served(&mut fleet, &first, 20);
    assert!(turns["new"].abs_diff(turns["old"]) <= 1, "{turns:?}");
}

/// The counters of those who never had to wait grew, and a newcomer to the empty queue had all turns until it had as
/// much as they.
#[test]
fn a_tenant_that_comes_to_an_empty_queue_has_no_claim_either() {
    let mut fleet = one_by_one(Weights::default());
    fleet.end("blocker");
    for index in 0..100 {
        let id = format!("old{index}");
        fleet.send(ask(&id).tenant("old"));
        fleet.end(&id);
    }
    fleet.send(ask("blocker-again").tenant("old"));
    fleet.order();
    send_many(&mut fleet, "new", 100, |it| it.tenant("new"));
    send_many(&mut fleet, "old", 100, |it| it.tenant("old"));
    let turns = served(&mut fleet, "blocker-again", 20);
    assert!(turns["new"].abs_diff(turns["old"]) <= 1, "{turns:?}");
}

#[test]
fn lost_causes_get_the_part_of_their_weight_and_never_nothing() {
    for (late, turns_of_late) in [(1.0, 10), (0.25, 3)] {
        let mut fleet = one_by_one(Weights {
            late,
            ..Weights::default()
        });
        send_many(&mut fleet, "late", 50, |it| it.aged(9.0).within(1.0));
        send_many(&mut fleet, "live", 400, |it| it);
        let turns = served(&mut fleet, "blocker", 170);
        assert!(turns["late"].abs_diff(turns_of_late) <= 1, "{late}: {turns:?}");
    }
}
