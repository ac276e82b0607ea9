//! Text to tokens and back: tokenizers, streaming detokenisation, stop strings, grammars, chat templates.
//!
//! The dispatcher counts prompt tokens with it; a worker renders chats, encodes prompts and streams
//! answers. It knows files, tokens and text, and nothing of requests or the network. Every file it reads
//! comes from outside, so each is bounded in size and a broken one is an error that names it.

mod answer;
mod chat;
mod file;
mod grammar;
mod simulated;
mod spelling;
mod stop;
mod strftime;
mod tokenizer;
mod tokenizer_config;
mod utf8;

pub use answer::{AnswerError, AnswerText, Emitted};
pub use chat::{ChatError, ChatOptions, ChatTemplate, GenerationPrompt};
pub use file::FileError;
pub use grammar::{AnswerGrammar, GrammarError, GrammarVocabulary, JsonGrammar, OneOf};
pub use simulated::SimulatedVocabulary;
pub use stop::{StopStrings, StopStringsError};
pub use strftime::StrftimeError;
pub use tokenizer::{SpecialTokens, Tokenizer, TokenizerError, TokenizerOp};
