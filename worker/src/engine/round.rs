//! One round of a batch: plan, run, complete; and who is to blame when the run panics.

use std::any::Any;
use std::error::Error;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use flotilla_worker_core::batch::{Batch, Outcome, PlanEntry};
use flotilla_worker_core::isolate::{StepPanic, isolate};
use flotilla_worker_core::kv::KvBudget;
use tracing::warn;

use crate::error::chain;
use crate::metrics::StepSize;

/// Memory that rounds lend each other; between rounds nobody looks at what is in it.
#[derive(Debug, Default)]
pub(super) struct RoundBuffers {
    /// The size of the last step.
    pub(super) size: StepSize,
    entries: Vec<PlanEntry<'static>>,
    drawn: Vec<Option<u32>>,
}

/// Runs the next step of those of a batch who were provided for; `None` when nobody can run.
///
/// `run` adds, for each entry, the token that was to be drawn. It may panic or fail: then each entry is run
/// alone, and only those that panic or fail alone are put out of the batch.
pub(super) fn advance<'b, E: Error>(
    batch: &'b mut Batch,
    budget: &mut KvBudget,
    buffers: &mut RoundBuffers,
    mut run: impl FnMut(&[PlanEntry<'_>], &mut Vec<Option<u32>>) -> Result<(), E>,
) -> Option<&'b [Outcome]> {
    let plan = batch.plan()?;
    buffers.size = StepSize::of(&plan);
    let drawn = &mut buffers.drawn;
    let mut entries = recycled(mem::take(&mut buffers.entries));
    entries.extend(plan.entries());
    let Err(panic) = guarded(&mut run, &entries, drawn) else {
        buffers.entries = recycled(entries);
        return Some(batch.complete(drawn, budget));
    };
    warn!(sequences = entries.len(), error = %panic, "a step failed; each sequence is run alone");
    let verdicts = isolate(&plan, panic, |entry| {
        guarded(&mut run, &[entry], drawn)?;
        Ok(drawn.first().copied().flatten())
    });
    buffers.entries = recycled(entries);
    Some(batch.complete_isolated(verdicts, budget))
}

/// The memory of a vector, for elements of the same type with another lifetime: collecting from a vector's own
/// iterator stays in its place.
pub(super) fn recycled<Old, New>(mut elements: Vec<Old>) -> Vec<New> {
    elements.clear();
    let none = elements.into_iter();
    none.map(|_| unreachable!("the vector was cleared")).collect()
}

/// Runs entries and turns a panic, or the engine's refusal, into a value. Keys and values that a broken step
/// has written are written again by the next one, so nothing that is looked at later is left broken.
fn guarded<E: Error>(
    run: &mut impl FnMut(&[PlanEntry<'_>], &mut Vec<Option<u32>>) -> Result<(), E>,
    entries: &[PlanEntry<'_>],
    drawn: &mut Vec<Option<u32>>,
) -> Result<(), StepPanic> {
    drawn.clear();
    caught(|| run(entries, drawn))
}

/// Runs a part of the engine that may panic, or refuse what it is given.
pub(super) fn caught<T, E: Error>(run: impl FnOnce() -> Result<T, E>) -> Result<T, StepPanic> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(StepPanic {
            message: chain(&error),
        }),
        Err(payload) => Err(StepPanic {
            message: panic_message(payload.as_ref()),
        }),
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    if let Some(message) = payload.downcast_ref::<&str>() {
        (*message).to_owned()
    } else if let Some(message) = payload.downcast_ref::<String>() {
        message.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use flotilla_protocol::Class;
    use flotilla_worker_core::batch::{BatchSettings, NewSequence, SequenceId, Supply};
    use flotilla_worker_core::kv::KvSlab;

    use super::*;

    fn batch_of(sequences: u64) -> (Batch, KvBudget) {
        let mut budget = KvBudget::new(8);
        let mut batch = Batch::new(BatchSettings {
            batch_tokens_max: 64,
            sequences_max: 8,
            block_tokens: 16,
            slab: KvSlab { blocks: 8, pages: 1 },
            context_tokens_max: 128,
        });
        for id in 0..sequences {
            let new = NewSequence {
                id: SequenceId(id),
                class: Class::Interactive,
                tokens: vec![3, 4],
                prompt_tokens: 2,
                new_tokens_max: 4,
                stop_token_ids: [].into(),
            };
            batch.add(new, &mut budget).unwrap();
        }
        assert_eq!(batch.provide(&mut budget), Supply::Sufficient);
        (batch, budget)
    }

    fn tokens_but_for(
        bad: SequenceId,
        entries: &[PlanEntry<'_>],
        drawn: &mut Vec<Option<u32>>,
    ) -> Result<(), Infallible> {
        // Some are drawn before the step fails.
        drawn.push(Some(9));
        assert!(entries.iter().all(|entry| entry.sequence != bad), "bad sequence");
        drawn.clear();
        drawn.extend(entries.iter().map(|entry| entry.sample.map(|_| 7)));
        Ok(())
    }

    /// Standard library's own way, not its promise: if it changes, a step allocates and nothing breaks.
    #[test]
    fn recycled_vector_keeps_its_memory() {
        let word = 5u32;
        let mut borrowed: Vec<&u32> = Vec::with_capacity(7);
        borrowed.push(&word);
        let place = borrowed.as_ptr().addr();
        let recycled: Vec<&'static u32> = recycled(borrowed);
        assert_eq!((recycled.capacity(), recycled.as_ptr().addr()), (7, place));
        assert!(recycled.is_empty());
    }

    #[test]
    fn only_the_sequence_that_panics_alone_ends_and_the_others_get_their_token() {
        let (mut batch, mut budget) = batch_of(3);
        let bad = SequenceId(1);
        let mut buffers = RoundBuffers::default();
        let mut round = |batch: &mut Batch| -> Vec<Outcome> {
            let run = |entries: &[PlanEntry<'_>], drawn: &mut Vec<_>| tokens_but_for(bad, entries, drawn);
            advance(batch, &mut budget, &mut buffers, run).unwrap().to_vec()
        };
        let outcomes = round(&mut batch);
        let panicked: Vec<_> = outcomes
            .iter()
            .filter_map(|outcome| match outcome {
                Outcome::Panicked { sequence, message } => Some((*sequence, message.clone())),
                Outcome::Reused { .. }
                | Outcome::Token { .. }
                | Outcome::Finished { .. }
                | Outcome::Preempted { .. } => None,
            })
            .collect();
        assert_eq!(panicked, [(bad, "bad sequence".to_owned())]);
        let made = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Outcome::Token { .. }));
        assert_eq!(made.count(), 2);
        assert_eq!(batch.sequence_count(), 2);
        batch.check_invariants();
        let next = round(&mut batch);
        assert_eq!(next.len(), 2, "the batch goes on without it");
    }

    #[test]
    fn batch_with_nobody_to_run_is_not_run() {
        let (mut batch, mut budget) = batch_of(0);
        let ran = advance(
            &mut batch,
            &mut budget,
            &mut RoundBuffers::default(),
            |_, _| -> Result<_, Infallible> { panic!("there is nothing to run") },
        );
        assert!(ran.is_none());
    }
}
