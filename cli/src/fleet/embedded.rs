//! The models that are part of this program: three for demonstration, so that a first run needs no download,
//! and one for benchmarks.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context as _;

/// A model folder inside this program.
#[derive(Debug)]
pub(crate) struct EmbeddedModel {
    /// Name of the folder and of the model.
    pub(crate) name: &'static str,
    files: [(&'static str, &'static [u8]); 5],
}

macro_rules! embedded_model {
    ($group:literal, $name:literal) => {
        EmbeddedModel {
            name: $name,
            files: [
                embedded_file!($group, $name, "config.json"),
                embedded_file!($group, $name, "generation_config.json"),
                embedded_file!($group, $name, "model.safetensors"),
                embedded_file!($group, $name, "tokenizer.json"),
                embedded_file!($group, $name, "tokenizer_config.json"),
            ],
        }
    };
}

macro_rules! embedded_file {
    ($group:literal, $name:literal, $file:literal) => {
        (
            $file,
            include_bytes!(concat!("../../", $group, "/", $name, "/", $file)),
        )
    };
}

/// Models whose answers a person can check.
pub(crate) const DEMO_MODELS: [EmbeddedModel; 3] = [
    embedded_model!("demo-models", "adder"),
    embedded_model!("demo-models", "sorter"),
    embedded_model!("demo-models", "reverser"),
];

/// A model that costs next to nothing, so that a benchmark measures the path and not the model.
pub(crate) const INSTANT_MODEL: EmbeddedModel = embedded_model!("bench-models", "instant");

/// Writes every file of `models` that is missing or different below `folder`.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn extract(models: &[EmbeddedModel], folder: &Path) -> anyhow::Result<()> {
    for model in models {
        let target = folder.join(model.name);
        fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
        for (name, bytes) in model.files {
            let path = target.join(name);
            write_if_different(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Writes beside and renames: a worker that has the old file open keeps it whole.
fn write_if_different(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::read(path) {
        Ok(found) if found == bytes => return Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let beside = path.with_extension("partial");
    fs::write(&beside, bytes)?;
    fs::rename(beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extraction_mends_what_differs_and_leaves_the_rest_alone() {
        let folder = tempfile::tempdir().unwrap();
        extract(&DEMO_MODELS, folder.path()).unwrap();
        let [config, weights] =
            ["adder/config.json", "adder/model.safetensors"].map(|it| folder.path().join(it));
        let untouched = fs::metadata(&weights).unwrap().modified().unwrap();
        fs::write(&config, "{}").unwrap();
        extract(&DEMO_MODELS, folder.path()).unwrap();
        assert_eq!(
            fs::read(&config).unwrap(),
            include_bytes!("../../demo-models/adder/config.json")
        );
        assert_eq!(fs::metadata(&weights).unwrap().modified().unwrap(), untouched);
    }

    #[test]
    fn every_demo_model_can_be_described_as_a_catalog_entry() {
        let folder = tempfile::tempdir().unwrap();
        extract(&DEMO_MODELS, folder.path()).unwrap();
        for model in &DEMO_MODELS {
            let name = flotilla_protocol::ModelName::new(model.name).unwrap();
            let entry = flotilla_worker::describe(name, &folder.path().join(model.name)).unwrap();
            assert_eq!(entry.facts.architecture, "LlamaForCausalLM");
        }
    }
}
