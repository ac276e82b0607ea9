//! From a request to the tokens of its prompt, or to the reason why it has none.
//!
//! The dispatcher counts with it before a request is queued, a worker runs what it makes: one place, so that
//! both refuse the same requests in the same words. It decides what a model can take; how tokens are drawn
//! and who runs them is left to the worker.

mod bounds;
mod format;
mod maker;

pub use bounds::ModelBounds;
pub use format::{check_format, refused};
pub use maker::{Made, OpenTextError, Prompt, PromptMaker};

use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::Input;

/// Bytes of the text that a prompt is made of; of token ids, the bytes that they take.
#[must_use]
pub fn text_bytes(input: &Input) -> usize {
    match input {
        Input::Prompt(text) => text.len(),
        Input::PromptTokens(tokens) => tokens.len().saturating_mul(size_of::<u32>()),
        Input::Chat(chat) => chat.text_bytes(),
        Input::Embed(texts) => texts.iter().map(String::len).sum(),
    }
}

fn invalid(param: &str, message: impl Into<String>) -> RequestError {
    RequestError {
        code: ErrorCode::InvalidRequest,
        message: message.into(),
        param: Some(param.to_owned()),
    }
}

/// A prompt of more than `u32::MAX` tokens is beyond every context.
fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
