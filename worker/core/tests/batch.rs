//! Batches of any sequences, under any order of joining, leaving, pausing and failing.
#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

use std::collections::{BTreeMap, BTreeSet};

use flotilla_protocol::Class;
use flotilla_worker_core::batch::{
    AddError, Batch, BatchSettings, EndReason, NewSequence, Outcome, PlanEntry, SequenceId,
};
use flotilla_worker_core::isolate::{StepPanic, Verdict, isolate};
use proptest::prelude::*;

const STOP: u32 = 9999;

#[derive(Debug, Clone)]
struct Shape {
    class: Class,
    prompt_tokens: usize,
    resumed_tokens: usize,
    new_tokens_max: usize,
    /// The answer's length at which the model makes its end token.
    stop_at: usize,
    is_poison: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Add(Shape),
    Remove(prop::sample::Index),
    Pause(prop::sample::Index),
    Resume(prop::sample::Index),
    Run,
    RunAndFail,
}

fn settings() -> BatchSettings {
    BatchSettings {
        batch_tokens_max: 12,
        sequences_max: 5,
        block_tokens: 4,
        blocks_total: 24,
        context_tokens_max: 60,
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let class = prop_oneof![Just(Class::Interactive), Just(Class::Batch)];
    let lengths = (1..40_usize, 0..6_usize, 1..20_usize, 0..30_usize);
    (class, lengths, prop::bool::weighted(0.05)).prop_map(|(class, lengths, is_poison)| Shape {
        class,
        prompt_tokens: lengths.0,
        resumed_tokens: lengths.1,
        new_tokens_max: lengths.2,
        stop_at: lengths.3,
        is_poison,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => shape().prop_map(Step::Add),
        1 => index().prop_map(Step::Remove),
        1 => index().prop_map(Step::Pause),
        1 => index().prop_map(Step::Resume),
        8 => Just(Step::Run),
        1 => Just(Step::RunAndFail),
    ]
}

/// The token at a place of a sequence: every sequence has its own.
fn token(id: SequenceId, position: usize) -> u32 {
    u32::try_from(id.0 * 100).unwrap() + u32::try_from(position).unwrap()
}

/// What the test knows of a sequence that has not left.
struct Known {
    shape: Shape,
    /// Tokens that were read into its blocks.
    read: usize,
    answer: usize,
    is_paused: bool,
}

/// The engine and the books about it.
struct World {
    batch: Batch,
    known: BTreeMap<SequenceId, Known>,
    ended: BTreeMap<SequenceId, Outcome>,
    next_id: u64,
}

impl World {
    fn new() -> Self {
        Self {
            batch: Batch::new(settings()),
            known: BTreeMap::new(),
            ended: BTreeMap::new(),
            next_id: 0,
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Add(shape) => self.add(shape),
            Step::Remove(index) => {
                if let Some(id) = self.pick(index) {
                    self.batch.remove(id);
                    self.known.remove(&id);
                }
            }
            Step::Pause(index) => {
                if let Some(id) = self.pick(index) {
                    self.batch.pause(id);
                    self.known.get_mut(&id).unwrap().is_paused = true;
                }
            }
            Step::Resume(index) => {
                if let Some(id) = self.pick(index) {
                    self.batch.resume(id);
                    self.known.get_mut(&id).unwrap().is_paused = false;
                }
            }
            Step::Run => drop(self.run()),
            Step::RunAndFail => {
                let before: Option<Vec<_>> = self.batch.plan().map(|plan| plan.entries().map(copy).collect());
                self.batch.abandon();
                let after: Option<Vec<_>> = self.batch.plan().map(|plan| plan.entries().map(copy).collect());
                assert_eq!(before, after, "a failed step is planned again as it was");
                self.batch.abandon();
            }
        }
        self.batch.check_invariants();
    }

    fn pick(&self, index: prop::sample::Index) -> Option<SequenceId> {
        let ids: Vec<_> = self.known.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[index.index(ids.len())])
    }

    fn add(&mut self, shape: Shape) {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let length = shape.prompt_tokens + shape.resumed_tokens;
        let new = NewSequence {
            id,
            class: shape.class,
            tokens: (0..length).map(|position| token(id, position)).collect(),
            prompt_tokens: shape.prompt_tokens,
            new_tokens_max: shape.new_tokens_max,
            stop_token_ids: [STOP].into(),
        };
        self.batch.add(new).unwrap();
        let answer = shape.resumed_tokens;
        self.known.insert(
            id,
            Known {
                shape,
                read: 0,
                answer,
                is_paused: false,
            },
        );
    }

    /// Runs one step; says whether there was one.
    fn run(&mut self) -> bool {
        let Some(plan) = self.batch.plan() else {
            return false;
        };
        check_plan(plan.entries().collect(), &mut self.known);
        let known = &self.known;
        let gives = |entry: PlanEntry<'_>| {
            let shape = &known[&entry.sequence].shape;
            entry.sample.map(|index| {
                let ends = index >= shape.stop_at;
                if ends {
                    STOP
                } else {
                    token(entry.sequence, shape.prompt_tokens + index)
                }
            })
        };
        let panics = |entry: PlanEntry<'_>| known[&entry.sequence].shape.is_poison;
        let outcomes = if plan.entries().any(panics) {
            let alone = |entry: PlanEntry<'_>| match panics(entry) {
                true => Err(StepPanic {
                    message: "boom".into(),
                }),
                false => Ok(gives(entry)),
            };
            let verdicts = isolate(
                &plan,
                StepPanic {
                    message: "boom".into(),
                },
                alone,
            );
            self.batch.complete_isolated(verdicts).to_vec()
        } else {
            let results: Vec<_> = plan.entries().map(gives).collect();
            self.batch.complete(&results).to_vec()
        };
        outcomes.into_iter().for_each(|outcome| self.book(outcome));
        true
    }

    fn book(&mut self, outcome: Outcome) {
        match &outcome {
            Outcome::Token {
                sequence,
                token: made,
                index,
            } => {
                let known = self.known.get_mut(sequence).unwrap();
                assert_eq!(*index, known.answer, "tokens come in order");
                assert_eq!(*made, token(*sequence, known.shape.prompt_tokens + index));
                known.answer += 1;
            }
            Outcome::Finished {
                sequence,
                reason,
                answer_tokens,
            } => {
                let known = self.known.remove(sequence).unwrap();
                assert_eq!(*answer_tokens, known.answer);
                let Shape {
                    prompt_tokens,
                    resumed_tokens,
                    new_tokens_max,
                    stop_at,
                    ..
                } = known.shape;
                let length_max =
                    (resumed_tokens + new_tokens_max).min(settings().context_tokens_max - prompt_tokens);
                let stops = stop_at.max(resumed_tokens) < length_max;
                let expected = if stops { EndReason::Stop } else { EndReason::Length };
                assert_eq!(*reason, expected);
                assert_eq!(
                    known.answer,
                    if stops {
                        stop_at.max(resumed_tokens)
                    } else {
                        length_max
                    }
                );
                self.ended.insert(*sequence, outcome);
            }
            Outcome::Panicked { sequence, .. } => {
                assert!(
                    self.known.remove(sequence).unwrap().shape.is_poison,
                    "only the poison is blamed"
                );
                self.ended.insert(*sequence, outcome);
            }
        }
    }
}

/// An entry that outlives its plan.
fn copy(entry: PlanEntry<'_>) -> (SequenceId, usize, Vec<u32>, Vec<u32>, Option<usize>) {
    (
        entry.sequence,
        entry.start,
        entry.tokens.to_vec(),
        entry.blocks.to_vec(),
        entry.sample,
    )
}

fn check_plan(entries: Vec<PlanEntry<'_>>, known: &mut BTreeMap<SequenceId, Known>) {
    let mut blocks = BTreeSet::new();
    let budget: usize = entries.iter().map(|entry| entry.tokens.len()).sum();
    assert!(
        budget <= settings().batch_tokens_max,
        "the budget of a step is kept"
    );
    let decodes = entries.iter().map(|entry| {
        let known = &known[&entry.sequence];
        entry.start + 1 == known.shape.prompt_tokens + known.answer
    });
    assert!(
        decodes.is_sorted_by(|one, next| one >= next),
        "decodes come first"
    );
    for entry in entries {
        let known = known.get_mut(&entry.sequence).unwrap();
        assert!(!known.is_paused, "who is paused is left out");
        assert_eq!(entry.start, known.read, "every token is read once, in order");
        for (offset, read) in entry.tokens.iter().enumerate() {
            assert_eq!(*read, token(entry.sequence, entry.start + offset));
        }
        known.read += entry.tokens.len();
        let length = known.shape.prompt_tokens + known.answer;
        assert_eq!(entry.sample, (known.read == length).then_some(known.answer));
        assert!(
            entry.blocks.len() * settings().block_tokens >= known.read,
            "blocks for what is read"
        );
        assert!(
            entry.blocks.iter().all(|block| blocks.insert(*block)),
            "no block is shared"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_sequence_that_is_not_removed_ends_as_it_would_alone(
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.apply(step));
        let ids: Vec<_> = world.known.keys().copied().collect();
        for id in ids {
            world.batch.resume(id);
            world.known.get_mut(&id).unwrap().is_paused = false;
        }
        while world.run() {
            world.batch.check_invariants();
        }
        prop_assert!(world.known.is_empty(), "everyone ends");
        prop_assert_eq!(world.batch.blocks_free(), 24, "all blocks come back");
        prop_assert_eq!(world.batch.sequence_count(), 0);
    }
}

fn sequence(id: u64, class: Class, prompt_tokens: usize, new_tokens_max: usize) -> NewSequence {
    NewSequence {
        id: SequenceId(id),
        class,
        tokens: (0..prompt_tokens)
            .map(|position| token(SequenceId(id), position))
            .collect(),
        prompt_tokens,
        new_tokens_max,
        stop_token_ids: [STOP].into(),
    }
}

fn planned(batch: &mut Batch) -> Vec<(u64, usize)> {
    let plan = batch.plan().unwrap();
    plan.entries()
        .map(|entry| (entry.sequence.0, entry.tokens.len()))
        .collect()
}

#[test]
fn decodes_come_first_and_prompts_share_what_is_left_interactive_before_batch() {
    let mut batch = Batch::new(settings());
    batch.add(sequence(1, Class::Batch, 3, 5)).unwrap();
    assert_eq!(planned(&mut batch), [(1, 3)]);
    batch.complete(&[Some(7)]);
    batch.add(sequence(2, Class::Batch, 10, 2)).unwrap();
    batch.add(sequence(3, Class::Interactive, 8, 2)).unwrap();
    assert_eq!(planned(&mut batch), [(1, 1), (3, 8), (2, 3)]);
    batch.complete(&[Some(7), Some(7), None]);
    assert_eq!(
        planned(&mut batch),
        [(1, 1), (3, 1), (2, 7)],
        "the prompt goes on where it was cut"
    );
}

#[test]
fn interactive_sequences_are_admitted_before_batch_ones_and_nobody_passes_the_first() {
    let mut batch = Batch::new(settings());
    batch.add(sequence(1, Class::Batch, 39, 20)).unwrap();
    batch.add(sequence(2, Class::Batch, 1, 1)).unwrap();
    batch.add(sequence(3, Class::Interactive, 39, 20)).unwrap();
    batch.add(sequence(4, Class::Interactive, 1, 1)).unwrap();
    assert_eq!(
        batch.admitted_count(),
        2,
        "15 + 1 of 24 blocks are taken; 15 for the third are not free"
    );
    batch.remove(SequenceId(1));
    let mut expected = vec![(2, 1), (4, 1), (3, 10)];
    assert_eq!(planned(&mut batch), expected);
    batch.pause(SequenceId(2));
    expected.remove(0);
    expected[1].1 += 1;
    assert_eq!(
        planned(&mut batch),
        expected,
        "a paused sequence alone is left out"
    );
}

#[test]
fn a_panic_of_a_lone_sequence_needs_no_second_run() {
    let mut batch = Batch::new(settings());
    batch.add(sequence(1, Class::Batch, 3, 5)).unwrap();
    let panic = StepPanic {
        message: "boom".into(),
    };
    let plan = batch.plan().unwrap();
    let verdicts = isolate(&plan, panic.clone(), |_| unreachable!("it has told already"));
    assert_eq!(
        verdicts,
        [Verdict {
            sequence: SequenceId(1),
            result: Err(panic)
        }]
    );
    let outcomes = batch.complete_isolated(verdicts);
    assert_eq!(
        outcomes,
        [Outcome::Panicked {
            sequence: SequenceId(1),
            message: "boom".into()
        }]
    );
    assert_eq!(batch.blocks_free(), 24);
}

#[test]
fn sequences_that_all_run_alone_just_go_on() {
    let mut batch = Batch::new(settings());
    batch.add(sequence(1, Class::Batch, 3, 5)).unwrap();
    batch.add(sequence(2, Class::Batch, 3, 5)).unwrap();
    let plan = batch.plan().unwrap();
    let verdicts = isolate(
        &plan,
        StepPanic {
            message: "boom".into(),
        },
        |_| Ok(Some(5)),
    );
    assert_eq!(batch.complete_isolated(verdicts).len(), 2);
    assert_eq!(planned(&mut batch), [(1, 1), (2, 1)]);
}

#[test]
fn a_step_without_a_due_token_ends_the_sequence() {
    let mut batch = Batch::new(settings());
    batch.add(sequence(1, Class::Batch, 3, 5)).unwrap();
    assert!(batch.plan().is_some());
    let ended = Outcome::Finished {
        sequence: SequenceId(1),
        reason: EndReason::NoToken,
        answer_tokens: 0,
    };
    assert_eq!(batch.complete(&[None]), [ended]);
}

#[test]
fn sequences_that_could_never_run_are_refused_with_the_numbers() {
    let mut batch = Batch::new(BatchSettings {
        blocks_total: 3,
        ..settings()
    });
    let refused = |batch: &mut Batch, new| batch.add(new).unwrap_err();
    batch.add(sequence(1, Class::Batch, 2, 2)).unwrap();
    assert_eq!(
        refused(&mut batch, sequence(1, Class::Batch, 2, 2)),
        AddError::Duplicate(SequenceId(1))
    );
    assert_eq!(
        refused(&mut batch, sequence(2, Class::Batch, 0, 2)),
        AddError::NoPrompt
    );
    assert_eq!(
        refused(&mut batch, sequence(2, Class::Batch, 2, 0)),
        AddError::NoNewTokens
    );
    let full = AddError::ContextFull {
        tokens: 60,
        context_tokens_max: 60,
    };
    assert_eq!(refused(&mut batch, sequence(2, Class::Batch, 60, 2)), full);
    let long = AddError::TooLong {
        blocks_needed: 4,
        blocks_total: 3,
    };
    assert_eq!(refused(&mut batch, sequence(2, Class::Batch, 10, 3)), long);
    assert_eq!(batch.sequence_count(), 1);
}
