//! Decoders of the Llama kind: one definition over any [`Backend`], whole on one device or in stages on several.
//!
//! A stage is some layers that follow each other; embeddings go with the first, norm and output layer with the last.
//! From stage to stage go the residual stream and what the last layer leaves to be added to it, as they are: what a
//! layer reads has the same bits wherever the layers before it were, so a split model's tokens are those of the whole.

mod forward;
mod inputs;
mod kv;
mod results;
mod stage;
pub(crate) mod weights;

use crate::MemoryPlan;
use crate::backend::{Backend, DeviceError};
use crate::plan::ModelRegions;
use crate::step::{PendingStep, Step, StepError, StepOutput};
pub(crate) use kv::KvMemory;
pub use kv::{KvSlab, KvSpace};
pub(crate) use stage::Stage;

/// A loaded model: weights, workspace and KV blocks on a device, or on several. Dropping it gives all its memory back.
#[derive(Debug)]
pub struct DecoderModel<B: Backend> {
    /// In the order of their layers; all of the model's layers, but for a part that waits to be [`Self::join`]ed.
    stages: Vec<Stage<B>>,
    /// What is on its way from one stage to the next; kept so that a step does not allocate.
    passed: Vec<u8>,
}

impl<B: Backend> DecoderModel<B> {
    /// Takes over loaded weights and a workspace, and writes the constants.
    pub(crate) fn new(backend: B, plan: MemoryPlan, regions: ModelRegions) -> Result<Self, DeviceError> {
        Ok(Self {
            stages: vec![Stage::new(backend, plan, regions)?],
            passed: Vec::new(),
        })
    }

    /// One model of its parts, each loaded by a [`MemoryPlan::stage`] of one plan, in the order of their layers.
    ///
    /// # Panics
    /// The parts are not all of one model, or not in order.
    #[must_use]
    pub fn join(parts: impl IntoIterator<Item = Self>) -> Self {
        let stages: Vec<Stage<B>> = parts.into_iter().flat_map(|part| part.stages).collect();
        let mut next = 0;
        for stage in &stages {
            let layers = stage.plan().layers();
            assert_eq!(layers.start, next, "each stage goes on where the one before ends");
            next = layers.end;
        }
        let last = stages.last().expect("a model has at least one stage").plan();
        assert!(last.is_last(), "the stages are a whole model");
        let passed_bytes = match stages.as_slice() {
            [_] => 0,
            _ => stages.iter().map(Stage::passed_bytes_max).max().unwrap_or(0),
        };
        Self {
            passed: Vec::with_capacity(passed_bytes),
            stages,
        }
    }

    /// Takes the weights off their devices, stage by stage, and gives all other memory back. [`crate::load_image`] is
    /// the way back.
    ///
    /// # Errors
    /// A device refused, or the host has not the memory; the weights are lost then.
    pub fn into_images(self) -> Result<Vec<B::Image>, DeviceError> {
        self.stages.into_iter().map(Stage::into_image).collect()
    }

    /// The memory plan of its first stage, which is that of the model when it is whole; configuration and limits are
    /// those of all stages.
    pub fn plan(&self) -> &MemoryPlan {
        self.stages[0].plan()
    }

    /// How many stages it has.
    pub fn stage_count(&self) -> usize {
        self.stages.len()
    }

    /// Puts memory behind a slab of KV blocks, on each device; what they hold is undefined.
    ///
    /// # Errors
    /// There is no such slab, it has memory already, or a device has none; nothing has changed.
    pub fn map_kv_slab(&mut self, slab: usize) -> Result<(), DeviceError> {
        for index in 0..self.stages.len() {
            if let Err(error) = self.stages[index].map_kv_slab(slab) {
                for stage in &mut self.stages[..index] {
                    // It was mapped just now. A device that does not take it back keeps it until the model goes.
                    let _ = stage.unmap_kv_slab(slab);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes the memory behind a slab of KV blocks away; no step may name them until it has memory again.
    ///
    /// # Errors
    /// There is no such slab, it has no memory, or a device refused: it and those after it have not changed.
    pub fn unmap_kv_slab(&mut self, slab: usize) -> Result<(), DeviceError> {
        let mut stages = self.stages.iter_mut();
        stages.try_for_each(|stage| stage.unmap_kv_slab(slab))
    }

    /// Copies the contents of KV block `from` to block `to`, so that a sequence can fork within a block.
    ///
    /// # Errors
    /// A device failed.
    ///
    /// # Panics
    /// A block has no memory, or both are one.
    pub fn copy_kv_block(&mut self, from: u32, to: u32) -> Result<(), DeviceError> {
        let mut stages = self.stages.iter_mut();
        stages.try_for_each(|stage| stage.copy_kv_block(from, to))
    }

    /// Checks a step and launches it, on one device after the other.
    ///
    /// # Errors
    /// The step breaks a limit or names tokens, positions or blocks that do not exist: nothing was launched.
    /// Or a device failed.
    pub fn submit(&mut self, step: &Step<'_>) -> Result<PendingStep<'_, B>, StepError> {
        let mut staged = self.begin(step)?;
        while staged.run_stage()?.is_some() {}
        let StagedStep { model, .. } = staged;
        Ok(PendingStep { model })
    }

    /// Checks a step that is then run stage by stage, so that others can use a device between its stages.
    ///
    /// # Errors
    /// As [`Self::submit`]; nothing is launched.
    pub fn begin<'m, 's>(&'m mut self, step: &'s Step<'s>) -> Result<StagedStep<'m, 's, B>, StepError> {
        for stage in &self.stages {
            step.check(stage.plan(), stage.kv())?;
        }
        self.last_mut().expect_results(step);
        let model = self;
        Ok(StagedStep { model, step, next: 0 })
    }

    /// Reads what the last step drew.
    pub(crate) fn drawn(&mut self) -> Result<StepOutput<'_>, DeviceError> {
        self.last_mut().drawn()
    }

    /// Reads the logits of the last step.
    pub(crate) fn logits(&mut self) -> Result<Vec<Vec<f32>>, DeviceError> {
        self.last_mut().logits()
    }

    /// The stage that draws.
    fn last_mut(&mut self) -> &mut Stage<B> {
        let last = self.stages.last_mut();
        last.expect("a model has at least one stage")
    }
}

/// A checked step that is run stage by stage. Between two stages it holds nothing on any device that others would
/// have to wait for. Dropping it early leaves the step undone: its keys and values are to be written again.
#[derive(Debug)]
pub struct StagedStep<'m, 's, B: Backend> {
    model: &'m mut DecoderModel<B>,
    step: &'s Step<'s>,
    /// The next stage.
    next: usize,
}

impl<'m, B: Backend> StagedStep<'m, '_, B> {
    /// Runs the next stage, and says which it was; `None` when all have run. What it leaves for the one after it has
    /// left the device when this returns; the last one may still be under way.
    ///
    /// # Errors
    /// The device failed.
    pub fn run_stage(&mut self) -> Result<Option<usize>, StepError> {
        let DecoderModel { stages, passed } = &mut *self.model;
        let Some(stage) = stages.get_mut(self.next) else {
            return Ok(None);
        };
        stage.run(self.step, passed)?;
        self.next += 1;
        Ok(Some(self.next - 1))
    }

    /// Waits for the last device and reads the drawn tokens.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// Not all stages have run.
    pub fn wait(self) -> Result<StepOutput<'m>, StepError> {
        assert_eq!(self.next, self.model.stages.len(), "all stages have run");
        Ok(self.model.drawn()?)
    }
}
