//! What cannot be measured is told, never written as a number.

use std::time::Duration;

use flotilla_profile::Signature;
use flotilla_profiling::{
    CellEnd, FinishError, Grid, Limits, Measurement, Objective, Outcome, Plan, PointFault, Targets,
};

use crate::simulated::{Made, Simulated};
use crate::truth::device;

const MADE: Made = Made {
    prefill_tokens_per_s: 2000.0,
    step_s: 0.02,
    each_s: 0.001,
    slots: 8,
};

fn plan(e2e: Option<Duration>) -> Plan {
    let grid = Grid::new(vec![100, 1000], vec![10, 100]).unwrap();
    let targets = Targets {
        e2e,
        ..Targets::default()
    };
    Plan::new(grid, Objective::new(95.0, targets).unwrap(), Limits::default()).unwrap()
}

#[test]
fn a_cell_that_misses_its_target_alone_has_no_throughput_and_its_own_times() {
    let simulated = Simulated::new(MADE);
    let mut plan = plan(Some(Duration::from_secs(1)));
    simulated.carry_out(&mut plan);
    let ends: Vec<CellEnd> = plan.answers().map(|answer| answer.end).collect();
    let [found, infeasible] = [CellEnd::Found, CellEnd::Infeasible];
    assert_eq!(ends, [found, found, infeasible, infeasible]);
    let profile = plan.finish(device()).unwrap();
    let long = Signature {
        prompt_tokens: 1000,
        output_tokens: 100,
    };
    assert!(!profile.is_feasible(long));
    let alone = simulated.answer(long, &[Duration::ZERO])[0].end;
    let told = profile.e2e(long).value;
    assert!(
        told.abs_diff(alone) < Duration::from_millis(1),
        "{told:?}, alone {alone:?}"
    );
}

#[test]
fn when_nothing_meets_the_target_the_error_says_how_far_it_is_off() {
    let mut plan = plan(Some(Duration::from_millis(100)));
    assert_eq!(plan.finish(device()), Err(FinishError::Unfinished { cells: 4 }));
    Simulated::new(MADE).carry_out(&mut plan);
    let error = plan.finish(device()).unwrap_err();
    let FinishError::NothingFeasible { fastest_s } = error else {
        panic!("{error:?}");
    };
    assert!((0.2..0.3).contains(&fastest_s), "{fastest_s}");
}

#[test]
fn a_cell_without_a_single_answer_is_an_error_that_names_it() {
    let mut plan = plan(None);
    let point = plan.poll_point().unwrap();
    let measurement = Measurement {
        outcomes: vec![Outcome::Failed; point.requests],
        took: Duration::from_secs(1),
    };
    let error = plan.handle_point(&point, &measurement).unwrap_err();
    assert!(
        matches!(error, PointFault::NothingSucceeded { requests: 5, .. }),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .starts_with("prompt of 100, answer of 10 tokens: none of 5"),
        "{error}"
    );
}

#[test]
fn measurements_of_something_else_are_refused_and_the_point_stays_asked_for() {
    let mut plan = plan(None);
    let point = plan.poll_point().unwrap();
    let right = Simulated::new(MADE).measure(&point);
    let change = |change: fn(&mut flotilla_profiling::RequestTimes)| {
        let mut wrong = right.clone();
        if let Outcome::Answered(times) = &mut wrong.outcomes[2] {
            change(times);
        }
        wrong
    };
    let mut refuse = |wrong: &Measurement| plan.handle_point(&point, wrong).unwrap_err();
    let cell = point.signature;
    let shorter = change(|times| times.output_tokens = 3);
    assert_eq!(refuse(&shorter), PointFault::WrongLength { cell, found: 3 });
    let backwards = change(|times| times.end = times.sent);
    assert_eq!(refuse(&backwards), PointFault::OutOfOrder { cell });
    let mut fewer = right.clone();
    fewer.outcomes.pop();
    let (found, expected) = (5, 6);
    assert_eq!(
        refuse(&fewer),
        PointFault::Count {
            cell,
            found,
            expected
        }
    );
    let mut other = point.clone();
    other.cell = 1;
    assert_eq!(
        plan.handle_point(&other, &right),
        Err(PointFault::Unasked { cell })
    );
    assert!(plan.handle_point(&point, &right).is_ok());
    assert!(
        plan.handle_point(&point, &right).is_err(),
        "it was measured already"
    );
}
