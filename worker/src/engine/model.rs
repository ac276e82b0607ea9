//! One loaded decoder on the engine's thread: its batch, and where each request's tokens go.

use std::collections::VecDeque;
use std::mem;
use std::time::Instant;

use flotilla_protocol::ModelName;
use flotilla_worker_core::batch::{Batch, Outcome, PlanEntry, SequenceId};
use flotilla_worker_core::kv::{KvBudget, SlabChange};
use flotilla_worker_engine::{
    CpuBackend, DecoderModel, LogitEdits, Logprobs, PendingStep, Sampling, SequenceStep, Step,
};

use tracing::{error, warn};

use super::health::Round;
use super::load::LoadedDecoder;
use super::round::{self, RoundBuffers, recycled};
use super::runs::{Kept, Runs};
use super::shape::Shape;
use super::turns::{SharedDevice, StepFault, run_in_turns};
use super::{Joining, RunEnd, end};
use crate::error::chain;
use crate::metrics::StepTally;

/// A model that makes text.
#[derive(Debug)]
pub(super) struct EngineModel {
    loaded: LoadedDecoder,
    runs: Runs<Drawing>,
    /// What is to be done to the memory before the next step.
    changes: VecDeque<SlabChange>,
    /// Kept between steps for their memory; empty there.
    buffers: RoundBuffers,
    steps: Vec<SequenceStep<'static>>,
    tally: StepTally,
}

/// How the tokens of a request are drawn.
#[derive(Debug)]
struct Drawing {
    sampling: Sampling,
    edits: LogitEdits,
    shape: Option<Shape>,
    /// Of the token that the step drew, until the batch has taken it.
    logprobs: Option<Box<Logprobs>>,
}

impl EngineModel {
    pub(super) fn new(name: &ModelName, loaded: LoadedDecoder) -> Self {
        Self {
            loaded,
            runs: Runs::default(),
            changes: VecDeque::new(),
            buffers: RoundBuffers::default(),
            steps: Vec::new(),
            tally: StepTally::new(name),
        }
    }

    pub(super) fn batch(&mut self) -> &mut Batch {
        &mut self.loaded.batch
    }

    /// Gives all memory but the decoder's back; requests learn that the model is gone.
    pub(super) fn close(self, budget: &mut KvBudget) -> DecoderModel<CpuBackend> {
        let LoadedDecoder { decoder, batch, .. } = self.loaded;
        batch.close(budget);
        decoder
    }

    /// Takes a request into the batch, or tells it why not.
    pub(super) fn join(&mut self, new: Joining, budget: &mut KvBudget) {
        let id = new.sequence.id;
        match self.loaded.batch.add(new.sequence, budget) {
            Ok(()) => {
                let drawing = Drawing {
                    sampling: new.sampling,
                    edits: new.edits,
                    shape: new.shape,
                    logprobs: None,
                };
                self.runs.insert(id, drawing, new.made, new.reused);
            }
            Err(error) => end(&new.made, RunEnd::Refused(error)),
        }
    }

    /// Takes a request out; one that ended by itself is no fault.
    pub(super) fn leave(&mut self, sequence: SequenceId, budget: &mut KvBudget) {
        self.runs.remove(sequence);
        self.loaded.batch.remove(sequence, budget);
        self.unmap_memory();
    }

    /// Leaves out those whose task is behind, and takes out those whose task is gone.
    pub(super) fn regulate(&mut self, budget: &mut KvBudget) {
        self.runs.regulate(&mut self.loaded.batch, budget);
        self.unmap_memory();
    }

    /// Runs one step of those who were provided for.
    pub(super) fn advance(&mut self, budget: &mut KvBudget) -> Round {
        self.change_memory();
        let round = self.step(budget);
        self.unmap_memory();
        round
    }

    /// Gives memory back that the batch has given up. Where it also wants some, that waits for the next step, as
    /// others may have to give theirs up before.
    pub(super) fn unmap_memory(&mut self) {
        self.note_changes();
        if !self.loaded.devices.is_empty() {
            // In parts it has all its memory all the time.
            self.changes.clear();
        }
        while let Some(SlabChange::Unmap(slab)) = self.changes.front().copied() {
            self.changes.pop_front();
            if let Err(error) = self.loaded.decoder.unmap_kv_slab(slab.0 as usize) {
                error!(slab = slab.0, error = chain(&error), "memory is not given back");
            }
        }
    }

    /// Does everything to the memory that the batch wants. A slab that gets none is tried again before the next
    /// step; the engine refuses steps with it until then.
    fn change_memory(&mut self) {
        self.unmap_memory();
        while let Some(SlabChange::Map(slab)) = self.changes.front().copied() {
            if let Err(error) = self.loaded.decoder.map_kv_slab(slab.0 as usize) {
                warn!(
                    slab = slab.0,
                    error = chain(&error),
                    "no memory for keys and values"
                );
                return;
            }
            self.changes.pop_front();
            self.unmap_memory();
        }
    }

    fn note_changes(&mut self) {
        while let Some(change) = self.loaded.batch.poll_memory() {
            self.changes.push_back(change);
        }
    }

    fn step(&mut self, budget: &mut KvBudget) -> Round {
        let Self {
            loaded,
            runs,
            buffers,
            steps,
            tally,
            ..
        } = self;
        let LoadedDecoder {
            decoder,
            batch,
            devices,
        } = loaded;
        let mut is_lost = false;
        let begun = Instant::now();
        let run = |entries: &[PlanEntry<'_>], drawn: &mut Vec<Option<u32>>| {
            let ran = run_step((decoder, devices), runs, steps, entries, drawn);
            is_lost |= matches!(ran, Err(StepFault::Lost(_)));
            ran
        };
        match round::advance(batch, budget, buffers, run) {
            // No request is to blame: all learn that their model is gone.
            Some(_) if is_lost => Round::Lost,
            Some(outcomes) => {
                tally.count(buffers.size, begun.elapsed());
                let has_failed = |outcome: &Outcome| matches!(outcome, Outcome::Panicked { .. });
                let is_total = !outcomes.is_empty() && outcomes.iter().all(has_failed);
                for outcome in outcomes {
                    runs.tell(outcome);
                }
                match is_total {
                    true => Round::Failed,
                    false => Round::Worked,
                }
            }
            None => Round::Idle,
        }
    }
}

impl Kept for Drawing {
    fn is_ready(&self) -> bool {
        self.shape.as_ref().is_none_or(Shape::is_ready)
    }

    fn push(&mut self, token: u32) -> Option<Box<Logprobs>> {
        self.edits.push_answer(token);
        if let Some(shape) = &mut self.shape {
            shape.push(token);
        }
        self.logprobs.take()
    }

    fn no_token(&self) -> RunEnd {
        self.shape.as_ref().map_or(RunEnd::NoToken, Shape::no_token)
    }
}

/// Runs entries and adds the token drawn for each to `drawn`. `steps` lends its memory.
fn run_step(
    (decoder, devices): (&mut DecoderModel<CpuBackend>, &[SharedDevice]),
    runs: &mut Runs<Drawing>,
    steps: &mut Vec<SequenceStep<'static>>,
    entries: &[PlanEntry<'_>],
    drawn: &mut Vec<Option<u32>>,
) -> Result<(), StepFault> {
    let mut sequences = recycled(mem::take(steps));
    sequences.extend(entries.iter().map(|entry| sequence_step(runs, entry)));
    let step = Step {
        sequences: &sequences,
    };
    let output = match devices {
        [] => decoder
            .submit(&step)
            .and_then(PendingStep::wait)
            .map_err(StepFault::Step),
        devices => run_in_turns(decoder, devices, &step),
    };
    *steps = recycled(sequences);
    let output = output?;
    drawn.extend(output.sequences.iter().map(|sequence| sequence.token()));
    for (index, entry) in entries.iter().enumerate() {
        if let Some(logprobs) = output.logprobs(index) {
            runs.kept_mut(entry.sequence).logprobs = Some(Box::new(*logprobs));
        }
    }
    Ok(())
}

fn sequence_step<'a>(runs: &'a Runs<Drawing>, entry: &PlanEntry<'a>) -> SequenceStep<'a> {
    let drawing = runs.kept(entry.sequence);
    let drawn_at = entry.start + entry.tokens.len();
    SequenceStep {
        tokens: entry.tokens,
        position: entry.start,
        block_table: entry.blocks,
        sample: entry.sample.map(|_| Sampling {
            position: drawn_at as u64,
            ..drawing.sampling
        }),
        edits: Some(&drawing.edits),
        mask: drawing.shape.as_ref().map(Shape::mask),
    }
}
