//! What holds of every run, whoever decides.

use std::time::Duration;

use flotilla_protocol::catalog::Policy;
use flotilla_protocol::request::Slo;
use flotilla_protocol::{Class, Tenant};
use flotilla_simulator::fleet::{DeviceSpec, FleetLimits, FleetSpec, ModelSpec, Start};
use flotilla_simulator::outcome::{Figures, Outcome, RequestEnd};
use flotilla_simulator::policy::{Flotilla, PolicyName};
use flotilla_simulator::run::{Run, Scenario, ScenarioError, run};
use flotilla_simulator::trace::{BuiltinTrace, Recipe, Trace, TraceRequest};
use proptest::prelude::*;

use crate::scenarios::{device, model, model_name, one_device, request, steady};

#[test]
fn every_request_of_a_trace_ends_once_and_with_its_own_length() {
    let scenario = one_device(steady(50, 2.0));
    let outcome = PolicyName::Fifo.simulate(&scenario, 1);
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
fn an_idle_fleet_costs_nothing_and_a_busy_one_its_price() {
    let scenario = one_device(steady(2, 0.01));
    let outcome = PolicyName::Fifo.simulate(&scenario, 1);
    let busy: Duration = outcome
        .requests
        .iter()
        .map(|record| record.total().unwrap())
        .sum();
    let device = &outcome.devices[0];
    // Half a millisecond to the device is not yet on it.
    assert!(
        busy - device.busy <= Duration::from_millis(2),
        "{busy:?} {device:?}"
    );
    assert_eq!(device.cost, device.busy.as_secs_f64() / 3_600.0);
}

#[test]
fn built_in_traces_are_functions_of_their_recipes() {
    let recipe = |seed| Recipe {
        seed,
        rate: 1.0,
        duration: Duration::from_secs(30),
    };
    for built_in in BuiltinTrace::ALL {
        assert_eq!(built_in.make(&recipe(1)), built_in.make(&recipe(1)));
        assert_ne!(built_in.make(&recipe(1)), built_in.make(&recipe(2)));
    }
}

#[test]
fn a_trace_that_a_fleet_cannot_serve_is_refused_with_the_request() {
    let fleet = |models| FleetSpec {
        devices: vec![device("d")],
        models,
        limits: FleetLimits::default(),
    };
    let error = Scenario::new(steady(1, 1.0), fleet(vec![model("other")])).unwrap_err();
    assert!(matches!(error, ScenarioError::UnknownModel { .. }), "{error}");
    let short = ModelSpec {
        context_tokens_max: 299,
        ..model("chat")
    };
    let error = Scenario::new(steady(1, 1.0), fleet(vec![short])).unwrap_err();
    assert!(error.to_string().contains("300 tokens"), "{error}");
}

/// Two devices, of which the second holds one of the three models at a time, with few blocks so that checking them
/// all is quick.
fn small_fleet() -> FleetSpec {
    let small = |name: &str| ModelSpec {
        weights_bytes: 256 << 20,
        context_tokens_max: 512,
        ..model(name)
    };
    FleetSpec {
        devices: vec![
            DeviceSpec {
                memory_bytes: 1 << 30,
                slots: 4,
                ..device("wide")
            },
            DeviceSpec {
                memory_bytes: 512 << 20,
                slots: 2,
                ..device("narrow")
            },
        ],
        models: vec![
            small("a"),
            ModelSpec {
                start: Start::Cold,
                ..small("b")
            },
            ModelSpec {
                start: Start::Cold,
                policy: Some(Policy::Pack),
                ..small("c")
            },
        ],
        limits: FleetLimits::default(),
    }
}

fn any_trace() -> impl Strategy<Value = Trace> {
    let any_request = (
        0_u64..40_000,
        prop::sample::select(vec!["a", "b", "c"]),
        1_u32..300,
        1_u32..60,
        0_u32..100,
        prop::option::of(1_u64..60_000),
        prop::option::of(1.0_f64..30_000.0),
        any::<bool>(),
    );
    prop::collection::vec(any_request, 1..25).prop_map(|parts| {
        let mut requests: Vec<_> = (0..)
            .zip(parts)
            .map(
                |(index, (at, model, prompt, output, spare, deadline, e2e_ms, is_batch))| TraceRequest {
                    at: Duration::from_millis(at),
                    model: model_name(model),
                    prompt_tokens: prompt,
                    output_tokens: output,
                    output_tokens_max: output + spare,
                    deadline: deadline.map(Duration::from_millis),
                    slo: e2e_ms.map(|e2e_ms| Slo {
                        e2e_ms: Some(e2e_ms),
                        ..Slo::default()
                    }),
                    class: if is_batch {
                        Class::Batch
                    } else {
                        Class::Interactive
                    },
                    tenant: is_batch.then(|| Tenant::new("t").unwrap()),
                    ..request(index)
                },
            )
            .collect();
        requests.sort_by_key(|request| request.at);
        let name = "any".to_owned();
        Trace { name, requests }
    })
}

fn assert_conserved(scenario: &Scenario, outcome: &Outcome) {
    assert_eq!(outcome.requests.len(), scenario.trace().requests.len());
    for (request, record) in scenario.trace().requests.iter().zip(&outcome.requests) {
        assert_eq!(request.id, record.id);
        match record.end {
            RequestEnd::Finished => {
                assert_eq!(record.output_tokens, request.output_tokens);
                // It may end in the very step in which its deadline passes, and no later.
                let late = record
                    .total()
                    .unwrap()
                    .saturating_sub(request.deadline.unwrap_or(Duration::MAX));
                assert!(late <= Duration::from_secs(1), "{record:?}");
            }
            RequestEnd::DeadlineExceeded => {
                let spent = record.total().unwrap();
                let early = request.deadline.unwrap().saturating_sub(spent);
                assert!(early <= Duration::from_millis(1), "{record:?}");
                assert!(record.output_tokens < request.output_tokens);
            }
            RequestEnd::Refused | RequestEnd::Unfinished => panic!("{record:?}"),
        }
    }
    let figures = Figures::of(scenario, outcome);
    assert_eq!(figures.finished + figures.deadline_exceeded, figures.requests);
    let parts = figures.models.values().map(|part| (part.requests, part.met));
    let sum = parts.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    assert_eq!(sum.0, figures.requests);
    assert_eq!(sum.1 as f64 / sum.0 as f64, figures.slo_share);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_request_has_one_end_and_every_device_is_sound_after_every_event(trace in any_trace()) {
        let scenario = Scenario::new(trace, small_fleet()).unwrap();
        let mut policy = Flotilla::new(scenario.fleet(), None);
        let mut run = Run::new(&scenario, &mut policy);
        while run.advance() {
            run.devices().iter().for_each(|device| device.check_invariants());
        }
        assert_conserved(&scenario, &run.outcome());
    }

    #[test]
    fn the_same_scenario_has_the_same_outcome_under_every_policy(trace in any_trace()) {
        let scenario = Scenario::new(trace, small_fleet()).unwrap();
        for policy in PolicyName::ALL {
            let outcome = policy.simulate(&scenario, 7);
            prop_assert_eq!(&outcome, &policy.simulate(&scenario, 7), "{}", policy);
        }
    }

    #[test]
    fn a_run_ends_when_the_last_request_does(trace in any_trace()) {
        let scenario = Scenario::new(trace, small_fleet()).unwrap();
        let outcome = run(&scenario, &mut Flotilla::new(scenario.fleet(), None));
        let last = outcome.requests.iter().filter_map(|record| record.ended).max();
        prop_assert_eq!(Some(outcome.ended), last);
    }
}
