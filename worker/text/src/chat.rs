//! Chat templates: a conversation to the prompt that its model was trained on.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};

use crate::chat::bounded::BoundedWriter;
use crate::chat::functions::Raised;
use crate::chat::source::{Source, Sources};
use crate::file::FileError;
use crate::tokenizer_config::{ConfigError, TokenizerConfig};

mod bounded;
mod functions;
mod generation;
mod json;
mod message;
mod source;

/// A model's chat template, after the conventions of Hugging Face `transformers`.
///
/// It comes with the model's files and is not trusted: it sees nothing but its arguments, and its steps
/// (5 million), its output (16 MiB), its source (1 MiB) and its recursion are bounded.
/// The memory of the values that it makes on its way is bounded by the engine alone, to 100 MB for one repeated
/// string; a template that joins a text with itself again and again can use up its process's memory.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    default: Named,
    /// Takes the place of the default when there are tools.
    tool_use: Option<Named>,
    special_tokens: BTreeMap<&'static str, String>,
}

/// One of a model's templates, as the environment knows it.
#[derive(Debug)]
struct Named {
    name: &'static str,
    /// The file that holds it.
    path: PathBuf,
}

/// What a chat is rendered with besides its messages.
#[derive(Clone, Copy, Debug)]
pub struct ChatOptions<'a> {
    /// Whether the prompt ends with the beginning of the assistant's answer.
    pub generation_prompt: GenerationPrompt,
    /// The tools that the model may call, as the client sent them; the order of keys is kept.
    pub tools: Option<&'a serde_json::Value>,
    /// What `strftime_now` shows, in UTC. An argument, so that two renderings of a chat can agree.
    pub now: SystemTime,
}

/// Whether a prompt ends with the beginning of the assistant's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model answers next.
    Add,
    /// It does not: the last message is to be continued.
    Omit,
}

/// Why a chat template could not be opened or a chat not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `tokenizer_config.json` is not a tokenizer configuration.
    #[error("{} is not a tokenizer configuration: fetch the model again", path.display())]
    MalformedConfig {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// The template file is not UTF-8.
    #[error("{} is not UTF-8 text: fetch the model again", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        source: std::string::FromUtf8Error,
    },
    /// The template is larger than any real one.
    #[error("the chat template of {} has {bytes} bytes, the limit is {limit_bytes}", path.display())]
    TemplateTooLarge {
        /// The file that holds it.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// Most bytes of a template.
        limit_bytes: usize,
    },
    /// There are several templates, none of them named `default`.
    #[error("{} has chat templates, but none is named \"default\": name the one to use so", path.display())]
    NoDefault {
        /// The file that holds them.
        path: PathBuf,
    },
    /// The template is not valid Jinja.
    #[error("the chat template of {} is not valid: correct it or remove it", path.display())]
    Syntax {
        /// The file that holds it.
        path: PathBuf,
        /// What is wrong, and where.
        source: minijinja::Error,
    },
    /// The template refused the messages with `raise_exception`; the message is meant for the client.
    #[error("the chat template refused the messages: {message}")]
    Raised {
        /// What the template said.
        message: String,
    },
    /// The template ran for too long.
    #[error("the chat template took more than {steps} steps")]
    OutOfSteps {
        /// Most steps of one rendering.
        steps: u64,
    },
    /// The prompt is too large.
    #[error("the rendered chat has more than {limit_bytes} bytes")]
    OutputTooLarge {
        /// Most bytes of a rendered chat.
        limit_bytes: usize,
    },
    /// The template failed on these messages.
    #[error("the chat template of {} failed", path.display())]
    Render {
        /// The file that holds it.
        path: PathBuf,
        /// What failed, and where.
        source: minijinja::Error,
    },
    /// The template made its engine panic.
    #[error("the chat template of {} breaks its engine", path.display())]
    Panicked {
        /// The file that holds it.
        path: PathBuf,
    },
}

impl ChatTemplate {
    /// Opens the chat template of a model's folder: `chat_template.jinja`, or else the template in
    /// `tokenizer_config.json` (of several, the one named `default`). `None` when there is neither.
    /// A second one, `additional_chat_templates/tool_use.jinja` or the configured one named `tool_use`, renders
    /// the chats that have tools.
    ///
    /// # Errors
    /// A file that is too large or malformed, or a template that is not valid.
    pub fn open(folder: &Path) -> Result<Option<Self>, ChatError> {
        let config = TokenizerConfig::open(folder)?;
        let special_tokens = config
            .special_tokens()
            .map(|(name, token)| (name, token.to_owned()))
            .collect();
        match source::find(folder, config.chat_template)? {
            Some(sources) => Self::compile(sources, special_tokens).map(Some),
            None => Ok(None),
        }
    }

    /// The prompt of a conversation: `messages` is the array of a chat completion request.
    ///
    /// The special tokens are in the text: encode it with [`SpecialTokens::Skip`](crate::SpecialTokens).
    ///
    /// # Errors
    /// [`ChatError::Raised`] when the template refuses the messages, or another limit or failure of it.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        options: ChatOptions<'_>,
    ) -> Result<String, ChatError> {
        let used = match &self.tool_use {
            Some(tool_use) if options.tools.is_some() => tool_use,
            Some(_) | None => &self.default,
        };
        let mut output = BoundedWriter::new(OUTPUT_BYTES_MAX);
        // The environment is not changed by a rendering, and the output is dropped after a panic.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let template = self.environment.get_template(used.name)?;
            template
                .render_captured_to(self.context(messages, options), &mut output)
                .map(drop)
        }));
        match outcome {
            Ok(Ok(())) => Ok(output.into_text()),
            Ok(Err(_)) if output.overflowed() => Err(ChatError::OutputTooLarge {
                limit_bytes: OUTPUT_BYTES_MAX,
            }),
            Ok(Err(source)) => Err(failure(source, used)),
            Err(_panic) => Err(ChatError::Panicked {
                path: used.path.clone(),
            }),
        }
    }

    fn compile(sources: Sources, special_tokens: BTreeMap<&'static str, String>) -> Result<Self, ChatError> {
        let mut environment = environment();
        let default = add(&mut environment, "default", sources.default)?;
        let tool_use = sources.tool_use;
        let tool_use = tool_use.map(|source| add(&mut environment, "tool_use", source));
        Ok(Self {
            default,
            tool_use: tool_use.transpose()?,
            environment,
            special_tokens,
        })
    }

    fn context(&self, messages: &[serde_json::Value], options: ChatOptions<'_>) -> Value {
        let tools = options
            .tools
            .map_or(Value::from(()), |tools| Value::from(Serde(tools)));
        let messages: Vec<_> = messages.iter().map(message::prepared).collect();
        let arguments = [
            ("messages", Value::from(Serde(&messages))),
            ("tools", tools),
            ("documents", Value::from(())),
            (
                "add_generation_prompt",
                Value::from(options.generation_prompt == GenerationPrompt::Add),
            ),
            ("strftime_now", functions::strftime_now(options.now)),
        ];
        let tokens = self
            .special_tokens
            .iter()
            .map(|(&name, token)| (name, Value::from(token.as_str())));
        Value::from(tokens.chain(arguments).collect::<BTreeMap<_, _>>())
    }
}

impl From<ConfigError> for ChatError {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::File(error) => Self::File(error),
            ConfigError::Malformed { path, source } => Self::MalformedConfig { path, source },
        }
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the delimiters are Jinja's own"),
    );
    environment.set_fuel(Some(STEPS_MAX));
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    functions::register(&mut environment);
    environment
}

/// Compiles a template. Its name has no `.html`, so nothing is escaped.
fn add(
    environment: &mut Environment<'static>,
    name: &'static str,
    source: Source,
) -> Result<Named, ChatError> {
    let Source { path, text } = source;
    if text.len() > SOURCE_BYTES_MAX {
        return Err(ChatError::TemplateTooLarge {
            path,
            bytes: text.len(),
            limit_bytes: SOURCE_BYTES_MAX,
        });
    }
    let text = generation::without_generation_tags(&text);
    // After a panic the environment is dropped with the error.
    match catch_unwind(AssertUnwindSafe(|| environment.add_template_owned(name, text))) {
        Ok(Ok(())) => Ok(Named { name, path }),
        Ok(Err(source)) => Err(ChatError::Syntax { path, source }),
        Err(_panic) => Err(ChatError::Panicked { path }),
    }
}

fn failure(source: minijinja::Error, template: &Named) -> ChatError {
    let mut cause = source.source();
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return ChatError::Raised {
                message: message.clone(),
            };
        }
        cause = error.source();
    }
    match source.kind() {
        ErrorKind::OutOfFuel => ChatError::OutOfSteps { steps: STEPS_MAX },
        _ => ChatError::Render {
            path: template.path.clone(),
            source,
        },
    }
}

/// The largest templates in use have 30 kB.
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// A chat of 10,000 messages takes about one million.
const STEPS_MAX: u64 = 5_000_000;

/// Nested macros and loops of one rendering; the stack of a thread holds this many in a debug build.
const RECURSION_MAX: usize = 100;

/// Several times the longest context of any model.
const OUTPUT_BYTES_MAX: usize = 16 << 20;
