//! What can be said of a request by a model's numbers alone.

use flotilla_protocol::catalog::{ModelFacts, ModelTask};
use flotilla_protocol::event::RequestError;
use flotilla_protocol::request::{InferenceRequest, Input};

use crate::{count, invalid};

/// The numbers of a model that bound its prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelBounds {
    /// What the model does.
    pub task: ModelTask,
    /// Rows of the model's vocabulary: every token id is below.
    pub vocabulary_size: u32,
    /// Longest prompt and answer together, or as much of a text as its vector is made of, in
    /// tokens.
    pub context_tokens_max: u32,
}

impl From<&ModelFacts> for ModelBounds {
    fn from(facts: &ModelFacts) -> Self {
        Self {
            task: facts.task,
            vocabulary_size: facts.vocabulary_size,
            context_tokens_max: facts.context_tokens_max,
        }
    }
}

impl ModelBounds {
    /// Checks what needs no tokenizer: whether the model does what is asked, token ids, and room for the answer
    /// to a prompt of token ids.
    ///
    /// # Errors
    /// A [`RequestError`] that names the field.
    pub fn check(&self, request: &InferenceRequest) -> Result<(), RequestError> {
        self.check_tokens("logit_bias", request.sampling.logit_bias.keys().copied())?;
        match (&request.input, self.task) {
            (Input::PromptTokens(tokens), ModelTask::Generate) => {
                self.answer_tokens_max(request, tokens).map(drop)
            }
            (Input::Prompt(_) | Input::Chat(_), ModelTask::Generate)
            | (Input::Embed(_), ModelTask::Embed { .. }) => Ok(()),
            (Input::Embed(_), ModelTask::Generate) => Err(invalid(
                "input",
                "this model makes text, not embeddings; send a prompt or messages",
            )),
            (Input::Prompt(_) | Input::PromptTokens(_) | Input::Chat(_), ModelTask::Embed { .. }) => {
                Err(invalid(
                    request.input.field(),
                    "this model makes embeddings, not text; send an input",
                ))
            }
        }
    }

    /// Checks the tokens of one text of an embedding request.
    pub(crate) fn check_text(&self, index: usize, tokens: &[u32]) -> Result<(), RequestError> {
        let field = format!("input[{index}]");
        if tokens.is_empty() {
            return Err(invalid(&field, "the text has no tokens"));
        }
        self.check_tokens(&field, tokens.iter().copied())
    }

    /// Checks the tokens of a prompt, and tells how long its answer may be.
    pub(crate) fn answer_tokens_max(
        &self,
        request: &InferenceRequest,
        tokens: &[u32],
    ) -> Result<u32, RequestError> {
        let field = request.input.field();
        if tokens.is_empty() {
            return Err(invalid(field, "the prompt has no tokens"));
        }
        self.check_tokens(field, tokens.iter().copied())?;
        request.answer_tokens_max(count(tokens.len()), self.context_tokens_max)
    }

    fn check_tokens(&self, field: &str, tokens: impl IntoIterator<Item = u32>) -> Result<(), RequestError> {
        let size = self.vocabulary_size;
        match tokens.into_iter().find(|token| *token >= size) {
            None => Ok(()),
            Some(token) => {
                let message = format!("token {token} is outside the model's vocabulary of {size}");
                Err(invalid(field, message))
            }
        }
    }
}
