//! Folders that are no model, each refused with the file and the tensor or field at fault.

use std::error::Error;
use std::fs;
use std::path::Path;

use flotilla_worker_engine::{
    ConfigError, HeaderError, ModelError, ModelFolder, SamplingDefaults, TensorsError,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::golden_folder;

/// A copy of a golden model, to be damaged.
fn copy(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(golden_folder(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn refusal(folder: &Path) -> ModelError {
    ModelFolder::open(folder).map(|_| ()).unwrap_err()
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

/// Rewrites the header of the model's file; the data stays.
fn edit_header(folder: &Path, edit: impl FnOnce(&mut Value)) {
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

/// The refusal after an edit of `config.json`.
fn config_refusal(edit: impl FnOnce(&mut Value)) -> ConfigError {
    let folder = copy("gqa-f32");
    edit_json(&folder.path().join("config.json"), edit);
    match refusal(folder.path()) {
        ModelError::Config { path, source } => {
            assert!(path.ends_with("config.json"));
            source
        }
        other => panic!("the configuration is at fault, not {other:?}"),
    }
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
fn a_missing_generation_config_is_no_fault() {
    let folder = copy("wide-heads-bf16");
    fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    let opened = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(opened.config().eos_token_ids, [2, 5]);
}

#[test]
fn generation_config_overrules_config() {
    let folder = copy("wide-heads-bf16");
    edit_json(&folder.path().join("generation_config.json"), |config| {
        config["eos_token_id"] = json!(7);
        config["do_sample"] = json!(true);
        config["temperature"] = json!(0.6);
        config["top_k"] = json!(0);
    });
    let opened = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(opened.config().eos_token_ids, [7]);
    let defaults = opened.config().sampling_defaults;
    assert_eq!(
        (defaults.temperature, defaults.top_k, defaults.top_p),
        (Some(0.6), None, None)
    );
}

#[test]
fn a_model_samples_only_when_its_makers_say_so() {
    let folder = copy("wide-heads-bf16");
    let path = folder.path().join("generation_config.json");
    let defaults = || {
        ModelFolder::open(folder.path())
            .unwrap()
            .config()
            .sampling_defaults
    };
    edit_json(&path, |config| config["temperature"] = json!(0.6));
    assert_eq!(defaults(), SamplingDefaults::default());
    edit_json(&path, |config| {
        config["do_sample"] = json!(true);
        config.as_object_mut().unwrap().remove("temperature");
    });
    assert_eq!(defaults().temperature, Some(1.0));
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
fn what_the_engine_cannot_do_is_refused_by_field() {
    let cases: [(&str, Value, &str); 11] = [
        ("architectures", json!(["MambaForCausalLM"]), "architectures"),
        (
            "architectures",
            json!(["LlamaForCausalLM", "Other"]),
            "architectures",
        ),
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("attention_bias", json!(true), "attention_bias"),
        ("mlp_bias", json!(true), "mlp_bias"),
        (
            "quantization_config",
            json!({"quant_method": "awq"}),
            "quantization_config",
        ),
        ("dtype", json!("float8_e4m3fn"), "dtype"),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "rope_theta": 1e4}),
            "rope_parameters",
        ),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 2.0}),
            "rope_scaling",
        ),
        ("rope_scaling", json!({"rope_type": "llama3"}), "rope_scaling"),
        (
            "rope_parameters",
            json!({"partial_rotary_factor": 0.5}),
            "rope_parameters",
        ),
    ];
    for (key, value, at_fault) in cases {
        let error = config_refusal(|config| config[key] = value.clone());
        assert!(
            matches!(&error, ConfigError::Unsupported { field, .. } if *field == at_fault),
            "{key} {value}: {error:?}"
        );
    }
}

#[test]
fn insane_numbers_are_refused_by_field() {
    let cases = [
        ("vocab_size", json!(0)),
        ("vocab_size", json!(1u64 << 40)),
        ("hidden_size", json!(u64::MAX)),
        ("intermediate_size", json!(0)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1_000_000)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(0)),
        ("max_position_embeddings", json!(0)),
    ];
    for (key, value) in cases {
        let error = config_refusal(|config| config[key] = value.clone());
        assert!(
            matches!(&error, ConfigError::OutOfRange { field, .. } if *field == key),
            "{key} {value}: {error:?}"
        );
    }
    let error = config_refusal(|config| config["num_key_value_heads"] = json!(3));
    assert!(
        matches!(
            error,
            ConfigError::NotDivisible {
                field: "num_attention_heads",
                ..
            }
        ),
        "{error:?}"
    );
    let error = config_refusal(|config| config["head_dim"] = json!(7));
    assert!(
        matches!(
            error,
            ConfigError::NotDivisible {
                field: "head_dim",
                ..
            }
        ),
        "{error:?}"
    );
    let error = config_refusal(|config| {
        config["head_dim"] = json!(null);
        config["hidden_size"] = json!(41);
    });
    assert!(
        matches!(
            error,
            ConfigError::NotDivisible {
                field: "hidden_size",
                ..
            }
        ),
        "{error:?}"
    );
    let error = config_refusal(|config| config["rms_norm_eps"] = json!(-1.0));
    assert!(
        matches!(
            error,
            ConfigError::NotPositive {
                field: "rms_norm_eps",
                ..
            }
        ),
        "{error:?}"
    );
    let error = config_refusal(|config| config["rope_theta"] = json!(0.0));
    assert!(
        matches!(
            error,
            ConfigError::NotPositive {
                field: "rope_theta",
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn fields_without_a_default_must_be_there() {
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ] {
        let error = config_refusal(|config| config[key] = Value::Null);
        assert!(
            matches!(error, ConfigError::Missing { field } if field == key),
            "{key}: {error:?}"
        );
    }
}

#[test]
fn token_ids_outside_the_vocabulary_are_refused() {
    let folder = copy("gqa-f32");
    edit_json(&folder.path().join("generation_config.json"), |config| {
        config["eos_token_id"] = json!([2, 96])
    });
    let ModelError::Config { source, .. } = refusal(folder.path()) else {
        panic!("a field is at fault")
    };
    assert!(matches!(
        source,
        ConfigError::TokenId {
            field: "eos_token_id",
            found: 96,
            vocab_size: 96
        }
    ));
}

/// Files of transformers before version 5.
#[test]
fn older_spellings_are_understood() {
    let folder = copy("wide-heads-bf16");
    edit_json(&folder.path().join("config.json"), |config| {
        let config = config.as_object_mut().unwrap();
        config.remove("rope_parameters");
        config.remove("architectures");
        config.remove("dtype");
        config.insert("rope_theta".to_owned(), json!(500_000.0));
        config.insert("rope_scaling".to_owned(), Value::Null);
        config.insert("torch_dtype".to_owned(), json!("bfloat16"));
    });
    let opened = ModelFolder::open(folder.path()).unwrap();
    let newer = ModelFolder::open(&golden_folder("wide-heads-bf16")).unwrap();
    assert_eq!(opened.config(), newer.config());
}

/// Files that carry both spellings, as some converters write them.
#[test]
fn both_spellings_at_once_are_understood() {
    let folder = copy("wide-heads-bf16");
    edit_json(&folder.path().join("config.json"), |config| {
        config["torch_dtype"] = json!("bfloat16");
        config["rope_theta"] = json!(500_000.0);
        config["rope_scaling"] = json!({"type": "default", "rope_type": "default"});
    });
    let opened = ModelFolder::open(folder.path()).unwrap();
    let newer = ModelFolder::open(&golden_folder("wide-heads-bf16")).unwrap();
    assert_eq!(opened.config(), newer.config());
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
