//! `tokenizer_config.json`: the names of the special tokens, and the chat template of most models.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::file::{FILE_BYTES_MAX, FileError, read_if_there};

/// What is used of a `tokenizer_config.json`; its many other keys belong to other programs.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct TokenizerConfig {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    sep_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    cls_token: Option<TokenText>,
    mask_token: Option<TokenText>,
    pub(crate) chat_template: Option<ChatTemplates>,
}

/// The two shapes of `chat_template`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ChatTemplates {
    One(String),
    Named(Vec<NamedTemplate>),
}

/// One of several templates.
#[derive(Debug, Deserialize)]
pub(crate) struct NamedTemplate {
    pub(crate) name: String,
    pub(crate) template: String,
}

/// Why a `tokenizer_config.json` could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is not a tokenizer configuration", path.display())]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json`; a folder without one has an empty configuration.
    pub(crate) fn open(folder: &Path) -> Result<Self, ConfigError> {
        let path = folder.join("tokenizer_config.json");
        match read_if_there(&path, FILE_BYTES_MAX)? {
            None => Ok(Self::default()),
            Some(content) => {
                serde_json::from_slice(&content).map_err(|source| ConfigError::Malformed { path, source })
            }
        }
    }

    /// The special tokens under the names that chat templates know them by.
    pub(crate) fn special_tokens(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let named = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("sep_token", &self.sep_token),
            ("pad_token", &self.pad_token),
            ("cls_token", &self.cls_token),
            ("mask_token", &self.mask_token),
        ];
        named
            .into_iter()
            .filter_map(|(name, token)| token.as_ref().map(|token| (name, token.as_str())))
    }
}

/// A token is written as its text or as an object that holds it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Added { content: String },
}

impl TokenText {
    fn as_str(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Added { content: text } => text,
        }
    }
}
