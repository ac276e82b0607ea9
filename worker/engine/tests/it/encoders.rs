//! Vectors against transformers and sentence-transformers, and against themselves in other batches;
//! `tests/golden-encoders/make.py` makes the models.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flotilla_worker_engine::{
    CpuBackend, CpuThreads, EncoderModel, EncoderPlan, KvSpace, Level, ModelFolder, ModelLoader, Precision,
    StepError, StepLimits,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::json;
use tempfile::TempDir;

use crate::bad_folders::{copy_files, edit_json};
use crate::fixture::{Options, bits};

pub const ENCODERS: [&str; 2] = ["bert-mean-f32", "bert-cls-bf16"];

pub fn encoder_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden-encoders")
        .join(name)
}

/// A copy of a golden encoder, to be changed.
pub fn copy(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    copy_files(&encoder_folder(name), folder.path());
    folder
}

fn load(path: &Path, options: Options) -> EncoderModel<CpuBackend> {
    let folder = ModelFolder::open_encoder(path).unwrap();
    let infos = folder.tensor_infos();
    let plan = EncoderPlan::new(folder.config(), infos, options.limits, options.precision).unwrap();
    let threads = CpuThreads::new(NonZero::new(options.threads).unwrap());
    let backend = CpuBackend::at_level(Arc::new(threads), options.level);
    let mut loader = ModelLoader::new(backend, plan, KvSpace::NONE).unwrap();
    for tensor in folder.tensors() {
        // Pieces of an odd size, from the end: a loader takes them in any order.
        for (index, piece) in tensor.read().unwrap().chunks(777).enumerate().rev() {
            loader.place(&tensor.info.name, index * 777, piece).unwrap();
        }
    }
    loader.finish().unwrap()
}

fn load_golden(name: &str) -> EncoderModel<CpuBackend> {
    load(&encoder_folder(name), Options::default())
}

/// What the reference found.
struct Expected {
    sequences: Vec<Vec<u32>>,
    file: Vec<u8>,
    suffix: &'static str,
    /// The largest difference to be accepted, of the largest number.
    tolerance: f32,
}

impl Expected {
    fn read(name: &str) -> Self {
        let file = fs::read(encoder_folder(name).join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let integers = |name: &str| -> Vec<u32> {
            let (found, _) = tensors.tensor(name).unwrap().data().as_chunks::<8>();
            let small = |bytes: &[u8; 8]| u32::try_from(i64::from_le_bytes(*bytes)).unwrap();
            found.iter().map(small).collect()
        };
        let mut tokens = integers("tokens").into_iter();
        let lengths = integers("lengths").into_iter();
        let sequences = lengths
            .map(|length| tokens.by_ref().take(length as usize).collect())
            .collect();
        // As with decoders: inputs of linear layers with bf16 weights are rounded, on both sides.
        let (suffix, tolerance) = if name.contains("bf16") {
            ("_bf16_inputs", 5e-3)
        } else {
            ("", 1e-5)
        };
        Self {
            sequences,
            file,
            suffix,
            tolerance,
        }
    }

    fn sequences(&self) -> Vec<&[u32]> {
        self.sequences.iter().map(Vec::as_slice).collect()
    }

    fn check(&self, tensor: &str, found: &[f32]) {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
        let expected = tensors.tensor(&format!("{tensor}{}", self.suffix)).unwrap();
        let (expected, _) = expected.data().as_chunks::<4>();
        assert_eq!(found.len(), expected.len());
        let expected: Vec<f32> = expected.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |a, b| a.max(b.abs()));
        let difference = largest(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
        let relative = difference / largest(&mut expected.iter().copied());
        assert!(relative <= self.tolerance, "{tensor}: {relative:e}");
    }
}

#[test]
fn states_of_every_token_equal_the_reference() {
    for name in ENCODERS {
        let expected = Expected::read(name);
        let mut model = load_golden(name);
        model.encode(&expected.sequences()).unwrap();
        expected.check("last_hidden_state", &model.last_hidden_states().unwrap());
    }
}

#[test]
fn vectors_equal_those_of_sentence_transformers_however_they_are_made() {
    for name in ENCODERS {
        let expected = Expected::read(name);
        for (mode, normalises) in [("mean", false), ("mean", true), ("cls", false), ("cls", true)] {
            let folder = copy(name);
            set_pooling(folder.path(), mode, normalises);
            let mut model = load(folder.path(), Options::default());
            let tensor = if normalises {
                format!("{mode}_normalized")
            } else {
                mode.to_owned()
            };
            expected.check(&tensor, model.encode(&expected.sequences()).unwrap());
        }
    }
}

/// Writes what sentence-transformers would for a model with this pooling.
fn set_pooling(folder: &Path, mode: &str, normalises: bool) {
    fs::write(
        folder.join("1_Pooling/config.json"),
        json!({"pooling_mode": mode}).to_string(),
    )
    .unwrap();
    edit_json(&folder.join("modules.json"), |modules| {
        let modules = modules.as_array_mut().unwrap();
        modules.truncate(2);
        if normalises {
            modules.push(json!({
                "idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"
            }));
        }
    });
}

#[test]
fn golden_folders_make_the_vectors_that_they_say() {
    for (name, tensor) in ENCODERS.into_iter().zip(["mean_normalized", "cls"]) {
        let expected = Expected::read(name);
        let mut model = load_golden(name);
        expected.check(tensor, model.encode(&expected.sequences()).unwrap());
    }
}

#[test]
fn smaller_weights_make_nearly_the_same_vectors() {
    for name in ENCODERS {
        let expected = Expected::read(name);
        let exact = load_golden(name).encode(&expected.sequences()).unwrap().to_vec();
        for (precision, cosine_min) in [(Precision::Int8, 0.999), (Precision::Int4, 0.9)] {
            let options = Options {
                precision,
                ..Options::default()
            };
            let mut model = load(&encoder_folder(name), options);
            let hidden = model.plan().config().hidden;
            let found = model.encode(&expected.sequences()).unwrap();
            for (a, b) in found.chunks_exact(hidden).zip(exact.chunks_exact(hidden)) {
                let cosine = cosine(a, b);
                assert!(cosine > cosine_min, "{name} {precision:?}: {cosine}");
            }
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn levels_and_threads_change_no_bit() {
    for name in ENCODERS {
        let expected = Expected::read(name);
        let reference = bits(load_golden(name).encode(&expected.sequences()).unwrap());
        for level in Level::available() {
            for threads in [1, 3] {
                let options = Options {
                    level,
                    threads,
                    ..Options::default()
                };
                let mut model = load(&encoder_folder(name), options);
                let found = bits(model.encode(&expected.sequences()).unwrap());
                assert_eq!(found, reference, "{name} {level} {threads}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_batch_gives_the_bits_of_each_sequence_alone(
        model in 0..ENCODERS.len(),
        sequences in prop::collection::vec(prop::collection::vec(0u32..96, 1..=48), 1..5),
    ) {
        let mut model = load_golden(ENCODERS[model]);
        let hidden = model.plan().config().hidden;
        let batch: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let together = model.encode(&batch).unwrap().to_vec();
        for (sequence, vector) in batch.iter().zip(together.chunks_exact(hidden)) {
            let alone = model.encode(&[sequence]).unwrap();
            prop_assert_eq!(bits(alone), bits(vector));
        }
    }
}

#[test]
fn step_beyond_a_limit_is_refused_and_the_largest_one_runs() {
    let limits = StepLimits {
        batch_tokens_max: 50,
        sequences_max: 3,
    };
    let options = Options {
        limits,
        ..Options::default()
    };
    let mut model = load(&encoder_folder("bert-mean-f32"), options);
    let long = [5; 49];
    let mut refusal = |sequences: &[&[u32]]| model.encode(sequences).unwrap_err();
    assert!(matches!(
        refusal(&[&[1], &[2], &[3], &[4]]),
        StepError::TooManySequences { found: 4, max: 3 }
    ));
    assert!(matches!(
        refusal(&[&long[..48], &[1, 2, 3]]),
        StepError::TooManyTokens { found: 51, max: 50 }
    ));
    assert!(matches!(
        refusal(&[&[1], &[]]),
        StepError::NoTokens { sequence: 1 }
    ));
    assert!(matches!(
        refusal(&[&long]),
        StepError::BeyondContext {
            sequence: 0,
            end: 49,
            max: 48
        }
    ));
    assert!(matches!(
        refusal(&[&[1], &[2, 96]]),
        StepError::TokenOutOfVocabulary {
            sequence: 1,
            token: 96,
            ..
        }
    ));
    let vectors = model.encode(&[&long[..1], &long[..48], &[7]]).unwrap();
    assert_eq!(vectors.len(), 3 * 32);
    assert_eq!(model.encode(&[]).unwrap(), [0f32; 0]);
}
