//! The engine at work, without a worker around it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use flotilla_worker_engine::{
    BLOCK_TOKENS, CpuBackend, CpuThreads, DecoderModel, KvSpace, MemoryPlan, ModelFolder, ModelLoader,
    Precision, Sampling, SequenceStep, Step, StepLimits,
};

use super::CHUNK_TOKENS;
use super::work::{Sizes, Work};

/// A model of the engine, once it is loaded.
#[derive(Debug)]
pub(crate) struct Ours {
    folder: PathBuf,
    sizes: Sizes,
    threads: Arc<CpuThreads>,
    precision: Precision,
    model: Option<DecoderModel<CpuBackend>>,
}

impl Ours {
    /// Nothing is loaded yet.
    pub(crate) fn new(folder: PathBuf, sizes: Sizes, threads: Arc<CpuThreads>, precision: Precision) -> Self {
        Self {
            folder,
            sizes,
            threads,
            precision,
            model: None,
        }
    }

    /// Does it and says how long it took.
    ///
    /// # Errors
    /// When the model cannot be loaded or run, or work other than loading comes first.
    pub(crate) fn run(&mut self, work: &Work) -> anyhow::Result<Duration> {
        match work {
            Work::Load => self.load(),
            Work::Prefill { prompt } => self.prefill(prompt),
            Work::Decode { prompts, steps } => self.decode(prompts, steps),
        }
    }

    fn load(&mut self) -> anyhow::Result<Duration> {
        // Two models at once would need twice the memory.
        self.model = None;
        let begun = Instant::now();
        let folder = ModelFolder::open(&self.folder)?;
        let limits = StepLimits {
            batch_tokens_max: CHUNK_TOKENS,
            sequences_max: self.sizes.sequences_max(),
        };
        let plan = MemoryPlan::new(folder.config(), folder.tensor_infos(), limits, self.precision)?;
        let blocks = self.blocks();
        let kv_space = KvSpace::of_one_slab(blocks, plan.kv_block_bytes());
        let backend = CpuBackend::new(Arc::clone(&self.threads));
        let mut model = folder.read_ahead(|pieces| {
            let mut loader = ModelLoader::new(backend, plan, kv_space)?;
            for piece in pieces {
                let piece = piece?;
                loader.place(&piece.info.name, piece.offset_bytes, piece.bytes())?;
            }
            anyhow::Ok(loader.finish()?)
        })?;
        let loaded = begun.elapsed();
        model.map_kv_slab(0)?;
        self.model = Some(model);
        Ok(loaded)
    }

    /// The bytes of weights that a step reads, once they are loaded.
    pub(crate) fn weights_bytes(&self) -> usize {
        let plan = self.model.as_ref().map(DecoderModel::plan);
        plan.map_or(0, MemoryPlan::weights_bytes)
    }

    fn prefill(&mut self, prompt: &[u32]) -> anyhow::Result<Duration> {
        let blocks = tables(1, prompt.len())?.concat();
        let begun = Instant::now();
        self.read(prompt, &blocks)?;
        Ok(begun.elapsed())
    }

    fn decode(&mut self, prompts: &[Vec<u32>], steps: &[Vec<u32>]) -> anyhow::Result<Duration> {
        let blocks = tables(prompts.len(), self.sizes.continued_tokens())?;
        for (prompt, blocks) in prompts.iter().zip(&blocks) {
            self.read(prompt, blocks)?;
        }
        let begun = Instant::now();
        for (index, tokens) in steps.iter().enumerate() {
            let sequences: Vec<SequenceStep<'_>> = tokens
                .chunks(1)
                .zip(prompts)
                .zip(&blocks)
                .map(|((tokens, prompt), blocks)| drawn_after(tokens, prompt.len() + index, blocks))
                .collect();
            self.step(&sequences)?;
        }
        Ok(begun.elapsed())
    }

    /// Reads a prompt in chunks and draws the token after it.
    fn read(&mut self, prompt: &[u32], blocks: &[u32]) -> anyhow::Result<()> {
        for (index, tokens) in prompt.chunks(CHUNK_TOKENS).enumerate() {
            let position = index * CHUNK_TOKENS;
            let is_last = position + tokens.len() == prompt.len();
            let mut chunk = drawn_after(tokens, position, blocks);
            chunk.sample = chunk.sample.filter(|_| is_last);
            self.step(&[chunk])?;
        }
        Ok(())
    }

    fn step(&mut self, sequences: &[SequenceStep<'_>]) -> anyhow::Result<()> {
        let model = self.model.as_mut().context("nothing is loaded")?;
        model.submit(&Step { sequences })?.wait()?;
        Ok(())
    }

    /// Enough for each piece of work alone.
    fn blocks(&self) -> usize {
        let read = self.sizes.prefill_max().div_ceil(BLOCK_TOKENS);
        let continued = self.sizes.continued_tokens().div_ceil(BLOCK_TOKENS);
        read.max(continued * self.sizes.sequences_max())
    }
}

/// Blocks for so many sequences of so many tokens, one list for each.
fn tables(sequences: usize, tokens: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let count = u32::try_from(tokens.div_ceil(BLOCK_TOKENS))?;
    let sequences = u32::try_from(sequences)?;
    Ok((0..sequences)
        .map(|sequence| (sequence * count..(sequence + 1) * count).collect())
        .collect())
}

fn drawn_after<'a>(tokens: &'a [u32], position: usize, blocks: &'a [u32]) -> SequenceStep<'a> {
    SequenceStep {
        tokens,
        position,
        block_table: blocks,
        sample: Some(Sampling::GREEDY),
        edits: None,
        mask: None,
    }
}
