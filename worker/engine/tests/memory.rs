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
    BLOCK_TOKENS, CpuBackend, CpuThreads, DecoderModel, KvSlab, KvSpace, MemoryPlan, ModelFolder,
    ModelLoader, PAGE_BYTES, Precision, Sampling, SequenceStep, Step, StepLimits,
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

/// 32 MiB of keys and values: blocks of 256 KiB.
const KV_SPACE: KvSpace = KvSpace {
    slab: KvSlab { blocks: 8, pages: 1 },
    slabs_max: 16,
};

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
    let backend = CpuBackend::new(Arc::clone(threads));
    let mut loader = ModelLoader::new(backend, plan, KV_SPACE).unwrap();
    for tensor in folder.tensors() {
        loader
            .place(&tensor.info.name, 0, &tensor.read().unwrap())
            .unwrap();
    }
    loader.finish().unwrap()
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
                mask: None,
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

/// What is mapped is resident before it is used, and using it takes no more: ledger and system agree to 1 %.
#[test]
fn a_model_takes_what_its_plan_counts_and_gives_it_back() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let threads = Arc::new(CpuThreads::new(NonZero::new(2).unwrap()));
    let map_all = |model: &mut DecoderModel<CpuBackend>| {
        (0..KV_SPACE.slabs_max).for_each(|slab| model.map_kv_slab(slab).unwrap());
    };
    // What is taken once for all models.
    let mut first = load(folder.path(), Precision::Stored, &threads);
    map_all(&mut first);
    use_everything(&mut first);
    drop(first);
    for precision in [Precision::Stored, Precision::Int8, Precision::Int4] {
        let before = anonymous_bytes();
        let mut model = load(folder.path(), precision, &threads);
        let loaded_pages = model.plan().weights_pages() + model.plan().workspace_pages();
        let agrees = |pages: usize| {
            let (taken, counted) = (anonymous_bytes().saturating_sub(before), pages * PAGE_BYTES);
            let difference = taken.abs_diff(counted) as f64 / counted as f64;
            assert!(
                difference <= 0.01,
                "{precision:?}: {taken} bytes taken, {counted} counted"
            );
        };
        agrees(loaded_pages);
        map_all(&mut model);
        agrees(loaded_pages + KV_SPACE.slabs_max);
        use_everything(&mut model);
        agrees(loaded_pages + KV_SPACE.slabs_max);
        for slab in [0, 7, 15, 8] {
            model.unmap_kv_slab(slab).unwrap();
        }
        agrees(loaded_pages + KV_SPACE.slabs_max - 4);
        drop(model);
        let kept = anonymous_bytes().saturating_sub(before);
        assert!(kept <= PAGE_BYTES / 2, "{precision:?}: {kept} bytes kept");
    }
}
