//! The bound holds for every policy, and is exact where nothing but work decides.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_protocol::request::Slo;
use flotilla_protocol::{Class, RequestId};
use flotilla_simulator::bound::Bound;
use flotilla_simulator::fleet::{DeviceSpec, FleetLimits, FleetSpec};
use flotilla_simulator::outcome::Figures;
use flotilla_simulator::policy::PolicyName;
use flotilla_simulator::run::Scenario;
use flotilla_simulator::trace::{Trace, TraceRequest};
use proptest::prelude::*;

use crate::scenarios::{device, model};

/// What a generated request looks like.
#[derive(Debug, Clone)]
struct Sketch {
    at_ms: u64,
    prompt_tokens: u32,
    output_tokens: u32,
    slo: Slo,
    deadline_ms: Option<u64>,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let target = |ms: std::ops::Range<f64>| proptest::option::weighted(0.4, ms);
    let slo = (
        target(50.0..4_000.0),
        target(20.0..800.0),
        target(15.0..60.0),
        target(1.0..20.0),
    );
    let slo = slo.prop_map(|(e2e_ms, ttft_ms, tpot_ms, tpat_ms)| Slo {
        e2e_ms,
        ttft_ms,
        tpot_ms,
        tpat_ms,
    });
    let deadline = proptest::option::weighted(0.2, 100_u64..5_000);
    (0_u64..3_000, 1_u32..3_000, 1_u32..120, slo, deadline).prop_map(
        |(at_ms, prompt_tokens, output_tokens, slo, deadline_ms)| Sketch {
            at_ms,
            prompt_tokens,
            output_tokens,
            slo,
            deadline_ms,
        },
    )
}

fn trace(mut sketches: Vec<Sketch>) -> Trace {
    sketches.sort_by_key(|sketch| sketch.at_ms);
    let requests = sketches
        .into_iter()
        .enumerate()
        .map(|(index, sketch)| TraceRequest {
            at: Duration::from_millis(sketch.at_ms),
            id: RequestId::new(format!("r{index}")).unwrap(),
            tenant: None,
            class: if index % 5 == 0 {
                Class::Batch
            } else {
                Class::Interactive
            },
            model: model(["chat", "code"][index % 2]).name,
            prompt_tokens: sketch.prompt_tokens,
            output_tokens: sketch.output_tokens,
            output_tokens_max: 120,
            slo: Some(sketch.slo),
            deadline: sketch.deadline_ms.map(Duration::from_millis),
        });
    Trace {
        name: "sketched".to_owned(),
        requests: requests.collect(),
    }
}

fn fleet(slots: &[u32]) -> FleetSpec {
    let devices = slots.iter().enumerate().map(|(index, &slots)| DeviceSpec {
        slots,
        ..device(&format!("fast-{index}"))
    });
    FleetSpec {
        devices: devices.collect(),
        models: vec![model("chat"), model("code")],
        limits: FleetLimits::default(),
    }
}

fn met(scenario: &Scenario, policy: PolicyName) -> usize {
    let figures = Figures::of(scenario, &policy.simulate(scenario, 1));
    figures.models.values().map(|part| part.met).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nobody_exceeds_the_bound(
        sketches in proptest::collection::vec(sketch(), 1..60),
        slots in proptest::collection::vec(1_u32..6, 1..3),
    ) {
        let scenario = Scenario::new(trace(sketches), fleet(&slots)).unwrap();
        let bound = Bound::of(&scenario);
        for policy in PolicyName::ALL {
            let met = met(&scenario, policy);
            prop_assert!(met <= bound.met, "{policy} has {met}, {bound:?}");
        }
    }

    /// On one device that runs one request at a time, all of them there from the start and due at one moment,
    /// the best that can be done is to run the shortest ones. The bound is that number, but for the slot of
    /// time that the moment lies in, and for one more where the search for prices ends before the best ones.
    #[test]
    fn requests_due_at_once_on_one_device_are_bounded_by_the_shortest(
        lengths in proptest::collection::vec((100_u32..3_000, 2_u32..120), 1..40),
        due_slots in 4_u32..40,
    ) {
        let due_s = f64::from(due_slots) * SLOT_S - 0.005;
        let sketches = lengths.iter().map(|&(prompt_tokens, output_tokens)| Sketch {
            at_ms: 0,
            prompt_tokens,
            output_tokens,
            slo: Slo { e2e_ms: Some(due_s * 1e3), ..Slo::default() },
            deadline_ms: None,
        });
        let scenario = Scenario::new(trace(sketches.collect()), fleet(&[1])).unwrap();
        let bound = Bound::of(&scenario);
        let profile = scenario.fleet().devices[0].profile.document().clone();
        let (rate, steps) = (profile.prefill_tokens_per_s.unwrap(), profile.tpot_by_batch.unwrap());
        let work = |&(prompt, output): &(u32, u32)| {
            f64::from(prompt) / rate + f64::from(output - 1) * steps[0].1
        };
        let works: Vec<f64> = lengths.iter().map(work).collect();
        let best = shortest_first(&works, due_s - LATENCY_S);
        let at_most = shortest_first(&works, f64::from(due_slots) * SLOT_S + ROUNDED_S) + 1;
        prop_assert!((best..=at_most).contains(&bound.met), "{best} to {at_most}: {bound:?}");
    }
}

/// How many can be run within some time.
fn shortest_first(works: &[f64], time_s: f64) -> usize {
    let mut works = works.to_vec();
    works.sort_by(f64::total_cmp);
    let mut left = time_s;
    works
        .iter()
        .take_while(|work| {
            left -= **work;
            left >= 0.0
        })
        .count()
}

/// Slots of the bound are this long while a trace is short.
const SLOT_S: f64 = 0.25;
/// Of a message to a worker.
const LATENCY_S: f64 = 0.0005;
/// A thousandth of the time, by which the bound makes up for the rounding of steps.
const ROUNDED_S: f64 = 0.015;

#[test]
fn what_fits_easily_is_no_reason_for_less_than_all() {
    let sketches = (0..20).map(|index| Sketch {
        at_ms: index * 500,
        prompt_tokens: 200,
        output_tokens: 50,
        slo: Slo {
            tpot_ms: Some(50.0),
            ..Slo::default()
        },
        deadline_ms: None,
    });
    let scenario = Scenario::new(trace(sketches.collect()), fleet(&[32])).unwrap();
    let bound = Bound::of(&scenario);
    assert_eq!((bound.met, bound.alone, bound.slo_share()), (20, 20, 1.0));
    let met: BTreeMap<_, _> = PolicyName::ALL
        .map(|policy| (policy, met(&scenario, policy)))
        .into();
    assert_eq!(met[&PolicyName::Fifo], 20, "{met:?}");
}
