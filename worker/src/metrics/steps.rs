//! What is counted of an engine's steps.

use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_telemetry::{Counter, Histogram};
use flotilla_worker_core::batch::StepPlan;

use super::{STEP_SECONDS, STEP_SEQUENCES, STEP_TOKENS};

/// Counts the steps of one model.
#[derive(Debug)]
pub(crate) struct StepTally {
    sequences: Histogram,
    seconds: Histogram,
    prefill: Counter,
    decode: Counter,
}

/// What a step is made of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StepSize {
    sequences: usize,
    prefill_tokens: usize,
    made_tokens: usize,
}

impl StepSize {
    /// Of sequences that make text.
    pub(crate) fn of(plan: &StepPlan<'_>) -> Self {
        Self {
            sequences: plan.len(),
            prefill_tokens: plan.prefill_tokens(),
            made_tokens: plan.entries().filter(|entry| entry.sample.is_some()).count(),
        }
    }

    /// Of texts that are read alone.
    pub(crate) fn of_texts(texts: usize, tokens: usize) -> Self {
        Self {
            sequences: texts,
            prefill_tokens: tokens,
            made_tokens: 0,
        }
    }
}

impl StepTally {
    /// Counts for a model.
    pub(crate) fn new(model: &ModelName) -> Self {
        let model = model.as_str();
        Self {
            sequences: STEP_SEQUENCES.histogram(&[model]),
            seconds: STEP_SECONDS.histogram(&[model]),
            prefill: STEP_TOKENS.counter(&[model, "prefill"]),
            decode: STEP_TOKENS.counter(&[model, "decode"]),
        }
    }

    /// A step of this size took so long.
    #[expect(clippy::cast_precision_loss, reason = "the sequences of a batch")]
    pub(crate) fn count(&self, size: StepSize, took: Duration) {
        self.sequences.record(size.sequences as f64);
        self.seconds.record(took.as_secs_f64());
        self.prefill.increment(size.prefill_tokens as u64);
        self.decode.increment(size.made_tokens as u64);
    }
}
