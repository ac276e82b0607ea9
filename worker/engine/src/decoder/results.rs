//! What a step drew, on its way from the device, in buffers that are kept from step to step.

use super::stage::Stage;
use crate::backend::{Backend, DeviceError};
use crate::step::{SequenceOutput, SequenceStep, Step, StepOutput};
use crate::{LOGPROB_WORDS, Logprobs, NO_TOKEN, StepLimits};

/// The results of the last step.
#[derive(Debug)]
pub(super) struct Results {
    /// What each sequence of the step asked for.
    wanted: Vec<Wanted>,
    /// What is being downloaded.
    words: Vec<u32>,
    outputs: Vec<SequenceOutput>,
    logprobs: Vec<Option<Logprobs>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    Token,
    TokenWithLogprobs,
}

impl Wanted {
    fn of(sequence: &SequenceStep<'_>) -> Self {
        match sequence.sample {
            None => Self::Nothing,
            Some(sampling) if sampling.logprobs.is_some() => Self::TokenWithLogprobs,
            Some(_) => Self::Token,
        }
    }
}

impl Results {
    /// Room for the results of the largest step.
    pub(super) fn new(limits: StepLimits) -> Self {
        let sequences = limits.sequences_max;
        Self {
            wanted: Vec::with_capacity(sequences),
            words: Vec::with_capacity(sequences * LOGPROB_WORDS),
            outputs: Vec::with_capacity(sequences),
            logprobs: Vec::with_capacity(sequences),
        }
    }

    fn expect(&mut self, step: &Step<'_>) {
        self.wanted.clear();
        self.wanted.extend(step.sequences.iter().map(Wanted::of));
    }

    /// How many sequences draw.
    pub(super) fn rows(&self) -> usize {
        let draws = self.wanted.iter().filter(|wanted| **wanted != Wanted::Nothing);
        draws.count()
    }

    fn words(&mut self, count: usize) -> &mut [u32] {
        self.words.clear();
        self.words.resize(count, 0);
        &mut self.words
    }

    /// Reads the drawn tokens from `words`.
    fn read_tokens(&mut self) {
        let mut tokens = self.words.iter();
        self.outputs.clear();
        self.outputs.extend(self.wanted.iter().map(|wanted| match wanted {
            Wanted::Nothing => SequenceOutput::Read,
            Wanted::Token | Wanted::TokenWithLogprobs => match tokens.next() {
                Some(&NO_TOKEN) | None => SequenceOutput::NoToken,
                Some(token) => SequenceOutput::Token(*token),
            },
        }));
        self.logprobs.clear();
        self.logprobs.resize(self.wanted.len(), None);
    }

    /// Reads the log-probabilities from `words`.
    fn read_logprobs(&mut self) {
        let (rows, _) = self.words.as_chunks::<LOGPROB_WORDS>();
        let drawing = self.wanted.iter().enumerate();
        let drawing = drawing.filter(|(_, wanted)| **wanted != Wanted::Nothing);
        for ((sequence, wanted), row) in drawing.zip(rows) {
            if *wanted == Wanted::TokenWithLogprobs && self.outputs[sequence].token().is_some() {
                self.logprobs[sequence] = Some(Logprobs::from_words(row));
            }
        }
    }
}

impl<B: Backend> Stage<B> {
    /// Takes note of what a step asks for.
    pub(super) fn expect_results(&mut self, step: &Step<'_>) {
        self.results.expect(step);
    }

    /// Reads what the last step drew.
    pub(super) fn drawn(&mut self) -> Result<StepOutput<'_>, DeviceError> {
        let workspace = *self.plan.workspace();
        let rows = self.results.rows();
        let source = self.span(workspace.drawn).first_words(rows);
        let into = bytemuck::cast_slice_mut(self.results.words(rows));
        self.backend.download(source, into)?;
        self.results.read_tokens();
        if self.results.wanted.contains(&Wanted::TokenWithLogprobs) {
            let source = self.span(workspace.logprobs).first_words(rows * LOGPROB_WORDS);
            let into = bytemuck::cast_slice_mut(self.results.words(rows * LOGPROB_WORDS));
            self.backend.download(source, into)?;
            self.results.read_logprobs();
        }
        Ok(StepOutput::new(&self.results.outputs, &self.results.logprobs))
    }

    /// Reads the logits of the last step.
    pub(super) fn logits(&mut self) -> Result<Vec<Vec<f32>>, DeviceError> {
        let vocab_size = self.plan.config().vocab_size;
        let words = self.results.rows() * vocab_size;
        let mut logits = vec![0f32; words];
        let source = self.span(self.plan.workspace().logits).first_words(words);
        self.backend
            .download(source, bytemuck::cast_slice_mut(&mut logits))?;
        Ok(logits.chunks_exact(vocab_size).map(<[f32]>::to_vec).collect())
    }
}
