//! A whole answer in OpenAI's shape.

mod logprobs;

use std::time::SystemTime;

use flotilla_protocol::event::{Embedding, ErrorCode, FinishReason, Finished, RequestError, Usage};
use flotilla_protocol::request::Input;
use flotilla_protocol::{ModelName, RequestId};
use serde::Serialize;

use self::logprobs::Logprobs;
use crate::answer::Answer;

/// Which of OpenAI's responses is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Of `/v1/completions`.
    Completion,
    /// Of `/v1/chat/completions`.
    Chat,
    /// Of `/v1/embeddings`.
    Embeddings,
}

impl Shape {
    /// What answers an input.
    #[must_use]
    pub fn of(input: &Input) -> Self {
        match input {
            Input::Prompt(_) | Input::PromptTokens(_) => Self::Completion,
            Input::Chat(_) => Self::Chat,
            Input::Embed(_) => Self::Embeddings,
        }
    }
}

/// OpenAI's response object, to be written as JSON or MessagePack.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Response {
    content: Whole,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Whole {
    Text(TextResponse),
    Embeddings(EmbeddingsResponse),
}

#[derive(Debug, Serialize)]
struct TextResponse {
    id: String,
    object: &'static str,
    /// Unix seconds.
    created: u64,
    model: ModelName,
    choices: [Choice; 1],
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct EmbeddingsResponse {
    object: &'static str,
    model: ModelName,
    data: Vec<EmbeddingObject>,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct EmbeddingObject {
    object: &'static str,
    #[serde(flatten)]
    embedding: Embedding,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: u32,
    #[serde(flatten)]
    content: Content,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs>,
    finish_reason: FinishReason,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    Text(String),
    Message(Message),
}

#[derive(Debug, Serialize)]
struct Message {
    role: &'static str,
    content: String,
}

impl Response {
    /// The response to a request for a model, as of a time.
    ///
    /// # Errors
    /// The error with which the answer ended, or `internal` when embeddings were cancelled.
    pub fn new(
        request: &RequestId,
        model: &ModelName,
        shape: Shape,
        answer: Answer,
        created: SystemTime,
    ) -> Result<Self, RequestError> {
        let Answer {
            token_ids,
            logprobs,
            text,
            end,
            ..
        } = answer;
        let finished = end?;
        let told = (!logprobs.is_empty()).then_some(logprobs);
        let (id, object, content, logprobs) = match shape {
            Shape::Embeddings => {
                let response = EmbeddingsResponse::new(model, finished)?;
                return Ok(Self {
                    content: Whole::Embeddings(response),
                });
            }
            Shape::Chat => {
                let message = Message {
                    role: "assistant",
                    content: text,
                };
                (
                    format!("chatcmpl-{request}"),
                    "chat.completion",
                    Content::Message(message),
                    told.map(|told| Logprobs::chat(&token_ids, &told)),
                )
            }
            Shape::Completion => (
                format!("cmpl-{request}"),
                "text_completion",
                Content::Text(text),
                told.map(|told| Logprobs::completion(&token_ids, &told)),
            ),
        };
        let created = created.duration_since(SystemTime::UNIX_EPOCH);
        let response = TextResponse {
            id,
            object,
            // A clock before 1970 is wrong in any case; the field is for people.
            created: created.map_or(0, |since| since.as_secs()),
            model: model.clone(),
            choices: [Choice {
                index: 0,
                content,
                logprobs,
                finish_reason: finished.finish_reason,
            }],
            usage: finished.usage,
        };
        Ok(Self {
            content: Whole::Text(response),
        })
    }
}

impl EmbeddingsResponse {
    fn new(model: &ModelName, finished: Finished) -> Result<Self, RequestError> {
        let Some(embeddings) = finished.data else {
            return Err(RequestError {
                code: ErrorCode::Internal,
                message: "the request was cancelled before its embeddings were made".to_owned(),
                param: None,
            });
        };
        let data = embeddings.into_iter().map(|embedding| EmbeddingObject {
            object: "embedding",
            embedding,
        });
        Ok(Self {
            object: "list",
            model: model.clone(),
            data: data.collect(),
            usage: finished.usage,
        })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::event::{Timings, TokenLogprobs};
    use flotilla_protocol::{Attempt, Encoding};
    use serde_json::{Value, json};

    use super::*;

    fn whole(
        shape: Shape,
        data: Option<Vec<Embedding>>,
        has_logprobs: bool,
    ) -> Result<Response, RequestError> {
        let finished = Finished {
            finish_reason: FinishReason::Stop,
            usage: Usage::new(3, 1),
            timings: Timings::default(),
            data,
        };
        let told = TokenLogprobs::new(-0.5, [(9, -0.5), (3, -1.0)]);
        let answer = Answer {
            token_ids: vec![9],
            logprobs: if has_logprobs { vec![told] } else { Vec::new() },
            text: "4".to_owned(),
            attempts: Attempt(1),
            end: Ok(finished),
        };
        let (request, model) = (RequestId::new("r1").unwrap(), ModelName::new("adder").unwrap());
        Response::new(&request, &model, shape, answer, SystemTime::UNIX_EPOCH)
    }

    fn response(shape: Shape) -> Value {
        let mut value = serde_json::to_value(whole(shape, None, false).unwrap()).unwrap();
        value["created"] = json!(0);
        value
    }

    #[test]
    fn completion_has_the_shape_of_openai() {
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4});
        assert_eq!(
            response(Shape::Completion),
            json!({
                "id": "cmpl-r1", "object": "text_completion", "created": 0, "model": "adder",
                "choices": [{"index": 0, "text": "4", "finish_reason": "stop"}], "usage": usage,
            })
        );
        let choice = json!({
            "index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop",
        });
        assert_eq!(response(Shape::Chat)["choices"][0], choice);
        assert_eq!(response(Shape::Chat)["object"], "chat.completion");
    }

    #[test]
    fn log_probabilities_have_the_shapes_of_openai() {
        let logprobs = |shape| {
            let response = serde_json::to_value(whole(shape, None, true).unwrap()).unwrap();
            response["choices"][0]["logprobs"].clone()
        };
        assert_eq!(
            logprobs(Shape::Completion),
            json!({
                "tokens": ["token_id:9"], "token_logprobs": [-0.5],
                "top_logprobs": [{"token_id:9": -0.5, "token_id:3": -1.0}],
            })
        );
        let top = json!([{"token": "token_id:9", "logprob": -0.5}, {"token": "token_id:3", "logprob": -1.0}]);
        assert_eq!(
            logprobs(Shape::Chat),
            json!({"content": [{"token": "token_id:9", "logprob": -0.5, "top_logprobs": top}]})
        );
    }

    #[test]
    fn embeddings_have_the_shape_of_openai_in_either_encoding() {
        let embedding = Embedding {
            index: 0,
            embedding: vec![0.5, -0.25],
        };
        let response = whole(Shape::Embeddings, Some(vec![embedding.clone()]), false).unwrap();
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4});
        assert_eq!(
            serde_json::to_value(&response).unwrap(),
            json!({
                "object": "list", "model": "adder", "usage": usage,
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
            })
        );
        #[derive(serde::Deserialize)]
        struct Read {
            data: Vec<Embedding>,
        }
        let packed = Encoding::MessagePack.encode(&response).unwrap();
        let read: Read = Encoding::MessagePack.decode(&packed, 1000).unwrap();
        assert_eq!(read.data, [embedding]);
        assert_eq!(
            whole(Shape::Embeddings, None, false).unwrap_err().code,
            ErrorCode::Internal
        );
    }
}
