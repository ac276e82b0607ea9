//! The rule of profile files: one for every model, others for single ones.

use std::path::PathBuf;

use figment::value::Value;

use super::{Rule, Wording, filled, wrong_kind};
use crate::Problem;

/// A file with a profile, and for whom it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileFile {
    /// The model; `None` for every model that has no file of its own.
    pub model: Option<String>,
    /// The file.
    pub path: PathBuf,
}

/// Files separated by commas, each `FILE` or `MODEL=FILE`; no two for the same.
pub(crate) struct ProfileFiles;

impl Rule for ProfileFiles {
    type Out = Vec<ProfileFile>;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<Vec<ProfileFile>, Problem> {
        let text = filled(value, EXPECTED)?;
        let mut files: Vec<ProfileFile> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let file = file(part).ok_or_else(|| wrong_kind(EXPECTED, value))?;
            if files.iter().any(|known| known.model == file.model) {
                let what = file.model.map_or_else(
                    || "the file for every model".to_owned(),
                    |model| format!("a file for model {model:?}"),
                );
                return Err(Problem::Twice { what });
            }
            files.push(file);
        }
        Ok(files)
    }
}

fn file(part: &str) -> Option<ProfileFile> {
    let (model, path) = match part.split_once('=') {
        Some((model, path)) => (Some(model.trim()), path.trim()),
        None => (None, part),
    };
    (!path.is_empty() && model != Some("")).then(|| ProfileFile {
        model: model.map(str::to_owned),
        path: PathBuf::from(path),
    })
}

const EXPECTED: &str = "paths separated by commas, each FILE or MODEL=FILE";
