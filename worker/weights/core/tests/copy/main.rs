//! Whole copies on a virtual clock: a sender and its receivers over a relay that loses, spoils and refuses.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod world;

use std::time::Duration;

use flotilla_protocol::weights::CopyEnd;
use flotilla_weights_core::ReceivingEnd;
use proptest::prelude::*;
use world::{Faults, Plan, Stop, World};

const MIB: u64 = 1 << 20;

fn plan(segments: usize, receivers: &[u64]) -> Plan {
    Plan {
        segment_bytes: vec![8 * MIB; segments],
        joins: receivers.iter().map(|ms| Duration::from_millis(*ms)).collect(),
        stops: Vec::new(),
        window_bytes: 64 * MIB,
        relay_bytes: 1 << 30,
        faults: Faults::default(),
    }
}

#[test]
fn four_receivers_that_come_together_cost_one_upload_of_each_segment() {
    let outcome = World::run(plan(100, &[0, 1, 2, 3]), 1);
    assert_eq!(outcome.received, [Some(ReceivingEnd::Complete); 4]);
    assert_eq!(outcome.puts, [1; 100]);
    assert_eq!(outcome.sent, Some(CopyEnd::Done));
    assert_eq!(outcome.repairs, 0);
}

/// Four receivers on one machine cost the sender some segments twice: the first was ready while the others still made
/// room for the model, and what it had was deleted.
#[test]
fn receiver_that_comes_within_half_a_window_finds_everything_in_the_relay() {
    let mut plan = plan(100, &[0, 30]);
    plan.window_bytes = 256 * MIB;
    let outcome = World::run(plan, 1);
    assert_eq!(outcome.received, [Some(ReceivingEnd::Complete); 2]);
    assert_eq!(outcome.puts, [1; 100]);
    assert!(outcome.repairs > 0, "the beginning was fetched");
    assert_eq!(outcome.left_in_relay, 0);
}

#[test]
fn model_larger_than_the_window_passes_through_it() {
    let mut plan = plan(200, &[0]);
    plan.window_bytes = 16 * MIB;
    let outcome = World::run(plan, 1);
    assert_eq!(outcome.received, [Some(ReceivingEnd::Complete)]);
    assert!(outcome.relay_bytes_max <= 16 * MIB, "{}", outcome.relay_bytes_max);
}

#[test]
fn late_receiver_takes_the_rest_with_the_others_and_the_beginning_after_them() {
    let outcome = World::run(plan(100, &[0, 300]), 1);
    assert_eq!(outcome.received, [Some(ReceivingEnd::Complete); 2]);
    let twice = outcome.puts.iter().filter(|puts| **puts == 2).count();
    assert!(outcome.puts.iter().all(|puts| (1..=2).contains(puts)));
    assert!(
        twice > 0 && twice < 100,
        "{twice} of 100 segments were sent twice"
    );
    // Once more is sent what had gone when it came: the beginning.
    assert!(outcome.puts.is_sorted_by(|a, b| a >= b), "{:?}", outcome.puts);
}

#[test]
fn receiver_that_stops_holds_up_the_others_for_no_longer_than_a_stall() {
    let alone = World::run(plan(100, &[0]), 1);
    let mut plan = plan(100, &[0, 0]);
    plan.stops.push(Stop {
        receiver: 1,
        at: Duration::from_millis(100),
        lasts: Duration::from_secs(3600),
    });
    let outcome = World::run(plan, 1);
    assert_eq!(outcome.received, [Some(ReceivingEnd::Complete), None]);
    assert_eq!(
        outcome.sent,
        Some(CopyEnd::Done),
        "the sender does not wait for ever"
    );
    let extra = outcome.received_at[0].unwrap() - alone.received_at[0].unwrap();
    assert!(
        extra <= world::SENDING.stall + Duration::from_millis(500),
        "{extra:?}"
    );
}

#[test]
fn receiver_that_stopped_for_a_while_gets_the_rest_afterwards() {
    let mut plan = plan(100, &[0, 0]);
    plan.stops.push(Stop {
        receiver: 1,
        at: Duration::from_millis(100),
        lasts: Duration::from_secs(4),
    });
    let outcome = World::run(plan, 1);
    assert_eq!(outcome.received, [Some(ReceivingEnd::Complete); 2]);
}

#[test]
fn full_relay_ends_the_copy_with_that_reason_and_leaves_nothing_behind() {
    let mut plan = plan(10, &[0]);
    plan.relay_bytes = 4 * MIB;
    let outcome = World::run(plan, 1);
    assert_eq!(outcome.sent, Some(CopyEnd::RelayUnavailable));
    let end = CopyEnd::RelayUnavailable;
    assert_eq!(outcome.received, [Some(ReceivingEnd::SenderEnded { end })]);
    assert_eq!(outcome.left_in_relay, 0);
}

/// A copy stood still for ever after its server had started again: the sender took for stored what the server had
/// forgotten, and every further receiver was told of the same copy.
#[test]
fn relay_that_forgets_what_lies_in_it_gets_it_again() {
    let mut plan = plan(40, &[0, 50]);
    plan.window_bytes = 1 << 30;
    plan.faults.lost = 0.5;
    plan.faults.forgets = Some(Duration::from_millis(100));
    let outcome = World::run(plan, 1);
    assert_eq!(outcome.received, [Some(ReceivingEnd::Complete); 2]);
    assert_eq!(outcome.sent, Some(CopyEnd::Done));
    assert!(outcome.puts.iter().any(|puts| *puts > 1), "{:?}", outcome.puts);
    assert_eq!(outcome.left_in_relay, 0);
}

#[test]
fn relay_that_spoils_everything_is_given_up() {
    let mut plan = plan(10, &[0]);
    plan.faults.spoiled = 1.0;
    let outcome = World::run(plan, 1);
    assert_eq!(outcome.received, [Some(ReceivingEnd::Corrupt)]);
}

#[test]
fn nobody_who_comes_is_an_end_too() {
    let outcome = World::run(plan(3, &[]), 1);
    assert_eq!((outcome.sent, outcome.puts), (Some(CopyEnd::Done), vec![0; 3]));
}

fn faulty_plans() -> impl Strategy<Value = Plan> {
    let forgets = prop::option::of((0_u64..3000).prop_map(Duration::from_millis));
    let faults = (0.0..0.3, 0.0..0.05, 0.0..0.2, 0.0..0.2, forgets);
    let stop = (0_usize..4, 0_u64..3000, 1_u64..6000);
    (
        prop::collection::vec(1..8 * MIB, 1..60),
        prop::collection::vec(0_u64..3000, 1..4),
        prop::collection::vec(stop, 0..3),
        8..80 * MIB,
        faults,
    )
        .prop_map(
            |(segment_bytes, joins, stops, window_bytes, (lost, spoiled, refused, news_lost, forgets))| {
                Plan {
                    segment_bytes,
                    stops: stops
                        .into_iter()
                        .filter(|(receiver, ..)| *receiver < joins.len())
                        .map(|(receiver, at, lasts)| Stop {
                            receiver,
                            at: Duration::from_millis(at),
                            lasts: Duration::from_millis(lasts),
                        })
                        .collect(),
                    joins: joins.into_iter().map(Duration::from_millis).collect(),
                    window_bytes,
                    relay_bytes: 1 << 30,
                    faults: Faults {
                        lost,
                        spoiled,
                        refused,
                        news_lost,
                        forgets,
                    },
                }
            },
        )
}

proptest! {
    /// Whatever is lost, spoiled, refused, forgotten or stopped for a while: who is there all the time gets everything, the
    /// window holds, everybody ends, and the relay is left as it was.
    #[test]
    fn every_copy_ends_and_those_who_stay_have_everything(plan in faulty_plans(), seed in 0_u64..1 << 32) {
        let stopped: Vec<usize> = plan.stops.iter().map(|stop| stop.receiver).collect();
        let largest = plan.segment_bytes.iter().copied().max().unwrap();
        let window_bytes = plan.window_bytes.max(largest);
        let spoils = plan.faults.spoiled > 0.0;
        let outcome = World::run(plan, seed);
        prop_assert!(outcome.sent.is_some());
        prop_assert_eq!(outcome.left_in_relay, 0);
        prop_assert!(outcome.relay_bytes_max <= window_bytes);
        for (receiver, end) in outcome.received.iter().enumerate() {
            match end {
                Some(ReceivingEnd::Complete) => {}
                Some(ReceivingEnd::Corrupt) => prop_assert!(spoils),
                // One that was away may have been given up, and notices.
                _ => prop_assert!(stopped.contains(&receiver), "receiver {} ended as {:?}", receiver, end),
            }
        }
    }
}
