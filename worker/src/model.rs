//! A model's folder, opened for serving: what requests need of it and what the device must hold.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flotilla_prompt::{ModelBounds, OpenTextError, PromptMaker};
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelFacts, ModelSource, ModelTask, Quantize};
use flotilla_worker_core::kv::KvBlock;
use flotilla_worker_core::residency::{ModelNeeds, SplitNeeds};
use flotilla_worker_engine::{
    BLOCK_TOKENS, EncoderConfig, EncoderPlan, Incoming, MemoryPlan, ModelConfig, ModelError, ModelFolder,
    ModelKind, ModelPlan, PAGE_BYTES, PlanError, Precision, SamplingDefaults, StepLimits,
};
use thiserror::Error;

/// What requests need of a model: everything but its weights.
#[derive(Debug)]
pub(crate) struct ModelText {
    /// Requests to prompts, and tokens to text.
    pub(crate) prompts: PromptMaker,
    /// How tokens are drawn when the request does not say.
    pub(crate) sampling_defaults: SamplingDefaults,
    /// Tokens that end an answer.
    pub(crate) stop_token_ids: Arc<[u32]>,
    /// Where its tokens come from.
    pub(crate) tokens: TokenSource,
}

/// Where the tokens of answers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenSource {
    /// They are drawn from the logits of a model.
    Drawn,
    /// They are a simulated engine's.
    MadeUp,
}

impl ModelText {
    /// The text side of a model that is simulated: nothing of its own but prompts, and the token that ends an
    /// answer, if there is one.
    pub(crate) fn simulated(prompts: PromptMaker) -> Self {
        let end = prompts.tokenizer().eos_id();
        Self {
            prompts,
            sampling_defaults: SamplingDefaults::default(),
            stop_token_ids: end.into_iter().collect(),
            tokens: TokenSource::MadeUp,
        }
    }
}

/// A model's folder with its files open, ready to be loaded.
#[derive(Debug)]
pub(crate) struct OpenedModel {
    /// What is to be loaded.
    pub(crate) weights: OpenedWeights,
    /// What requests need.
    pub(crate) text: Arc<ModelText>,
}

/// Weights, where they lie on disk, and what they need on the device.
#[derive(Debug)]
pub(crate) enum OpenedWeights {
    /// Of a model that makes text.
    Decoder {
        /// The files.
        folder: ModelFolder,
        /// The need.
        plan: Box<MemoryPlan>,
    },
    /// Of a model that makes vectors.
    Encoder {
        /// The files.
        folder: ModelFolder<EncoderConfig>,
        /// The need.
        plan: Box<EncoderPlan>,
    },
}

/// Why a folder is not a model that can be served.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The folder itself cannot be found.
    #[error("{folder} cannot be opened", folder = folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Configuration or weights are not those of a model that the engine runs.
    #[error("the model cannot be run")]
    Model(#[from] ModelError),
    /// Tokenizer or chat template are missing or broken.
    #[error(transparent)]
    Text(#[from] OpenTextError),
    /// The device memory cannot be planned.
    #[error("the model's memory cannot be planned")]
    Plan(#[from] PlanError),
    /// A number is larger than the catalog can say.
    #[error("{quantity} of the model is {value}, which the catalog cannot hold")]
    TooLarge {
        /// Which number.
        quantity: &'static str,
        /// Its value.
        value: usize,
    },
}

/// Checks a model folder and describes it for the catalog: tensors, tokenizer and chat template are all
/// opened, so that what is added can be served. Reads files and takes up to seconds.
///
/// # Errors
/// [`OpenError`]: the first fault found, with its file.
pub fn describe(name: ModelName, folder: &Path) -> Result<CatalogEntry, OpenError> {
    let folder = fs::canonicalize(folder).map_err(|source| OpenError::Folder {
        folder: folder.to_owned(),
        source,
    })?;
    let facts = match ModelKind::of(&folder)? {
        ModelKind::Decoder => {
            let model = ModelFolder::open(&folder)?;
            let bounds = decoder_bounds(model.config())?;
            PromptMaker::open(&folder, bounds)?;
            facts(
                model.config().family.architecture(),
                bounds,
                model.weights_bytes(),
            )
        }
        ModelKind::Encoder => {
            let model = ModelFolder::open_encoder(&folder)?;
            let bounds = encoder_bounds(model.config())?;
            PromptMaker::open(&folder, bounds)?;
            facts(EncoderConfig::ARCHITECTURE, bounds, model.weights_bytes())
        }
    };
    Ok(CatalogEntry {
        name,
        source: ModelSource::Folder(folder),
        facts,
        root: None,
        slots: None,
        keep_alive: None,
        pin: false,
        slo: None,
        quantize: None,
        policy: None,
        output_tokens_prior: None,
    })
}

impl OpenedModel {
    /// Opens a folder for steps of up to these sizes, with weights of this precision. A step of a model that
    /// makes vectors takes texts of any requests, so it is bounded by its tokens alone, and holds the longest
    /// text. Reads files and takes up to seconds, less if the text side is known already, of the same files.
    /// Weights may be on their way; their headers are waited for.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(crate) fn open(
        folder: &Path,
        incoming: &dyn Incoming,
        limits: StepLimits,
        quantize: Option<Quantize>,
        text: Option<Arc<ModelText>>,
    ) -> Result<Self, OpenError> {
        let precision = precision(quantize);
        match ModelKind::of(folder)? {
            ModelKind::Decoder => Self::open_decoder(folder, incoming, limits, precision, text),
            ModelKind::Encoder => Self::open_encoder(folder, incoming, limits, precision, text),
        }
    }

    fn open_decoder(
        path: &Path,
        incoming: &dyn Incoming,
        limits: StepLimits,
        precision: Precision,
        text: Option<Arc<ModelText>>,
    ) -> Result<Self, OpenError> {
        let folder = ModelFolder::open_incoming(path, incoming)?;
        let config = folder.config();
        let plan = MemoryPlan::new(config, folder.tensor_infos(), limits, precision)?;
        let text = match text {
            Some(text) => text,
            None => Arc::new(ModelText {
                prompts: PromptMaker::open(path, decoder_bounds(config)?)?,
                sampling_defaults: config.sampling_defaults,
                stop_token_ids: config.eos_token_ids.clone().into(),
                tokens: TokenSource::Drawn,
            }),
        };
        Ok(Self {
            weights: OpenedWeights::Decoder {
                folder,
                plan: Box::new(plan),
            },
            text,
        })
    }

    fn open_encoder(
        path: &Path,
        incoming: &dyn Incoming,
        limits: StepLimits,
        precision: Precision,
        text: Option<Arc<ModelText>>,
    ) -> Result<Self, OpenError> {
        let folder = ModelFolder::open_encoder_incoming(path, incoming)?;
        let config = folder.config();
        let batch_tokens_max = limits.batch_tokens_max.max(config.text_tokens_max);
        let limits = StepLimits {
            batch_tokens_max,
            sequences_max: batch_tokens_max.min(STEP_TEXTS_MAX),
        };
        let plan = EncoderPlan::new(config, folder.tensor_infos(), limits, precision)?;
        let text = match text {
            Some(text) => text,
            None => Arc::new(ModelText {
                prompts: PromptMaker::open(path, encoder_bounds(config)?)?,
                sampling_defaults: SamplingDefaults::default(),
                stop_token_ids: Arc::default(),
                tokens: TokenSource::Drawn,
            }),
        };
        Ok(Self {
            weights: OpenedWeights::Encoder {
                folder,
                plan: Box::new(plan),
            },
            text,
        })
    }

    /// How many bytes the weights are on disk.
    pub(crate) fn weights_bytes(&self) -> usize {
        match &self.weights {
            OpenedWeights::Decoder { folder, .. } => folder.weights_bytes(),
            OpenedWeights::Encoder { folder, .. } => folder.weights_bytes(),
        }
    }

    /// Pages that the model needs on a device.
    pub(crate) fn needs(&self) -> ModelNeeds {
        match &self.weights {
            OpenedWeights::Decoder { plan, .. } => decoder_needs(plan),
            OpenedWeights::Encoder { plan, .. } => ModelNeeds {
                weights_pages: plan.weights().pages() as u64,
                workspace_pages: plan.workspace_pages() as u64,
                kv_pages_min: 0,
                kv_block: None,
                // Their texts are whole steps; a sentence encoder that fits on no device is not worth the code.
                split: None,
            },
        }
    }
}

fn decoder_needs(plan: &MemoryPlan) -> ModelNeeds {
    let kv_block = KvBlock {
        tokens: BLOCK_TOKENS as u64,
        bytes: plan.kv_block_bytes() as u64,
    };
    ModelNeeds {
        weights_pages: plan.weights_pages() as u64,
        workspace_pages: plan.workspace_pages() as u64,
        kv_pages_min: kv_block.pages_for(plan.config().context_tokens_max as u64),
        kv_block: Some(kv_block),
        split: split_needs(plan),
    }
}

fn split_needs(plan: &MemoryPlan) -> Option<SplitNeeds> {
    let sizes = plan.stage_sizes()?;
    let pages = |bytes: usize| bytes.div_ceil(PAGE_BYTES) as u64;
    let blocks = plan.sequence_blocks_max() as u64;
    Some(SplitNeeds {
        layers: u32::try_from(sizes.layers).ok()?,
        first_bytes: sizes.first_bytes as u64,
        layer_bytes: sizes.layer_bytes as u64,
        last_bytes: sizes.last_bytes as u64,
        first_workspace_pages: pages(sizes.first_workspace_bytes),
        inner_workspace_pages: pages(sizes.inner_workspace_bytes),
        last_workspace_pages: pages(sizes.last_workspace_bytes),
        kv_layer_block_bytes: sizes.kv_layer_block_bytes as u64,
        kv_blocks_min: blocks,
        kv_blocks_max: blocks.saturating_mul(plan.limits().sequences_max as u64),
    })
}

fn decoder_bounds(config: &ModelConfig) -> Result<ModelBounds, OpenError> {
    Ok(ModelBounds {
        task: ModelTask::Generate,
        vocabulary_size: fact("the vocabulary", config.vocab_size)?,
        context_tokens_max: fact("the context", config.context_tokens_max)?,
    })
}

fn precision(quantize: Option<Quantize>) -> Precision {
    match quantize {
        None => Precision::Stored,
        Some(Quantize::Int8) => Precision::Int8,
        Some(Quantize::Int4) => Precision::Int4,
    }
}

fn encoder_bounds(config: &EncoderConfig) -> Result<ModelBounds, OpenError> {
    Ok(ModelBounds {
        task: ModelTask::Embed {
            dimensions: fact("the vector's length", config.hidden)?,
        },
        vocabulary_size: fact("the vocabulary", config.vocab_size)?,
        context_tokens_max: fact("the context", config.text_tokens_max)?,
    })
}

fn facts(architecture: &str, bounds: ModelBounds, weights_bytes: usize) -> ModelFacts {
    ModelFacts {
        architecture: architecture.to_owned(),
        context_tokens_max: bounds.context_tokens_max,
        vocabulary_size: bounds.vocabulary_size,
        weights_bytes: weights_bytes as u64,
        task: bounds.task,
    }
}

fn fact(quantity: &'static str, value: usize) -> Result<u32, OpenError> {
    u32::try_from(value).map_err(|_| OpenError::TooLarge { quantity, value })
}

/// Texts of one step: far more would only make it longer, and each costs a vector of workspace.
const STEP_TEXTS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use flotilla_worker_engine::AllHere;

    use super::*;
    use crate::fixture::{demo_folder, demo_limits, encoder_folder};

    #[test]
    fn described_folder_has_the_facts_of_its_files() {
        let name = ModelName::new("adder").unwrap();
        let entry = describe(name, &demo_folder("adder")).unwrap();
        assert_eq!(entry.facts.architecture, "LlamaForCausalLM");
        assert_eq!(
            (entry.facts.context_tokens_max, entry.facts.vocabulary_size),
            (128, 16)
        );
        assert!(entry.facts.weights_bytes > 100_000);
        assert!(matches!(entry.source, ModelSource::Folder(path) if path.is_absolute()));
    }

    #[test]
    fn folder_without_a_tokenizer_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(demo_folder("adder").join(file), folder.path().join(file)).unwrap();
        }
        let error = describe(ModelName::new("adder").unwrap(), folder.path()).unwrap_err();
        assert!(
            matches!(error, OpenError::Text(OpenTextError::Tokenizer(_))),
            "{error}"
        );
    }

    #[test]
    fn model_needs_room_for_the_keys_and_values_of_one_full_context() {
        let model = OpenedModel::open(&demo_folder("adder"), &AllHere, demo_limits(), None, None).unwrap();
        let needs = model.needs();
        let block = needs.kv_block.unwrap();
        assert!(block.tokens_on(needs.kv_pages_min) >= 128, "room for the context");
        assert!(block.tokens_on(needs.kv_pages_min - 1) < 128, "and no more");
        assert!(needs.weights_pages >= 1 && needs.workspace_pages >= 1);
    }

    #[test]
    fn encoder_is_described_by_its_vectors_and_needs_no_room_for_keys_and_values() {
        let folder = encoder_folder();
        let entry = describe(ModelName::new("embedder").unwrap(), folder.path()).unwrap();
        assert_eq!(entry.facts.architecture, "BertModel");
        assert_eq!(entry.facts.task, ModelTask::Embed { dimensions: 32 });
        assert_eq!(
            (entry.facts.context_tokens_max, entry.facts.vocabulary_size),
            (40, 96)
        );
        let model = OpenedModel::open(folder.path(), &AllHere, demo_limits(), None, None).unwrap();
        let needs = model.needs();
        assert_eq!((needs.kv_pages_min, needs.kv_block), (0, None));
        assert!(needs.weights_pages >= 1 && needs.workspace_pages >= 1);
    }
}
