//! One round of a batch: plan, run, complete; and who is to blame when the run panics.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

use flotilla_worker_core::batch::{Batch, Outcome, PlanEntry};
use flotilla_worker_core::isolate::{StepPanic, isolate};
use tracing::warn;

use crate::error::chain;

/// Runs the next step of a batch; `None` when nobody can run.
///
/// `run` gives, for each entry, the token that was to be drawn. It may panic or fail: then each entry is run
/// alone, and only those that panic or fail alone are put out of the batch.
pub(super) fn advance<E: Error>(
    batch: &mut Batch,
    mut run: impl FnMut(&[PlanEntry<'_>]) -> Result<Vec<Option<u32>>, E>,
) -> Option<&[Outcome]> {
    let plan = batch.plan()?;
    let entries: Vec<_> = plan.entries().collect();
    match guarded(&mut run, &entries) {
        Ok(drawn) => Some(batch.complete(&drawn)),
        Err(panic) => {
            warn!(sequences = entries.len(), error = %panic, "a step failed; each sequence is run alone");
            let verdicts = isolate(&plan, panic, |entry| {
                let alone = guarded(&mut run, &[entry])?;
                Ok(alone.into_iter().next().flatten())
            });
            Some(batch.complete_isolated(verdicts))
        }
    }
}

/// Runs entries and turns a panic, or the engine's refusal, into a value. Keys and values that a broken step
/// has written are written again by the next one, so nothing that is looked at later is left broken.
fn guarded<E: Error>(
    run: &mut impl FnMut(&[PlanEntry<'_>]) -> Result<Vec<Option<u32>>, E>,
    entries: &[PlanEntry<'_>],
) -> Result<Vec<Option<u32>>, StepPanic> {
    match catch_unwind(AssertUnwindSafe(|| run(entries))) {
        Ok(Ok(drawn)) => Ok(drawn),
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
    use flotilla_worker_core::batch::{BatchSettings, NewSequence, SequenceId};

    use super::*;

    fn batch_of(sequences: u64) -> Batch {
        let mut batch = Batch::new(BatchSettings {
            batch_tokens_max: 64,
            sequences_max: 8,
            block_tokens: 16,
            blocks_total: 64,
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
            batch.add(new).unwrap();
        }
        batch
    }

    fn tokens_but_for(bad: SequenceId, entries: &[PlanEntry<'_>]) -> Result<Vec<Option<u32>>, Infallible> {
        assert!(entries.iter().all(|entry| entry.sequence != bad), "bad sequence");
        Ok(entries.iter().map(|entry| entry.sample.map(|_| 7)).collect())
    }

    #[test]
    fn only_the_sequence_that_panics_alone_ends_and_the_others_get_their_token() {
        let mut batch = batch_of(3);
        let bad = SequenceId(1);
        let outcomes = advance(&mut batch, |entries| tokens_but_for(bad, entries)).unwrap();
        let panicked: Vec<_> = outcomes
            .iter()
            .filter_map(|outcome| match outcome {
                Outcome::Panicked { sequence, message } => Some((*sequence, message.clone())),
                Outcome::Reused { .. } | Outcome::Token { .. } | Outcome::Finished { .. } => None,
            })
            .collect();
        assert_eq!(panicked, [(bad, "bad sequence".to_owned())]);
        let made = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Outcome::Token { .. }));
        assert_eq!(made.count(), 2);
        assert_eq!(batch.sequence_count(), 2);
        batch.check_invariants();
        let next = advance(&mut batch, |entries| tokens_but_for(bad, entries)).unwrap();
        assert_eq!(next.len(), 2, "the batch goes on without it");
    }

    #[test]
    fn batch_with_nobody_to_run_is_not_run() {
        let mut batch = batch_of(0);
        let ran = advance(&mut batch, |_| -> Result<_, Infallible> {
            panic!("there is nothing to run")
        });
        assert!(ran.is_none());
    }
}
