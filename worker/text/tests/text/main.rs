//! Tokenizers, streamed answers and chat templates on real files.

mod answer;
mod chat;
mod fixtures;
mod tokenizer;
