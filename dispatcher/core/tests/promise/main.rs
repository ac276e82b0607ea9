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

use flotilla_dispatcher_core::{PromptCount, Stats};
use flotilla_protocol::Class;
use flotilla_protocol::catalog::Policy;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};

use world::facts::{Fact, KINDS};
use world::stream::Wish;
use world::worker::Work;
use world::{Step, World};

/// Everything that can happen to a fleet.
fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => maybe_poison(0.05).prop_map(Step::Publish),
        24 => pick().prop_map(Step::Deliver),
        6 => pick().prop_map(Step::Report),
        12 => (pick(), pick(), any_work())
            .prop_map(|(worker, pick, work)| Step::Work(worker, pick, work)),
        4 => (0_u64..1500).prop_map(|ms| Step::Wait { ms }),
        4 => pick().prop_map(Step::Drop),
        3 => pick().prop_map(Step::GiveUpAssign),
        2 => pick().prop_map(Step::Redeliver),
        1 => pick().prop_map(Step::PublishAgain),
        2 => pick().prop_map(Step::Die),
        3 => pick().prop_map(Step::Start),
        3 => pick().prop_map(Step::Miss),
        1 => pick().prop_map(Step::Drain),
        1 => pick().prop_map(Step::Cancel),
        1 => Just(Step::NewLeader),
        1 => Just(Step::RemoveModel),
        4 => any_fact().prop_map(Step::Learn),
        2 => (pick(), pick()).prop_map(|(worker, pick)| Step::Shake(worker, pick)),
        1 => (1_u64..300).prop_map(|minutes| Step::Jump { minutes }),
    ]
}

/// A valid request of somebody who waits for as long as it takes.
fn patient(wish: Wish) -> Wish {
    Wish {
        class: Class::Interactive,
        deadline_ms: None,
        valid: true,
        ..wish
    }
}

/// Delays and changes of order only: nothing is lost and nobody dies.
fn calm_step() -> impl Strategy<Value = Step> {
    let wish = any_wish().prop_map(patient);
    prop_oneof![
        4 => wish.prop_map(Step::Publish),
        24 => pick().prop_map(Step::Deliver),
        6 => pick().prop_map(Step::Report),
        12 => (pick(), pick()).prop_map(|(worker, pick)| Step::Work(worker, pick, Work::Step)),
        4 => (pick(), pick()).prop_map(|(worker, pick)| Step::Work(worker, pick, Work::Finish)),
        1 => pick().prop_map(Step::Redeliver),
        2 => any_fact().prop_map(Step::Learn),
    ]
}

/// Some requests kill whoever computes their answers, and nothing else happens to anybody.
fn poisoned_step() -> impl Strategy<Value = Step> {
    let wish = maybe_poison(0.2).prop_map(patient);
    prop_oneof![
        4 => wish.prop_map(Step::Publish),
        24 => pick().prop_map(Step::Deliver),
        6 => pick().prop_map(Step::Report),
        12 => (pick(), pick()).prop_map(|(worker, pick)| Step::Work(worker, pick, Work::Step)),
        4 => (pick(), pick()).prop_map(|(worker, pick)| Step::Work(worker, pick, Work::Finish)),
        4 => pick().prop_map(Step::Start),
        2 => (0_u64..1500).prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::NewLeader),
    ]
}

/// Many requests for devices that everybody has measured, so that there is never room for all.
fn busy_step() -> impl Strategy<Value = Step> {
    let wait = (0_u64..1500).prop_map(|ms| Step::Wait { ms });
    prop_oneof![
        8 => any_wish().prop_map(Step::Publish),
        4 => any_fact().prop_map(Step::Learn),
        24 => pick().prop_map(Step::Deliver),
        6 => pick().prop_map(Step::Report),
        6 => wait,
        8 => (pick(), pick()).prop_map(|(worker, pick)| Step::Work(worker, pick, Work::Step)),
        1 => (pick(), pick()).prop_map(|(worker, pick)| Step::Work(worker, pick, Work::Finish)),
    ]
}

fn any_wish() -> impl Strategy<Value = Wish> {
    let class = prop_oneof![Just(Class::Interactive), Just(Class::Batch)];
    let deadline_ms = prop_oneof![4 => Just(None), 1 => (0_u64..5000).prop_map(Some)];
    let lengths = (1_u32..2000, 1_u32..200);
    let prompt_count = prop_oneof![9 => Just(PromptCount::Counted), 1 => Just(PromptCount::Estimated)];
    let e2e_ms = prop_oneof![2 => Just(None), 1 => (0_u32..9000).prop_map(Some)];
    let tpot_ms = prop_oneof![4 => Just(None), 1 => (0_u32..500).prop_map(Some)];
    let tenant = prop::option::of(0_u8..2);
    let lengths = (lengths, prompt_count);
    let targets = (e2e_ms, tpot_ms, deadline_ms);
    (
        0_u8..5,
        class,
        tenant,
        lengths,
        targets,
        prop::bool::weighted(0.95),
    )
        .prop_map(
            |(model, class, tenant, (lengths, prompt_count), (e2e_ms, tpot_ms, deadline_ms), valid)| Wish {
                model,
                class,
                tenant,
                prompt_tokens: lengths.0,
                prompt_count,
                output_tokens_max: lengths.1,
                e2e_ms,
                tpot_ms,
                deadline_ms,
                valid,
                poison: false,
            },
        )
}

fn maybe_poison(part: f64) -> impl Strategy<Value = Wish> {
    (any_wish(), prop::bool::weighted(part)).prop_map(|(wish, poison)| Wish { poison, ..wish })
}

fn any_fact() -> impl Strategy<Value = Fact> {
    let kind = || 0..KINDS.len();
    let profile = (0_u8..5, kind(), 1_u32..5000, 1_u32..9, 0_u32..9);
    let profile = profile.prop_map(|(model, kind, ms, at_once, created)| Fact::Profile {
        model,
        kind,
        ms,
        at_once,
        created,
    });
    let policies = vec![
        None,
        Some(Policy::Slo),
        Some(Policy::Pack),
        Some(Policy::Spread),
        Some(Policy::Fifo),
    ];
    let entry = (
        0_u8..5,
        prop::sample::select(policies),
        prop::option::of(1_u32..9000),
        prop::bool::weighted(0.2),
        prop::option::of(1_u32..300),
    );
    let entry = entry.prop_map(
        |(model, policy, e2e_ms, pin, output_tokens_prior)| Fact::Catalog {
            model,
            policy,
            e2e_ms,
            pin,
            output_tokens_prior,
        },
    );
    prop_oneof![
        4 => profile,
        1 => (0_u8..5, kind()).prop_map(|(model, kind)| Fact::NoProfile { model, kind }),
        2 => entry,
        4 => pick().prop_map(|worker| Fact::Registration { worker }),
    ]
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
    fn a_fleet_that_cannot_do_it_all_keeps_every_rule_and_serves_everything_in_the_end(
        steps in prop::collection::vec(busy_step(), 1..300)
    ) {
        run(&[4, 4, 4], &steps);
    }

    #[test]
    fn without_faults_every_request_runs_once_and_no_worker_gets_more_than_it_offered(
        steps in prop::collection::vec(calm_step(), 1..300)
    ) {
        let world = run(&[1, 2, 3], &steps);
        for worker in &world.workers {
            prop_assert_eq!((worker.refused_full, worker.victims_used), (0, 0));
        }
        for journal in world.journals.values() {
            prop_assert_eq!(journal.accepted_count(), 1);
        }
        let stats = world.dispatcher.stats();
        prop_assert_eq!((stats.strikes, stats.unanswered, stats.fenced), (0, 0, 0));
    }
}

proptest! {
    // Each death costs virtual minutes.
    #![proptest_config(config(100))]

    #[test]
    fn only_those_that_kill_their_workers_become_dead_letters(
        steps in prop::collection::vec(poisoned_step(), 1..300)
    ) {
        let world = run(&[1, 2, 3], &steps);
        prop_assert_eq!(&world.dead, &world.poison());
    }
}

type Counter = fn(&Stats) -> u64;

/// A simulation that never reaches a rule proves nothing of it.
fn assert_all_are_reached(steps: impl Strategy<Value = Step>, slots: &[u32], rules: &[(&str, Counter)]) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let steps = prop::collection::vec(steps, 300);
    let mut reached: Vec<Stats> = Vec::new();
    for _ in 0..250 {
        let tree = steps.new_tree(&mut runner).unwrap();
        reached.extend(run(slots, &tree.current()).stats());
    }
    for (rule, count) in rules {
        assert!(
            reached.iter().map(count).sum::<u64>() > 0,
            "{rule} was never reached"
        );
    }
}

#[test]
fn the_simulated_faults_reach_every_rule() {
    assert_all_are_reached(
        any_step(),
        &[1, 2, 3],
        &[
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
            ("workers_absent", |s| s.workers_absent),
            ("workers_restarted", |s| s.workers_restarted),
            ("reports_stale", |s| s.reports_stale),
            ("suspects", |s| s.suspects),
            ("cleared", |s| s.cleared),
            ("alone", |s| s.alone),
            ("strikes", |s| s.strikes),
            ("dead", |s| s.dead),
            ("cancelled", |s| s.cancelled),
            ("deadlines_passed", |s| s.deadlines_passed),
            ("unloadable", |s| s.unloadable),
        ],
    );
}

#[test]
fn the_simulated_load_reaches_every_decision() {
    assert_all_are_reached(
        busy_step(),
        &[4, 4, 4],
        &[
            ("late", |s| s.late),
            ("given_up", |s| s.given_up),
            ("assigned_cold", |s| s.assigned_cold),
            ("victims", |s| s.victims),
            ("reservations", |s| s.reservations),
            ("prefetches", |s| s.prefetches),
            ("repricings", |s| s.repricings),
            ("prompts_estimated", |s| s.prompts_estimated),
        ],
    );
}

fn pick() -> std::ops::Range<usize> {
    0..120
}
