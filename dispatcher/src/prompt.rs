//! How many tokens a prompt has, by the model's own tokenizer where its files can be read here.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::{Chat, ChatMessage, Input};
use flotilla_text::{
    ChatError, ChatOptions, ChatTemplate, GenerationPrompt, SpecialTokens, Tokenizer, TokenizerError,
};
use tokio::sync::OnceCell;
use tracing::warn;

use crate::error::chain;

/// The text side of one model, opened by whoever needs it first. Holds `None` when its folder cannot be read
/// here; only another catalog entry makes it tried again.
pub(crate) type TextCell = Arc<OnceCell<Option<Arc<ModelText>>>>;

/// Tokenizer and chat template of a model.
#[derive(Debug)]
pub(crate) struct ModelText {
    tokenizer: Tokenizer,
    template: Result<Option<ChatTemplate>, ChatError>,
}

/// Tokens of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PromptTokens {
    /// By the model's tokenizer.
    Counted(u32),
    /// From the bytes: good for ranking, no ground for a refusal.
    Estimated(u32),
}

impl PromptTokens {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Counted(tokens) | Self::Estimated(tokens) => tokens,
        }
    }
}

/// Counts the tokens of a prompt. Of a long one on a thread for blocking work.
///
/// # Errors
/// A [`RequestError`] that names the field when the model cannot take this prompt.
pub(crate) async fn count(
    entry: &CatalogEntry,
    text: &TextCell,
    input: &Input,
) -> Result<PromptTokens, RequestError> {
    if let Input::PromptTokens(tokens) = input {
        return check_tokens(entry, tokens);
    }
    let text = text.get_or_init(|| open(entry)).await.clone();
    let Some(text) = text else {
        return Ok(estimate(input));
    };
    if prompt_bytes(input) <= INLINE_BYTES_MAX {
        return count_with(&text, input);
    }
    let input = input.clone();
    let counted = tokio::task::spawn_blocking(move || count_with(&text, &input)).await;
    match counted {
        Ok(counted) => counted,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Bytes of the prompt's text.
pub(crate) fn prompt_bytes(input: &Input) -> usize {
    match input {
        Input::Prompt(text) => text.len(),
        Input::PromptTokens(tokens) => tokens.len().saturating_mul(size_of::<u32>()),
        Input::Chat(chat) => chat.text_bytes(),
        Input::Embed(texts) => texts.iter().map(String::len).sum(),
    }
}

async fn open(entry: &CatalogEntry) -> Option<Arc<ModelText>> {
    let ModelSource::Folder(folder) = entry.source.clone();
    let model = entry.name.clone();
    let opened = tokio::task::spawn_blocking(move || open_folder(&model, &folder)).await;
    match opened {
        Ok(text) => text,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn open_folder(model: &ModelName, folder: &Path) -> Option<Arc<ModelText>> {
    match Tokenizer::open(folder) {
        Ok(tokenizer) => Some(Arc::new(ModelText {
            tokenizer,
            template: ChatTemplate::open(folder),
        })),
        Err(error) => {
            let error = chain(&error);
            warn!(%model, error, "prompt tokens are estimated: the tokenizer cannot be read here");
            None
        }
    }
}

fn check_tokens(entry: &CatalogEntry, tokens: &[u32]) -> Result<PromptTokens, RequestError> {
    let size = entry.facts.vocabulary_size;
    if let Some(foreign) = tokens.iter().find(|token| **token >= size) {
        let message = format!("token {foreign} is outside the model's vocabulary of {size}");
        return Err(invalid("prompt", message));
    }
    nonempty("prompt", tokens.len())
}

fn count_with(text: &ModelText, input: &Input) -> Result<PromptTokens, RequestError> {
    let field = input.field();
    let unusable = |error: TokenizerError| invalid(field, error.to_string());
    let tokens = match input {
        Input::Prompt(prompt) => text
            .tokenizer
            .count(prompt, SpecialTokens::Add)
            .map_err(unusable)?,
        Input::Chat(chat) => {
            let rendered = render(text, chat)?;
            let count = text.tokenizer.count(&rendered, SpecialTokens::Skip);
            count.map_err(unusable)?
        }
        Input::PromptTokens(tokens) => tokens.len(),
        Input::Embed(texts) => {
            let counts = texts
                .iter()
                .map(|each| text.tokenizer.count(each, SpecialTokens::Add));
            counts.sum::<Result<usize, _>>().map_err(unusable)?
        }
    };
    nonempty(field, tokens)
}

fn render(text: &ModelText, chat: &Chat) -> Result<String, RequestError> {
    let template = match &text.template {
        Ok(Some(template)) => template,
        Ok(None) => {
            let message = "the model has no chat template; send a \"prompt\" instead";
            return Err(invalid("messages", message.to_owned()));
        }
        Err(error) => {
            return Err(RequestError {
                code: ErrorCode::ModelUnloadable,
                message: error.to_string(),
                param: None,
            });
        }
    };
    let messages: Vec<_> = chat.messages.iter().map(ChatMessage::to_value).collect();
    let tools = (!chat.tools.is_empty()).then(|| chat.tools.clone().into());
    let options = ChatOptions {
        generation_prompt: GenerationPrompt::Add,
        tools: tools.as_ref(),
        now: SystemTime::now(),
    };
    template
        .render(&messages, options)
        .map_err(|error| invalid("messages", error.to_string()))
}

fn nonempty(field: &'static str, tokens: usize) -> Result<PromptTokens, RequestError> {
    match u32::try_from(tokens).unwrap_or(u32::MAX) {
        0 => Err(invalid(field, "the prompt has no tokens".to_owned())),
        tokens => Ok(PromptTokens::Counted(tokens)),
    }
}

fn estimate(input: &Input) -> PromptTokens {
    let tokens = prompt_bytes(input) / BYTES_PER_TOKEN + 1;
    PromptTokens::Estimated(u32::try_from(tokens).unwrap_or(u32::MAX))
}

fn invalid(field: &str, message: String) -> RequestError {
    RequestError {
        code: ErrorCode::InvalidRequest,
        message,
        param: Some(field.to_owned()),
    }
}

/// A prompt that is counted in less time than another thread takes to begin; tokenizers read megabytes a second.
const INLINE_BYTES_MAX: usize = 1024;
/// Of English prose with a vocabulary of some 100,000; others differ by a factor of two.
const BYTES_PER_TOKEN: usize = 4;
