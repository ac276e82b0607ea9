//! Who gives up for whom when pages run out.

use flotilla_protocol::Class;
use flotilla_worker_core::batch::{Batch, BatchSettings, NewSequence, Outcome, SequenceId};
use flotilla_worker_core::kv::{KvBudget, KvSlab, SlabChange, provide, shrink};

use crate::case::{STOP, settings};

/// Two models on one device: blocks of 4 tokens, each on a page of its own.
struct Device {
    budget: KvBudget,
    batches: Vec<Batch>,
}

impl Device {
    fn new(pages: u64) -> Self {
        let batch = || {
            Batch::new(BatchSettings {
                batch_tokens_max: 64,
                ..settings()
            })
        };
        Self {
            budget: KvBudget::new(pages),
            batches: vec![batch(), batch()],
        }
    }

    fn add(&mut self, model: usize, id: u64, class: Class, prompt_tokens: u32) {
        let first = 1000 * u32::try_from(id).unwrap();
        let new = NewSequence {
            id: SequenceId(id),
            class,
            tokens: (first..first + prompt_tokens).collect(),
            prompt_tokens: prompt_tokens as usize,
            new_tokens_max: 40,
            stop_token_ids: [STOP].into(),
        };
        self.batches[model].add(new, &mut self.budget).unwrap();
    }

    /// One step of a model, in which all draw `token`; who took part, and what it led to.
    fn step(&mut self, model: usize, token: u32) -> (Vec<u64>, Vec<Outcome>) {
        provide(&mut self.budget, &mut self.batches, model, |batch| Some(batch));
        let batch = &mut self.batches[model];
        let Some(plan) = batch.plan() else {
            return (Vec::new(), Vec::new());
        };
        let took_part = plan.entries().map(|entry| entry.sequence.0).collect();
        let drawn: Vec<_> = plan
            .entries()
            .map(|entry| entry.sample.and(Some(token)))
            .collect();
        let outcomes = batch.complete(&drawn, &mut self.budget).to_vec();
        self.batches.iter().for_each(Batch::check_invariants);
        (took_part, outcomes)
    }

    fn preemptions(&self) -> [u64; 2] {
        [0, 1].map(|model: usize| self.batches[model].stats().preemptions)
    }
}

#[test]
fn youngest_of_the_batch_class_goes_first_whatever_its_model_then_the_youngest_interactive_one() {
    let mut device = Device::new(8);
    device.add(1, 1, Class::Batch, 7);
    device.add(0, 2, Class::Interactive, 7);
    device.add(1, 3, Class::Batch, 7);
    device.add(1, 4, Class::Interactive, 7);
    device.step(0, 7);
    assert_eq!(device.step(1, 7).0, [4, 1, 3], "two blocks for each of four");
    // The ninth token needs a third block.
    assert_eq!(device.step(0, 7).0, [2]);
    assert_eq!(device.preemptions(), [0, 0], "no block is needed yet");
    assert_eq!(device.step(0, 7).0, [2]);
    assert_eq!(device.preemptions(), [0, 1]);
    assert_eq!(device.step(1, 7).0, [4, 1], "the third one's blocks are gone");
    for _ in 0..16 {
        assert_eq!(device.step(0, 7).0, [2]);
    }
    assert_eq!(
        device.preemptions(),
        [0, 3],
        "the first one goes next, then the fourth"
    );
    let (took_part, _) = device.step(1, 7);
    assert_eq!(took_part, [0; 0], "nobody of the other model has room beside it");
}

#[test]
fn nobody_gives_up_for_one_that_ranks_behind() {
    let mut device = Device::new(4);
    device.add(0, 1, Class::Interactive, 7);
    device.add(1, 2, Class::Batch, 3);
    device.step(0, 7);
    assert_eq!(device.step(1, 7).0, [2]);
    device.add(1, 3, Class::Batch, 7);
    assert_eq!(device.step(1, 7).0, [2], "who came last waits");
    device.step(0, 7);
    device.step(0, 7);
    let (took_part, _) = device.step(1, 7);
    assert_eq!(
        took_part, [0; 0],
        "its fifth token has no room, and the other one stays"
    );
    assert_eq!(device.preemptions(), [0, 0]);
    device.batches[0].remove(SequenceId(1), &mut device.budget);
    assert_eq!(device.step(1, 7).0, [2, 3], "it goes on where it was");
}

#[test]
fn preempted_sequence_is_read_again_at_its_place_in_line_and_what_is_cached_is_not() {
    let mut device = Device::new(6);
    device.add(0, 1, Class::Batch, 9);
    device.add(1, 2, Class::Interactive, 11);
    device.step(0, 7);
    device.step(1, 7);
    device.add(0, 3, Class::Batch, 2);
    device.step(1, 7);
    device.step(1, 7);
    assert_eq!(device.preemptions(), [1, 0]);
    assert_eq!(device.step(0, 7).0, [0; 0], "who came later does not pass it");
    device.batches[1].remove(SequenceId(2), &mut device.budget);
    let (took_part, outcomes) = device.step(0, 7);
    assert_eq!(took_part, [1, 3]);
    let preempted = Outcome::Preempted {
        sequence: SequenceId(1),
    };
    assert_eq!(outcomes[0], preempted);
    let next = Outcome::Token {
        sequence: SequenceId(1),
        token: 7,
        index: 1,
    };
    assert!(outcomes.contains(&next), "its answer goes on: {outcomes:?}");
    assert_eq!(
        device.batches[0].stats().reused_tokens,
        0,
        "it has read them itself"
    );
}

#[test]
fn paused_sequence_gives_up_even_for_one_that_ranks_behind_and_comes_back_when_it_is_resumed() {
    let mut device = Device::new(4);
    device.add(0, 1, Class::Interactive, 11);
    device.step(0, 7);
    device.batches[0].pause(SequenceId(1), &mut device.budget);
    device.add(1, 2, Class::Batch, 7);
    assert_eq!(device.step(1, 7).0, [2]);
    assert_eq!(device.preemptions(), [1, 0]);
    assert_eq!(device.step(0, 7).0, [0; 0]);
    device.batches[0].resume(SequenceId(1));
    assert_eq!(device.step(0, 7).0, [1]);
    assert_eq!(
        device.preemptions(),
        [1, 1],
        "now it ranks before the other one again"
    );
}

#[test]
fn cached_blocks_of_another_model_go_before_anybody_is_preempted_the_oldest_first() {
    let mut device = Device::new(6);
    device.add(1, 1, Class::Batch, 9);
    device.step(1, 7);
    device.batches[1].remove(SequenceId(1), &mut device.budget);
    assert!(device.batches[1].pages_used() >= 2, "two full blocks are kept");
    device.add(0, 2, Class::Batch, 19);
    assert_eq!(device.step(0, 7).0, [2]);
    assert_eq!(device.batches[1].stats().evicted_blocks, 1, "the leaf is enough");
    assert_eq!(device.preemptions(), [0, 0]);
    device.add(1, 3, Class::Batch, 1);
    device.batches[0].remove(SequenceId(2), &mut device.budget);
    assert_eq!(device.step(1, 7).0, [3]);
}

#[test]
fn shrunk_pool_gives_back_what_nobody_holds_and_hands_out_nothing_until_use_has_fallen() {
    let mut device = Device::new(8);
    device.add(0, 1, Class::Interactive, 15);
    device.step(0, 7);
    device.add(1, 2, Class::Interactive, 7);
    device.step(1, 7);
    device.batches[1].remove(SequenceId(2), &mut device.budget);
    let resize = |device: &mut Device, pages| {
        device.budget.resize(pages);
        let mut batches: Vec<&mut Batch> = device.batches.iter_mut().collect();
        shrink(&mut device.budget, &mut batches);
        device.budget.report(0).pages_held
    };
    assert_eq!(resize(&mut device, 2), 4, "what the first one holds");
    assert_eq!(device.batches[1].pages_used(), 0);
    device.add(1, 3, Class::Interactive, 1);
    assert_eq!(device.step(1, 7).0, [0; 0]);
    device.batches[0].remove(SequenceId(1), &mut device.budget);
    assert_eq!(device.budget.report(0).pages_held, 2);
    assert_eq!(device.step(1, 7).0, [3]);
    assert_eq!(device.budget.pages_used_max(), 6);
}

#[test]
fn blocks_come_from_slabs_in_use_so_that_others_can_be_given_back() {
    let slab = KvSlab { blocks: 4, pages: 1 };
    let mut batches = [Batch::new(BatchSettings { slab, ..settings() })];
    let mut budget = KvBudget::new(10);
    let mut mapped = 0_i32;
    for id in 0..5 {
        let new = NewSequence {
            id: SequenceId(id),
            class: Class::Batch,
            tokens: vec![5; 3],
            prompt_tokens: 3,
            new_tokens_max: 9,
            stop_token_ids: [].into(),
        };
        batches[0].add(new, &mut budget).unwrap();
    }
    provide(&mut budget, &mut batches, 0, |batch| Some(batch));
    assert_eq!(budget.pages_used(), 2, "five blocks");
    for id in [4, 1, 2] {
        batches[0].remove(SequenceId(id), &mut budget);
    }
    assert_eq!(budget.pages_used(), 2, "one free slab is kept");
    while let Some(change) = batches[0].poll_memory() {
        mapped += match change {
            SlabChange::Map(_) => 1,
            SlabChange::Unmap(_) => -1,
        };
    }
    assert_eq!(mapped, 2);
    shrink(&mut budget, &mut batches.each_mut());
    assert_eq!(budget.pages_used(), 2, "there is room for it");
    budget.resize(1);
    shrink(&mut budget, &mut batches.each_mut());
    assert_eq!(budget.pages_used(), 1, "the two that are left share a slab");
}
