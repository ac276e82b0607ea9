//! Batches of any sequences, under any order of joining, leaving, pausing and failing.
#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

mod bench;
mod case;
mod devices;
mod preemption;
mod prefix;
mod world;

use flotilla_protocol::Class;
use flotilla_worker_core::batch::{AddError, EndReason, NewSequence, Outcome, SequenceId};
use flotilla_worker_core::isolate::{StepPanic, Verdict, isolate};

use bench::Bench;
use case::{STOP, settings};

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

fn planned(bench: &mut Bench) -> Vec<(u64, usize)> {
    let plan = bench.plan().unwrap();
    plan.entries()
        .map(|entry| (entry.sequence.0, entry.tokens.len()))
        .collect()
}

#[test]
fn decodes_come_first_and_prompts_share_what_is_left_interactive_before_batch() {
    let mut bench = Bench::new(settings(), 24);
    bench.add(sequence(1, Class::Batch, 3, 5));
    assert_eq!(planned(&mut bench), [(1, 3)]);
    bench.complete(&[Some(7)]);
    bench.add(sequence(2, Class::Batch, 10, 2));
    bench.add(sequence(3, Class::Interactive, 8, 2));
    assert_eq!(planned(&mut bench), [(1, 1), (3, 8), (2, 3)]);
    bench.complete(&[Some(7), Some(7), None]);
    assert_eq!(
        planned(&mut bench),
        [(3, 1), (1, 1), (2, 7)],
        "the prompt goes on where it was cut"
    );
}

#[test]
fn a_plan_tells_how_much_of_it_is_read_and_how_many_decode() {
    let mut bench = Bench::new(settings(), 24);
    bench.add(sequence(1, Class::Batch, 3, 5));
    let sizes = |bench: &mut Bench| {
        let plan = bench.plan().unwrap();
        (plan.prefill_tokens(), plan.decoding_count())
    };
    assert_eq!(sizes(&mut bench), (3, 0));
    bench.complete(&[Some(7)]);
    bench.add(sequence(2, Class::Batch, 4, 2));
    bench.add(sequence(3, Class::Batch, 1, 2));
    assert_eq!(
        sizes(&mut bench),
        (4, 2),
        "a prompt of one token is read as a decode is"
    );
}

#[test]
fn interactive_sequences_are_admitted_before_batch_ones_and_nobody_passes_the_first() {
    let mut bench = Bench::new(settings(), 24);
    bench.add(sequence(1, Class::Interactive, 39, 20));
    bench.add(sequence(2, Class::Interactive, 1, 1));
    bench.add(sequence(3, Class::Batch, 1, 1));
    bench.add(sequence(4, Class::Interactive, 55, 5));
    bench.add(sequence(5, Class::Interactive, 1, 1));
    bench.provide();
    assert_eq!(
        bench.batch.admitted_count(),
        2,
        "10 + 1 of 24 blocks are taken; 14 for the fourth are not free"
    );
    bench.remove(SequenceId(1));
    assert_eq!(planned(&mut bench), [(2, 1), (5, 1), (3, 1), (4, 9)]);
    bench.batch.pause(SequenceId(2), &mut bench.budget);
    assert_eq!(
        planned(&mut bench),
        [(5, 1), (3, 1), (4, 10)],
        "a paused sequence alone is left out"
    );
}

#[test]
fn a_panic_of_a_lone_sequence_needs_no_second_run() {
    let mut bench = Bench::new(settings(), 24);
    bench.add(sequence(1, Class::Batch, 3, 5));
    let panic = StepPanic {
        message: "boom".into(),
    };
    let plan = bench.plan().unwrap();
    let verdicts = isolate(&plan, panic.clone(), |_| unreachable!("it has told already"));
    assert_eq!(
        verdicts,
        [Verdict {
            sequence: SequenceId(1),
            result: Err(panic)
        }]
    );
    let outcomes = bench.complete_isolated(verdicts);
    assert_eq!(
        outcomes,
        [Outcome::Panicked {
            sequence: SequenceId(1),
            message: "boom".into()
        }]
    );
    assert_eq!(bench.blocks_free(), 24);
}

#[test]
fn sequences_that_all_run_alone_just_go_on() {
    let mut bench = Bench::new(settings(), 24);
    bench.add(sequence(1, Class::Batch, 3, 5));
    bench.add(sequence(2, Class::Batch, 3, 5));
    let plan = bench.plan().unwrap();
    let verdicts = isolate(
        &plan,
        StepPanic {
            message: "boom".into(),
        },
        |_| Ok(Some(5)),
    );
    assert_eq!(bench.complete_isolated(verdicts).len(), 2);
    assert_eq!(planned(&mut bench), [(1, 1), (2, 1)]);
}

#[test]
fn a_step_without_a_due_token_ends_the_sequence() {
    let mut bench = Bench::new(settings(), 24);
    bench.add(sequence(1, Class::Batch, 3, 5));
    assert!(bench.plan().is_some());
    let ended = Outcome::Finished {
        sequence: SequenceId(1),
        reason: EndReason::NoToken,
        answer_tokens: 0,
    };
    assert_eq!(bench.complete(&[None]), [ended]);
}

#[test]
fn sequences_that_could_never_run_are_refused_with_the_numbers() {
    let mut bench = Bench::new(settings(), 3);
    let refused = |bench: &mut Bench, new| bench.batch.add(new, &mut bench.budget).unwrap_err();
    bench.add(sequence(1, Class::Batch, 2, 2));
    assert_eq!(
        refused(&mut bench, sequence(1, Class::Batch, 2, 2)),
        AddError::Duplicate(SequenceId(1))
    );
    assert_eq!(
        refused(&mut bench, sequence(2, Class::Batch, 0, 2)),
        AddError::NoPrompt
    );
    assert_eq!(
        refused(&mut bench, sequence(2, Class::Batch, 2, 0)),
        AddError::NoNewTokens
    );
    let full = AddError::ContextFull {
        tokens: 60,
        context_tokens_max: 60,
    };
    assert_eq!(refused(&mut bench, sequence(2, Class::Batch, 60, 2)), full);
    assert_eq!(bench.batch.sequence_count(), 1);
}
