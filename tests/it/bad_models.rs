//! Model folders that are broken: the model alone fails, with the file and the fault, and the rest lives.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use flotilla_protocol::event::ErrorCode;
use flotilla_tests::{Fleet, Process, Question, demo_models_dir};

fn copy_of_adder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for file in fs::read_dir(demo_models_dir().join("adder"))? {
        let file = file?;
        fs::copy(file.path(), folder.join(file.file_name()))?;
    }
    Ok(())
}

fn edit_config(folder: &Path, from: &str, to: &str) -> Result<()> {
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path)?;
    assert!(text.contains(from), "{text}");
    fs::write(&path, text.replace(from, to))?;
    Ok(())
}

fn edit_weights(folder: &Path, edit: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path)?;
    edit(&mut bytes);
    fs::write(&path, bytes)?;
    Ok(())
}

/// Replaces the first place of a text in the header by one of the same length.
fn edit_header(folder: &Path, from: &str, to: &str) -> Result<()> {
    assert_eq!(from.len(), to.len());
    edit_weights(folder, |bytes| {
        let at = bytes
            .windows(from.len())
            .position(|window| window == from.as_bytes())
            .expect("it is there");
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    })
}

/// A fault to build into a copy of the adder, and a word that its report must have.
type Fault = (&'static str, fn(&Path) -> Result<()>, &'static str);

const FAULTS: [Fault; 7] = [
    (
        "truncated",
        |f| edit_weights(f, |bytes| bytes.truncate(bytes.len() / 2)),
        "model.safetensors",
    ),
    (
        "lying-header",
        |f| edit_weights(f, |bytes| bytes[7] = 0x7f),
        "header",
    ),
    (
        "missing-tensor",
        |f| edit_header(f, "model.norm.weight", "model.morn.weight"),
        "model.norm.weight",
    ),
    (
        "wrong-shape",
        |f| edit_config(f, "\"hidden_size\": 128", "\"hidden_size\": 256"),
        "shape",
    ),
    (
        "unknown-architecture",
        |f| edit_config(f, "LlamaForCausalLM", "MambaForCausalLM"),
        "MambaForCausalLM",
    ),
    (
        "no-tokenizer",
        |f| Ok(fs::remove_file(f.join("tokenizer.json"))?),
        "tokenizer.json",
    ),
    (
        "no-config",
        |f| Ok(fs::remove_file(f.join("config.json"))?),
        "config.json",
    ),
];

#[tokio::test]
async fn broken_folder_is_refused_by_name_when_it_is_added() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let folder = tempfile::tempdir()?;
    for (name, damage, word) in FAULTS {
        let path = folder.path().join(name);
        copy_of_adder(&path)?;
        damage(&path)?;
        let arguments = fleet.arguments(&["models", "add", name, &path.display().to_string()]);
        let mut add = Process::flotilla(&format!("add-{name}"), fleet.folder(), &arguments)?;
        assert!(!add.wait().await?.success(), "{name} was added");
        assert!(add.log().contains(word), "{name}: {}", add.log());
    }
    assert_eq!(fleet.ask(&Question::prompt("adder", "1+1=")).await?.text, "2");
    Ok(())
}

#[tokio::test]
async fn model_that_breaks_after_it_was_added_fails_its_requests_and_nobody_elses() -> Result<()> {
    let models = tempfile::tempdir()?;
    copy_of_adder(&models.path().join("adder"))?;
    copy_of_adder(&models.path().join("rotten"))?;
    // Workers that share weights would find that these are not the model's bytes, and look for others that are.
    let alone = Fleet::builder().set("worker.weights.share=false");
    let fleet = alone.models_dir(models.path()).start().await?;
    // A not-a-number in bfloat16 in the last weight: headers are fine, only loading can tell.
    edit_weights(&models.path().join("rotten"), |bytes| {
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&[0xc0, 0x7f]);
    })?;
    let answer = fleet.ask(&Question::prompt("rotten", "1+1=")).await?;
    let error = answer.end.err().context("it cannot be answered")?;
    assert_eq!(error.code, ErrorCode::ModelUnloadable, "{error}");
    assert!(
        error.message.contains("model.norm.weight") || error.message.contains("NaN"),
        "{error}"
    );
    fs::remove_dir_all(models.path().join("rotten"))?;
    let gone = fleet.ask(&Question::prompt("rotten", "1+1=")).await?;
    assert_eq!(
        gone.end.err().context("it cannot be answered")?.code,
        ErrorCode::ModelUnloadable
    );
    assert_eq!(fleet.ask(&Question::prompt("adder", "1+1=")).await?.text, "2");
    Ok(())
}

#[tokio::test]
async fn worker_with_a_broken_folder_among_good_ones_serves_the_good_ones() -> Result<()> {
    let models = tempfile::tempdir()?;
    copy_of_adder(&models.path().join("adder"))?;
    for (name, damage, _) in FAULTS {
        copy_of_adder(&models.path().join(name))?;
        damage(&models.path().join(name))?;
    }
    let fleet = Fleet::builder().models_dir(models.path()).start().await?;
    assert_eq!(fleet.ask(&Question::prompt("adder", "1+1=")).await?.text, "2");
    let refused = fleet.ask(&Question::prompt("truncated", "1+1=")).await?;
    assert_eq!(
        refused.end.err().context("it is not in the catalog")?.code,
        ErrorCode::UnknownModel
    );
    assert!(
        fleet.workers[0].log().contains("truncated"),
        "the log names the broken folder"
    );
    Ok(())
}

#[tokio::test]
async fn model_larger_than_the_device_is_refused_with_the_numbers() -> Result<()> {
    let fleet = Fleet::builder()
        .set("worker.cpu.memory_bytes=4MiB")
        .start()
        .await?;
    let answer = fleet.ask(&Question::prompt("adder", "1+1=")).await?;
    let error = answer.end.err().context("two pages hold no model")?;
    assert_eq!(error.code, ErrorCode::ModelUnloadable);
    assert!(error.message.contains("pages"), "{error}");
    Ok(())
}
