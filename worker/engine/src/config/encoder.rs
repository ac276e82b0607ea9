//! What fixes an encoder: BERT's `config.json`, and what sentence-transformers writes beside it.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ConfigError;
use super::check::{
    CONTEXT_TOKENS_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_SIZE_MAX, WIDTH_MAX, divides, positive_f32, size,
    unsupported,
};
use crate::ModelError;
use crate::backend::{Activation, Pooling, VectorScale};
use crate::folder::{is_plain_file_name, read, read_if_there};

/// What fixes a sentence encoder of BERT's kind: its numbers, and how its vectors are made. Every number is
/// checked to be sane and to fit the others.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// How many token ids there are.
    pub vocab_size: usize,
    /// The length of a token's state, and of a text's vector.
    pub hidden: usize,
    /// The width of the feed-forward layers.
    pub intermediate: usize,
    /// The number of layers.
    pub layers: usize,
    /// The number of heads.
    pub heads: usize,
    /// How many positions have an embedding: the longest sequence, in tokens.
    pub positions: usize,
    /// The longest text, in tokens, those that every text gets included; at most `positions`.
    /// Sentence-transformers cuts texts to this.
    pub text_tokens_max: usize,
    /// How many kinds of tokens there are; all are of kind 0 here.
    pub token_types: usize,
    /// What normalisation adds to the variance.
    pub layer_norm_epsilon: f32,
    /// What is between the feed-forward layers.
    pub activation: Activation,
    /// How a vector is made of a text's states.
    pub pooling: Pooling,
    /// How long it is.
    pub scale: VectorScale,
}

impl EncoderConfig {
    /// The architecture's name, as the catalog tells it.
    pub const ARCHITECTURE: &str = "BertModel";

    /// The length of one head's vector.
    pub const fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Reads and checks the files of a folder; gives their contents too, in a fixed order.
    pub(crate) fn read(folder: &Path) -> Result<(Self, Vec<Vec<u8>>), ModelError> {
        let mut files = Files {
            folder,
            contents: Vec::new(),
        };
        let raw: RawBert = files.required("config.json")?;
        let mut config = files.check("config.json", raw.into_config())?;
        let (pooling, scale) = files.pooling(config.hidden)?;
        (config.pooling, config.scale) = (pooling, scale);
        files.check_prompts()?;
        config.text_tokens_max = files.text_tokens_max(config.positions)?;
        Ok((config, files.contents))
    }
}

/// What a folder holds, as far as its configuration tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Makes text, if it is of a known family: [`crate::ModelFolder::open`].
    Decoder,
    /// Makes vectors: [`crate::ModelFolder::open_encoder`].
    Encoder,
}

impl ModelKind {
    /// Looks at the `model_type` of a folder's `config.json`, or at its architectures where there is none.
    ///
    /// # Errors
    /// The file cannot be read or is no configuration.
    pub fn of(folder: &Path) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct RawKind {
            model_type: Option<String>,
            architectures: Option<Vec<String>>,
        }
        let path = folder.join("config.json");
        let kind: RawKind = match serde_json::from_slice(&read(&path)?) {
            Ok(kind) => kind,
            Err(error) => {
                let source = ConfigError::Json(error);
                return Err(ModelError::Config { path, source });
            }
        };
        let is_bert = match (kind.model_type, kind.architectures) {
            (Some(model_type), _) => model_type == MODEL_TYPE,
            (None, Some(architectures)) => architectures.iter().any(|name| ARCHITECTURES.contains(&&**name)),
            (None, None) => false,
        };
        Ok(if is_bert { Self::Encoder } else { Self::Decoder })
    }
}

/// The files of a folder, as they are read.
struct Files<'a> {
    folder: &'a Path,
    contents: Vec<Vec<u8>>,
}

impl Files<'_> {
    fn required<T: DeserializeOwned>(&mut self, file: &str) -> Result<T, ModelError> {
        let bytes = read(&self.folder.join(file))?;
        self.parse(file, bytes)
    }

    fn optional<T: DeserializeOwned>(&mut self, file: &str) -> Result<Option<T>, ModelError> {
        match read_if_there(&self.folder.join(file))? {
            Some(bytes) => self.parse(file, bytes).map(Some),
            None => Ok(None),
        }
    }

    fn parse<T: DeserializeOwned>(&mut self, file: &str, bytes: Vec<u8>) -> Result<T, ModelError> {
        let parsed = self.check(file, serde_json::from_slice(&bytes).map_err(ConfigError::Json));
        self.contents.push(bytes);
        parsed
    }

    fn check<T>(&self, file: &str, result: Result<T, ConfigError>) -> Result<T, ModelError> {
        result.map_err(|source| ModelError::Config {
            path: self.folder.join(file),
            source,
        })
    }

    /// What `modules.json` makes of the states: their mean where there is no such file, as
    /// sentence-transformers does.
    fn pooling(&mut self, hidden: usize) -> Result<(Pooling, VectorScale), ModelError> {
        let Some(modules) = self.optional::<Vec<RawModule>>(MODULES)? else {
            return Ok((Pooling::Mean, VectorScale::Free));
        };
        let kinds: Vec<&str> = modules.iter().map(RawModule::kind).collect();
        let scale = match kinds[..] {
            ["Transformer", "Pooling"] => VectorScale::Free,
            ["Transformer", "Pooling", "Normalize"] => VectorScale::Unit,
            _ => {
                let known = |module: &&RawModule| KNOWN_MODULES.contains(&module.kind());
                let found = match modules.iter().find(|module| !known(module)) {
                    Some(module) => module.kind.clone(),
                    None => kinds.join(", "),
                };
                return self.check(
                    MODULES,
                    unsupported("type", "Transformer, Pooling and maybe Normalize", found),
                );
            }
        };
        if !modules[0].path.is_empty() {
            let found = modules[0].path.as_str();
            return self.check(
                MODULES,
                unsupported("path", "the folder itself for the Transformer", found),
            );
        }
        let path = modules[1].path.as_str();
        if !is_plain_file_name(path) {
            return self.check(MODULES, unsupported("path", "a folder beside the file", path));
        }
        let file = format!("{path}/config.json");
        let raw: RawPooling = self.required(&file)?;
        let pooling = self.check(&file, raw.pooling(hidden))?;
        Ok((pooling, scale))
    }

    /// Refuses a model that wants a prompt before every text: it would have other vectors without.
    fn check_prompts(&mut self) -> Result<(), ModelError> {
        let raw: Option<RawSentenceTransformers> = self.optional(SENTENCE_TRANSFORMERS)?;
        match raw.and_then(|raw| raw.default_prompt_name) {
            None => Ok(()),
            Some(name) => self.check(
                SENTENCE_TRANSFORMERS,
                unsupported("default_prompt_name", "none", name),
            ),
        }
    }

    /// As sentence-transformers: what its own file says, else the tokenizer's limit; within the positions.
    fn text_tokens_max(&mut self, positions: usize) -> Result<usize, ModelError> {
        let raw: RawSentenceBert = self.optional(SENTENCE_BERT)?.unwrap_or_default();
        if raw.do_lower_case == Some(true) {
            return self.check(SENTENCE_BERT, unsupported("do_lower_case", "false", "true"));
        }
        if raw.max_seq_length.is_some() {
            let found = size("max_seq_length", raw.max_seq_length, u64::MAX);
            return Ok(self.check(SENTENCE_BERT, found)?.min(positions));
        }
        let raw: Option<RawTokenizer> = self.optional(TOKENIZER)?;
        // Some say 1e30 for "no limit".
        let limit = raw.and_then(|raw| raw.model_max_length?.as_u64());
        match limit {
            None => Ok(positions),
            Some(_) => {
                let found = size("model_max_length", limit, u64::MAX);
                Ok(self.check(TOKENIZER, found)?.min(positions))
            }
        }
    }
}

#[derive(Deserialize)]
struct RawBert {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    vocab_size: Option<u64>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    max_position_embeddings: Option<u64>,
    type_vocab_size: Option<u64>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    add_cross_attention: bool,
    quantization_config: Option<Value>,
}

impl RawBert {
    fn check_supported(&self) -> Result<(), ConfigError> {
        if let Some(architectures) = &self.architectures
            && !matches!(&architectures[..], [name] if ARCHITECTURES.contains(&&**name))
        {
            return unsupported("architectures", "BertModel", architectures.join(", "));
        }
        if let Some(model_type) = &self.model_type
            && model_type != MODEL_TYPE
        {
            return unsupported("model_type", MODEL_TYPE, model_type);
        }
        if let Some(quantization) = &self.quantization_config {
            return unsupported("quantization_config", "none", quantization.to_string());
        }
        for (field, found) in [
            ("is_decoder", self.is_decoder),
            ("add_cross_attention", self.add_cross_attention),
        ] {
            if found {
                return unsupported(field, "false", "true");
            }
        }
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => Ok(()),
            Some(other) => unsupported("position_embedding_type", "absolute", other),
        }
    }

    fn into_config(self) -> Result<EncoderConfig, ConfigError> {
        self.check_supported()?;
        let hidden = size("hidden_size", self.hidden_size, WIDTH_MAX)?;
        let heads = size("num_attention_heads", self.num_attention_heads, HEADS_MAX)?;
        divides("hidden_size", hidden, "num_attention_heads", heads)?;
        let positions = self.max_position_embeddings;
        let positions = size("max_position_embeddings", positions, CONTEXT_TOKENS_MAX)?;
        Ok(EncoderConfig {
            vocab_size: size("vocab_size", self.vocab_size, VOCAB_SIZE_MAX)?,
            hidden,
            intermediate: size("intermediate_size", self.intermediate_size, WIDTH_MAX)?,
            layers: size("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX)?,
            heads,
            positions,
            text_tokens_max: positions,
            token_types: size(
                "type_vocab_size",
                Some(self.type_vocab_size.unwrap_or(2)),
                WIDTH_MAX,
            )?,
            layer_norm_epsilon: positive_f32("layer_norm_eps", self.layer_norm_eps.unwrap_or(1e-12))?,
            activation: activation(self.hidden_act.as_deref().unwrap_or("gelu"))?,
            pooling: Pooling::Mean,
            scale: VectorScale::Free,
        })
    }
}

fn activation(name: &str) -> Result<Activation, ConfigError> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => unsupported(
            "hidden_act",
            "gelu, gelu_new, gelu_pytorch_tanh, relu or silu",
            other,
        ),
    }
}

#[derive(Deserialize)]
struct RawModule {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl RawModule {
    /// Without the path of the package, which changes with its version.
    fn kind(&self) -> &str {
        self.kind.rsplit('.').next().unwrap_or(&self.kind)
    }
}

/// `1_Pooling/config.json`, before version 6 with a flag for each mode and since then with its name.
#[derive(Deserialize)]
struct RawPooling {
    #[serde(alias = "word_embedding_dimension")]
    embedding_dimension: Option<u64>,
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: Option<bool>,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

impl RawPooling {
    fn pooling(&self, hidden: usize) -> Result<Pooling, ConfigError> {
        if let Some(dimension) = self.embedding_dimension
            && dimension != hidden as u64
        {
            let expected = "the model's hidden_size";
            return unsupported("embedding_dimension", expected, dimension.to_string());
        }
        let mode = match &self.pooling_mode {
            Some(mode) => mode.clone(),
            None => self.modes().join(", "),
        };
        match mode.as_str() {
            "mean" => Ok(Pooling::Mean),
            "cls" => Ok(Pooling::First),
            other => unsupported("pooling_mode", "mean or cls", other),
        }
    }

    /// The modes whose flags are set; several would be concatenated.
    fn modes(&self) -> Vec<&'static str> {
        let flags = [
            ("cls", self.pooling_mode_cls_token),
            ("mean", self.pooling_mode_mean_tokens.unwrap_or(true)),
            ("max", self.pooling_mode_max_tokens),
            ("mean_sqrt_len", self.pooling_mode_mean_sqrt_len_tokens),
            ("weightedmean", self.pooling_mode_weightedmean_tokens),
            ("lasttoken", self.pooling_mode_lasttoken),
        ];
        let set = flags.into_iter().filter(|(_, is_set)| *is_set);
        set.map(|(mode, _)| mode).collect()
    }
}

#[derive(Default, Deserialize)]
struct RawSentenceBert {
    max_seq_length: Option<u64>,
    do_lower_case: Option<bool>,
}

#[derive(Deserialize)]
struct RawSentenceTransformers {
    default_prompt_name: Option<String>,
}

#[derive(Deserialize)]
struct RawTokenizer {
    model_max_length: Option<serde_json::Number>,
}

const MODEL_TYPE: &str = "bert";

/// Those whose encoder is a BERT as it is, and whose other tensors are not needed for vectors.
const ARCHITECTURES: [&str; 3] = ["BertModel", "BertForMaskedLM", "BertForPreTraining"];

const KNOWN_MODULES: [&str; 3] = ["Transformer", "Pooling", "Normalize"];

const MODULES: &str = "modules.json";
const SENTENCE_BERT: &str = "sentence_bert_config.json";
const SENTENCE_TRANSFORMERS: &str = "config_sentence_transformers.json";
const TOKENIZER: &str = "tokenizer_config.json";
