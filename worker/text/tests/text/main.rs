//! Tokenizers, streamed answers and chat templates on real files.

#![allow(clippy::unwrap_used, reason = "a failed fixture is a failed test")]

mod answer;
mod chat;
mod fixtures;
mod grammar;
mod schemas;
mod tokenizer;
mod transformers;
