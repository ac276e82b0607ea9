//! A model's files as the engine reads them.

pub(super) mod header;

use std::fs;
use std::path::Path;

use flotilla_worker_engine::{Header, ModelConfig, ModelFolder, ModelKind};

use crate::corpus::{Corpus, file, files, repository};
use crate::probe::{Probe, Verdict, write};
use crate::target::{Format, Target};

pub(super) fn targets() -> Vec<Target> {
    vec![
        config(),
        generation(),
        Target::new("safetensors-header", header::corpus(), |probe, input| {
            let read = probe.measure(|| Header::parse(input, input.len()));
            Verdict::from(&read)
        }),
        decoder("decoder-config", "config.json", golden("config.json")),
        decoder(
            "decoder-generation",
            "generation_config.json",
            golden("generation_config.json"),
        ),
        decoder("decoder-index", "model.safetensors.index.json", {
            Corpus::new(
                Format::Json,
                [file(&format!("{SHARDED}/model.safetensors.index.json"))],
            )
        }),
        encoder("encoder-config", "config.json"),
        encoder("encoder-modules", "modules.json"),
        encoder("encoder-pooling", "1_Pooling/config.json"),
        encoder("encoder-texts", "sentence_bert_config.json"),
        encoder("encoder-prompts", "config_sentence_transformers.json"),
        encoder("encoder-tokenizer", "tokenizer_config.json"),
    ]
}

fn config() -> Target {
    Target::new("config", golden("config.json"), |probe, input| {
        Verdict::from(&probe.measure(|| ModelConfig::from_json(input, None)))
    })
}

fn generation() -> Target {
    let config = file(&format!("{SHARDED}/config.json"));
    Target::new(
        "generation-config",
        golden("generation_config.json"),
        move |probe, input| Verdict::from(&probe.measure(|| ModelConfig::from_json(&config, Some(input)))),
    )
}

/// A decoder's folder of which one file is the input.
fn decoder(name: &'static str, path: &'static str, corpus: Corpus) -> Target {
    Target::new(name, corpus, move |probe, input| {
        let folder = folder(probe, SHARDED, path, input);
        probe.measure(|| ModelKind::of(&folder).is_ok());
        Verdict::from(&probe.measure(|| ModelFolder::open(&folder)))
    })
    .weighing(4)
}

/// An encoder's folder of which one file is the input.
fn encoder(name: &'static str, path: &'static str) -> Target {
    let sample = match path {
        "config_sentence_transformers.json" => {
            br#"{"default_prompt_name": null, "prompts": {"query": "q: "}}"#.to_vec()
        }
        "tokenizer_config.json" => br#"{"model_max_length": 512, "do_lower_case": true}"#.to_vec(),
        _ => file(&format!("{ENCODER}/{path}")),
    };
    Target::new(name, Corpus::new(Format::Json, [sample]), move |probe, input| {
        let folder = folder(probe, ENCODER, path, input);
        probe.measure(|| ModelKind::of(&folder).is_ok());
        Verdict::from(&probe.measure(|| ModelFolder::open_encoder(&folder)))
    })
    .weighing(4)
}

/// A copy of a folder of this repository with the input in place of one file.
fn folder(probe: &mut Probe, from: &str, path: &str, input: &[u8]) -> std::path::PathBuf {
    let folder = probe
        .folder(|folder| copy(&repository().join(from), folder))
        .to_owned();
    write(&folder.join(path), input);
    folder
}

pub(super) fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(path.file_name().expect("a listed file has a name"));
        if path.is_dir() {
            fs::create_dir_all(&target).expect("a folder can be made");
            copy(&path, &target);
        } else {
            write(&target, &fs::read(&path).expect("a file can be read"));
        }
    }
}

/// A file of every golden decoder.
fn golden(name: &str) -> Corpus {
    let folders = files(&repository().join("worker/engine/tests/golden"));
    let found = folders
        .iter()
        .filter_map(|folder| fs::read(folder.join(name)).ok());
    Corpus::new(Format::Json, found)
}

const SHARDED: &str = "worker/engine/tests/golden/sharded-bf16";
const ENCODER: &str = "worker/engine/tests/golden-encoders/bert-mean-f32";
