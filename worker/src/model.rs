//! A model's folder, opened for serving: what requests need of it and what the device must hold.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flotilla_prompt::{ModelBounds, OpenTextError, PromptMaker};
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelFacts, ModelSource, ModelTask, Quantize};
use flotilla_worker_core::residency::ModelNeeds;
use flotilla_worker_engine::{
    MemoryPlan, ModelConfig, ModelError, ModelFolder, PlanError, Precision, StepLimits,
};
use thiserror::Error;

/// What requests need of a model: everything but its weights.
#[derive(Debug)]
pub(crate) struct ModelText {
    /// Its numbers.
    pub(crate) config: ModelConfig,
    /// Requests to prompts, and tokens to text.
    pub(crate) prompts: PromptMaker,
}

/// A model's folder with its files mapped, ready to be loaded.
#[derive(Debug)]
pub(crate) struct OpenedModel {
    /// The weights, where they lie on disk.
    pub(crate) folder: ModelFolder,
    /// What they need on the device.
    pub(crate) plan: MemoryPlan,
    /// What requests need.
    pub(crate) text: Arc<ModelText>,
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
    let model = ModelFolder::open(&folder)?;
    let text = open_text(&folder, model.config())?;
    let facts = ModelFacts {
        architecture: model.config().family.architecture().to_owned(),
        context_tokens_max: fact("the context", text.config.context_tokens_max)?,
        vocabulary_size: fact("the vocabulary", text.config.vocab_size)?,
        weights_bytes: model.weights_bytes() as u64,
        task: ModelTask::Generate,
    };
    Ok(CatalogEntry {
        name,
        source: ModelSource::Folder(folder),
        facts,
        slots: None,
        keep_alive: None,
        pin: false,
        slo: None,
        quantize: None,
    })
}

impl OpenedModel {
    /// Opens a folder for steps of up to these sizes, with weights of this precision. Reads files and takes up to seconds.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(crate) fn open(
        folder: &Path,
        limits: StepLimits,
        quantize: Option<Quantize>,
    ) -> Result<Self, OpenError> {
        let folder_files = ModelFolder::open(folder)?;
        let plan = MemoryPlan::new(
            folder_files.config(),
            folder_files.tensor_infos(),
            limits,
            precision(quantize),
        )?;
        let text = Arc::new(open_text(folder, folder_files.config())?);
        Ok(Self {
            folder: folder_files,
            plan,
            text,
        })
    }

    /// Pages that the model needs on a device of `device_pages` pages, at most `slots` of whose requests run
    /// at once.
    pub(crate) fn needs(&self, slots: usize, device_pages: u64) -> ModelNeeds {
        let plan = &self.plan;
        let sequence_blocks = plan.sequence_blocks_max();
        let kv_pages = |blocks| plan.kv_pages(blocks).map_or(u64::MAX, |pages| pages as u64);
        let kv_pages_min = kv_pages(sequence_blocks);
        let kv_pages_all = kv_pages(sequence_blocks.saturating_mul(slots));
        ModelNeeds {
            weights_pages: plan.weights_pages() as u64,
            workspace_pages: plan.workspace_pages() as u64,
            kv_pages_min,
            kv_pages_wanted: kv_pages_all.min(device_pages / KV_DEVICE_PARTS).max(kv_pages_min),
        }
    }
}

fn open_text(folder: &Path, config: &ModelConfig) -> Result<ModelText, OpenError> {
    let bounds = ModelBounds {
        task: ModelTask::Generate,
        vocabulary_size: fact("the vocabulary", config.vocab_size)?,
        context_tokens_max: fact("the context", config.context_tokens_max)?,
    };
    Ok(ModelText {
        config: config.clone(),
        prompts: PromptMaker::open(folder, bounds)?,
    })
}

fn precision(quantize: Option<Quantize>) -> Precision {
    match quantize {
        None => Precision::Stored,
        Some(Quantize::Int8) => Precision::Int8,
        Some(Quantize::Int4) => Precision::Int4,
    }
}

fn fact(quantity: &'static str, value: usize) -> Result<u32, OpenError> {
    u32::try_from(value).map_err(|_| OpenError::TooLarge { quantity, value })
}

/// Keys and values of one model take at most this part of a device, or one full context where that is more,
/// so that the first model to come does not take all that others could use.
const KV_DEVICE_PARTS: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{demo_folder, demo_limits};

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
        let ModelSource::Folder(path) = entry.source;
        assert!(path.is_absolute());
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
    fn keys_and_values_are_wanted_for_all_slots_but_not_all_of_the_device() {
        let model = OpenedModel::open(&demo_folder("adder"), demo_limits(), None).unwrap();
        let small = model.needs(64, 8);
        assert_eq!(small.kv_pages_wanted, small.kv_pages_min.max(2));
        let large = model.needs(64, 1 << 20);
        assert_eq!(large.kv_pages_wanted, model.plan.kv_pages(64 * 8).unwrap() as u64);
        assert!(large.weights_pages >= 1 && large.workspace_pages >= 1);
    }
}
