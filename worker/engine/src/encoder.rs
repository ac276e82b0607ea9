//! Sentence encoders of BERT's kind: one definition over any [`Backend`].

mod forward;
mod plan;
pub(crate) mod weights;

use std::collections::HashMap;

use crate::backend::{Backend, DeviceError, Matrix, RegionId, Span};
use crate::plan::{Area, ModelRegions, PlannedTensor};
use crate::step::StepError;
use weights::{Embedding, Module, Part, Role};

pub use plan::EncoderPlan;

/// A loaded encoder: weights and workspace on a device. Dropping it gives all its memory back.
#[derive(Debug)]
pub struct EncoderModel<B: Backend> {
    backend: B,
    plan: EncoderPlan,
    weights: Weights,
    workspace: RegionId,
    /// Step inputs on their way to the device; kept so that a step does not allocate.
    staging: Vec<u32>,
    /// f32 \[sequences, hidden]: the vectors of the last step.
    vectors: Vec<f32>,
    /// Tokens of the last step.
    tokens: usize,
}

#[derive(Debug)]
struct Weights {
    word: Matrix,
    position: Matrix,
    token_type: Matrix,
    norm: Norm,
    layers: Vec<Layer>,
}

#[derive(Clone, Copy, Debug)]
struct Layer {
    query: Projection,
    key: Projection,
    value: Projection,
    attention_output: Projection,
    attention_norm: Norm,
    intermediate: Projection,
    output: Projection,
    output_norm: Norm,
}

/// The weights of a linear layer.
#[derive(Clone, Copy, Debug)]
struct Projection {
    weights: Matrix,
    bias: Span,
}

#[derive(Clone, Copy, Debug)]
struct Norm {
    weight: Span,
    bias: Span,
}

impl<B: Backend> EncoderModel<B> {
    /// Takes over loaded weights and a workspace, and writes the constants.
    pub(crate) fn new(backend: B, plan: EncoderPlan, regions: ModelRegions) -> Result<Self, DeviceError> {
        let mut model = Self {
            backend,
            weights: Weights::new(&plan, regions.weights),
            plan,
            workspace: regions.workspace,
            staging: Vec::new(),
            vectors: Vec::new(),
            tokens: 0,
        };
        let token_types = model.plan.workspace().token_types;
        model.staging.resize(model.plan.limits().batch_tokens_max, 0);
        model.upload_staging(token_types)?;
        Ok(model)
    }

    /// Takes the weights off the device and gives all other memory back. [`crate::load_image`] is the way back.
    ///
    /// # Errors
    /// The device refused, or the host has not the memory; the weights are lost then.
    pub fn into_image(mut self) -> Result<B::Image, DeviceError> {
        self.backend.take_out(self.weights.word.span.region)
    }

    /// The model's memory plan, with its configuration and limits.
    pub const fn plan(&self) -> &EncoderPlan {
        &self.plan
    }

    /// Makes one vector of each sequence of tokens, and waits for them; gives f32 \[sequences, hidden], in
    /// order. At most `sequences_max` sequences with at most `batch_tokens_max` tokens together, each of at
    /// least one. A vector is the same bits alone and in any batch.
    ///
    /// # Errors
    /// The step breaks a limit or names tokens or positions that do not exist: nothing was launched. Or the
    /// device failed.
    pub fn encode(&mut self, sequences: &[&[u32]]) -> Result<&[f32], StepError> {
        self.check(sequences)?;
        // A step that was given up in its middle may have left something.
        self.staging.clear();
        self.tokens = sequences.iter().map(|sequence| sequence.len()).sum();
        self.vectors.clear();
        self.vectors
            .resize(sequences.len() * self.plan.config().hidden, 0.0);
        if !sequences.is_empty() {
            self.launch(sequences)?;
            let vectors = self.span(self.plan.workspace().vectors);
            let vectors = vectors.first_words(self.vectors.len());
            self.backend
                .download(vectors, bytemuck::cast_slice_mut(&mut self.vectors))?;
        }
        Ok(&self.vectors)
    }

    /// The states that the last step's vectors were made of: f32 \[tokens, hidden].
    ///
    /// # Errors
    /// The device failed.
    pub fn last_hidden_states(&mut self) -> Result<Vec<f32>, DeviceError> {
        let mut states = vec![0f32; self.tokens * self.plan.config().hidden];
        let source = self.span(self.plan.workspace().states).first_words(states.len());
        self.backend
            .download(source, bytemuck::cast_slice_mut(&mut states))?;
        Ok(states)
    }

    fn check(&self, sequences: &[&[u32]]) -> Result<(), StepError> {
        let (limits, config) = (self.plan.limits(), self.plan.config());
        if sequences.len() > limits.sequences_max {
            return Err(StepError::TooManySequences {
                found: sequences.len(),
                max: limits.sequences_max,
            });
        }
        let tokens = sequences.iter().map(|sequence| sequence.len()).sum();
        if tokens > limits.batch_tokens_max {
            return Err(StepError::TooManyTokens {
                found: tokens,
                max: limits.batch_tokens_max,
            });
        }
        for (sequence, tokens) in sequences.iter().enumerate() {
            if tokens.is_empty() {
                return Err(StepError::NoTokens { sequence });
            }
            if tokens.len() > config.positions {
                return Err(StepError::BeyondContext {
                    sequence,
                    end: tokens.len(),
                    max: config.positions,
                });
            }
            let vocab_size = config.vocab_size;
            if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
                return Err(StepError::TokenOutOfVocabulary {
                    sequence,
                    token: *token,
                    vocab_size,
                });
            }
        }
        Ok(())
    }

    /// Uploads what was staged to the start of an area and empties the staging.
    fn upload_staging(&mut self, area: Area) -> Result<Span, DeviceError> {
        let target = self.span(area).first_words(self.staging.len());
        let uploaded = self.backend.upload(target, bytemuck::cast_slice(&self.staging));
        self.staging.clear();
        uploaded.map(|()| target)
    }

    fn span(&self, area: Area) -> Span {
        area.in_region(self.workspace)
    }
}

impl Weights {
    fn new(plan: &EncoderPlan, region: RegionId) -> Self {
        let by_role: HashMap<Role, &PlannedTensor> = plan.tensors_by_role().collect();
        let matrix = |role| by_role[&role].matrix(region);
        let vector = |role| by_role[&role].area.in_region(region);
        let embedding = |embedding| matrix(Role::Embedding(embedding));
        let layer = |layer| {
            let projection = |module| Projection {
                weights: matrix(Role::Layer(layer, module, Part::Weight)),
                bias: vector(Role::Layer(layer, module, Part::Bias)),
            };
            let norm = |module| Norm {
                weight: vector(Role::Layer(layer, module, Part::Weight)),
                bias: vector(Role::Layer(layer, module, Part::Bias)),
            };
            Layer {
                query: projection(Module::Query),
                key: projection(Module::Key),
                value: projection(Module::Value),
                attention_output: projection(Module::AttentionOutput),
                attention_norm: norm(Module::AttentionNorm),
                intermediate: projection(Module::Intermediate),
                output: projection(Module::Output),
                output_norm: norm(Module::OutputNorm),
            }
        };
        Self {
            word: embedding(Embedding::Word),
            position: embedding(Embedding::Position),
            token_type: embedding(Embedding::TokenType),
            norm: Norm {
                weight: vector(Role::Norm(Part::Weight)),
                bias: vector(Role::Norm(Part::Bias)),
            },
            layers: (0..plan.config().layers).map(layer).collect(),
        }
    }
}
