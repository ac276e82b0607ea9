//! Log-probabilities in OpenAI's two shapes.
//!
//! A dispatcher need not have the model's tokenizer, so a token is written as vLLM writes it on demand:
//! `token_id:` and its number.

use std::collections::BTreeMap;

use flotilla_protocol::event::TokenLogprobs;
use serde::Serialize;

/// The `logprobs` of a choice.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Logprobs {
    Chat {
        content: Vec<ChatLogprob>,
    },
    Completion {
        tokens: Vec<String>,
        token_logprobs: Vec<f32>,
        top_logprobs: Vec<BTreeMap<String, f32>>,
    },
}

#[derive(Debug, PartialEq, Serialize)]
pub(super) struct ChatLogprob {
    #[serde(flatten)]
    drawn: TokenLogprob,
    top_logprobs: Vec<TokenLogprob>,
}

#[derive(Debug, PartialEq, Serialize)]
struct TokenLogprob {
    token: String,
    logprob: f32,
}

impl Logprobs {
    pub(super) fn chat(token_ids: &[u32], logprobs: &[TokenLogprobs]) -> Self {
        let content = token_ids.iter().zip(logprobs).map(|(&token, told)| ChatLogprob {
            drawn: TokenLogprob::new(token, told.logprob),
            top_logprobs: told
                .top
                .iter()
                .map(|&(token, logprob)| TokenLogprob::new(token, logprob))
                .collect(),
        });
        Self::Chat {
            content: content.collect(),
        }
    }

    pub(super) fn completion(token_ids: &[u32], logprobs: &[TokenLogprobs]) -> Self {
        let top = |told: &TokenLogprobs| {
            told.top
                .iter()
                .map(|&(token, logprob)| (name(token), logprob))
                .collect()
        };
        Self::Completion {
            tokens: token_ids.iter().map(|&token| name(token)).collect(),
            token_logprobs: logprobs.iter().map(|told| told.logprob).collect(),
            top_logprobs: logprobs.iter().map(top).collect(),
        }
    }
}

impl TokenLogprob {
    fn new(token: u32, logprob: f32) -> Self {
        Self {
            token: name(token),
            logprob,
        }
    }
}

fn name(token: u32) -> String {
    format!("token_id:{token}")
}
