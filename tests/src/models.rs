//! Model folders: the demonstration models, and random ones of any size.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

/// The folder of the demonstration models.
#[must_use]
pub fn demo_models_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo-models")
}

/// Copies the files of a model's folder.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

/// A golden sentence encoder of the engine's tests, without a tokenizer.
#[must_use]
pub fn golden_encoder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../worker/engine/tests/golden-encoders")
        .join(name)
}

/// Copies a golden encoder and gives it a tokenizer: token n is written `w<n>`, words are separated by spaces.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write_encoder(name: &str, folder: &Path) -> Result<()> {
    let golden = golden_encoder(name);
    fs::create_dir_all(folder.join("1_Pooling"))?;
    for file in [
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    ] {
        fs::copy(golden.join(file), folder.join(file))?;
    }
    fs::write(
        folder.join("tokenizer.json"),
        word_tokenizer(ENCODER_WORDS).to_string(),
    )?;
    Ok(())
}

/// The vocabulary of the golden encoders.
const ENCODER_WORDS: usize = 96;

/// A random Llama model: real files, meaningless answers, as slow as a test needs it.
#[derive(Debug, Clone)]
pub struct ModelFolderBuilder {
    /// Width.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Words of the vocabulary; the first ends an answer.
    pub vocabulary: usize,
    /// Longest prompt and answer.
    pub context: usize,
    /// Seed of the weights.
    pub seed: u64,
    /// What the words of the vocabulary are.
    pub spelling: Spelling,
    /// So many weights of a matrix are drawn, then they come again: a large model is written quickly, and no segment
    /// of it is another's.
    pub drawn_max: usize,
}

/// What the tokens of a random model are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// Word n is written `w<n>`, words are separated by spaces.
    Words,
    /// Token n is byte n - 1, then come some longer ones; the vocabulary must have at least 300.
    Bytes,
}

impl Default for ModelFolderBuilder {
    /// About 13 million parameters: milliseconds a token on one core.
    fn default() -> Self {
        Self {
            hidden: 384,
            layers: 6,
            vocabulary: 512,
            context: 1024,
            seed: 1,
            spelling: Spelling::Words,
            drawn_max: usize::MAX,
        }
    }
}

const HEADS: usize = 6;
const KV_HEADS: usize = 2;

impl ModelFolderBuilder {
    /// Writes the folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("config.json"), self.config().to_string())?;
        fs::write(
            folder.join("generation_config.json"),
            json!({"eos_token_id": 0}).to_string(),
        )?;
        let tokenizer = match self.spelling {
            Spelling::Words => word_tokenizer(self.vocabulary),
            Spelling::Bytes => byte_tokenizer(),
        };
        fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
        fs::write(
            folder.join("tokenizer_config.json"),
            json!({"eos_token": "w0"}).to_string(),
        )?;
        let tensors = self.tensors();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::BF16, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))?;
        Ok(())
    }

    fn config(&self) -> serde_json::Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.hidden * 3, "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": self.hidden / HEADS,
            "max_position_embeddings": self.context, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "vocab_size": self.vocabulary, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "eos_token_id": 0, "bos_token_id": 1,
        })
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>, Vec<u8>)> {
        let (hidden, inner) = (self.hidden, self.hidden * 3);
        let head = hidden / HEADS;
        let mut random = self.seed;
        let mut tensors = vec![(
            "model.embed_tokens.weight".to_owned(),
            vec![self.vocabulary, hidden],
            self.matrix(&mut random, self.vocabulary * hidden, 0.6),
        )];
        for layer in 0..self.layers {
            let shapes = [
                ("self_attn.q_proj", HEADS * head, hidden),
                ("self_attn.k_proj", KV_HEADS * head, hidden),
                ("self_attn.v_proj", KV_HEADS * head, hidden),
                ("self_attn.o_proj", hidden, HEADS * head),
                ("mlp.gate_proj", inner, hidden),
                ("mlp.up_proj", inner, hidden),
                ("mlp.down_proj", hidden, inner),
            ];
            for (name, rows, columns) in shapes {
                let bytes = self.matrix(&mut random, rows * columns, 0.12);
                tensors.push((
                    format!("model.layers.{layer}.{name}.weight"),
                    vec![rows, columns],
                    bytes,
                ));
            }
            for name in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push((
                    format!("model.layers.{layer}.{name}.weight"),
                    vec![hidden],
                    ones(hidden),
                ));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden], ones(hidden)));
        tensors
    }

    fn matrix(&self, random: &mut u64, count: usize, scale: f32) -> Vec<u8> {
        let drawn = matrix(random, count.min(self.drawn_max), scale);
        let mut bytes = Vec::with_capacity(count * 2);
        while bytes.len() < count * 2 {
            let rest = drawn.len().min(count * 2 - bytes.len());
            bytes.extend_from_slice(&drawn[..rest]);
        }
        bytes
    }
}

fn word_tokenizer(vocabulary: usize) -> serde_json::Value {
    let words: serde_json::Map<_, _> = (0..vocabulary).map(|n| (format!("w{n}"), json!(n))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 0, "content": "w0", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w1"},
    })
}

/// In GPT-2's alphabet, in which visible Latin-1 characters stand for themselves. `w0` ends an answer.
fn byte_tokenizer() -> serde_json::Value {
    let is_visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let hidden: Vec<u8> = (0..=u8::MAX).filter(|byte| !is_visible(byte)).collect();
    let stand_in = |byte: u8| match hidden.binary_search(&byte) {
        Ok(place) => char::from_u32(0x100 + u32::try_from(place).expect("few bytes are hidden")),
        Err(_) => Some(char::from(byte)),
    };
    let written = |bytes: &[u8]| {
        bytes
            .iter()
            .filter_map(|byte| stand_in(*byte))
            .collect::<String>()
    };
    let bytes = (0..=u8::MAX).map(|byte| written(&[byte]));
    let longer = [
        "\":", "\",", "\"}", "{\"", " the", "12", "}}", "\n  ", "true", "é", "日本",
    ];
    let words = ["w0".to_owned()].into_iter().chain(bytes);
    let words = words.chain(longer.iter().map(|text| written(text.as_bytes())));
    let vocabulary: serde_json::Map<_, _> = words.zip(0..).map(|(word, id)| (word, json!(id))).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 0, "content": "w0", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
}

fn ones(count: usize) -> Vec<u8> {
    bf16::ONE.to_le_bytes().repeat(count)
}

/// Even numbers in [-scale, scale], by the multiplier of Knuth's MMIX generator.
fn matrix(random: &mut u64, count: usize, scale: f32) -> Vec<u8> {
    (0..count)
        .flat_map(|_| {
            *random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let high = u16::try_from(*random >> 48).expect("16 bits remain");
            bf16::from_f32((f32::from(high) / 32768.0 - 1.0) * scale).to_le_bytes()
        })
        .collect()
}
