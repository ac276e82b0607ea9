//! Batches of any sequences, under any order of joining, leaving, pausing and failing.
#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

mod prefix;
mod world;

use flotilla_protocol::Class;
use flotilla_worker_core::batch::{
    AddError, Batch, BatchSettings, EndReason, NewSequence, Outcome, SequenceId,
};
use flotilla_worker_core::isolate::{StepPanic, Verdict, isolate};
use proptest::prelude::*;

use world::{STOP, World, settings, step};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_sequence_that_is_not_removed_ends_as_it_would_alone(
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.apply(step));
        world.run_to_the_end();
        prop_assert!(world.is_empty(), "everyone ends");
        prop_assert_eq!(world.batch.blocks_free(), 24, "all blocks come back");
        prop_assert_eq!(world.batch.sequence_count(), 0);
    }
}

fn sequence(id: u64, class: Class, prompt_tokens: usize, new_tokens_max: usize) -> NewSequence {
    NewSequence {
        id: SequenceId(id),
        class,
        tokens: (0..prompt_tokens)
            .map(|position| u32::try_from(id).unwrap() * 100 + u32::try_from(position).unwrap())
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
fn a_plan_tells_how_much_of_it_is_read_and_how_many_decode() {
    let mut batch = Batch::new(settings());
    batch.add(sequence(1, Class::Batch, 3, 5)).unwrap();
    let sizes = |batch: &mut Batch| {
        let plan = batch.plan().unwrap();
        (plan.prefill_tokens(), plan.decoding_count())
    };
    assert_eq!(sizes(&mut batch), (3, 0));
    batch.complete(&[Some(7)]);
    batch.add(sequence(2, Class::Batch, 4, 2)).unwrap();
    batch.add(sequence(3, Class::Batch, 1, 2)).unwrap();
    assert_eq!(
        sizes(&mut batch),
        (4, 2),
        "a prompt of one token is read as a decode is"
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
