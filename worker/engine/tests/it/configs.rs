//! Configurations of models: which are refused, with the field at fault, and which spellings are one.

use std::fs;

use flotilla_worker_engine::{
    ConfigError, Family, LayerAttention, ModelConfig, ModelError, ModelFolder, RopeScaling, SamplingDefaults,
};
use serde_json::{Value, json};

use crate::bad_folders::{copy, edit_json, refusal};
use crate::fixture::golden_folder;

/// The refusal after an edit of `config.json`.
fn config_refusal(edit: impl FnOnce(&mut Value)) -> ConfigError {
    config_refusal_of("gqa-f32", edit)
}

fn config_refusal_of(model: &str, edit: impl FnOnce(&mut Value)) -> ConfigError {
    let folder = copy(model);
    edit_json(&folder.path().join("config.json"), edit);
    match refusal(folder.path()) {
        ModelError::Config { path, source } => {
            assert!(path.ends_with("config.json"));
            source
        }
        other => panic!("the configuration is at fault, not {other:?}"),
    }
}

/// The configuration of a golden model after an edit; its tensors are not looked at.
fn config_of(model: &str, edit: impl FnOnce(&mut Value)) -> Result<ModelConfig, ConfigError> {
    let bytes = fs::read(golden_folder(model).join("config.json")).unwrap();
    let mut value = serde_json::from_slice(&bytes).unwrap();
    edit(&mut value);
    ModelConfig::from_json(&serde_json::to_vec(&value).unwrap(), None)
}

/// What each layer sees.
fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.window).collect()
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
        config["min_p"] = json!(0.25);
        config["repetition_penalty"] = json!(1.5);
    });
    let opened = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(opened.config().eos_token_ids, [7]);
    let defaults = opened.config().sampling_defaults;
    assert_eq!(
        (defaults.temperature, defaults.top_k, defaults.top_p),
        (Some(0.6), None, None)
    );
    assert_eq!(
        (defaults.min_p, defaults.repetition_penalty),
        (Some(0.25), Some(1.5))
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
    edit_json(&path, |config| {
        config["temperature"] = json!(0.6);
        config["min_p"] = json!(0.25);
    });
    assert_eq!(defaults(), SamplingDefaults::default());
    // What repeats is held back whether tokens are drawn or not.
    edit_json(&path, |config| config["repetition_penalty"] = json!(1.5));
    assert_eq!(
        defaults(),
        SamplingDefaults {
            repetition_penalty: Some(1.5),
            ..SamplingDefaults::default()
        }
    );
    edit_json(&path, |config| {
        config["do_sample"] = json!(true);
        config.as_object_mut().unwrap().remove("temperature");
    });
    assert_eq!(defaults().temperature, Some(1.0));
}

#[test]
fn generation_config_out_of_range_is_refused_by_name() {
    for (key, value) in [
        ("repetition_penalty", json!(0)),
        ("min_p", json!(1.5)),
        ("top_p", json!(0)),
    ] {
        let folder = copy("wide-heads-bf16");
        let path = folder.path().join("generation_config.json");
        edit_json(&path, |config| config[key] = value.clone());
        let error = ModelFolder::open(folder.path()).unwrap_err();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        assert!(
            text.contains("generation_config.json") && text.contains(key),
            "{text}"
        );
    }
}

#[test]
fn what_the_engine_cannot_do_is_refused_by_field() {
    let cases: [(&str, &str, Value); 24] = [
        ("gqa-f32", "architectures", json!(["MambaForCausalLM"])),
        ("gqa-f32", "architectures", json!(["LlamaForCausalLM", "Other"])),
        ("gqa-f32", "hidden_act", json!("gelu")),
        ("gqa-f32", "quantization_config", json!({"quant_method": "awq"})),
        ("gqa-f32", "dtype", json!("float8_e4m3fn")),
        (
            "gqa-f32",
            "rope_parameters",
            json!({"rope_type": "dynamic", "factor": 2.0}),
        ),
        (
            "gqa-f32",
            "rope_scaling",
            json!({"type": "longrope", "factor": 2.0}),
        ),
        (
            "gqa-f32",
            "rope_parameters",
            json!({"partial_rotary_factor": 0.5}),
        ),
        (
            "gqa-f32",
            "rope_parameters",
            json!({"full_attention": {"rope_type": "default"}}),
        ),
        ("gqa-f32", "partial_rotary_factor", json!(0.5)),
        (
            "gqa-f32",
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        ("mistral-f32", "layer_types", json!(vec!["full_attention"; 3])),
        ("qwen3-f16", "layer_types", json!(vec!["sliding_attention"; 3])),
        ("qwen2-bf16", "layer_types", json!(vec!["chunked_attention"; 3])),
        ("qwen2-bf16", "layer_types", json!(vec!["linear_attention"; 3])),
        ("smollm3-f32", "no_rope_layers", json!([1, 0, 2])),
        ("smollm3-f32", "layer_types", json!(vec!["sliding_attention"; 3])),
        ("gemma3-f32", "sliding_window", json!(null)),
        ("gemma3-f32", "hidden_activation", json!("gelu")),
        ("gemma3-f32", "attn_logit_softcapping", json!(50.0)),
        ("gemma3-f32", "final_logit_softcapping", json!(30.0)),
        ("gemma3-f32", "use_bidirectional_attention", json!(true)),
        (
            "gemma3-f32",
            "rope_parameters",
            json!({"rope_type": "default", "rope_theta": 1e4}),
        ),
        (
            "gemma3-f32",
            "architectures",
            json!(["Gemma3ForConditionalGeneration"]),
        ),
    ];
    for (model, key, value) in cases {
        let error = config_refusal_of(model, |config| config[key] = value.clone());
        // A layer type that no window makes sense of is the layer types' fault.
        let at_fault = if key == "sliding_window" {
            "layer_types"
        } else {
            key
        };
        assert!(
            matches!(&error, ConfigError::Unsupported { field, .. } if *field == at_fault),
            "{model} {key} {value}: {error:?}"
        );
    }
}

#[test]
fn unknown_architectures_are_told_which_there_are() {
    let error = config_refusal(|config| config["architectures"] = json!(["MambaForCausalLM"]));
    assert_eq!(
        error.to_string(),
        "field architectures: expected one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, \
         Qwen3ForCausalLM, SmolLM3ForCausalLM, Gemma3ForCausalLM, found MambaForCausalLM"
    );
    let error = config_refusal(|config| {
        config.as_object_mut().unwrap().remove("architectures");
        config["model_type"] = json!("mamba");
    });
    assert!(matches!(
        error,
        ConfigError::Unsupported {
            field: "model_type",
            ..
        }
    ));
}

#[test]
fn sizes_outside_their_ranges_are_refused_by_field() {
    let cases = [
        ("gqa-f32", "vocab_size", json!(0)),
        ("gqa-f32", "vocab_size", json!(1u64 << 40)),
        ("gqa-f32", "hidden_size", json!(u64::MAX)),
        ("gqa-f32", "intermediate_size", json!(0)),
        ("gqa-f32", "num_hidden_layers", json!(0)),
        ("gqa-f32", "num_hidden_layers", json!(1_000_000)),
        ("gqa-f32", "num_attention_heads", json!(0)),
        ("gqa-f32", "num_key_value_heads", json!(0)),
        ("gqa-f32", "head_dim", json!(0)),
        ("gqa-f32", "max_position_embeddings", json!(0)),
        ("mistral-f32", "sliding_window", json!(0)),
        ("qwen2-bf16", "sliding_window", json!(1u64 << 60)),
        ("gemma3-f32", "sliding_window_pattern", json!(0)),
        ("smollm3-f32", "no_rope_layer_interval", json!(0)),
    ];
    for (model, key, value) in cases {
        let error = config_refusal_of(model, |config| config[key] = value.clone());
        assert!(
            matches!(&error, ConfigError::OutOfRange { field, .. } if *field == key),
            "{model} {key} {value}: {error:?}"
        );
    }
}

#[test]
fn sizes_that_do_not_divide_each_other_are_refused_by_field() {
    let cases = [
        (json!({"num_key_value_heads": 3}), "num_attention_heads"),
        (json!({"head_dim": 7}), "head_dim"),
        (json!({"head_dim": null, "hidden_size": 41}), "hidden_size"),
    ];
    for (edits, at_fault) in cases {
        let error = config_refusal(|config| merge(config, &edits));
        assert!(
            matches!(&error, ConfigError::NotDivisible { field, .. } if *field == at_fault),
            "{edits}: {error:?}"
        );
    }
}

#[test]
fn numbers_that_must_be_positive_are_refused_by_field() {
    let yarn = |changes: Value| {
        let mut rope = json!({"rope_type": "yarn", "factor": 4.0});
        merge(&mut rope, &changes);
        json!({"rope_parameters": rope})
    };
    let cases = [
        ("gqa-f32", json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
        (
            "gqa-f32",
            json!({"rope_parameters": null, "rope_theta": 0.0}),
            "rope_theta",
        ),
        (
            "gqa-f32",
            json!({"rope_parameters": {"rope_theta": -1.0}}),
            "rope_theta",
        ),
        (
            "gqa-f32",
            json!({"rope_parameters": {"rope_theta": 1e300}}),
            "rope_theta",
        ),
        (
            "gqa-f32",
            json!({"rope_scaling": {"type": "linear", "factor": 0.0}}),
            "factor",
        ),
        (
            "gqa-f32",
            yarn(json!({"attention_factor": 0.0})),
            "attention_factor",
        ),
        ("gqa-f32", yarn(json!({"beta_fast": -1.0})), "beta_fast"),
        (
            "gqa-f32",
            yarn(json!({"mscale": -20.0, "mscale_all_dim": 1.0})),
            "attention_factor",
        ),
        (
            "gemma3-f32",
            json!({"query_pre_attn_scalar": 0}),
            "query_pre_attn_scalar",
        ),
        (
            "gemma3-f32",
            json!({"rope_parameters": null, "rope_local_base_freq": 0}),
            "rope_local_base_freq",
        ),
    ];
    for (model, edits, at_fault) in cases {
        let error = config_refusal_of(model, |config| merge(config, &edits));
        assert!(
            matches!(&error, ConfigError::NotPositive { field, .. } if *field == at_fault),
            "{model} {edits}: {error:?}"
        );
    }
}

#[test]
fn rope_scaling_that_contradicts_itself_is_refused_by_field() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
    });
    let error = config_refusal(|config| config["rope_parameters"] = llama3);
    assert!(matches!(
        error,
        ConfigError::TooSmall {
            field: "high_freq_factor",
            ..
        }
    ));
    let yarn = json!({"rope_type": "yarn", "factor": 8.0, "beta_fast": 1.0, "beta_slow": 2.0});
    let error = config_refusal(|config| config["rope_parameters"] = yarn);
    assert!(matches!(
        error,
        ConfigError::TooSmall {
            field: "beta_fast",
            ..
        }
    ));
    let shrinking = json!({"rope_type": "linear", "factor": 0.5});
    let error = config_refusal(|config| config["rope_parameters"] = shrinking);
    assert!(matches!(error, ConfigError::Unsupported { field: "factor", .. }));
    let no_context = json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 0});
    let error = config_refusal(|config| config["rope_parameters"] = no_context);
    assert!(matches!(
        error,
        ConfigError::OutOfRange {
            field: "original_max_position_embeddings",
            ..
        }
    ));
}

#[test]
fn lists_must_have_an_entry_for_each_layer() {
    for (model, field, value) in [
        ("qwen2-bf16", "layer_types", json!(["full_attention"])),
        ("gemma3-f32", "layer_types", json!(vec!["full_attention"; 4])),
        ("smollm3-f32", "no_rope_layers", json!([])),
    ] {
        let error = config_refusal_of(model, |config| config[field] = value);
        assert!(
            matches!(error, ConfigError::LayerCount { field: named, layers: 3, .. } if named == field),
            "{model}: {error:?}"
        );
    }
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
fn fields_that_a_feature_needs_must_be_there() {
    let rope = |kind: &str| json!({"rope_parameters": {"rope_type": kind}});
    for (model, edits, missing) in [
        ("gqa-f32", rope("linear"), "factor"),
        ("gqa-f32", rope("llama3"), "low_freq_factor"),
        ("gqa-f32", rope("yarn"), "factor"),
        ("qwen3-f16", json!({"head_dim": null}), "head_dim"),
        ("gemma3-f32", json!({"head_dim": null}), "head_dim"),
        (
            "mistral-f32",
            json!({"num_key_value_heads": null}),
            "num_key_value_heads",
        ),
    ] {
        let error = config_refusal_of(model, |config| merge(config, &edits));
        assert!(
            matches!(error, ConfigError::Missing { field } if field == missing),
            "{model} {edits}: {error:?}"
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

/// Gemma 3 before version 5 of transformers: one theta a kind of layer, and a scaling that is the global one's.
#[test]
fn older_spellings_of_two_rotary_embeddings_are_understood() {
    let older = config_of("gemma3-f32", |config| {
        let config = config.as_object_mut().unwrap();
        config.remove("rope_parameters");
        config.remove("layer_types");
        config.insert("rope_theta".to_owned(), json!(1_000_000.0));
        config.insert("rope_local_base_freq".to_owned(), json!(10_000.0));
        config.insert(
            "rope_scaling".to_owned(),
            json!({"factor": 8.0, "rope_type": "linear"}),
        );
        config.insert("sliding_window_pattern".to_owned(), json!(2));
    });
    assert_eq!(older.unwrap(), config_of("gemma3-f32", |_| ()).unwrap());
}

#[test]
fn a_family_is_known_by_its_model_type_alone() {
    for (model, family) in [
        ("gqa-f32", Family::Llama),
        ("mistral-f32", Family::Mistral),
        ("qwen2-bf16", Family::Qwen2),
        ("qwen3-f16", Family::Qwen3),
        ("smollm3-f32", Family::SmolLm3),
        ("gemma3-f32", Family::Gemma3),
    ] {
        let by_type = config_of(model, |config| {
            config.as_object_mut().unwrap().remove("architectures");
        });
        let by_type = by_type.unwrap();
        assert_eq!(by_type, config_of(model, |_| ()).unwrap());
        assert_eq!(by_type.family, family);
    }
}

#[test]
fn windows_are_those_that_transformers_would_take() {
    let window_of =
        |model: &str, edits: Value| windows(&config_of(model, |config| merge(config, &edits)).unwrap());
    assert_eq!(window_of("mistral-f32", json!({})), [Some(18); 3]);
    assert_eq!(
        window_of("mistral-f32", json!({"sliding_window": null})),
        [None; 3]
    );
    let absent = config_of("mistral-f32", |config| {
        config.as_object_mut().unwrap().remove("sliding_window");
    });
    assert_eq!(windows(&absent.unwrap()), [Some(4096); 3]);

    let by_number = json!({"layer_types": null, "max_window_layers": 2});
    assert_eq!(window_of("qwen2-bf16", by_number), [None, None, Some(11)]);
    assert_eq!(
        window_of(
            "qwen2-bf16",
            json!({"layer_types": null, "max_window_layers": null})
        ),
        [None; 3]
    );
    let unused = json!({"layer_types": null, "max_window_layers": 0, "use_sliding_window": false});
    assert_eq!(window_of("qwen2-bf16", unused), [None; 3]);

    let pattern = json!({"layer_types": null, "sliding_window_pattern": 3});
    assert_eq!(window_of("gemma3-f32", pattern), [Some(9), Some(9), None]);
    assert_eq!(
        window_of("gemma3-f32", json!({"layer_types": null})),
        [Some(9); 3]
    );
    // Llama reads no window.
    assert_eq!(window_of("gqa-f32", json!({"sliding_window": 4})), [None; 2]);
}

#[test]
fn layers_without_rotation_come_by_list_or_by_interval() {
    let ropes = |edits: Value| {
        let config = config_of("smollm3-f32", |config| merge(config, &edits)).unwrap();
        config.layers.iter().map(|layer| layer.rope).collect::<Vec<_>>()
    };
    assert_eq!(ropes(json!({})), [Some(0), None, Some(0)]);
    assert_eq!(ropes(json!({"no_rope_layers": [0, 0, 1]})), [None, None, Some(0)]);
    let by_interval = json!({"no_rope_layers": null, "no_rope_layer_interval": 3});
    assert_eq!(ropes(by_interval), [Some(0), Some(0), None]);
    assert_eq!(
        ropes(json!({"no_rope_layers": null, "no_rope_layer_interval": null})),
        [Some(0); 3]
    );

    let windowed = json!({"use_sliding_window": true, "sliding_window": 5, "layer_types": null});
    let config = config_of("smollm3-f32", |config| merge(config, &windowed)).unwrap();
    let layer = |window, rope| LayerAttention { window, rope };
    assert_eq!(
        config.layers,
        [layer(None, Some(0)), layer(Some(5), None), layer(None, Some(0))]
    );
}

/// `tests/golden/rope.json` is what transformers computes.
#[test]
fn rotary_frequencies_equal_the_reference() {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(golden_folder("rope.json")).unwrap()).unwrap();
    for case in &cases {
        for spelling in ["rope_parameters", "rope_scaling"] {
            let config = config_of("gqa-f32", |config| {
                config.as_object_mut().unwrap().remove("rope_parameters");
                config[spelling] = case["parameters"].clone();
            });
            let rope = config.unwrap().ropes[0];
            let expected = case["inverse_frequencies"].as_array().unwrap();
            let found = rope.inverse_frequencies(64);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                let expected = expected.as_f64().unwrap();
                let relative = (f64::from(*found) - expected).abs() / expected;
                assert!(relative <= 3e-7, "{case}: {found} instead of {expected}");
            }
            let factor = case["attention_factor"].as_f64().unwrap();
            assert!(
                (f64::from(rope.attention_factor()) - factor).abs() <= 1e-7,
                "{case}"
            );
        }
    }
    assert!(cases.len() > 8);
}

#[test]
fn an_original_context_that_is_not_stated_is_the_whole_one() {
    let config = config_of("gqa-f32", |config| {
        config["rope_parameters"] = json!({"rope_type": "yarn", "factor": 8.0});
    });
    let RopeScaling::Yarn(yarn) = config.unwrap().ropes[0].scaling else {
        panic!("the scaling is yarn")
    };
    assert_eq!(yarn.original_context_tokens, 128);
}

/// Sets the members of `edits` in `value`.
fn merge(value: &mut Value, edits: &Value) {
    for (key, edit) in edits.as_object().unwrap() {
        value[key] = edit.clone();
    }
}
