//! Folders that are no model, each refused with the file and the tensor or field at fault.

use std::error::Error;
use std::fs;
use std::path::Path;

use flotilla_worker_engine::{HeaderError, ModelError, ModelFolder, TensorsError};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::golden_folder;

/// A copy of a golden model, to be damaged.
pub fn copy(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    copy_files(&golden_folder(name), folder.path());
    folder
}

/// Copies a folder's files and folders.
pub fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_files(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub fn refusal(folder: &Path) -> ModelError {
    ModelFolder::open(folder).map(|_| ()).unwrap_err()
}

pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

/// Rewrites the header of the model's file; the data stays.
pub fn edit_header(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (json, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
    let mut header = serde_json::from_slice(json).unwrap();
    edit(&mut header);
    let json = serde_json::to_vec(&header).unwrap();
    let edited = [&(json.len() as u64).to_le_bytes()[..], &json, data].concat();
    fs::write(path, edited).unwrap();
}

fn header_refusal(folder: &Path) -> HeaderError {
    match refusal(folder) {
        ModelError::Header { path, source } => {
            assert!(path.ends_with("model.safetensors"));
            source
        }
        other => panic!("the header is at fault, not {other:?}"),
    }
}

fn tensors_refusal(folder: &Path, file: &str) -> TensorsError {
    match refusal(folder) {
        ModelError::Tensors { path, source } => {
            assert!(path.ends_with(file), "{path:?}");
            source
        }
        other => panic!("the tensors are at fault, not {other:?}"),
    }
}

#[test]
fn missing_files_are_named() {
    for file in ["config.json", "model.safetensors"] {
        let folder = copy("gqa-f32");
        fs::remove_file(folder.path().join(file)).unwrap();
        assert!(matches!(refusal(folder.path()), ModelError::Read { path, .. } if path.ends_with(file)));
    }
    let folder = copy("sharded-bf16");
    fs::remove_file(folder.path().join("model-00002-of-00004.safetensors")).unwrap();
    let error = refusal(folder.path());
    assert!(
        matches!(error, ModelError::Read { path, .. } if path.ends_with("model-00002-of-00004.safetensors"))
    );
}

#[test]
fn truncated_files_are_refused() {
    let folder = copy("gqa-f32");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(
        header_refusal(folder.path()),
        HeaderError::OutOfBounds { .. }
    ));
    fs::write(&path, &bytes[..100]).unwrap();
    assert!(matches!(
        header_refusal(folder.path()),
        HeaderError::Truncated { found: 100, .. }
    ));
    fs::write(&path, []).unwrap();
    assert!(matches!(
        header_refusal(folder.path()),
        HeaderError::Truncated {
            expected: 8,
            found: 0
        }
    ));
}

#[test]
fn absurd_header_lengths_are_refused() {
    let folder = copy("gqa-f32");
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let found = 1 << 60;
    assert!(matches!(header_refusal(folder.path()), HeaderError::TooLong { found: f, .. } if f == found));
}

#[test]
fn headers_that_lie_about_offsets_are_refused() {
    let folder = copy("gqa-f32");
    edit_header(folder.path(), |header| {
        let offsets = &mut header["model.norm.weight"]["data_offsets"];
        *offsets = json!([1u64 << 40, (1u64 << 40) + 160]);
    });
    assert!(matches!(
        header_refusal(folder.path()),
        HeaderError::OutOfBounds { tensor, .. } if tensor == "model.norm.weight"
    ));
}

#[test]
fn overlapping_tensors_are_refused() {
    let folder = copy("gqa-f32");
    edit_header(folder.path(), |header| {
        let first = header["model.layers.0.input_layernorm.weight"]["data_offsets"].clone();
        header["model.norm.weight"]["data_offsets"] = first;
    });
    let error = header_refusal(folder.path());
    assert!(
        matches!(&error, HeaderError::Overlap { tensor, other }
            if [tensor, other].iter().any(|name| *name == "model.norm.weight")),
        "{error:?}"
    );
}

#[test]
fn missing_tensors_are_named_with_their_shape() {
    let folder = copy("gqa-f32");
    edit_header(folder.path(), |header| {
        let header = header.as_object_mut().unwrap();
        let tensor = header.remove("model.layers.1.mlp.up_proj.weight").unwrap();
        header.insert("model.layers.1.mlp.other.weight".to_owned(), tensor);
    });
    assert!(matches!(
        tensors_refusal(folder.path(), "model.safetensors"),
        TensorsError::Missing { tensor, shape }
            if tensor == "model.layers.1.mlp.up_proj.weight" && shape == [80, 40]
    ));
}

/// A bias that the configuration does not ask for would be left out, and the model would be another.
#[test]
fn tensors_that_the_model_has_no_use_for_are_named() {
    let folder = copy("biases-f16");
    edit_json(&folder.path().join("config.json"), |config| {
        config["attention_bias"] = json!(false);
    });
    assert!(matches!(
        tensors_refusal(folder.path(), "model.safetensors"),
        TensorsError::Unexpected { tensor } if tensor == "model.layers.0.self_attn.k_proj.bias"
    ));
    let folder = copy("gqa-f32");
    edit_json(&folder.path().join("config.json"), |config| {
        config["num_hidden_layers"] = json!(1);
    });
    assert!(matches!(
        tensors_refusal(folder.path(), "model.safetensors"),
        TensorsError::Unexpected { tensor } if tensor.starts_with("model.layers.1.")
    ));
}

/// Files of old versions of transformers.
#[test]
fn stored_rotary_frequencies_are_ignored() {
    let folder = copy("gqa-f32");
    edit_header(folder.path(), |header| {
        let end = header["model.norm.weight"]["data_offsets"][1].clone();
        header["model.layers.0.self_attn.rotary_emb.inv_freq"] =
            json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]});
    });
    ModelFolder::open(folder.path()).unwrap();
}

#[test]
fn tensors_of_each_feature_must_be_there_in_shape() {
    for (model, tensor, shape) in [
        ("biases-f16", "model.layers.2.self_attn.o_proj.bias", vec![48]),
        ("biases-f16", "model.layers.0.mlp.gate_proj.bias", vec![80]),
        ("qwen2-bf16", "model.layers.1.self_attn.k_proj.bias", vec![24]),
        ("qwen3-f16", "model.layers.0.self_attn.q_norm.weight", vec![16]),
        ("qwen3-f16", "model.layers.0.self_attn.k_norm.weight", vec![16]),
        (
            "gemma3-bf16",
            "model.layers.0.pre_feedforward_layernorm.weight",
            vec![48],
        ),
        (
            "gemma3-bf16",
            "model.layers.2.post_feedforward_layernorm.weight",
            vec![48],
        ),
        (
            "gemma3-bf16",
            "model.layers.2.post_attention_layernorm.weight",
            vec![48],
        ),
    ] {
        let folder = copy(model);
        edit_header(folder.path(), |header| {
            let extents = json!([1, shape[0]]);
            header[tensor]["shape"] = extents;
        });
        let refused = tensors_refusal(folder.path(), "model.safetensors");
        assert!(
            matches!(&refused, TensorsError::Shape { tensor: named, expected, .. }
                if named == tensor && *expected == shape),
            "{model}: {refused:?}"
        );
        edit_header(folder.path(), |header| {
            let header = header.as_object_mut().unwrap();
            let other = header.remove(tensor).unwrap();
            header.insert("other".to_owned(), other);
        });
        let refused = tensors_refusal(folder.path(), "model.safetensors");
        assert!(
            matches!(&refused, TensorsError::Missing { tensor: named, shape: named_shape }
                if named == tensor && *named_shape == shape),
            "{model}: {refused:?}"
        );
    }
}

#[test]
fn wrong_shapes_are_named_with_both_shapes() {
    let folder = copy("gqa-f32");
    edit_header(folder.path(), |header| {
        header["model.layers.0.mlp.up_proj.weight"]["shape"] = json!([40, 80]);
    });
    assert!(matches!(
        tensors_refusal(folder.path(), "model.safetensors"),
        TensorsError::Shape { tensor, expected, found }
            if tensor == "model.layers.0.mlp.up_proj.weight" && expected == [80, 40] && found == [40, 80]
    ));
}

#[test]
fn unsupported_element_types_are_refused_only_where_they_are_needed() {
    let folder = copy("gqa-f32");
    edit_header(folder.path(), |header| {
        header["model.norm.weight"]["dtype"] = json!("I32");
    });
    assert!(matches!(
        tensors_refusal(folder.path(), "model.safetensors"),
        TensorsError::Dtype { tensor, found } if tensor == "model.norm.weight" && found == "I32"
    ));

    let tied = copy("gqa-f32");
    edit_header(tied.path(), |header| {
        header["lm_head.weight"]["dtype"] = json!("I32")
    });
    edit_json(&tied.path().join("config.json"), |config| {
        config["tie_word_embeddings"] = json!(true)
    });
    ModelFolder::open(tied.path()).unwrap();
}

#[test]
fn an_index_cannot_point_outside_its_folder() {
    for target in [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        "a/b.safetensors",
        "./x",
        "a\\b",
        "",
    ] {
        let folder = copy("sharded-bf16");
        edit_json(&folder.path().join("model.safetensors.index.json"), |index| {
            index["weight_map"]["model.norm.weight"] = json!(target);
        });
        let error = refusal(folder.path());
        assert!(
            matches!(&error, ModelError::IndexFileName { tensor, found, .. }
                if tensor == "model.norm.weight" && found == target),
            "{error:?}"
        );
    }
}

#[test]
fn an_index_that_names_the_wrong_shard_is_refused() {
    let folder = copy("sharded-bf16");
    edit_json(&folder.path().join("model.safetensors.index.json"), |index| {
        index["weight_map"]["model.embed_tokens.weight"] = json!("model-00004-of-00004.safetensors");
    });
    assert!(matches!(
        refusal(folder.path()),
        ModelError::NotInShard { tensor, shard, .. }
            if tensor == "model.embed_tokens.weight" && shard.ends_with("model-00004-of-00004.safetensors")
    ));
    fs::write(folder.path().join("model.safetensors.index.json"), "{}").unwrap();
    assert!(matches!(refusal(folder.path()), ModelError::IndexJson { .. }));
}

#[test]
fn a_tensor_that_the_index_leaves_out_is_missing() {
    let folder = copy("sharded-bf16");
    edit_json(&folder.path().join("model.safetensors.index.json"), |index| {
        index["weight_map"]
            .as_object_mut()
            .unwrap()
            .remove("model.norm.weight");
    });
    assert!(matches!(
        tensors_refusal(folder.path(), "model.safetensors.index.json"),
        TensorsError::Missing { tensor, .. } if tensor == "model.norm.weight"
    ));
}

#[test]
fn messages_name_file_tensor_expected_and_found() {
    let folder = copy("gqa-f32");
    edit_header(folder.path(), |header| {
        header["model.layers.0.mlp.up_proj.weight"]["shape"] = json!([40, 80]);
    });
    let error = refusal(folder.path());
    let path = folder.path().join("model.safetensors");
    assert_eq!(
        error.to_string(),
        format!("{}: not the tensors of the configured model", path.display())
    );
    assert_eq!(
        error.source().unwrap().to_string(),
        "tensor model.layers.0.mlp.up_proj.weight: expected shape [80, 40], found [40, 80]"
    );
}

#[test]
fn configuration_that_is_larger_than_any_is_refused_before_it_is_read() {
    let folder = copy("gqa-f32");
    for name in ["generation_config.json", "config.json"] {
        let path = folder.path().join(name);
        // A hole: it takes no room on the disk, and all of it in memory.
        fs::File::create(&path).unwrap().set_len(65 << 20).unwrap();
        let ModelError::Read { path: found, source } = refusal(folder.path()) else {
            panic!("{name} was read");
        };
        assert_eq!((found, source.kind()), (path, std::io::ErrorKind::FileTooLarge));
    }
}

#[test]
fn pipe_in_place_of_a_file_is_refused_and_not_waited_for() {
    for name in ["config.json", "model.safetensors"] {
        let folder = copy("gqa-f32");
        let path = folder.path().join(name);
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success(), "mkfifo {}", path.display());
        let ModelError::Read { path: found, .. } = refusal(folder.path()) else {
            panic!("{name} was read");
        };
        assert_eq!(found, path);
    }
}
