//! The promise: whatever dies or is lost, every published request comes to exactly one terminal event and
//! is acknowledged only then.
//!
//! A failing run prints its seed and the smallest sequence of steps that fails; the seed is kept in
//! `main.regressions`.

#![expect(
    clippy::unwrap_used,
    reason = "all of this crate is test code, its bench and world included"
)]

mod world;

use flotilla_dispatcher_core::Stats;
use flotilla_protocol::Class;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};

use world::worker::Work;
use world::{Step, World};

/// Everything that can happen to a fleet.
fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => publish(),
        24 => pick().prop_map(Step::Deliver),
        6 => pick().prop_map(Step::Report),
        12 => (pick(), pick(), any_work())
            .prop_map(|(worker, pick, work)| Step::Work(worker, pick, work)),
        4 => (0_u64..1500).prop_map(|ms| Step::Wait { ms }),
        4 => pick().prop_map(Step::Drop),
        2 => pick().prop_map(Step::GiveUpAssign),
        2 => pick().prop_map(Step::Redeliver),
        1 => pick().prop_map(Step::PublishAgain),
        2 => pick().prop_map(Step::Die),
        3 => pick().prop_map(Step::Start),
        1 => pick().prop_map(Step::Drain),
        1 => pick().prop_map(Step::Cancel),
        1 => Just(Step::NewLeader),
        1 => Just(Step::RemoveModel),
    ]
}

/// Delays and changes of order only: nothing is lost and nobody dies.
fn calm_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..3).prop_map(|model| Step::Publish {
            model,
            class: Class::Interactive,
            deadline_ms: None,
            valid: true
        }),
        24 => pick().prop_map(Step::Deliver),
        6 => pick().prop_map(Step::Report),
        12 => (pick(), pick()).prop_map(|(worker, pick)| Step::Work(worker, pick, Work::Step)),
        4 => (pick(), pick()).prop_map(|(worker, pick)| Step::Work(worker, pick, Work::Finish)),
        1 => pick().prop_map(Step::Redeliver),
    ]
}

fn publish() -> impl Strategy<Value = Step> {
    let class = prop_oneof![Just(Class::Interactive), Just(Class::Batch)];
    let deadline_ms = prop_oneof![4 => Just(None), 1 => (0_u64..5000).prop_map(Some)];
    (0_u8..3, class, deadline_ms, prop::bool::weighted(0.95)).prop_map(
        |(model, class, deadline_ms, valid)| Step::Publish {
            model,
            class,
            deadline_ms,
            valid,
        },
    )
}

fn any_work() -> impl Strategy<Value = Work> {
    prop_oneof![
        12 => Just(Work::Step),
        4 => Just(Work::Finish),
        1 => Just(Work::Panic),
        1 => Just(Work::HandBack),
        1 => Just(Work::FailToLoad),
    ]
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        max_shrink_iters: 3000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..Config::default()
    }
}

fn run(slots: &[u32], steps: &[Step]) -> World {
    let mut world = World::new(slots);
    for step in steps {
        world.step(step);
    }
    world.end_well();
    world
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn nothing_is_lost_or_doubled_whatever_dies(steps in prop::collection::vec(any_step(), 1..300)) {
        run(&[1, 2, 3], &steps);
    }

    #[test]
    fn one_worker_alone_serves_everything_in_the_end(steps in prop::collection::vec(any_step(), 1..150)) {
        run(&[2], &steps);
    }

    #[test]
    fn without_faults_every_request_runs_once_and_no_worker_gets_more_than_it_offered(
        steps in prop::collection::vec(calm_step(), 1..300)
    ) {
        let world = run(&[1, 2, 3], &steps);
        for worker in &world.workers {
            prop_assert_eq!(worker.refused_full, 0);
        }
        for journal in world.journals.values() {
            prop_assert_eq!(journal.accepted_count(), 1);
        }
        let stats = world.dispatcher.stats();
        prop_assert_eq!((stats.strikes, stats.unanswered, stats.fenced), (0, 0, 0));
    }
}

type Counter = fn(&Stats) -> u64;

/// A simulation that never reaches a rule proves nothing of it.
#[test]
fn the_simulated_faults_reach_every_rule() {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let steps = prop::collection::vec(any_step(), 300);
    let mut reached: Vec<Stats> = Vec::new();
    for _ in 0..250 {
        let tree = steps.new_tree(&mut runner).unwrap();
        reached.extend(run(&[1, 2, 3], &tree.current()).stats());
    }
    let rules: [(&str, Counter); 17] = [
        ("duplicates", |s| s.duplicates),
        ("redeliveries", |s| s.redeliveries),
        ("rejected", |s| s.rejected),
        ("adopted", |s| s.adopted),
        ("refused", |s| s.refused),
        ("unanswered", |s| s.unanswered),
        ("done_lost", |s| s.done_lost),
        ("handed_back", |s| s.handed_back),
        ("fenced", |s| s.fenced),
        ("workers_lost", |s| s.workers_lost),
        ("workers_restarted", |s| s.workers_restarted),
        ("reports_stale", |s| s.reports_stale),
        ("strikes", |s| s.strikes),
        ("dead", |s| s.dead),
        ("cancelled", |s| s.cancelled),
        ("deadlines_passed", |s| s.deadlines_passed),
        ("unloadable", |s| s.unloadable),
    ];
    for (rule, count) in rules {
        assert!(
            reached.iter().map(count).sum::<u64>() > 0,
            "{rule} was never reached"
        );
    }
}

fn pick() -> std::ops::Range<usize> {
    0..120
}
