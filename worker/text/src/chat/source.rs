//! Where a model's chat templates are: the files of its folder, in the order of `transformers`.

use std::path::{Path, PathBuf};

use crate::chat::{ChatError, SOURCE_BYTES_MAX};
use crate::file::read_if_there;
use crate::tokenizer_config::ChatTemplates;

/// One template's text.
#[derive(Debug)]
pub(crate) struct Source {
    /// The file that holds it.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// The templates that are used.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) default: Source,
    /// Takes the place of the default when there are tools.
    pub(crate) tool_use: Option<Source>,
}

/// Finds the templates of a folder. Template files come before the configuration: with `chat_template.jinja`
/// its templates are not looked at.
pub(crate) fn find(folder: &Path, configured: Option<ChatTemplates>) -> Result<Option<Sources>, ChatError> {
    let tool_use = read(folder.join("additional_chat_templates").join("tool_use.jinja"))?;
    if let Some(default) = read(folder.join("chat_template.jinja"))? {
        return Ok(Some(Sources { default, tool_use }));
    }
    let path = folder.join("tokenizer_config.json");
    let source = |text| Source {
        path: path.clone(),
        text,
    };
    match configured {
        None if tool_use.is_some() => Err(ChatError::NoDefault { path }),
        None => Ok(None),
        Some(ChatTemplates::One(text)) => Ok(Some(Sources {
            default: source(text),
            tool_use,
        })),
        Some(ChatTemplates::Named(templates)) => {
            let mut default = None;
            let mut configured_tool_use = None;
            for template in templates {
                match template.name.as_str() {
                    "default" => default = Some(source(template.template)),
                    "tool_use" => configured_tool_use = Some(source(template.template)),
                    _ => {}
                }
            }
            Ok(Some(Sources {
                default: default.ok_or_else(|| ChatError::NoDefault { path: path.clone() })?,
                tool_use: tool_use.or(configured_tool_use),
            }))
        }
    }
}

fn read(path: PathBuf) -> Result<Option<Source>, ChatError> {
    let limit_bytes = u64::try_from(SOURCE_BYTES_MAX).expect("a limit of 1 MiB is in range");
    let Some(content) = read_if_there(&path, limit_bytes)? else {
        return Ok(None);
    };
    match String::from_utf8(content) {
        Ok(text) => Ok(Some(Source { path, text })),
        Err(source) => Err(ChatError::NotText { path, source }),
    }
}
