//! Rendering and tokenising, by the files of a model's folder, or by rule for a model that is simulated.

use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use flotilla_protocol::catalog::ModelTask;
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::{Chat, ChatMessage, InferenceRequest, Input, ResponseFormat};
use flotilla_text::{
    AnswerGrammar, ChatError, ChatOptions, ChatTemplate, GenerationPrompt, GrammarError, GrammarVocabulary,
    SimulatedVocabulary, SpecialTokens, Tokenizer, TokenizerError,
};
use serde_json::Value;
use thiserror::Error;

use crate::{ModelBounds, format, invalid, refused};

/// A model's tokenizer and chat template, ready to make prompts.
#[derive(Debug)]
pub struct PromptMaker {
    tokenizer: Tokenizer,
    chat: ChatSide,
    bounds: ModelBounds,
    /// Made for the first answer that has a shape.
    vocabulary: OnceLock<Result<GrammarVocabulary, GrammarError>>,
}

/// How chats become text.
#[derive(Debug)]
enum ChatSide {
    /// Not at all.
    None,
    /// By the model's template.
    Template(Box<ChatTemplate>),
    /// Role and content of each message in turn: a simulated model has been trained on nothing else.
    Plain,
}

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// A text to go on with.
    Generate(Prompt),
    /// The tokens of each text of which a vector is wanted: at least one, at most a context: longer texts
    /// are cut.
    Embed(Vec<Vec<u32>>),
}

impl Made {
    /// Tokens to be read before there is an answer.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        match self {
            Self::Generate(prompt) => prompt.tokens.len(),
            Self::Embed(texts) => texts.iter().map(Vec::len).sum(),
        }
    }
}

/// A prompt that its model can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// At least one token, and at least one less than the context.
    pub tokens: Vec<u32>,
    /// Most tokens of the answer, within the context; at least 1.
    pub answer_tokens_max: u32,
}

/// Why a folder's text files cannot be used.
#[derive(Debug, Error)]
pub enum OpenTextError {
    /// The tokenizer is missing or broken.
    #[error("the model's tokenizer cannot be used")]
    Tokenizer(#[from] TokenizerError),
    /// The chat template is broken.
    #[error("the model's chat template cannot be used")]
    Chat(#[from] ChatError),
}

impl PromptMaker {
    /// Opens the tokenizer and, where there is one, the chat template of a folder. Reads files and takes up to
    /// seconds. Texts of which a vector is made are cut to the context, as sentence-transformers does; prompts
    /// never are.
    ///
    /// # Errors
    /// [`OpenTextError`].
    pub fn open(folder: &Path, bounds: ModelBounds) -> Result<Self, OpenTextError> {
        Ok(Self {
            tokenizer: match bounds.task {
                ModelTask::Generate => Tokenizer::open(folder)?,
                ModelTask::Embed { .. } => {
                    let tokens_max = usize::try_from(bounds.context_tokens_max).unwrap_or(usize::MAX);
                    Tokenizer::open_truncating(folder, tokens_max)?
                }
            },
            chat: match ChatTemplate::open(folder)? {
                Some(template) => ChatSide::Template(Box::new(template)),
                None => ChatSide::None,
            },
            bounds,
            vocabulary: OnceLock::new(),
        })
    }

    /// What makes the prompts of a model that has no text files here: its tokens are words by rule, so whoever
    /// counts by the same bounds counts the same.
    #[must_use]
    pub fn simulated(bounds: ModelBounds) -> Self {
        Self {
            tokenizer: Tokenizer::simulated(SimulatedVocabulary::new(bounds.vocabulary_size)),
            chat: ChatSide::Plain,
            bounds,
            vocabulary: OnceLock::new(),
        }
    }

    /// The model's tokenizer, for its answers.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Makes the prompt of a request. Renders and tokenises: a long one belongs on a thread for blocking work.
    /// `now` is what a chat template shows as the date.
    ///
    /// # Errors
    /// A [`RequestError`] that names the field.
    pub fn make(&self, request: &InferenceRequest, now: SystemTime) -> Result<Made, RequestError> {
        self.bounds.check(request)?;
        self.check_tokenizer(request)?;
        let field = request.input.field();
        let tokens = match &request.input {
            Input::Prompt(text) => self.encode(field, text, SpecialTokens::Add)?,
            Input::PromptTokens(tokens) => tokens.clone(),
            Input::Chat(chat) => self.encode(field, &self.render(chat, now)?, SpecialTokens::Skip)?,
            Input::Embed(texts) => return self.encode_texts(texts).map(Made::Embed),
        };
        // A tokenizer may know tokens that were added after training and have no row in the weights.
        let answer_tokens_max = self.bounds.answer_tokens_max(request, &tokens)?;
        Ok(Made::Generate(Prompt {
            tokens,
            answer_tokens_max,
        }))
    }

    /// The shape of the request's answer, before its first token; none for any text. `end_tokens` end an answer of
    /// this model. Compiles a schema, and the first time the model's vocabulary, which takes up to seconds: it
    /// belongs on a thread for blocking work.
    ///
    /// # Errors
    /// A [`RequestError`] that names the field.
    pub fn answer_grammar(
        &self,
        request: &InferenceRequest,
        end_tokens: &[u32],
    ) -> Result<Option<AnswerGrammar>, RequestError> {
        let Some(grammar) = format::grammar(&request.response_format) else {
            return Ok(None);
        };
        let size = self.bounds.vocabulary_size;
        let made = || GrammarVocabulary::new(&self.tokenizer, size, end_tokens);
        let vocabulary = self.vocabulary.get_or_init(made).as_ref();
        let answer = vocabulary
            .map_err(Clone::clone)
            .and_then(|vocabulary| vocabulary.answer(&grammar));
        answer
            .map(Some)
            .map_err(|error| refused(&request.response_format, &error))
    }

    fn check_tokenizer(&self, request: &InferenceRequest) -> Result<(), RequestError> {
        match &request.response_format {
            ResponseFormat::JsonObject | ResponseFormat::JsonSchema(_)
                if !self.tokenizer.spells_alike_anywhere() =>
            {
                Err(refused(&request.response_format, &GrammarError::Tokenizer))
            }
            ResponseFormat::Text | ResponseFormat::JsonObject | ResponseFormat::JsonSchema(_) => Ok(()),
        }
    }

    fn encode_texts(&self, texts: &[String]) -> Result<Vec<Vec<u32>>, RequestError> {
        let encode = |(index, text): (usize, &String)| {
            let tokens = self.encode(&format!("input[{index}]"), text, SpecialTokens::Add)?;
            self.bounds.check_text(index, &tokens)?;
            Ok(tokens)
        };
        texts.iter().enumerate().map(encode).collect()
    }

    fn encode(&self, field: &str, text: &str, special: SpecialTokens) -> Result<Vec<u32>, RequestError> {
        self.tokenizer.encode(text, special).map_err(|error| match error {
            TokenizerError::Failed { .. } => {
                invalid(field, "the model's tokenizer has no tokens for this text")
            }
            other => broken(field, other.to_string()),
        })
    }

    fn render(&self, chat: &Chat, now: SystemTime) -> Result<String, RequestError> {
        let template = match &self.chat {
            ChatSide::Template(template) => template,
            ChatSide::Plain => return Ok(plain(chat)),
            ChatSide::None => {
                let message = "the model has no chat template; send a prompt instead of messages";
                return Err(invalid("messages", message));
            }
        };
        let messages: Vec<Value> = chat.messages.iter().map(ChatMessage::to_value).collect();
        let tools = (!chat.tools.is_empty()).then(|| Value::from(chat.tools.clone()));
        let options = ChatOptions {
            generation_prompt: GenerationPrompt::Add,
            tools: tools.as_ref(),
            now,
        };
        template.render(&messages, options).map_err(unrendered)
    }
}

/// A chat as a simulated model reads it. One that grows by a turn begins with the same words, so that what was
/// read of it before is found again.
fn plain(chat: &Chat) -> String {
    let mut text = String::new();
    let mut add = |part: &str| {
        text.push_str(part);
        text.push(' ');
    };
    for tool in &chat.tools {
        add(&tool.to_string());
    }
    for message in &chat.messages {
        add(&message.role);
        message.content.as_deref().into_iter().for_each(&mut add);
        for call in &message.tool_calls {
            add(&call.to_string());
        }
    }
    add("assistant");
    text
}

/// A template that fails on some messages may be right for others: that is the request's fault, as far as
/// anybody can tell.
fn unrendered(error: ChatError) -> RequestError {
    match error {
        ChatError::Raised { .. } | ChatError::OutOfSteps { .. } | ChatError::OutputTooLarge { .. } => {
            invalid("messages", error.to_string())
        }
        ChatError::Render { source, .. } => {
            let cause: String = source.to_string().chars().take(CAUSE_CHARS_MAX).collect();
            invalid(
                "messages",
                format!("the model's chat template fails on these messages: {cause}"),
            )
        }
        ChatError::File(_)
        | ChatError::MalformedConfig { .. }
        | ChatError::NotText { .. }
        | ChatError::TemplateTooLarge { .. }
        | ChatError::NoDefault { .. }
        | ChatError::Syntax { .. }
        | ChatError::Panicked { .. } => broken("messages", error.to_string()),
    }
}

fn broken(field: &str, message: String) -> RequestError {
    RequestError {
        code: ErrorCode::Internal,
        message,
        param: Some(field.to_owned()),
    }
}

/// Of what the template engine says of a failure; the rest would quote the template.
const CAUSE_CHARS_MAX: usize = 200;
