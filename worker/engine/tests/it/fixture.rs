//! Loads models and runs sequences on them, as a worker would.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use flotilla_worker_engine::{
    AllHere, BLOCK_TOKENS, CpuBackend, CpuThreads, DecoderModel, KvSlab, KvSpace, Level, LogitEdits,
    MemoryPlan, ModelFolder, ModelLoader, ModelPlan, Precision, Sampling, SequenceOutput, SequenceStep, Step,
    StepLimits, TensorInfo, TokenMask,
};

/// The models of `tests/golden/make.py`: every family, every feature in a model of at least one dtype.
pub const GOLDEN: [&str; 17] = [
    "gqa-f32",
    "mha-bf16-tied",
    "gqa-f16",
    "wide-heads-bf16",
    "sharded-bf16",
    "llama3-rope-f32",
    "yarn-bf16",
    "linear-rope-f16",
    "biases-f16",
    "mistral-f32",
    "mistral-bf16",
    "qwen2-bf16",
    "qwen3-f16",
    "qwen3-bf16",
    "smollm3-f32",
    "gemma3-f32",
    "gemma3-bf16",
];

pub const LIMITS: StepLimits = StepLimits {
    batch_tokens_max: 192,
    sequences_max: 8,
};

/// 8 slabs of 8 blocks have memory, one has none.
pub const KV_SPACE: KvSpace = KvSpace {
    slab: KvSlab { blocks: 8, pages: 1 },
    slabs_max: 9,
};

pub const SLABS: usize = 8;

pub fn golden_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

pub fn demo_folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../cli/demo-models")).join(name)
}

/// A loader whose tensors are not there yet.
pub fn loader(folder: &ModelFolder) -> ModelLoader<CpuBackend> {
    loader_with(folder, Options::default())
}

/// How a model is loaded, where it matters.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub limits: StepLimits,
    pub precision: Precision,
    pub level: Level,
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: LIMITS,
            precision: Precision::Stored,
            level: Level::best(),
            threads: 2,
        }
    }
}

/// What a whole model needs.
pub fn plan(folder: &ModelFolder, options: Options) -> MemoryPlan {
    let plan = MemoryPlan::new(
        folder.config(),
        folder.tensor_infos(),
        options.limits,
        options.precision,
    );
    plan.unwrap()
}

/// A place on a device of its own.
pub fn backend(options: Options) -> CpuBackend {
    let threads = CpuThreads::new(NonZero::new(options.threads).unwrap());
    CpuBackend::at_level(Arc::new(threads), options.level)
}

fn loader_with(folder: &ModelFolder, options: Options) -> ModelLoader<CpuBackend> {
    ModelLoader::new(backend(options), plan(folder, options), KV_SPACE).unwrap()
}

/// A model with all its tensors and memory for all blocks but those of the last slab.
pub fn load(path: &Path) -> DecoderModel<CpuBackend> {
    load_with(path, Options::default())
}

/// The same, loaded otherwise.
pub fn load_with(path: &Path, options: Options) -> DecoderModel<CpuBackend> {
    let folder = ModelFolder::open(path).unwrap();
    let mut loader = loader_with(&folder, options);
    for tensor in folder.tensors() {
        loader
            .place(&tensor.info.name, 0, &tensor.read().unwrap())
            .unwrap();
    }
    let mut model = loader.finish().unwrap();
    map_blocks(&mut model);
    model
}

/// The same in stages that end at these layers, each on a device of its own.
pub fn load_stages(path: &Path, ends: &[usize], options: Options) -> DecoderModel<CpuBackend> {
    let folder = ModelFolder::open(path).unwrap();
    let whole = plan(&folder, options);
    let starts = [0].into_iter().chain(ends.iter().copied());
    let parts = starts.zip(ends).map(|(start, end)| {
        let stage = whole.stage(start..*end).unwrap();
        let weights = stage.weights().clone();
        let mut loader = ModelLoader::new(backend(options), stage, KV_SPACE).unwrap();
        let wants = |info: &TensorInfo| weights.has(&info.name);
        folder.read_ahead_of(wants, &AllHere, |pieces| {
            for piece in pieces.map(Result::unwrap) {
                loader
                    .place(&piece.info.name, piece.offset_bytes, piece.bytes())
                    .unwrap();
            }
        });
        loader.finish().unwrap()
    });
    let mut model = DecoderModel::join(parts);
    map_blocks(&mut model);
    model
}

/// Puts memory behind [`SLABS`] slabs.
pub fn map_blocks(model: &mut DecoderModel<CpuBackend>) {
    (0..SLABS).for_each(|slab| model.map_kv_slab(slab).unwrap());
}

/// A sequence that grows, with KV blocks of its own.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Prompt and what was drawn.
    pub tokens: Vec<u32>,
    /// How many of them have been read.
    pub read: usize,
    pub block_table: Vec<u32>,
    pub edits: LogitEdits,
    pub mask: Option<OnceLock<TokenMask>>,
}

impl Sequence {
    /// A sequence on the given KV blocks, each used up to the table's end.
    pub fn new(tokens: &[u32], blocks: impl IntoIterator<Item = u32>) -> Self {
        Self {
            tokens: tokens.to_vec(),
            read: 0,
            block_table: blocks.into_iter().collect(),
            edits: LogitEdits::none(),
            mask: None,
        }
    }

    /// That draws only the tokens for which `allows` holds.
    pub fn with_mask(mut self, allows: impl Fn(u32) -> bool) -> Self {
        let word = |first: u32| (0..32).map(|bit| u32::from(allows(first + bit)) << bit).sum();
        let words = (0..96).step_by(32).map(word).collect();
        self.mask = Some(OnceLock::from(TokenMask::from_words(words)));
        self
    }

    /// With edits that know the first `prompt_len` tokens as the prompt, the others as the answer.
    pub fn with_edits(mut self, mut edits: LogitEdits, prompt_len: usize) -> Self {
        let (prompt, answer) = self.tokens.split_at(prompt_len);
        edits.read_prompt(prompt);
        answer.iter().for_each(|token| edits.push_answer(*token));
        self.edits = edits;
        self
    }

    /// The next `count` tokens as a part of a step.
    pub fn part(&self, count: usize, sample: Option<Sampling>) -> SequenceStep<'_> {
        SequenceStep {
            tokens: &self.tokens[self.read..self.read + count],
            position: self.read,
            block_table: &self.block_table,
            sample,
            edits: Some(&self.edits),
            mask: self.mask.as_ref(),
        }
    }
}

/// Enough blocks for a context of 128 tokens, starting at the `index`-th such set.
pub fn blocks_of(index: u32) -> impl Iterator<Item = u32> {
    let count = u32::try_from(128 / BLOCK_TOKENS).unwrap();
    index * count..(index + 1) * count
}

/// Reads tokens `read..read + count` alone and gives the logits after the last of them.
pub fn read_chunk(model: &mut DecoderModel<CpuBackend>, sequence: &mut Sequence, count: usize) -> Vec<f32> {
    let part = [sequence.part(count, Some(Sampling::GREEDY))];
    let pending = model.submit(&Step { sequences: &part }).unwrap();
    let (_, mut logits) = pending.wait_with_logits().unwrap();
    sequence.read += count;
    logits.pop().unwrap()
}

/// Reads what is unread, then draws tokens alone, one a step.
pub fn generate(
    model: &mut DecoderModel<CpuBackend>,
    sequence: &mut Sequence,
    count: usize,
    sampling: Sampling,
) -> Vec<u32> {
    let prompt_len = sequence.tokens.len();
    for _ in 0..count {
        let unread = sequence.tokens.len() - sequence.read;
        let position = sequence.tokens.len() as u64;
        let part = [sequence.part(unread, Some(Sampling { position, ..sampling }))];
        let output = model.submit(&Step { sequences: &part }).unwrap().wait().unwrap();
        let SequenceOutput::Token(token) = output.sequences[0] else {
            panic!("a token was asked for: {output:?}")
        };
        sequence.read += unread;
        sequence.tokens.push(token);
        sequence.edits.push_answer(token);
    }
    sequence.tokens[prompt_len..].to_vec()
}

/// The bits of a vector, so that equality means identity.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
