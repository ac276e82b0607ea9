//! Full blocks that outlive their sequence and are found by others.

use flotilla_protocol::Class;
use flotilla_worker_core::batch::{BatchSettings, NewSequence, Outcome, SequenceId};
use flotilla_worker_core::isolate::{StepPanic, isolate};

use crate::bench::Bench;
use crate::case::{STOP, settings};

/// Blocks of 4 tokens, each with memory of its own, and steps that read any prompt at once.
fn bench(pages: u64) -> Bench {
    let settings = BatchSettings {
        batch_tokens_max: 64,
        ..settings()
    };
    Bench::new(settings, pages)
}

fn add(bench: &mut Bench, id: u64, prompt: &[u32], new_tokens_max: usize) {
    bench.add(NewSequence {
        id: SequenceId(id),
        class: Class::Interactive,
        tokens: prompt.to_vec(),
        prompt_tokens: prompt.len(),
        new_tokens_max,
        stop_token_ids: [STOP].into(),
    });
}

/// Where each sequence of the next step starts, and on which blocks.
fn starts(bench: &mut Bench) -> Vec<(u64, usize, Vec<u32>)> {
    let plan = bench.plan().unwrap();
    plan.entries()
        .map(|entry| (entry.sequence.0, entry.start, entry.blocks.to_vec()))
        .collect()
}

/// Runs a step in which whoever can draws `token`.
fn step(bench: &mut Bench, token: Option<u32>) -> Vec<Outcome> {
    let plan = bench.plan().unwrap();
    let drawn: Vec<_> = plan.entries().map(|entry| entry.sample.and(token)).collect();
    bench.complete(&drawn)
}

/// A sequence alone, from its first step to its end; gives the tokens that it did not read.
fn run_whole(bench: &mut Bench, id: u64, prompt: &[u32]) -> usize {
    add(bench, id, prompt, 1);
    let reused = starts(bench)[0].1;
    step(bench, Some(7));
    assert_eq!(bench.batch.sequence_count(), 0);
    reused
}

fn prompt(first: u32, tokens: u32) -> Vec<u32> {
    (first..first + tokens).collect()
}

#[test]
fn system_prompt_of_two_requests_is_read_once() {
    let mut bench = bench(24);
    let system = prompt(100, 10);
    let [one, two] = [
        [&system[..], &[1, 2, 3]].concat(),
        [&system[..], &[4, 5]].concat(),
    ];
    add(&mut bench, 1, &one, 5);
    let first_blocks = starts(&mut bench)[0].2.clone();
    step(&mut bench, Some(7));
    add(&mut bench, 2, &two, 5);
    let planned = starts(&mut bench);
    assert_eq!(
        (planned[1].0, planned[1].1),
        (2, 8),
        "two full blocks are in common"
    );
    assert_eq!(planned[1].2[..2], first_blocks[..2]);
    let reused = Outcome::Reused {
        sequence: SequenceId(2),
        tokens: 8,
    };
    assert!(step(&mut bench, Some(7)).contains(&reused));
    assert_eq!(bench.batch.stats().reused_tokens, 8);
}

#[test]
fn cached_prompt_still_has_a_token_to_read() {
    let mut bench = bench(24);
    assert_eq!(run_whole(&mut bench, 1, &prompt(100, 8)), 0);
    assert_eq!(run_whole(&mut bench, 2, &prompt(100, 8)), 4);
    assert_eq!(run_whole(&mut bench, 3, &prompt(100, 9)), 8);
    assert_eq!(run_whole(&mut bench, 4, &prompt(100, 4)), 0);
}

#[test]
fn next_turn_of_a_chat_finds_prompt_and_answer() {
    let mut bench = bench(24);
    add(&mut bench, 1, &prompt(100, 5), 20);
    for token in 200..206 {
        step(&mut bench, Some(token));
    }
    step(&mut bench, Some(STOP));
    let chat = [prompt(100, 5), prompt(200, 6), prompt(300, 4)].concat();
    assert_eq!(run_whole(&mut bench, 2, &chat), 8, "11 tokens were read");
    assert_eq!(run_whole(&mut bench, 3, &chat), 12);
}

#[test]
fn same_tokens_after_other_tokens_are_not_the_same() {
    let mut bench = bench(24);
    let [one, two] = [prompt(100, 4), prompt(200, 4)];
    run_whole(&mut bench, 1, &[&one[..], &two, &[9]].concat());
    assert_eq!(run_whole(&mut bench, 2, &[&two[..], &one, &[9]].concat()), 0);
    assert_eq!(run_whole(&mut bench, 3, &[&one[..], &one, &[9]].concat()), 4);
    assert_eq!(run_whole(&mut bench, 4, &[&two[..], &one, &[9]].concat()), 8);
}

#[test]
fn prompt_that_two_read_at_the_same_time_is_kept_once() {
    let mut bench = bench(24);
    for id in 0..2 {
        add(&mut bench, id, &prompt(100, 9), 5);
    }
    let apart = starts(&mut bench);
    assert!(apart[0].2.iter().all(|block| !apart[1].2.contains(block)));
    assert_eq!(bench.blocks_free(), 24 - 6);
    step(&mut bench, Some(7));
    let together = starts(&mut bench);
    assert_eq!(together[0].2[..2], together[1].2[..2]);
    assert_ne!(together[0].2[2..], together[1].2[2..]);
    assert_eq!(bench.blocks_free(), 24 - 4);
    assert_eq!(bench.batch.stats().reused_tokens, 0, "both have read it");
}

#[test]
fn who_has_not_come_to_read_yet_takes_what_another_has_read() {
    let mut bench = Bench::new(settings(), 24);
    for id in 0..3 {
        add(&mut bench, id, &prompt(100, 10), 5);
    }
    assert_eq!(starts(&mut bench).len(), 2, "a step reads 12 tokens");
    step(&mut bench, Some(7));
    let starts = starts(&mut bench);
    let starts: Vec<_> = starts.iter().map(|(id, start, _)| (*id, *start)).collect();
    assert_eq!(starts, [(0, 10), (1, 8), (2, 8)]);
}

#[test]
fn blocks_unused_for_longest_go_first_and_children_before_their_parents() {
    let mut bench = bench(6);
    let [one, two] = [prompt(100, 9), prompt(200, 9)];
    run_whole(&mut bench, 1, &one);
    run_whole(&mut bench, 2, &two);
    assert_eq!(
        run_whole(&mut bench, 3, &one),
        8,
        "and so it was used later than the second"
    );
    assert_eq!(bench.batch.stats().evicted_blocks, 0);
    run_whole(&mut bench, 4, &prompt(300, 9));
    assert_eq!(bench.batch.stats().evicted_blocks, 1);
    add(&mut bench, 5, &two, 1);
    assert_eq!(
        starts(&mut bench)[0].1,
        4,
        "its leaf is gone, the parent is there"
    );
    bench.remove(SequenceId(5));
    assert_eq!(run_whole(&mut bench, 6, &prompt(300, 9)), 8);
}

#[test]
fn cached_blocks_that_nobody_holds_make_room() {
    let mut bench = bench(6);
    run_whole(&mut bench, 1, &prompt(100, 23));
    assert_eq!(bench.blocks_free(), 6);
    add(&mut bench, 2, &prompt(200, 20), 4);
    bench.provide();
    assert_eq!((bench.batch.admitted_count(), bench.blocks_free()), (1, 0));
    assert_eq!(bench.batch.stats().evicted_blocks, 5);
}

#[test]
fn blocks_that_others_hold_are_not_needed_twice() {
    let mut bench = bench(6);
    add(&mut bench, 1, &prompt(100, 17), 3);
    step(&mut bench, Some(7));
    let other = [prompt(100, 16), vec![5]].concat();
    add(&mut bench, 2, &other, 3);
    bench.provide();
    assert_eq!(
        bench.batch.admitted_count(),
        2,
        "4 of 5 blocks are the first one's"
    );
    assert_eq!(bench.blocks_free(), 0);
    add(&mut bench, 3, &prompt(100, 17), 3);
    bench.provide();
    assert_eq!(bench.batch.admitted_count(), 2, "its own block is not there");
    bench.remove(SequenceId(1));
    bench.provide();
    assert_eq!(bench.batch.admitted_count(), 2);
}

#[test]
fn blocks_of_logits_that_are_not_finite_are_never_found() {
    let mut bench = bench(24);
    add(&mut bench, 1, &prompt(100, 9), 5);
    step(&mut bench, None);
    assert_eq!(bench.batch.sequence_count(), 0);
    assert_eq!(run_whole(&mut bench, 2, &prompt(100, 9)), 0);
}

#[test]
fn blocks_of_a_step_that_panicked_are_found_only_when_it_succeeded_alone() {
    let mut bench = bench(24);
    let [good, bad] = [prompt(100, 9), prompt(200, 9)];
    add(&mut bench, 1, &good, 1);
    add(&mut bench, 2, &bad, 1);
    let boom = || StepPanic {
        message: "boom".into(),
    };
    let plan = bench.plan().unwrap();
    let verdicts = isolate(&plan, boom(), |entry| match entry.sequence {
        SequenceId(1) => Ok(Some(7)),
        SequenceId(_) => Err(boom()),
    });
    assert_eq!(bench.complete_isolated(verdicts).len(), 3);
    bench.check_invariants();
    assert_eq!(run_whole(&mut bench, 3, &good), 8);
    assert_eq!(run_whole(&mut bench, 4, &bad), 0);
}

#[test]
fn blocks_of_a_prompt_that_was_not_read_to_its_end_are_not_found() {
    let mut bench = Bench::new(settings(), 24);
    add(&mut bench, 1, &prompt(100, 20), 5);
    step(&mut bench, Some(7));
    assert_eq!(starts(&mut bench)[0].1, 12, "three blocks are full");
    bench.remove(SequenceId(1));
    add(&mut bench, 2, &prompt(100, 20), 5);
    assert_eq!(starts(&mut bench)[0].1, 0, "no finite logit speaks for them");
}

#[test]
fn sequence_that_leaves_during_its_step_leaves_nothing_and_its_name_is_taken_until_then() {
    let mut bench = bench(24);
    add(&mut bench, 1, &prompt(100, 9), 5);
    assert_eq!(starts(&mut bench).len(), 1);
    bench.remove(SequenceId(1));
    let again = NewSequence {
        id: SequenceId(1),
        class: Class::Interactive,
        tokens: prompt(100, 9),
        prompt_tokens: 9,
        new_tokens_max: 5,
        stop_token_ids: [STOP].into(),
    };
    assert!(
        bench.batch.add(again.clone(), &mut bench.budget).is_err(),
        "the step's result is not for it"
    );
    assert_eq!(bench.complete(&[Some(7)]), []);
    bench.add(again);
    assert_eq!(starts(&mut bench)[0].1, 0);
}
