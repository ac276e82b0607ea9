//! Logits and tokens against Hugging Face transformers; `tests/golden/make.py` makes the models.

use std::fs;

use flotilla_worker_engine::{ModelFolder, Sampling};
use safetensors::SafeTensors;

use crate::fixture::{GOLDEN, Sequence, blocks_of, generate, golden_folder, load, read_chunk};

/// A reference's prompt, its logits and its greedy continuation.
struct Expected {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    generated: Vec<u32>,
    /// The largest difference to be accepted, of the largest logit.
    tolerance: f32,
}

impl Expected {
    fn read(name: &str) -> Self {
        let bytes = fs::read(golden_folder(name).join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        // The engine rounds the inputs of linear layers with bf16 weights to bf16, and so does their reference.
        let rounds = name.contains("bf16");
        // With inputs in f32, both sides differ in the order of additions alone: the reference by up to 2.5e-6
        // from itself in f64, the engine by up to 3.0e-6 from the reference. An input that lies close to the
        // middle of two bf16 values may be rounded to the other one, and that difference grows from layer to
        // layer: the reference with rounded inputs differs by up to 2.2e-3 from itself in f64.
        let (suffix, tolerance) = if rounds {
            ("_bf16_inputs", 5e-3)
        } else {
            ("", 1e-5)
        };
        let ids = |name: &str| {
            let (ids, _) = file.tensor(name).unwrap().data().as_chunks::<8>();
            ids.iter()
                .map(|id| u32::try_from(i64::from_le_bytes(*id)).unwrap())
                .collect()
        };
        let logits = file.tensor(&format!("logits{suffix}")).unwrap();
        let (logits, _) = logits.data().as_chunks::<4>();
        Self {
            tokens: ids("tokens"),
            logits: logits.iter().map(|logit| f32::from_le_bytes(*logit)).collect(),
            generated: ids(&format!("generated{suffix}")),
            tolerance,
        }
    }
}

#[test]
fn logits_of_every_position_equal_the_reference() {
    for name in GOLDEN {
        let expected = Expected::read(name);
        let tolerance = expected.tolerance;
        let mut model = load(&golden_folder(name));
        let mut sequence = Sequence::new(&expected.tokens, blocks_of(0));
        let largest = expected
            .logits
            .iter()
            .fold(0f32, |largest, logit| largest.max(logit.abs()));
        let vocab_size = model.plan().config().vocab_size;
        for (position, expected) in expected.logits.chunks_exact(vocab_size).enumerate() {
            let logits = read_chunk(&mut model, &mut sequence, 1);
            let difference = logits
                .iter()
                .zip(expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0f32, f32::max);
            let relative = difference / largest;
            assert!(
                relative <= tolerance,
                "{name}: {relative:e} at position {position}"
            );
        }
    }
}

#[test]
fn greedy_tokens_equal_the_reference() {
    for name in GOLDEN {
        let expected = Expected::read(name);
        let mut model = load(&golden_folder(name));
        let mut sequence = Sequence::new(&expected.tokens, blocks_of(1));
        let count = expected.generated.len();
        let generated = generate(&mut model, &mut sequence, count, Sampling::GREEDY);
        assert_eq!(generated, expected.generated, "{name}");
    }
}

#[test]
fn folders_say_what_the_files_say() {
    let folder = ModelFolder::open(&golden_folder("wide-heads-bf16")).unwrap();
    let config = folder.config();
    assert_eq!(
        (
            config.vocab_size,
            config.hidden,
            config.intermediate,
            config.layers.len(),
            config.heads
        ),
        (96, 48, 80, 3, 4)
    );
    assert_eq!(
        (config.kv_heads, config.head_dim, config.context_tokens_max),
        (1, 20, 128)
    );
    assert_eq!(
        (config.bos_token_id, &config.eos_token_ids[..]),
        (Some(1), &[2, 5][..])
    );
    assert_eq!(config.ropes[0].theta, 500_000.0);
    assert!(!config.tied_embeddings);

    let names: Vec<&str> = folder.tensor_infos().map(|info| info.name.as_str()).collect();
    assert_eq!(names.len(), 1 + 3 * 9 + 2);
    assert_eq!(names[0], "model.embed_tokens.weight");
    assert!(names[10].starts_with("model.layers.1."));
    assert_eq!(names[28..], ["model.norm.weight", "lm_head.weight"]);
    let lengths: usize = folder.tensors().map(|tensor| tensor.len_bytes()).sum();
    assert_eq!(folder.weights_bytes(), lengths);
}

#[test]
fn revisions_tell_models_apart_and_repeat() {
    let revision = |name| ModelFolder::open(&golden_folder(name)).unwrap().revision();
    let mut revisions: Vec<u64> = GOLDEN.into_iter().map(revision).collect();
    assert_eq!(revisions[0], revision(GOLDEN[0]));
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), GOLDEN.len());
}
