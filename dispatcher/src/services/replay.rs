//! Journals for clients that may not ask the server for them: it is asked here, and answers them itself.

use async_nats::service::Request;
use flotilla_client::Journal;
use flotilla_protocol::admin::ReplayRequest;
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::{DecodeError, Encoding};

use super::reply;
use crate::ground::Ground;

/// Has the server send what was asked for. Whoever names a request may read it: its id is a secret, and of an owner the
/// server lets ask nobody else.
pub(super) async fn answer(ground: Ground, request: Request) {
    if let Err(error) = pass_on(&ground, &request).await {
        reply::refuse(&request, Encoding::Json, &error).await;
    }
}

async fn pass_on(ground: &Ground, request: &Request) -> Result<(), RequestError> {
    let subject = request.message.subject.as_str();
    let id = ground.connection.subjects.parse_replay(subject);
    let id = id.map_err(|error| RequestError {
        code: ErrorCode::InvalidRequest,
        message: error.to_string(),
        param: Some("request".to_owned()),
    })?;
    let asked: Result<ReplayRequest, DecodeError> =
        Encoding::Json.decode(&request.message.payload, QUESTION_BYTES_MAX);
    let Some(inbox) = &request.message.reply else {
        return Ok(());
    };
    let journal = Journal::new(&ground.connection);
    let sent = journal.send(&id, asked?.after, inbox.clone());
    let sent = ground.connection.within(sent).await.map_err(Into::into).flatten();
    sent.map_err(|error: async_nats::Error| RequestError {
        code: ErrorCode::Internal,
        message: format!("the journal of {id} cannot be asked for: {error}"),
        param: None,
    })
}

/// Largest question, in bytes: a number.
const QUESTION_BYTES_MAX: usize = 256;
