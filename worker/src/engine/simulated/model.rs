//! One simulated model on its device: its batch, and where each request's tokens go.

use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_worker_core::batch::{Batch, SequenceId};
use flotilla_worker_core::kv::KvBudget;
use flotilla_worker_engine::Logprobs;

use super::LoadedSimulated;
use crate::engine::runs::{Kept, Runs};
use crate::engine::{Joining, RunEnd, end};
use crate::metrics::{StepSize, StepTally};

/// A simulated model and its requests.
#[derive(Debug)]
pub(super) struct SimulatedRuns {
    loaded: LoadedSimulated,
    runs: Runs<RequestSeed>,
    step: Step,
    tally: StepTally,
}

/// All that the tokens of a request depend on beside their positions.
#[derive(Debug, Clone, Copy)]
struct RequestSeed(u64);

impl Kept for RequestSeed {
    fn is_ready(&self) -> bool {
        true
    }

    fn push(&mut self, _token: u32) -> Option<Box<Logprobs>> {
        None
    }

    fn no_token(&self) -> RunEnd {
        RunEnd::NoToken
    }
}

/// The step of the model, with the tokens that it draws; their memory is kept.
#[derive(Debug, Default)]
struct Step {
    is_open: bool,
    drawn: Vec<Option<u32>>,
}

impl SimulatedRuns {
    pub(super) fn new(name: &ModelName, loaded: LoadedSimulated) -> Self {
        Self {
            loaded,
            runs: Runs::default(),
            step: Step::default(),
            tally: StepTally::new(name),
        }
    }

    pub(super) fn batch(&mut self) -> &mut Batch {
        &mut self.loaded.batch
    }

    /// Gives all pages back; requests learn that the model is gone.
    pub(super) fn close(self, budget: &mut KvBudget) {
        self.loaded.batch.close(budget);
    }

    /// Takes a request into the batch, or tells it why not.
    pub(super) fn join(&mut self, new: Joining, budget: &mut KvBudget) {
        let id = new.sequence.id;
        match self.loaded.batch.add(new.sequence, budget) {
            Ok(()) => {
                let seed = RequestSeed(new.sampling.seed);
                self.runs.insert(id, seed, new.made, new.reused);
            }
            Err(error) => end(&new.made, RunEnd::Refused(error)),
        }
    }

    /// Takes a request out; one that ended by itself is no fault.
    pub(super) fn leave(&mut self, sequence: SequenceId, budget: &mut KvBudget) {
        self.runs.remove(sequence);
        self.loaded.batch.remove(sequence, budget);
    }

    /// Leaves out those whose task is behind, and takes out those whose task is gone.
    pub(super) fn regulate(&mut self, budget: &mut KvBudget) {
        self.runs.regulate(&mut self.loaded.batch, budget);
    }

    /// Begins a step of those who were provided for and tells how long it takes; `None` when nobody can run.
    pub(super) fn begin(&mut self) -> Option<Duration> {
        let LoadedSimulated {
            batch,
            timing,
            drawing,
        } = &mut self.loaded;
        // There is no memory to map.
        while batch.poll_memory().is_some() {}
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
        let steps = &timing.steps;
        let takes = steps.step(in_u32(plan.prefill_tokens()), in_u32(plan.decoding_count()));
        self.tally.count(StepSize::of(&plan), takes);
        Some(takes)
    }

    /// Ends the step that was begun. Of a model that came anew under its name meanwhile there is none.
    pub(super) fn complete(&mut self, budget: &mut KvBudget) {
        if !std::mem::take(&mut self.step.is_open) {
            return;
        }
        for outcome in self.loaded.batch.complete(&self.step.drawn, budget) {
            self.runs.tell(outcome);
        }
    }
}

fn in_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
