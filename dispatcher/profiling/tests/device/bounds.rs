//! How much is measured.

use std::time::Duration;

use flotilla_profile::Signature;
use flotilla_profiling::{
    CellEnd, Grid, Limits, LimitsFault, Measurement, Objective, Offered, Outcome, Plan, Targets,
};
use flotilla_protocol::profile::ProfileSource;
use proptest::prelude::*;

use crate::simulated::{Made, Simulated};
use crate::truth::device;

const MADE: Made = Made {
    prefill_tokens_per_s: 4000.0,
    step_s: 0.02,
    each_s: 0.001,
    slots: 16,
};

fn grid() -> Grid {
    Grid::new(vec![64, 256, 1024], vec![16, 64, 256]).unwrap()
}

fn plan(targets: Targets, limits: Limits) -> Plan {
    Plan::new(grid(), Objective::new(99.0, targets).unwrap(), limits).unwrap()
}

/// Carries a plan out; the time that it took, all in all, and of requests alone.
fn carry_out(simulated: &Simulated, plan: &mut Plan) -> (Duration, Duration) {
    let (mut all, mut alone) = (Duration::ZERO, Duration::ZERO);
    while let Some(point) = plan.poll_point() {
        let measurement = simulated.measure(&point);
        plan.handle_point(&point, &measurement).unwrap();
        all += measurement.took;
        if point.offered == Offered::Alone {
            alone += measurement.took;
        }
    }
    (all, alone)
}

#[test]
fn neighbours_answers_spare_most_of_the_points() {
    let slo = Targets {
        tpot: Some(Duration::from_millis(33)),
        ..Targets::default()
    };
    for (targets, points_max) in [(slo, 6.0), (Targets::default(), 2.5)] {
        let mut plan = plan(targets, Limits::default());
        carry_out(&Simulated::new(MADE), &mut plan);
        let points: Vec<u32> = plan.answers().map(|answer| answer.points).collect();
        assert!(plan.answers().all(|answer| answer.end == CellEnd::Found));
        let later = f64::from(points[1..].iter().sum::<u32>()) / 8.0;
        assert!(later <= points_max, "{points:?}");
    }
}

#[test]
fn the_profile_says_how_and_of_how_many_requests_it_was_made() {
    let targets = Targets {
        e2e: Some(Duration::from_secs(60)),
        ..Targets::default()
    };
    let mut plan = plan(targets, Limits::default());
    let (mut sent, simulated) = (0, Simulated::new(MADE));
    while let Some(point) = plan.poll_point() {
        assert_eq!(plan.poll_point(), Some(point.clone()), "until it was measured");
        sent += point.requests as u64;
        plan.handle_point(&point, &simulated.measure(&point)).unwrap();
    }
    let profile = plan.finish(device()).unwrap();
    assert_eq!(profile.source(), ProfileSource::Measured);
    let samples = profile.samples().unwrap();
    assert!(9 * 105 < samples && samples < sent, "{samples} of {sent}");
    assert_eq!(
        (profile.kind(), profile.cost(), profile.created()),
        ("simulated", 1.5, 1e9)
    );
    assert_eq!(profile.slos().e2e, Some(60.0));
    assert_eq!(profile.slos().percentile, Some(99.0));
    let document = profile.document();
    assert_eq!(document.indexes, [[16.0, 64.0, 256.0], [64.0, 256.0, 1024.0]]);
    assert!(
        document.tpot_by_batch.as_ref().unwrap().len() >= 4,
        "{document:?}"
    );
}

#[test]
fn the_same_device_gives_the_same_profile() {
    let profile = || {
        let mut plan = plan(Targets::default(), Limits::default());
        carry_out(&Simulated::new(MADE), &mut plan);
        plan.finish(device()).unwrap()
    };
    assert_eq!(profile(), profile());
}

#[test]
fn limits_that_make_no_sense_are_refused_by_name() {
    let refused = |limits| {
        let objective = Objective::new(99.0, Targets::default()).unwrap();
        Plan::new(grid(), objective, limits).unwrap_err()
    };
    for (limits, wrong) in [
        (
            Limits {
                requests: 3,
                ..Limits::default()
            },
            "requests",
        ),
        (
            Limits {
                tolerance: f64::NAN,
                ..Limits::default()
            },
            "tolerance",
        ),
        (
            Limits {
                points_max: 0,
                ..Limits::default()
            },
            "points_max",
        ),
    ] {
        let LimitsFault::Range { name, .. } = refused(limits);
        assert_eq!(name, wrong);
    }
    assert!(Objective::new(100.1, Targets::default()).is_err());
    assert!(Objective::new(f64::NAN, Targets::default()).is_err());
}

#[test]
fn the_estimate_is_of_the_size_of_what_it_takes() {
    let simulated = Simulated::new(MADE);
    for tpot in [None, Some(Duration::from_millis(33))] {
        let targets = Targets {
            tpot,
            ..Targets::default()
        };
        let mut first = plan(targets, Limits::default());
        let (took, _) = carry_out(&simulated, &mut first);
        let profile = first.finish(device()).unwrap();
        let estimate = first.estimate(&profile).as_secs_f64();
        let ratio = estimate / took.as_secs_f64();
        assert!((0.5..2.0).contains(&ratio), "{estimate} s for {took:?}");
    }
}

/// A device that refuses every third request of a rate.
fn refusing(simulated: &Simulated, point: &flotilla_profiling::Point) -> Measurement {
    let mut measurement = simulated.measure(point);
    if point.offered != Offered::Alone {
        measurement
            .outcomes
            .iter_mut()
            .step_by(3)
            .for_each(|it| *it = Outcome::Failed);
    }
    measurement
}

#[test]
fn a_rate_at_which_many_are_refused_does_not_pass_and_makes_no_wrong_number() {
    let simulated = Simulated::new(MADE);
    let mut plan = plan(Targets::default(), Limits::default());
    while let Some(point) = plan.poll_point() {
        let report = plan.handle_point(&point, &refusing(&simulated, &point)).unwrap();
        assert!(point.offered == Offered::Alone || !report.passed);
    }
    let profile = plan.finish(device()).unwrap();
    for cell in plan.answers() {
        assert!(cell.tput_per_s > 0.0 && cell.tput_per_s.is_finite(), "{cell:?}");
    }
    assert!(profile.rate_max() < simulated.saturated(first()).0);
}

fn first() -> Signature {
    Signature {
        prompt_tokens: 64,
        output_tokens: 16,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_budget_is_kept_but_for_the_requests_alone(seconds in 0_u64..2000, tpot_ms in proptest::option::of(25_u64..60)) {
        let budget = Duration::from_secs(seconds);
        let tpot = tpot_ms.map(Duration::from_millis);
        let targets = Targets { tpot, ..Targets::default() };
        let limits = Limits { budget: Some(budget), ..Limits::default() };
        let mut plan = plan(targets, limits);
        let (took, alone) = carry_out(&Simulated::new(MADE), &mut plan);
        // An overloaded device needs longer for a point than the point was to take.
        prop_assert!(took <= budget.mul_f64(1.3) + alone, "{took:?}, alone {alone:?}, of {budget:?}");
        prop_assert_eq!(plan.answers().count(), 9);
        if seconds < 60 {
            prop_assert!(plan.answers().any(|answer| answer.end == CellEnd::CutShort));
        }
        for answer in plan.answers() {
            prop_assert!(answer.tput_per_s * answer.e2e_s > 0.9, "one at a time is always possible: {answer:?}");
        }
        prop_assert!(plan.finish(device()).is_ok());
    }
}
