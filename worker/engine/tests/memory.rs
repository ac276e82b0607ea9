//! A loaded model takes the memory that its plan counts, and gives it back: by the system's own figure.
//!
//! A binary of its own, as the figure is that of a process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use flotilla_worker_engine::{
    BLOCK_TOKENS, CpuBackend, CpuThreads, DecoderModel, MemoryPlan, ModelFolder, ModelLoader, PAGE_BYTES,
    Precision, Sampling, SequenceStep, Step, StepLimits,
};
use safetensors::tensor::{Dtype, TensorView};

const CONFIG: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
    "max_position_embeddings": 2048, "tie_word_embeddings": true
}"#;

const LIMITS: StepLimits = StepLimits {
    batch_tokens_max: 512,
    sequences_max: 4,
};

/// 32 MiB of keys and values.
const KV_BLOCKS: usize = 128;

/// Writes a model of 42 MB in bf16 whose weights are all alike.
fn write_model(folder: &Path) {
    fs::write(folder.join("config.json"), CONFIG).unwrap();
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![8192, 512]),
        ("model.norm".to_owned(), vec![512]),
    ];
    for layer in 0..4 {
        let matrices = [
            ("self_attn.q_proj", [512, 512]),
            ("self_attn.k_proj", [256, 512]),
            ("self_attn.v_proj", [256, 512]),
            ("self_attn.o_proj", [512, 512]),
            ("mlp.gate_proj", [2048, 512]),
            ("mlp.up_proj", [2048, 512]),
            ("mlp.down_proj", [512, 2048]),
        ];
        let named = |name: &str| format!("model.layers.{layer}.{name}");
        shapes.extend(matrices.map(|(name, shape)| (named(name), shape.to_vec())));
        shapes.extend(["input_layernorm", "post_attention_layernorm"].map(|name| (named(name), vec![512])));
    }
    // 2^-7 in bf16.
    let elements = [0x00, 0x3c].repeat(8192 * 512);
    let tensors: HashMap<String, TensorView<'_>> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let bytes = 2 * shape.iter().product::<usize>();
            let view = TensorView::new(Dtype::BF16, shape, &elements[..bytes]).unwrap();
            (format!("{name}.weight"), view)
        })
        .collect();
    safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();
}

/// The memory of this process that is not a file's, in bytes.
fn anonymous_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    let kib: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}

fn load(folder: &Path, precision: Precision, threads: &Arc<CpuThreads>) -> DecoderModel<CpuBackend> {
    let folder = ModelFolder::open(folder).unwrap();
    let plan = MemoryPlan::new(folder.config(), folder.tensor_infos(), LIMITS, precision).unwrap();
    let mut loader = ModelLoader::new(CpuBackend::new(Arc::clone(threads)), plan, KV_BLOCKS).unwrap();
    for tensor in folder.tensors() {
        loader.place(&tensor.info.name, 0, tensor.bytes).unwrap();
    }
    let mut model = loader.finish().unwrap();
    model.set_kv_blocks(KV_BLOCKS).unwrap();
    model
}

/// Fills all blocks and the largest step.
fn use_everything(model: &mut DecoderModel<CpuBackend>) {
    let tokens = [7; LIMITS.batch_tokens_max / LIMITS.sequences_max];
    let tables: Vec<Vec<u32>> = (0..4)
        .map(|index| (index * 32..(index + 1) * 32).collect())
        .collect();
    let sampling = Sampling {
        temperature: 1.0,
        top_k: Some(40),
        ..Sampling::GREEDY
    };
    for start in (0..32 * BLOCK_TOKENS).step_by(tokens.len()) {
        let sequences: Vec<_> = tables
            .iter()
            .map(|block_table| SequenceStep {
                tokens: &tokens,
                position: start,
                block_table,
                sample: Some(sampling),
                edits: None,
            })
            .collect();
        let pending = model
            .submit(&Step {
                sequences: &sequences,
            })
            .unwrap();
        pending.wait().unwrap();
    }
}

#[test]
fn a_model_takes_what_its_plan_counts_and_gives_it_back() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let threads = Arc::new(CpuThreads::new(NonZero::new(2).unwrap()));
    // What is taken once for all models.
    use_everything(&mut load(folder.path(), Precision::Stored, &threads));
    for precision in [Precision::Stored, Precision::Int8, Precision::Int4] {
        let before = anonymous_bytes();
        let mut model = load(folder.path(), precision, &threads);
        use_everything(&mut model);
        let taken = anonymous_bytes() - before;
        let plan = model.plan();
        let pages = plan.weights_pages() + plan.workspace_pages() + plan.kv_pages(KV_BLOCKS).unwrap();
        let counted = pages * PAGE_BYTES;
        assert!(
            taken as f64 <= counted as f64 * 1.03,
            "{precision:?}: {taken} bytes taken, {counted} counted"
        );
        // Of the workspace, what no step has used has no memory yet.
        let used = plan.weights_bytes() + plan.kv_block_bytes() * KV_BLOCKS;
        assert!(
            taken as f64 >= used as f64 * 0.97,
            "{precision:?}: {taken} bytes taken, {used} used"
        );
        drop(model);
        let kept = anonymous_bytes().saturating_sub(before);
        assert!(kept <= PAGE_BYTES, "{precision:?}: {kept} bytes kept");
    }
}
