//! Whether a request is still to be answered, for clients that may not look into the queue.

use async_nats::jetstream::stream::RawMessageErrorKind;
use async_nats::service::Request;
use flotilla_protocol::admin::{StandingReply, StandingRequest};
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::{DecodeError, Encoding, RequestId};
use tokio::sync::mpsc;

use super::{Query, admin, reply};
use crate::admission::MESSAGE_ID;
use crate::ground::Ground;

/// Answers one question. Whoever names a request may ask, as with its journal.
pub(super) async fn answer(ground: Ground, request: Request, owner: mpsc::Sender<Query>) {
    match look(&ground, &request, &owner).await {
        Ok(standing) => reply::answer(&request, Encoding::Json, &standing).await,
        Err(error) => reply::refuse(&request, Encoding::Json, &error).await,
    }
}

async fn look(
    ground: &Ground,
    request: &Request,
    owner: &mpsc::Sender<Query>,
) -> Result<StandingReply, RequestError> {
    let subject = request.message.subject.as_str();
    let id = ground.connection.subjects.parse_standing(subject);
    let id = id.map_err(|error| RequestError {
        code: ErrorCode::InvalidRequest,
        message: error.to_string(),
        param: Some("request".to_owned()),
    })?;
    let asked: Result<StandingRequest, DecodeError> =
        Encoding::Json.decode(&request.message.payload, QUESTION_BYTES_MAX);
    let is_queued = match asked?.stream_seq {
        Some(stream_seq) => is_stored(ground, &id, stream_seq).await?,
        None => {
            let held = admin::ask(ground, owner, |answer| Query::Holds(id, answer)).await?;
            held || admin::stream_pending(ground).await? > 0
        }
    };
    Ok(match is_queued {
        true => StandingReply::Queued,
        false => StandingReply::Gone,
    })
}

/// Whether the stream has the request's message. Its leader is asked: a copy may lag.
async fn is_stored(ground: &Ground, id: &RequestId, stream_seq: u64) -> Result<bool, RequestError> {
    let connection = &ground.connection;
    let found = connection.within(async {
        let name = connection.subjects.requests_stream();
        let stream = connection.jetstream.get_stream_no_info(name).await?;
        match stream.get_raw_message(stream_seq).await {
            Ok(message) => Ok(message.headers.get(MESSAGE_ID).map(|found| found.to_string())),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(async_nats::Error::from(error)),
        }
    });
    let found = found.await.map_err(Into::into).flatten();
    let found = found.map_err(|error: async_nats::Error| RequestError {
        code: ErrorCode::Internal,
        message: format!("the request stream cannot be read: {error}"),
        param: None,
    })?;
    Ok(found.is_some_and(|found| found == id.as_str()))
}

/// Largest question, in bytes: a number.
const QUESTION_BYTES_MAX: usize = 256;
