//! One whole answer: submit, follow the events, reply once in OpenAI's shape.

use std::time::SystemTime;

use async_nats::service::Request;
use flotilla_client::{
    Answer, Events, EventsError, NewRequest, Response, Shape, SubmitError, new_request_id, submit_traced,
};
use flotilla_protocol::assignment::Cancel;
use flotilla_protocol::codec::encode_internal;
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::InferenceRequest;
use flotilla_protocol::{Class, Encoding, RequestId, TraceParent, headers};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

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
        Response::new(
            &asked.new.request,
            &asked.new.model,
            asked.shape,
            answer,
            SystemTime::now(),
        )
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
        shape: Shape::of(&decoded.input),
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
