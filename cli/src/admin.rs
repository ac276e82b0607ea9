//! Asking the leading dispatcher.

use async_nats::client::RequestErrorKind;
use flotilla_client::Connection;
use flotilla_protocol::codec::{EncodeError, INTERNAL_BYTES_MAX};
use flotilla_protocol::event::Failed;
use flotilla_protocol::{DecodeError, Encoding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why there is no answer of use.
#[derive(Debug, Error)]
pub(crate) enum AdminError {
    /// No dispatcher leads.
    #[error("no dispatcher answers on {subject}; start one with `flotilla dispatcher`")]
    NoLeader {
        /// Where it was asked.
        subject: String,
    },
    /// No answer came.
    #[error("no answer on {subject}")]
    NoAnswer {
        /// Where it was asked.
        subject: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The dispatcher refuses.
    #[error("the dispatcher refuses {verb} ({status}): {message}")]
    Refused {
        /// What it was asked for.
        verb: &'static str,
        /// Status, with the meaning that HTTP gives it.
        status: usize,
        /// Why.
        message: String,
    },
    /// The question cannot be written.
    #[error("the question for {verb} cannot be encoded")]
    Encode {
        /// What it is about.
        verb: &'static str,
        /// Why.
        #[source]
        source: EncodeError,
    },
    /// The answer cannot be read; the dispatcher may be of another version.
    #[error("the answer to {verb} cannot be read")]
    Unreadable {
        /// What was asked for.
        verb: &'static str,
        /// Why not.
        #[source]
        source: DecodeError,
    },
}

/// Asks for `verb` with a JSON body.
///
/// # Errors
/// [`AdminError`].
pub(crate) async fn ask<Q: Serialize, A: DeserializeOwned>(
    connection: &Connection,
    verb: &'static str,
    question: &Q,
) -> Result<A, AdminError> {
    ask_at(connection, connection.subjects.admin(verb), verb, question).await
}

/// The same at a subject that is not an operator's.
///
/// # Errors
/// [`AdminError`].
pub(crate) async fn ask_at<Q: Serialize, A: DeserializeOwned>(
    connection: &Connection,
    subject: String,
    verb: &'static str,
    question: &Q,
) -> Result<A, AdminError> {
    let body = Encoding::Json
        .encode(question)
        .map_err(|source| AdminError::Encode { verb, source })?;
    let answer = connection.within(connection.client.request(subject.clone(), body));
    let no_answer = |source| AdminError::NoAnswer {
        subject: subject.clone(),
        source,
    };
    let answer = answer.await.map_err(|late| no_answer(late.into()))?;
    let message = answer.map_err(|error| match error.kind() {
        RequestErrorKind::NoResponders => AdminError::NoLeader {
            subject: subject.clone(),
        },
        RequestErrorKind::TimedOut
        | RequestErrorKind::InvalidSubject
        | RequestErrorKind::MaxPayloadExceeded
        | RequestErrorKind::Other => no_answer(error.into()),
    })?;
    if let Some(refusal) = refusal(verb, &message) {
        return Err(refusal);
    }
    Encoding::Json
        .decode(&message.payload, INTERNAL_BYTES_MAX)
        .map_err(|source| AdminError::Unreadable { verb, source })
}

/// A NATS service error: its code in a header, its words in the body where that is one of ours, else in a
/// header too.
fn refusal(verb: &'static str, message: &async_nats::Message) -> Option<AdminError> {
    let headers = message.headers.as_ref()?;
    let status = headers.get(async_nats::service::NATS_SERVICE_ERROR_CODE)?;
    let words = headers.get(async_nats::service::NATS_SERVICE_ERROR);
    let body = Encoding::Json.decode::<Failed>(&message.payload, INTERNAL_BYTES_MAX);
    Some(AdminError::Refused {
        verb,
        // A status that is no number is as bad as the worst.
        status: status.as_str().parse().unwrap_or(500),
        message: match body {
            Ok(failed) => failed.error.to_string(),
            Err(_) => words.map(ToString::to_string).unwrap_or_default(),
        },
    })
}

/// An empty JSON object, for questions without parameters.
#[derive(Debug, Serialize)]
pub(crate) struct Nothing {}
