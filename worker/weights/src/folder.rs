//! Which files of a folder are a model's.
//!
//! Repositories hold more than a model: pictures, other formats, a second copy of the weights. What travels is
//! what loading reads: configuration, tokenizer, templates, and the safetensors files that the engine opens.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::FilesError;

/// The files of a model's folder, as paths in it with `/` between the parts, in order.
///
/// # Errors
/// [`FilesError`].
pub(crate) fn model_files(folder: &Path) -> Result<Vec<String>, FilesError> {
    if !folder.join(CONFIG).is_file() {
        return Err(FilesError::NoModel {
            folder: folder.to_owned(),
        });
    }
    let mut files = Vec::new();
    collect(folder, "", &mut files)?;
    let path = folder.join(WEIGHTS_INDEX);
    let index = match wants_index(&files) {
        true => Some(read_index(&path).map_err(FilesError::io("read", &path))?),
        false => None,
    };
    chosen_files(files, index.as_deref()).map_err(|error| FilesError::io("read", &path)(error.into()))
}

/// Of a repository's files, as paths with `/` between the parts, those that loading reads, in order. Of weights these
/// are the files of the index, which is given if [`wants_index`], else the one of the usual name. Of a subfolder, all are
/// kept: they belong to modules that sentence-transformers puts there.
///
/// # Errors
/// The index is none.
pub fn chosen_files(mut paths: Vec<String>, index: Option<&[u8]>) -> Result<Vec<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
        #[serde(flatten)]
        _rest: BTreeMap<String, IgnoredAny>,
    }
    let weights: BTreeSet<String> = match index {
        Some(index) => serde_json::from_slice::<Index>(index)?
            .weight_map
            .into_values()
            .collect(),
        None => BTreeSet::from([SINGLE.to_owned()]),
    };
    paths.retain(|path| is_of_model(path) && (!is_weights(path) || weights.contains(path)));
    paths.sort();
    Ok(paths)
}

/// Whether only the index tells which of these files loading reads.
#[must_use]
pub fn wants_index(paths: &[String]) -> bool {
    let has = |wanted: &str| paths.iter().any(|path| path == wanted);
    !has(SINGLE) && has(WEIGHTS_INDEX)
}

/// An index comes from outside and may have any length.
fn read_index(path: &Path) -> io::Result<Vec<u8>> {
    let mut index = Vec::new();
    let bytes_max = INDEX_BYTES_MAX as u64;
    fs::File::open(path)?
        .take(bytes_max + 1)
        .read_to_end(&mut index)?;
    match index.len() > INDEX_BYTES_MAX {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(index),
    }
}

fn collect(folder: &Path, under: &str, files: &mut Vec<String>) -> Result<(), FilesError> {
    let list = fs::read_dir(folder).map_err(FilesError::io("list", folder))?;
    for entry in list {
        let path: PathBuf = entry.map_err(FilesError::io("list", folder))?.path();
        // Links are followed: hub caches are made of them.
        let metadata = fs::metadata(&path).map_err(FilesError::io("look at", &path))?;
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            return Err(FilesError::Name { path });
        };
        let inside = format!("{under}{name}");
        if metadata.is_dir() && under.is_empty() && !name.starts_with('.') {
            collect(&path, &format!("{inside}/"), files)?;
        } else if metadata.is_file() {
            files.push(inside);
        }
    }
    Ok(())
}

/// Whether a file may be one that loading reads: of this or a folder below, not hidden, of a kind that it reads.
fn is_of_model(path: &str) -> bool {
    let is_visible = |part: &str| !part.is_empty() && !part.starts_with('.');
    let extension = path.rsplit_once('.').map(|(_, extension)| extension);
    path.split('/').count() <= 2
        && path.split('/').all(is_visible)
        && extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
}

/// Whether a file holds weights that only an index can ask for.
pub(crate) fn is_weights(file: &str) -> bool {
    file.ends_with(".safetensors") && !file.contains('/')
}

/// What makes a folder a model.
pub const CONFIG: &str = "config.json";
/// What lists the files of weights that are in several.
pub const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// That of a model with a million tensors.
const INDEX_BYTES_MAX: usize = 64 << 20;
const SINGLE: &str = "model.safetensors";
/// Of what loading reads.
const EXTENSIONS: [&str; 5] = ["json", "txt", "model", "jinja", "safetensors"];

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        }
        folder
    }

    #[test]
    fn only_what_loading_reads_belongs_to_a_model() {
        let folder = folder(&[
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            "consolidated.safetensors",
            "README.md",
            "pytorch_model.bin",
            "merges.txt",
            ".git/config.json",
            "1_Pooling/config.json",
            "original/deep/params.json",
            "original/consolidated.00.pth",
        ]);
        assert_eq!(
            model_files(folder.path()).unwrap(),
            [
                "1_Pooling/config.json",
                "config.json",
                "merges.txt",
                "model.safetensors",
                "tokenizer.json"
            ]
        );
    }

    #[test]
    fn index_says_which_weights_are_read() {
        let folder = folder(&[
            "config.json",
            "a-1.safetensors",
            "a-2.safetensors",
            "b.safetensors",
        ]);
        let index = r#"{"metadata": {}, "weight_map": {"x": "a-1.safetensors", "y": "a-2.safetensors"}}"#;
        fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let files = model_files(folder.path()).unwrap();
        assert!(
            files.contains(&"a-1.safetensors".to_owned()) && files.contains(&"a-2.safetensors".to_owned())
        );
        assert!(!files.contains(&"b.safetensors".to_owned()));
        fs::write(folder.path().join("model.safetensors.index.json"), "{").unwrap();
        let error = model_files(folder.path()).unwrap_err();
        assert!(
            error.to_string().contains("model.safetensors.index.json"),
            "{error}"
        );
    }

    #[test]
    fn folder_without_a_configuration_is_no_model() {
        let folder = folder(&["model.safetensors"]);
        assert!(matches!(
            model_files(folder.path()),
            Err(FilesError::NoModel { .. })
        ));
    }
}
