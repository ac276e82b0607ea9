//! What an encoder's folder says, and folders that are no encoder: each refused with the file and the field.

use std::error::Error;
use std::fs;
use std::path::Path;

use flotilla_worker_engine::{ModelError, ModelFolder, ModelKind, Pooling, TensorsError, VectorScale};
use serde_json::{Value, json};

use crate::bad_folders::{edit_header, edit_json};
use crate::encoders::{ENCODERS, copy, encoder_folder};
use crate::fixture::golden_folder;

#[test]
fn encoder_folders_say_what_the_files_say() {
    let folder = ModelFolder::open_encoder(&encoder_folder("bert-cls-bf16")).unwrap();
    let config = folder.config();
    assert_eq!(
        (config.vocab_size, config.hidden, config.intermediate),
        (96, 36, 70)
    );
    assert_eq!((config.layers, config.heads, config.head_dim()), (2, 3, 12));
    assert_eq!((config.positions, config.text_tokens_max), (48, 40));
    assert_eq!(
        (config.pooling, config.scale),
        (Pooling::First, VectorScale::Free)
    );
    assert!((config.layer_norm_epsilon - 1e-6).abs() < 1e-12);
    assert_eq!(folder.tensor_infos().len(), 5 + 2 * 16);
    let revisions = ENCODERS.map(|name| {
        let folder = ModelFolder::open_encoder(&encoder_folder(name)).unwrap();
        folder.revision()
    });
    assert_ne!(revisions[0], revisions[1]);
}

#[test]
fn folders_are_told_apart_by_their_model_type() {
    assert_eq!(
        ModelKind::of(&encoder_folder("bert-mean-f32")).unwrap(),
        ModelKind::Encoder
    );
    assert_eq!(
        ModelKind::of(&golden_folder("gqa-f32")).unwrap(),
        ModelKind::Decoder
    );
    let folder = copy("bert-mean-f32");
    edit_json(&folder.path().join("config.json"), |config| {
        config.as_object_mut().unwrap().remove("model_type");
    });
    assert_eq!(ModelKind::of(folder.path()).unwrap(), ModelKind::Encoder);
    fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(matches!(
        ModelKind::of(folder.path()),
        Err(ModelError::Config { .. })
    ));
}

#[test]
fn folder_without_modules_makes_means() {
    let folder = copy("bert-cls-bf16");
    fs::remove_file(folder.path().join("modules.json")).unwrap();
    fs::remove_dir_all(folder.path().join("1_Pooling")).unwrap();
    fs::remove_file(folder.path().join("sentence_bert_config.json")).unwrap();
    let opened = ModelFolder::open_encoder(folder.path()).unwrap();
    let config = opened.config();
    assert_eq!((config.pooling, config.scale), (Pooling::Mean, VectorScale::Free));
    assert_eq!(config.text_tokens_max, 48);
}

#[test]
fn texts_are_as_long_as_the_first_file_says_that_says_it() {
    let folder = copy("bert-cls-bf16");
    let text_tokens_max = || {
        let opened = ModelFolder::open_encoder(folder.path()).unwrap();
        opened.config().text_tokens_max
    };
    let write = |file: &str, value: Value| fs::write(folder.path().join(file), value.to_string()).unwrap();
    write("tokenizer_config.json", json!({"model_max_length": 30}));
    assert_eq!(text_tokens_max(), 40);
    write("sentence_bert_config.json", json!({"max_seq_length": null}));
    assert_eq!(text_tokens_max(), 30);
    write("tokenizer_config.json", json!({"model_max_length": 1e30}));
    assert_eq!(text_tokens_max(), 48);
    write("sentence_bert_config.json", json!({"max_seq_length": 512}));
    assert_eq!(text_tokens_max(), 48);
}

#[test]
fn names_may_have_the_prefix_of_a_model_with_a_head() {
    let folder = copy("bert-mean-f32");
    edit_json(&folder.path().join("config.json"), |config| {
        config["architectures"] = json!(["BertForMaskedLM"]);
    });
    edit_header(folder.path(), |header| {
        let tensors = header.as_object_mut().unwrap();
        let names: Vec<String> = tensors
            .keys()
            .filter(|name| *name != "__metadata__")
            .cloned()
            .collect();
        for name in names {
            let tensor = tensors.remove(&name).unwrap();
            tensors.insert(format!("bert.{name}"), tensor);
        }
    });
    let opened = ModelFolder::open_encoder(folder.path()).unwrap();
    let first = opened.tensor_infos().next().unwrap();
    assert_eq!(first.name, "bert.embeddings.word_embeddings.weight");
}

/// Opens a copy with one JSON file changed, and gives the refusal: the file at fault and the reason.
fn refusal(file: &str, edit: impl FnOnce(&mut Value)) -> (String, String) {
    let folder = copy("bert-mean-f32");
    edit_json(&folder.path().join(file), edit);
    let error = open_error(folder.path());
    let reason = error.source().unwrap().to_string();
    let ModelError::Config { path, .. } = error else {
        panic!("a configuration is at fault, not {error:?}");
    };
    let path = path.strip_prefix(folder.path()).unwrap();
    (path.display().to_string(), reason)
}

fn open_error(folder: &Path) -> ModelError {
    ModelFolder::open_encoder(folder).map(|_| ()).unwrap_err()
}

#[test]
fn what_would_make_other_vectors_is_refused_by_name() {
    let set = |key: &'static str, value: Value| move |file: &mut Value| file[key] = value;
    let bert: [(&'static str, Value, &str); 9] = [
        (
            "architectures",
            json!(["BertForSequenceClassification"]),
            "BertForSequenceClassification",
        ),
        ("model_type", json!("roberta"), "roberta"),
        ("position_embedding_type", json!("relative_key"), "relative_key"),
        ("is_decoder", json!(true), "is_decoder"),
        ("hidden_act", json!("mish"), "mish"),
        ("num_attention_heads", json!(5), "hidden_size"),
        ("layer_norm_eps", json!(0), "layer_norm_eps"),
        ("hidden_size", json!(null), "hidden_size"),
        ("quantization_config", json!({"bits": 4}), "quantization_config"),
    ];
    for (key, value, part) in bert {
        let (file, reason) = refusal("config.json", set(key, value));
        assert_eq!(file, "config.json", "{key}");
        assert!(reason.contains(part), "{key}: {reason}");
    }
    let pooling: [(&'static str, Value, &str); 3] = [
        ("pooling_mode_max_tokens", json!(true), "mean, max"),
        ("pooling_mode", json!("lasttoken"), "lasttoken"),
        ("word_embedding_dimension", json!(31), "31"),
    ];
    for (key, value, part) in pooling {
        let (file, reason) = refusal("1_Pooling/config.json", set(key, value));
        assert_eq!(file, "1_Pooling/config.json", "{key}");
        assert!(reason.contains(part), "{key}: {reason}");
    }
    let (file, reason) = refusal("sentence_bert_config.json", set("do_lower_case", json!(true)));
    assert_eq!(file, "sentence_bert_config.json");
    assert!(reason.contains("do_lower_case"), "{reason}");
}

#[test]
fn module_that_the_engine_has_not_is_refused_by_its_type() {
    let dense = json!({
        "idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"
    });
    let (file, reason) = refusal("modules.json", |modules| modules[2] = dense);
    assert_eq!(file, "modules.json");
    assert!(reason.contains("sentence_transformers.models.Dense"), "{reason}");
    let (_, reason) = refusal("modules.json", |modules| {
        modules.as_array_mut().unwrap().remove(1);
    });
    assert!(reason.contains("Transformer, Normalize"), "{reason}");
    let (_, reason) = refusal("modules.json", |modules| {
        modules[1]["path"] = json!("../elsewhere")
    });
    assert!(reason.contains("../elsewhere"), "{reason}");
    let (_, reason) = refusal("modules.json", |modules| {
        modules[0]["path"] = json!("0_Transformer")
    });
    assert!(reason.contains("0_Transformer"), "{reason}");
}

#[test]
fn model_that_wants_a_prompt_before_each_text_is_refused() {
    let folder = copy("bert-mean-f32");
    let path = folder.path().join("config_sentence_transformers.json");
    fs::write(
        &path,
        r#"{"prompts": {"query": "find: "}, "default_prompt_name": null}"#,
    )
    .unwrap();
    ModelFolder::open_encoder(folder.path()).unwrap();
    fs::write(
        &path,
        r#"{"prompts": {"query": "find: "}, "default_prompt_name": "query"}"#,
    )
    .unwrap();
    let error = open_error(folder.path());
    assert!(
        matches!(&error, ModelError::Config { path: found, .. } if *found == path),
        "{error:?}"
    );
}

#[test]
fn tensor_that_is_missing_or_none_of_the_model_is_named() {
    let folder = copy("bert-mean-f32");
    let layer = "encoder.layer.1.output.LayerNorm.bias";
    edit_header(folder.path(), |header| {
        let tensors = header.as_object_mut().unwrap();
        let tensor = tensors.remove(layer).unwrap();
        tensors.insert("pooler.more".to_owned(), tensor);
    });
    match open_error(folder.path()) {
        ModelError::Tensors {
            source: TensorsError::Missing { tensor, .. },
            ..
        } => assert_eq!(tensor, layer),
        other => panic!("a tensor is missing: {other:?}"),
    }
    let folder = copy("bert-mean-f32");
    edit_json(&folder.path().join("config.json"), |config| {
        config["num_hidden_layers"] = json!(1)
    });
    match open_error(folder.path()) {
        ModelError::Tensors {
            source: TensorsError::Unexpected { tensor },
            ..
        } => assert!(tensor.starts_with("encoder.layer.1."), "{tensor}"),
        other => panic!("a layer is too much: {other:?}"),
    }
}
