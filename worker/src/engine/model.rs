//! One loaded decoder on the engine's thread: its batch, and where each request's tokens go.

use std::mem;

use flotilla_worker_core::batch::{PlanEntry, SequenceId};
use flotilla_worker_engine::{
    Backend, DecoderModel, LogitEdits, Logprobs, Sampling, SequenceStep, Step, StepError,
};

use super::load::LoadedDecoder;
use super::round::{self, RoundBuffers, recycled};
use super::runs::Runs;
use super::{Joining, RunEnd, end};

/// A model that makes text.
#[derive(Debug)]
pub(super) struct EngineModel {
    loaded: LoadedDecoder,
    runs: Runs<Drawing>,
    /// Kept between steps for their memory; empty there.
    buffers: RoundBuffers,
    steps: Vec<SequenceStep<'static>>,
}

/// How the tokens of a request are drawn.
#[derive(Debug)]
struct Drawing {
    sampling: Sampling,
    edits: LogitEdits,
    /// Of the token that the step drew, until the batch has taken it.
    logprobs: Option<Box<Logprobs>>,
}

impl EngineModel {
    pub(super) fn new(loaded: LoadedDecoder) -> Self {
        Self {
            loaded,
            runs: Runs::default(),
            buffers: RoundBuffers::default(),
            steps: Vec::new(),
        }
    }

    /// Takes a request into the batch, or tells it why not.
    pub(super) fn join(&mut self, new: Joining) {
        let id = new.sequence.id;
        match self.loaded.batch.add(new.sequence) {
            Ok(()) => {
                let drawing = Drawing {
                    sampling: new.sampling,
                    edits: new.edits,
                    logprobs: None,
                };
                self.runs.insert(id, drawing, new.made, new.reused);
            }
            Err(error) => end(&new.made, RunEnd::Refused(error)),
        }
    }

    /// Takes a request out; one that ended by itself is no fault.
    pub(super) fn leave(&mut self, sequence: SequenceId) {
        self.runs.remove(sequence);
        self.loaded.batch.remove(sequence);
    }

    /// Runs one step; tells whether there was one.
    pub(super) fn advance(&mut self) -> bool {
        self.runs.regulate(&mut self.loaded.batch);
        let Self {
            loaded,
            runs,
            buffers,
            steps,
        } = self;
        let LoadedDecoder { decoder, batch } = loaded;
        let run = |entries: &[PlanEntry<'_>], drawn: &mut Vec<Option<u32>>| {
            run_step(decoder, runs, steps, entries, drawn)
        };
        match round::advance(batch, buffers, run) {
            Some(outcomes) => {
                for outcome in outcomes {
                    runs.tell(outcome, Drawing::take_logprobs);
                }
                true
            }
            None => false,
        }
    }
}

impl Drawing {
    /// Notes a token of the answer; what is known of it goes with it.
    fn take_logprobs(&mut self, token: u32) -> Option<Box<Logprobs>> {
        self.edits.push_answer(token);
        self.logprobs.take()
    }
}

/// Runs entries and adds the token drawn for each to `drawn`. `steps` lends its memory.
fn run_step<B: Backend>(
    decoder: &mut DecoderModel<B>,
    runs: &mut Runs<Drawing>,
    steps: &mut Vec<SequenceStep<'static>>,
    entries: &[PlanEntry<'_>],
    drawn: &mut Vec<Option<u32>>,
) -> Result<(), StepError> {
    let mut sequences = recycled(mem::take(steps));
    sequences.extend(entries.iter().map(|entry| sequence_step(runs, entry)));
    let pending = decoder.submit(&Step {
        sequences: &sequences,
    });
    *steps = recycled(sequences);
    let output = pending?.wait()?;
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
    }
}
