//! What we say of the dispatcher beside others.

use std::time::Duration;

use flotilla_protocol::catalog::Policy;
use flotilla_simulator::outcome::{Figures, Learning};
use flotilla_simulator::policy::{Flotilla, PolicyName};
use flotilla_simulator::run::{Scenario, run};
use flotilla_simulator::trace::{BuiltinTrace, Recipe};

fn scenario(built_in: BuiltinTrace, seed: u64, seconds: u64) -> Scenario {
    let trace = built_in.make(&Recipe {
        seed,
        rate: 1.0,
        duration: Duration::from_secs(seconds),
    });
    Scenario::new(trace, built_in.fleet()).unwrap()
}

fn figures(policy: PolicyName, scenario: &Scenario, seed: u64) -> Figures {
    Figures::of(scenario, &policy.simulate(scenario, seed))
}

/// Case 39 of AIBrix's router (its own test asks for 99.8 % within the target and a P99 of 32 ms a token, of other
/// devices and lengths): more are in time than with AIBrix's router, on less device time.
#[test]
fn on_the_composite_trace_more_are_in_time_than_with_aibrix_for_less() {
    let seed = 3;
    let scenario = scenario(BuiltinTrace::Composite, seed, 300);
    let ours = figures(PolicyName::Slo, &scenario, seed);
    let theirs = figures(PolicyName::AibrixSlo, &scenario, seed);
    assert!(ours.slo_share > 0.994, "{}", ours.slo_share);
    assert!(ours.slo_share > theirs.slo_share, "{}", theirs.slo_share);
    assert!(ours.cost < theirs.cost, "{} and {}", ours.cost, theirs.cost);
    let p99 = |figures: &Figures| figures.s_per_token.p99.unwrap();
    assert!(p99(&ours) < p99(&theirs).min(0.05), "{:?}", ours.s_per_token);
}

#[test]
fn under_twice_the_load_three_of_four_are_in_time() {
    let scenario = scenario(BuiltinTrace::Overload, 1, 100);
    let ours = figures(PolicyName::Slo, &scenario, 1);
    let fifo = figures(PolicyName::Fifo, &scenario, 1);
    assert!(ours.slo_share > 0.75, "{}", ours.slo_share);
    assert!(ours.slo_share > 4.0 * fifo.slo_share, "{}", fifo.slo_share);
}

#[test]
fn a_profile_that_is_wrong_by_two_is_made_up_for_within_fifty_requests() {
    let scenario = scenario(BuiltinTrace::Composite, 3, 120);
    for times in [2.0, 0.5] {
        let mut policy = Flotilla::misinformed(scenario.fleet(), Some(Policy::Slo), times);
        let outcome = run(&scenario, &mut policy);
        let Learning { first, later } = Learning::of(&scenario, &outcome, 50);
        assert!((50..200).contains(&first.requests), "{times}: {first:?}");
        assert_eq!(first.requests + later.requests, scenario.trace().requests.len());
        let share = later.share().unwrap();
        assert!(
            share > first.share().unwrap() && share > 0.99,
            "{times}: {first:?} {later:?}"
        );
    }
}
