//! Dead letters: copies for operators of what is not answered.

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use flotilla_client::Connection;
use flotilla_dispatcher_core::StreamSequence;
use flotilla_protocol::subject::Subjects;
use flotilla_protocol::{RequestId, headers};
use tracing::warn;

use crate::admission::Unreadable;
use crate::backoff::Backoff;
use crate::error::chain;
use crate::intake::Pulled;

/// A copy of a message with the reason why it is dead.
#[derive(Debug)]
pub(crate) struct Letter {
    /// Where it is stored.
    pub(crate) subject: String,
    /// Where the message was published.
    pub(crate) published_to: String,
    /// Place of the message in the request stream; makes storing it twice harmless.
    pub(crate) sequence: StreamSequence,
    /// Id of the request, where it had one.
    pub(crate) request: Option<RequestId>,
    /// As the client wrote it.
    pub(crate) content_type: Option<String>,
    pub(crate) body: Bytes,
    /// In words.
    pub(crate) reason: String,
}

impl Letter {
    /// The letter about a message that is nobody's request.
    pub(crate) fn of_unreadable(subjects: &Subjects, pulled: &Pulled, reason: &Unreadable) -> Self {
        // Without an id it may still say which model it is for.
        let parsed = subjects.parse_request(&pulled.message.subject);
        Self {
            subject: parsed.map_or_else(
                |_| subjects.dead_unreadable(),
                |(class, model)| subjects.dead(class, &model),
            ),
            published_to: pulled.message.subject.to_string(),
            sequence: pulled.sequence,
            request: None,
            content_type: pulled.header(headers::CONTENT_TYPE).map(str::to_owned),
            body: pulled.message.payload.clone(),
            reason: reason.to_string(),
        }
    }
}

/// Stores a letter; tries until it succeeds.
pub(crate) async fn store(connection: &Connection, letter: &Letter) {
    let mut backoff = Backoff::new();
    while let Err(error) = try_store(connection, letter).await {
        warn!(
            stream_seq = letter.sequence.0,
            error = chain(&error),
            "a dead letter is not stored yet"
        );
        backoff.pause().await;
    }
    warn!(
        stream_seq = letter.sequence.0,
        request_id = letter.request.as_ref().map(RequestId::as_str),
        subject = letter.subject,
        "dead letter stored"
    );
}

async fn try_store(connection: &Connection, letter: &Letter) -> Result<(), PublishError> {
    let stream = connection.subjects.requests_stream();
    let mut message = PublishMessage::build()
        .payload(letter.body.clone())
        .message_id(format!("{stream}-{}", letter.sequence))
        .header(headers::DEAD_REASON, one_line(&letter.reason).as_str())
        .header(headers::DEAD_SUBJECT, letter.published_to.as_str())
        .header(headers::DEAD_SEQUENCE, letter.sequence.to_string().as_str());
    if let Some(request) = &letter.request {
        message = message.header(headers::DEAD_REQUEST, request.as_str());
    }
    if let Some(content_type) = &letter.content_type {
        message = message.header(headers::CONTENT_TYPE, one_line(content_type).as_str());
    }
    let subject = letter.subject.clone();
    connection.store(subject, message).await.map(drop)
}

/// A text that a header can hold: a line break would end the header.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(HEADER_CHARS_MAX)
        .collect()
}

/// Longest reason that is kept; three attempts' panics fit.
const HEADER_CHARS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_cannot_end_its_header() {
        assert_eq!(one_line("a\r\nb"), "a  b");
    }
}
