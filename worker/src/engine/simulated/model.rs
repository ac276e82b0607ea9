//! One simulated model on its device: its batch, and where each request's tokens go.

use std::time::Duration;

use flotilla_worker_core::batch::SequenceId;

use super::LoadedSimulated;
use crate::engine::runs::Runs;
use crate::engine::{Joining, RunEnd, end};

/// A simulated model and its requests.
#[derive(Debug)]
pub(super) struct SimulatedRuns {
    loaded: LoadedSimulated,
    runs: Runs<RequestSeed>,
    step: Step,
}

/// All that the tokens of a request depend on beside their positions.
#[derive(Debug, Clone, Copy)]
struct RequestSeed(u64);

/// The step of the model, with the tokens that it draws; their memory is kept.
#[derive(Debug, Default)]
struct Step {
    is_open: bool,
    drawn: Vec<Option<u32>>,
}

impl SimulatedRuns {
    pub(super) fn new(loaded: LoadedSimulated) -> Self {
        Self {
            loaded,
            runs: Runs::default(),
            step: Step::default(),
        }
    }

    /// Takes a request into the batch, or tells it why not.
    pub(super) fn join(&mut self, new: Joining) {
        let id = new.sequence.id;
        match self.loaded.batch.add(new.sequence) {
            Ok(()) => {
                let seed = RequestSeed(new.sampling.seed);
                self.runs.insert(id, seed, new.made, new.reused);
            }
            Err(error) => end(&new.made, RunEnd::Refused(error)),
        }
    }

    /// Takes a request out; one that ended by itself is no fault.
    pub(super) fn leave(&mut self, sequence: SequenceId) {
        self.runs.remove(sequence);
        self.loaded.batch.remove(sequence);
    }

    /// Begins a step and tells how long it takes; `None` when nobody can run.
    pub(super) fn begin(&mut self) -> Option<Duration> {
        let LoadedSimulated {
            batch,
            timing,
            drawing,
        } = &mut self.loaded;
        self.runs.regulate(batch);
        let plan = batch.plan()?;
        let runs = &self.runs;
        self.step.is_open = true;
        self.step.drawn.clear();
        self.step.drawn.extend(plan.entries().map(|entry| {
            let RequestSeed(seed) = *runs.kept(entry.sequence);
            let drawn_at = entry.start + entry.tokens.len();
            let draw = |index| drawing.draw(seed, drawn_at as u64, index);
            entry.sample.map(draw)
        }));
        Some(
            timing
                .steps
                .step(in_u32(plan.prefill_tokens()), in_u32(plan.decoding_count())),
        )
    }

    /// Ends the step that was begun. Of a model that came anew under its name meanwhile there is none.
    pub(super) fn complete(&mut self) {
        if !std::mem::take(&mut self.step.is_open) {
            return;
        }
        for outcome in self.loaded.batch.complete(&self.step.drawn) {
            self.runs.tell(outcome, |_, _| None);
        }
    }
}

fn in_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
