//! What each policy prefers, of the same three devices: a dear fast one, a cheap slow one that is fuller, and a cheap
//! slow one that is empty.

use flotilla_protocol::catalog::Policy;
use flotilla_protocol::profile::Profile;

use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::words::{Ask, ask, flat, with_policy};

fn placed(policy: Policy, asks: Vec<Ask>) -> Vec<String> {
    let mut fleet = Fleet::new();
    fleet.catalog(with_policy("m", policy));
    let costs = |cost, profile| Profile { cost, ..profile };
    fleet.profile("m", costs(9.0, flat("fast", 1.0, 4.0)));
    fleet.profile("m", costs(1.0, flat("slow", 3.0, 4.0)));
    fleet.join(Machine::new("c-fast", "fast").with("m").slots(50));
    fleet.join(
        Machine::new("b-full", "slow")
            .with("m")
            .running("x", "m")
            .running("y", "m"),
    );
    fleet.join(Machine::new("a-empty", "slow").with("m").slots(4));
    asks.into_iter().for_each(|ask| fleet.send(ask));
    fleet.placed()
}

#[test]
fn slo_takes_the_cheapest_that_is_in_time_and_of_equals_the_fullest() {
    let asks = vec![ask("loose").within(9.0), ask("tight").within(2.0)];
    assert_eq!(placed(Policy::Slo, asks), ["loose on b-full", "tight on c-fast"]);
}

#[test]
fn slo_takes_the_soonest_for_who_has_no_target_or_has_missed_it() {
    let asks = vec![ask("none"), ask("missed").aged(9.0).within(1.0)];
    assert_eq!(placed(Policy::Slo, asks), ["none on c-fast", "missed on c-fast"]);
}

#[test]
fn pack_takes_the_fullest_that_is_in_time() {
    let asks = vec![
        ask("loose").within(9.0),
        ask("none"),
        ask("tight").within(2.0),
        ask("more"),
    ];
    let expected = [
        "loose on b-full",
        "none on b-full",
        "tight on c-fast",
        "more on c-fast",
    ];
    assert_eq!(placed(Policy::Pack, asks), expected);
}

#[test]
fn spread_takes_the_emptiest_that_is_in_time() {
    let asks = vec![
        ask("loose").within(9.0),
        ask("more").within(9.0),
        ask("tight").within(2.0),
    ];
    let expected = ["loose on c-fast", "more on a-empty", "tight on c-fast"];
    assert_eq!(placed(Policy::Spread, asks), expected);
}

#[test]
fn fifo_takes_free_slots_in_order_of_arrival_whatever_the_targets() {
    let mut fleet = Fleet::new();
    fleet.catalog(with_policy("m", Policy::Fifo));
    fleet.profile("m", flat("k", 1.0, 1.0));
    fleet.join(Machine::new("w", "k").with("m").slots(1));
    fleet.send(ask("blocker"));
    fleet.send(ask("batch").batch().tenant("t"));
    fleet.send(ask("lost").aged(0.001).within(0.5));
    fleet.send(ask("urgent").within(1.01));
    for id in ["blocker", "lost", "batch"] {
        assert_eq!(fleet.order(), [id]);
        fleet.end(id);
    }
    assert_eq!(fleet.order(), ["urgent"]);
    assert_eq!(
        placed(Policy::Fifo, vec![ask("loose").within(9.0)]),
        ["loose on b-full"]
    );
}
