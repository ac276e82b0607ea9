//! Answers of a given shape: from a JSON schema, token by token, to the tokens that may come next.
//!
//! [`JsonGrammar`] is what an answer must be, [`GrammarVocabulary`] what a model can write, [`AnswerGrammar`] one
//! answer on its way. Nothing is forced: any tokens may be drawn whose bytes, put together, are the beginning of
//! an answer of the grammar. So what may come next is a function of the tokens so far, and a worker that takes
//! over pushes those of the journal and is where the other one was.
//!
//! Schemas come from outside. Compiling one takes time that its size and the limits below bound, up to about half
//! a second for the worst; so do masks, which take microseconds for schemas that somebody wrote to be obeyed.

mod vocabulary;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::{JsonCompileOptions, TokenParser};
use serde_json::{Map, Value, json};

pub use vocabulary::GrammarVocabulary;

/// What an answer must be: JSON, of a schema or any object.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonGrammar {
    schema: Map<String, Value>,
    one_of: OneOf,
}

/// What `oneOf` means where it cannot be shown that no value matches two of its branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OneOf {
    /// It cannot be obeyed: the schema is refused.
    Exact,
    /// The same as `anyOf`.
    Any,
}

impl JsonGrammar {
    /// Any JSON object.
    #[must_use]
    pub fn any_object() -> Self {
        let schema = Map::from_iter([("type".to_owned(), json!("object"))]);
        Self::of_schema(schema, OneOf::Exact)
    }

    /// What a JSON schema describes. Draft 2020-12, but for keywords that cannot be obeyed token by token, such as
    /// `uniqueItems` and `not`, which [`check`](Self::check) refuses. A number without bounds may be one of JSON's that
    /// no f64 holds, such as `1e999`.
    #[must_use]
    pub const fn of_schema(schema: Map<String, Value>, one_of: OneOf) -> Self {
        Self { schema, one_of }
    }

    /// Finds out whether answers can be made of it, for a vocabulary that can write every byte. Takes as long as
    /// compiling it.
    ///
    /// # Errors
    /// [`GrammarError::Schema`], or [`GrammarError::NoToken`] for a schema that nothing matches.
    pub fn check(&self) -> Result<(), GrammarError> {
        GrammarVocabulary::of_bytes().answer(self)?.mask().map(drop)
    }

    fn to_llguidance(&self) -> Result<TopLevelGrammar, GrammarError> {
        if self.schema.contains_key(OPTIONS_KEY) {
            let message = format!("{OPTIONS_KEY} is not supported");
            return Err(GrammarError::Schema { message });
        }
        let options = JsonCompileOptions {
            whitespace_pattern: Some(WHITESPACE.to_owned()),
            coerce_one_of: self.one_of == OneOf::Any,
            ..JsonCompileOptions::default()
        };
        let mut schema = Value::Object(self.schema.clone());
        options.apply_to(&mut schema);
        Ok(TopLevelGrammar::from_json_schema(schema))
    }
}

/// One answer of a grammar, as far as it is written.
pub struct AnswerGrammar {
    parser: Box<TokenParser>,
    vocabulary: GrammarVocabulary,
    tokens: usize,
}

impl AnswerGrammar {
    fn new(mut parser: TokenParser, vocabulary: GrammarVocabulary) -> Self {
        parser.start_without_prompt();
        Self {
            parser: Box::new(parser),
            vocabulary,
            tokens: 0,
        }
    }

    /// Adds the answer's next token. Costs microseconds.
    ///
    /// # Errors
    /// The token is none that [`mask`](Self::mask) allows, or a limit was reached. Nothing can follow then.
    pub fn push(&mut self, token: u32) -> Result<(), GrammarError> {
        let spelled = match self.tokens {
            0 => self.vocabulary.first_twin(token),
            _ => Some(token),
        };
        let spelled = spelled.ok_or(GrammarError::Refused { token })?;
        let is_allowed = self.guarded(|parser| parser.validate_token(spelled))?;
        if !is_allowed {
            return Err(GrammarError::Refused { token });
        }
        self.guarded(|parser| parser.consume_token(spelled))?;
        self.guarded(TokenParser::check_stop)?;
        self.tokens += 1;
        Ok(())
    }

    /// The tokens that may come next: token `t` if bit `t % 32` of word `t / 32` is set. The end tokens are among
    /// them where the answer may end, and alone where it must.
    ///
    /// # Errors
    /// No token of the vocabulary can come next, or a limit was reached. Nothing can follow then.
    pub fn mask(&mut self) -> Result<Vec<u32>, GrammarError> {
        if self.is_complete() {
            return Ok(self.vocabulary.end_tokens_mask());
        }
        let mask = self.guarded(TokenParser::compute_mask)?;
        let mut words = mask.as_slice().to_vec();
        if self.tokens == 0 {
            self.vocabulary.spell_first(&mut words);
        }
        Ok(words)
    }

    /// Whether nothing but an end token can follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(
            self.parser.stop_reason(),
            StopReason::NoExtension | StopReason::EndOfSentence
        )
    }

    /// Calls the library, which trusts itself; whatever it left broken is not looked at again but to be refused.
    fn guarded<T, E: fmt::Display>(
        &mut self,
        call: impl FnOnce(&mut TokenParser) -> Result<T, E>,
    ) -> Result<T, GrammarError> {
        let parser = &mut *self.parser;
        let message = match catch_unwind(AssertUnwindSafe(|| call(parser))) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => brief(&error),
            Err(_panic) => "the grammar library panicked".to_owned(),
        };
        Err(match self.parser.stop_reason() {
            StopReason::NoExtensionBias => GrammarError::NoToken,
            _ => GrammarError::TooComplex { message },
        })
    }
}

impl fmt::Debug for AnswerGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("AnswerGrammar");
        debug.field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

/// Why an answer of a grammar cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The schema is none, or says what cannot be obeyed token by token.
    #[error("the schema cannot be obeyed: {message}")]
    Schema {
        /// What the compiler said.
        message: String,
    },
    /// The model's tokens have no bytes of their own.
    #[error(
        "the text of this model's tokens depends on those around them, so answers cannot be given a shape"
    )]
    Tokenizer,
    /// Nothing in the vocabulary can come next.
    #[error("no token that the model has can come next in an answer of this shape")]
    NoToken,
    /// A token that may not come next.
    #[error("token {token} cannot come next in an answer of this shape")]
    Refused {
        /// The token.
        token: u32,
    },
    /// What may come next takes too much work to find out.
    #[error("the schema is too complex for an answer to go on: {message}")]
    TooComplex {
        /// Which limit was reached.
        message: String,
    },
}

/// What the library says, without what it adds for its own developers.
fn brief(error: &impl fmt::Display) -> String {
    let message = error.to_string();
    let lines = message.lines().filter(|line| !line.starts_with('<'));
    let joined = lines.map(str::trim).collect::<Vec<_>>().join("; ");
    joined.chars().take(MESSAGE_CHARS_MAX).collect()
}

/// What bounds the work for one grammar and one mask: llguidance's defaults, which let a schema of a hundred
/// optional properties pass, but for the states of the lexer, of which each takes up to 2 KB.
fn limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Between any two parts of an answer. Unbounded blanks would let an answer that never ends be drawn.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";
/// Where llguidance looks for its options in a schema: they are ours to set.
const OPTIONS_KEY: &str = "x-guidance";
/// Enough for what is wrong and where, without the schema.
const MESSAGE_CHARS_MAX: usize = 300;
