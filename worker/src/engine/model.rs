//! One loaded decoder on the engine's thread: its batch, and where each request's tokens go.

use std::collections::HashMap;
use std::mem;

use flotilla_worker_core::batch::{Batch, EndReason, Outcome, PlanEntry, SequenceId};
use flotilla_worker_engine::{
    Backend, DecoderModel, LogitEdits, Logprobs, Sampling, SequenceStep, Step, StepError,
};
use tokio::sync::{mpsc, oneshot};

use super::load::LoadedDecoder;
use super::round::{self, RoundBuffers, recycled};
use super::{Joining, Made, RunEnd, end};

/// A model that makes text.
#[derive(Debug)]
pub(super) struct EngineModel {
    loaded: LoadedDecoder,
    runs: HashMap<SequenceId, Running>,
    /// Kept between steps for their memory; empty there.
    buffers: RoundBuffers,
    steps: Vec<SequenceStep<'static>>,
}

#[derive(Debug)]
struct Running {
    sampling: Sampling,
    edits: LogitEdits,
    /// Of the token that the step drew, until the batch has taken it.
    logprobs: Option<Box<Logprobs>>,
    made: mpsc::Sender<Made>,
    /// Where to tell what was reused; nothing once it is told.
    reused: Option<oneshot::Sender<usize>>,
}

impl EngineModel {
    pub(super) fn new(loaded: LoadedDecoder) -> Self {
        Self {
            loaded,
            runs: HashMap::new(),
            buffers: RoundBuffers::default(),
            steps: Vec::new(),
        }
    }

    /// Takes a request into the batch, or tells it why not.
    pub(super) fn join(&mut self, new: Joining) {
        let id = new.sequence.id;
        match self.loaded.batch.add(new.sequence) {
            Ok(()) => {
                let running = Running {
                    sampling: new.sampling,
                    edits: new.edits,
                    logprobs: None,
                    made: new.made,
                    reused: Some(new.reused),
                };
                self.runs.insert(id, running);
            }
            Err(error) => end(&new.made, RunEnd::Refused(error)),
        }
    }

    /// Takes a request out; one that ended by itself is no fault.
    pub(super) fn leave(&mut self, sequence: SequenceId) {
        self.runs.remove(&sequence);
        self.loaded.batch.remove(sequence);
    }

    /// Runs one step; tells whether there was one.
    pub(super) fn advance(&mut self) -> bool {
        self.regulate();
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
                outcomes.iter().for_each(|outcome| tell(runs, outcome));
                true
            }
            None => false,
        }
    }

    /// Leaves out those whose channel is full, and takes out those whose task is gone.
    fn regulate(&mut self) {
        let batch = &mut self.loaded.batch;
        self.runs.retain(|id, running| {
            if running.made.is_closed() {
                batch.remove(*id);
                return false;
            }
            regulate_flow(batch, *id, running.made.capacity());
            true
        });
    }
}

impl Drop for EngineModel {
    fn drop(&mut self) {
        for running in self.runs.values() {
            end(&running.made, RunEnd::ModelGone);
        }
    }
}

fn regulate_flow(batch: &mut Batch, sequence: SequenceId, room: usize) {
    if room < STEP_MESSAGES_MAX {
        batch.pause(sequence);
    } else {
        batch.resume(sequence);
    }
}

/// Runs entries and adds the token drawn for each to `drawn`. `steps` lends its memory.
fn run_step<B: Backend>(
    decoder: &mut DecoderModel<B>,
    runs: &mut HashMap<SequenceId, Running>,
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
            let running = runs.get_mut(&entry.sequence);
            running.expect("who is planned runs").logprobs = Some(Box::new(*logprobs));
        }
    }
    Ok(())
}

fn sequence_step<'a>(runs: &'a HashMap<SequenceId, Running>, entry: &PlanEntry<'a>) -> SequenceStep<'a> {
    let running = &runs[&entry.sequence];
    let drawn_at = entry.start + entry.tokens.len();
    SequenceStep {
        tokens: entry.tokens,
        position: entry.start,
        block_table: entry.blocks,
        sample: entry.sample.map(|_| Sampling {
            position: drawn_at as u64,
            ..running.sampling
        }),
        edits: Some(&running.edits),
    }
}

fn tell(runs: &mut HashMap<SequenceId, Running>, outcome: &Outcome) {
    match outcome {
        Outcome::Reused { sequence, tokens } => {
            let reused = runs.get_mut(sequence).and_then(|running| running.reused.take());
            // Who left does not want to know.
            let _ = reused.map(|reused| reused.send(*tokens));
        }
        Outcome::Token { sequence, token, .. } => {
            let running = runs.get_mut(sequence).expect("who makes a token runs");
            running.edits.push_answer(*token);
            let made = Made::Token {
                id: *token,
                logprobs: running.logprobs.take(),
            };
            if let Err(error) = running.made.try_send(made) {
                let is_closed = matches!(error, mpsc::error::TrySendError::Closed(_));
                assert!(is_closed, "a request without room is paused before the step");
            }
        }
        Outcome::Finished { sequence, reason, .. } => conclude(
            runs,
            *sequence,
            match reason {
                EndReason::Stop => RunEnd::Stop,
                EndReason::Length => RunEnd::Length,
                EndReason::NoToken => RunEnd::NoToken,
            },
        ),
        Outcome::Panicked { sequence, message } => {
            let message = message.clone();
            conclude(runs, *sequence, RunEnd::Panicked { message });
        }
    }
}

fn conclude(runs: &mut HashMap<SequenceId, Running>, sequence: SequenceId, reason: RunEnd) {
    if let Some(running) = runs.remove(&sequence) {
        end(&running.made, reason);
    }
}

/// What one step may send to a request: a token, and that it was the last.
const STEP_MESSAGES_MAX: usize = 2;
