//! Whole runs on a virtual clock.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod profiles;
mod scenarios;

use flotilla_simulator::outcome::RequestEnd;
use flotilla_simulator::policy::Flotilla;
use flotilla_simulator::run::{Run, run};

use scenarios::{one_device, small, steady};

#[test]
fn every_request_of_a_trace_ends_once_and_with_its_own_length() {
    let scenario = one_device(steady(50, 2.0));
    let mut policy = Flotilla::new(scenario.fleet(), None);
    let outcome = run(&scenario, &mut policy);
    assert_eq!(outcome.requests.len(), 50);
    for (record, request) in outcome.requests.iter().zip(&scenario.trace().requests) {
        assert_eq!(record.id, request.id);
        assert_eq!(record.end, RequestEnd::Finished);
        assert_eq!(record.output_tokens, request.output_tokens);
        assert!(record.published <= record.assigned.unwrap());
        assert!(record.assigned.unwrap() < record.first_token.unwrap());
        assert!(record.first_token <= record.ended);
    }
}

#[test]
fn the_same_scenario_has_the_same_outcome() {
    let scenario = one_device(steady(50, 2.0));
    let outcomes = [(); 2].map(|()| run(&scenario, &mut Flotilla::new(scenario.fleet(), None)));
    assert_eq!(outcomes[0], outcomes[1]);
}

#[test]
fn devices_are_sound_after_every_event() {
    let scenario = small(steady(20, 20.0));
    let mut policy = Flotilla::new(scenario.fleet(), None);
    let mut run = Run::new(&scenario, &mut policy);
    while run.advance() {
        run.devices().iter().for_each(|device| device.check_invariants());
    }
}
