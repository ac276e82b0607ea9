//! One whole answer: submit, follow the events, reply once in OpenAI's shape.

mod logprobs;

use std::time::SystemTime;

use async_nats::service::Request;
use flotilla_client::{Answer, Events, EventsError, NewRequest, SubmitError, new_request_id, submit_traced};
use flotilla_protocol::assignment::Cancel;
use flotilla_protocol::codec::encode_internal;
use flotilla_protocol::event::{Embedding, ErrorCode, FinishReason, Finished, RequestError, Usage};
use flotilla_protocol::request::{InferenceRequest, Input};
use flotilla_protocol::{Class, Encoding, ModelName, RequestId, TraceParent, headers};
use serde::Serialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::logprobs::Logprobs;
use super::reply;
use crate::error::chain;
use crate::ground::Ground;

/// Answers one request; its end is bounded by the configured timeout.
pub(super) async fn answer(ground: Ground, request: Request, process_ends: CancellationToken) {
    let found = request.message.headers.as_ref();
    let content_type = found.and_then(|found| found.get(headers::CONTENT_TYPE));
    let encoding = Encoding::from_content_type(content_type.map(|value| value.as_str()));
    let answer_encoding = encoding.as_ref().copied().unwrap_or_default();
    let answered = async {
        let asked = parse(&ground, &request, encoding?)?;
        let answer = ask(&ground, &asked, &process_ends).await?;
        Response::new(&asked, answer)
    };
    match answered.await {
        Ok(response) => reply::answer(&request, answer_encoding, &response).await,
        Err(error) => reply::refuse(&request, answer_encoding, &error).await,
    }
}

/// What is asked for, with the id that it got here.
struct Asked {
    new: NewRequest,
    trace: Option<TraceParent>,
    shape: Shape,
}

/// Which of OpenAI's responses is due.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Completion,
    Chat,
    Embeddings,
}

/// Reads the body only as far as needed: what is wrong with it is said before anything is queued.
fn parse(ground: &Ground, request: &Request, encoding: Encoding) -> Result<Asked, RequestError> {
    let subject = request.message.subject.as_str();
    let model = ground.connection.subjects.parse_infer(subject);
    let model = model.map_err(|error| failure(ErrorCode::InvalidRequest, error.to_string()))?;
    let body = &request.message.payload;
    let bytes_max = ground.config.dispatcher.request_bytes_max;
    let decoded = InferenceRequest::decode(&model, encoding, body, bytes_max)?;
    let found = request.message.headers.as_ref();
    let trace = found.and_then(|found| TraceParent::parse(found.get(headers::TRACE_PARENT)?.as_str()));
    Ok(Asked {
        trace,
        shape: match decoded.input {
            Input::Prompt(_) | Input::PromptTokens(_) => Shape::Completion,
            Input::Chat(_) => Shape::Chat,
            Input::Embed(_) => Shape::Embeddings,
        },
        new: NewRequest {
            request: new_request_id(),
            class: Class::Interactive,
            model,
            encoding,
            body: body.clone(),
        },
    })
}

async fn ask(
    ground: &Ground,
    asked: &Asked,
    process_ends: &CancellationToken,
) -> Result<Answer, RequestError> {
    let request = &asked.new.request;
    let limit = ground.config.dispatcher.infer_timeout;
    tokio::select! {
        answer = timeout(limit, follow(ground, asked)) => match answer {
            Ok(answer) => answer,
            Err(_) => {
                cancel(ground, request).await;
                let limit_s = limit.as_secs();
                let message = format!("no whole answer within {limit_s} s; request {request} is cancelled");
                Err(failure(ErrorCode::DeadlineExceeded, message))
            }
        },
        () = process_ends.cancelled() => {
            let message = format!("this dispatcher ends; request {request} goes on, its events can be read");
            Err(failure(ErrorCode::Internal, message))
        }
    }
}

async fn follow(ground: &Ground, asked: &Asked) -> Result<Answer, RequestError> {
    let events = Events::subscribe(&ground.connection, asked.new.request.clone()).await;
    let mut events = events.map_err(|error| lost(&error))?;
    submit_traced(&ground.connection, asked.new.clone(), asked.trace.as_ref())
        .await
        .map_err(|error| unqueued(&error))?;
    Answer::collect(&mut events).await.map_err(|error| lost(&error))
}

fn unqueued(error: &SubmitError) -> RequestError {
    let code = match error {
        SubmitError::Busy { .. } => ErrorCode::QueueFull,
        SubmitError::TooLarge { .. } => ErrorCode::TooLarge,
        SubmitError::NoQueue { .. } | SubmitError::Unconfirmed { .. } => {
            warn!(error = chain(error), "a request was not queued");
            ErrorCode::Internal
        }
    };
    failure(code, error.to_string())
}

fn lost(error: &EventsError) -> RequestError {
    warn!(error = chain(error), "the events of a request were lost");
    failure(ErrorCode::Internal, error.to_string())
}

fn failure(code: ErrorCode, message: String) -> RequestError {
    RequestError {
        code,
        message,
        param: None,
    }
}

/// Nobody waits for the answer any more.
async fn cancel(ground: &Ground, request: &RequestId) {
    let cancel = Cancel {
        request: request.clone(),
    };
    let body = encode_internal(&cancel).expect("a cancellation can be written");
    let mut found = async_nats::HeaderMap::new();
    found.insert(headers::CONTENT_TYPE, Encoding::MessagePack.content_type());
    let subject = ground.connection.subjects.cancel();
    let sent = ground
        .connection
        .client
        .publish_with_headers(subject, found, body);
    match timeout(ground.connection.request_timeout, sent).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(request_id = %request, %error, "cannot cancel"),
        Err(_) => warn!(request_id = %request, "the connection takes no cancellation"),
    }
}

/// OpenAI's response object.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Response {
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
    fn new(asked: &Asked, answer: Answer) -> Result<Self, RequestError> {
        let request = &asked.new.request;
        let Answer {
            token_ids,
            logprobs,
            text,
            end,
            ..
        } = answer;
        let finished = end?;
        let told = (!logprobs.is_empty()).then_some(logprobs);
        let (id, object, content, logprobs) = match asked.shape {
            Shape::Embeddings => {
                return EmbeddingsResponse::new(asked, finished).map(Self::Embeddings);
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
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Self::Text(TextResponse {
            id,
            object,
            // A clock before 1970 is wrong in any case; the field is for people.
            created: now.map_or(0, |now| now.as_secs()),
            model: asked.new.model.clone(),
            choices: [Choice {
                index: 0,
                content,
                logprobs,
                finish_reason: finished.finish_reason,
            }],
            usage: finished.usage,
        }))
    }
}

impl EmbeddingsResponse {
    fn new(asked: &Asked, finished: Finished) -> Result<Self, RequestError> {
        let Some(embeddings) = finished.data else {
            let message = "the request was cancelled before its embeddings were made".to_owned();
            return Err(failure(ErrorCode::Internal, message));
        };
        let data = embeddings.into_iter().map(|embedding| EmbeddingObject {
            object: "embedding",
            embedding,
        });
        Ok(Self {
            object: "list",
            model: asked.new.model.clone(),
            data: data.collect(),
            usage: finished.usage,
        })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::Attempt;
    use flotilla_protocol::event::{Timings, TokenLogprobs};
    use serde_json::{Value, json};

    use super::*;

    fn whole(
        shape: Shape,
        data: Option<Vec<Embedding>>,
        has_logprobs: bool,
    ) -> Result<Response, RequestError> {
        let asked = Asked {
            trace: None,
            shape,
            new: NewRequest {
                request: RequestId::new("r1").unwrap(),
                class: Class::Interactive,
                model: ModelName::new("adder").unwrap(),
                encoding: Encoding::Json,
                body: "{}".into(),
            },
        };
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
        Response::new(&asked, answer)
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
