//! What to do when a step panicked: each of its sequences is run alone, and only those that panic alone end.
//!
//! A step writes the same keys and values each time that it is run, so running a part of it again is safe.
//! Catching the panic is the caller's business; this decides who is to blame.

use thiserror::Error;

use crate::batch::{PlanEntry, SequenceId, StepPlan};

/// A step's panic.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the step panicked: {message}")]
pub struct StepPanic {
    /// The panic's message.
    pub message: String,
}

/// How one sequence of a step that panicked fares alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The sequence.
    pub sequence: SequenceId,
    /// What the step gave for it alone, as [`crate::batch::Batch::complete`] takes it, or the panic that it
    /// causes alone.
    pub result: Result<Option<u32>, StepPanic>,
}

/// Runs each sequence of a plan alone, in the plan's order; [`crate::batch::Batch::complete_isolated`] takes
/// the verdicts. A plan of one sequence is not run again: its panic has told already.
pub fn isolate(
    plan: &StepPlan<'_>,
    panic: StepPanic,
    mut run_alone: impl FnMut(PlanEntry<'_>) -> Result<Option<u32>, StepPanic>,
) -> Vec<Verdict> {
    let mut known = (plan.len() == 1).then_some(panic);
    let verdict = |entry: PlanEntry<'_>| Verdict {
        sequence: entry.sequence,
        result: match known.take() {
            Some(panic) => Err(panic),
            None => run_alone(entry),
        },
    };
    plan.entries().map(verdict).collect()
}
