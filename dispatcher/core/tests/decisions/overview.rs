//! What metrics are told: how the queue and the fleet stand, and what became of single requests.

use std::time::Duration;

use flotilla_dispatcher_core::{ModelOverview, Observation, TargetOutcome};
use flotilla_protocol::Class;

use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::words::{ask, flat};

fn overview_of(fleet: &Fleet, model: &str) -> Option<ModelOverview> {
    let overview = fleet.bench.dispatcher.overview(fleet.bench.now);
    overview.models.into_iter().find(|it| it.model.as_str() == model)
}

fn wanted(fleet: &Fleet, kind: &str) -> usize {
    let overview = fleet.bench.dispatcher.overview(fleet.bench.now);
    overview.kinds.iter().find(|it| it.kind == kind).unwrap().wanted
}

fn observations(fleet: &mut Fleet) -> Vec<Observation> {
    std::iter::from_fn(|| fleet.bench.dispatcher.poll_observation()).collect()
}

#[test]
fn who_waits_is_told_by_model_and_class_with_the_age_of_the_oldest() {
    let mut fleet = Fleet::new();
    assert_eq!(overview_of(&fleet, "m"), None, "nobody has asked for it");
    fleet.send(ask("young").aged(1.0));
    fleet.send(ask("urgent").aged(2.0).within(10.0));
    fleet.send(ask("batch").batch().aged(7.0));
    fleet.send(ask("other").of("n"));
    let of_m = overview_of(&fleet, "m").unwrap();
    let [interactive, batch] = of_m.waiting;
    assert_eq!((interactive.count, batch.count), (2, 1));
    assert_eq!(
        interactive.oldest,
        Duration::from_secs(1),
        "the first message is the oldest"
    );
    assert_eq!(batch.oldest, Duration::from_secs(7));
    let slack_s = interactive.slack_s.unwrap();
    assert!(
        (0.0..8.0).contains(&slack_s),
        "8 s are left for all of it: {slack_s}"
    );
    assert_eq!((of_m.running, of_m.residents), (0, 0));
    assert_eq!(overview_of(&fleet, "n").unwrap().waiting[0].count, 1);
    fleet.profile("m", flat("k", 1.0, 8.0));
    fleet.join(Machine::new("a", "k").with("m"));
    let of_m = overview_of(&fleet, "m").unwrap();
    assert_eq!(of_m.waiting.map(|it| it.count), [0, 0]);
    assert_eq!((of_m.running, of_m.residents), (3, 1));
    fleet
        .bench
        .dispatcher
        .handle_model_removed(fleet.bench.now, &crate::shared::model("n"));
    assert_eq!(
        overview_of(&fleet, "n"),
        None,
        "it is gone with its catalog entry"
    );
}

#[test]
fn late_requests_are_told_apart() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 4.0, 1.0));
    fleet.join(Machine::new("a", "k").with("m").slots(1));
    fleet.send(ask("runs"));
    fleet.send(ask("late").within(0.1));
    fleet.send(ask("hopeful").within(60.0));
    let of_m = overview_of(&fleet, "m").unwrap();
    assert_eq!(of_m.waiting[0].count, 2);
    assert_eq!((of_m.late, of_m.given_up), (1, 0));
}

/// 60 requests of 10 s each in a minute are the work of 10 devices, and to work off those that wait within the 30 s that a
/// person waits takes 20 more; four fifths of each device are planned.
#[test]
fn workers_are_wanted_for_what_is_asked_and_what_waits() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 10.0, 1.0));
    fleet.join(Machine::new("a", "k").with("m").slots(1));
    assert_eq!(wanted(&fleet, "k"), 0);
    for number in 0..60 {
        fleet.send(ask(&format!("r{number}")));
    }
    let interactive = wanted(&fleet, "k");
    assert!((36..=38).contains(&interactive), "{interactive}");
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 10.0, 1.0));
    fleet.join(Machine::new("a", "k").with("m").slots(1));
    for number in 0..60 {
        fleet.send(ask(&format!("r{number}")).batch());
    }
    let batch = wanted(&fleet, "k");
    assert!((13..=15).contains(&batch), "a batch has ten minutes: {batch}");
}

#[test]
fn without_any_worker_one_is_wanted_of_an_unknown_kind() {
    let mut fleet = Fleet::new();
    fleet.send(ask("r"));
    assert_eq!(wanted(&fleet, "unknown"), 1);
}

#[test]
fn each_answer_is_told_with_what_became_of_its_target() {
    let mut fleet = Fleet::new();
    fleet.profile("m", flat("k", 1.0, 8.0));
    fleet.join(Machine::new("a", "k").with("m"));
    fleet.send(ask("free").takes(1.0));
    fleet.send(ask("kept").within(5.0).takes(1.0));
    fleet.send(ask("broken").batch().within(2.0).takes(3.0));
    let waited = Duration::ZERO;
    for (index, observation) in observations(&mut fleet).into_iter().enumerate() {
        let Observation::Assigned {
            class,
            slack_s,
            waited: told,
            ..
        } = observation
        else {
            panic!("{observation:?}");
        };
        let wanted = [Class::Interactive, Class::Interactive, Class::Batch][index];
        assert_eq!((class, told), (wanted, waited));
        assert_eq!(slack_s.is_some(), index > 0, "the first has no target");
    }
    fleet.wait(4.0);
    let ends = observations(&mut fleet)
        .into_iter()
        .map(|observation| match observation {
            Observation::Answered {
                class,
                target,
                output_tokens,
                forecast_ratio,
                ..
            } => (class, target, output_tokens, forecast_ratio.is_some()),
            other => panic!("{other:?}"),
        });
    let ends: Vec<_> = ends.collect();
    let end = |class, target| (class, target, 16, true);
    assert_eq!(
        ends,
        [
            end(Class::Interactive, TargetOutcome::None),
            end(Class::Interactive, TargetOutcome::Met),
            end(Class::Batch, TargetOutcome::Missed)
        ]
    );
}

#[test]
fn a_request_whose_deadline_passes_while_it_waits_is_a_target_missed() {
    let mut fleet = Fleet::new();
    fleet.send(ask("r").deadline(1.0));
    fleet.wait(2.0);
    let missed = observations(&mut fleet);
    assert!(
        matches!(
            &missed[..],
            [Observation::Missed {
                class: Class::Interactive,
                ..
            }]
        ),
        "{missed:?}"
    );
}
