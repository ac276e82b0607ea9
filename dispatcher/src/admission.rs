//! From a message of the stream to a valid request, or to the reason why it is none.
//!
//! Runs beside the owner, many messages at once; the core orders requests by their age, so that the order in
//! which admissions end does not matter.

use std::sync::Arc;
use std::time::Duration;

use flotilla_client::{Catalog, CatalogError};
use flotilla_dispatcher_core::{Arrival, Origin, StreamSequence};
use flotilla_prompt::text_bytes;
use flotilla_protocol::catalog::{CatalogEntry, ModelTask};
use flotilla_protocol::event::{ErrorCode, RequestError, embeddings_bytes_max};
use flotilla_protocol::request::{InferenceRequest, Input, Slo};
use flotilla_protocol::subject::{SubjectError, Subjects};
use flotilla_protocol::{Class, Encoding, IdError, ModelName, RequestId, Tenant, WorkerId, headers};
use thiserror::Error;
use tokio::time::timeout;
use tracing::warn;

use crate::backoff::Backoff;
use crate::error::chain;
use crate::intake::Pulled;
use crate::prompt::{self, PromptTokens, TextCell};

/// A message whose subject and id can be read.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) request: RequestId,
    pub(crate) class: Class,
    pub(crate) model: ModelName,
    pub(crate) pulled: Pulled,
}

/// Why a message cannot be taken for anybody's request.
#[derive(Debug, Error)]
pub(crate) enum Unreadable {
    #[error("the subject cannot be read: {0}")]
    Subject(SubjectError),
    #[error("the message has no header {MESSAGE_ID}, which names the request")]
    NoId,
    #[error("the header {MESSAGE_ID} names no request: {0}")]
    Id(IdError),
}

/// What admission found.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// A request.
    Valid {
        arrival: Box<Arrival>,
        /// Whether it ends with its client.
        cancel_on_disconnect: bool,
    },
    /// A request that is ended with an error.
    Invalid {
        sequence: StreamSequence,
        request: RequestId,
        encoding: Encoding,
        error: RequestError,
        /// What is known of it all the same, of one that somebody may have seen: it may run.
        seen: Option<Box<Arrival>>,
    },
}

/// What admission needs besides the message.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    pub(crate) catalog: Catalog,
    pub(crate) request_timeout: Duration,
    /// Bytes of a body that fits into an assignment as well.
    pub(crate) body_bytes_max: usize,
    pub(crate) prompt_bytes_max: usize,
    /// Bytes of one event that the server takes.
    pub(crate) event_bytes_max: usize,
}

/// Reads subject and id of a message.
///
/// # Errors
/// The message back, with the reason.
pub(crate) fn open(subjects: &Subjects, pulled: Pulled) -> Result<Envelope, (Box<Pulled>, Unreadable)> {
    let read = || {
        let (class, model) = subjects
            .parse_request(pulled.message.subject.as_str())
            .map_err(Unreadable::Subject)?;
        let id = pulled.header(MESSAGE_ID).ok_or(Unreadable::NoId)?;
        let request = RequestId::new(id).map_err(Unreadable::Id)?;
        Ok((class, model, request))
    };
    match read() {
        Ok((class, model, request)) => Ok(Envelope {
            request,
            class,
            model,
            pulled,
        }),
        Err(unreadable) => Err((Box::new(pulled), unreadable)),
    }
}

impl Desk {
    /// Checks a request. Waits for the catalog as long as it cannot be read.
    pub(crate) async fn admit(
        self,
        envelope: Envelope,
        origin: Origin,
        entry: Option<Arc<CatalogEntry>>,
        text: TextCell,
    ) -> Admitted {
        let encoding = Encoding::from_content_type(envelope.pulled.header(headers::CONTENT_TYPE));
        let answer_encoding = encoding.as_ref().copied().unwrap_or_default();
        let checked = async {
            let encoding = encoding?;
            let entry = match entry {
                Some(entry) => entry,
                None => self.find(&envelope.model).await?,
            };
            let body = &envelope.pulled.message.payload;
            let request = InferenceRequest::decode(&envelope.model, encoding, body, self.body_bytes_max)?;
            let only_worker = only_worker(&envelope.pulled, request.deadline_ms)?;
            let wishes = Wishes {
                deadline: request.deadline_ms.map(Duration::from_millis),
                cancel_on_disconnect: request.cancel_on_disconnect,
                slo: request.slo,
                tenant: request.tenant.clone(),
                only_worker,
                max_tokens: request.max_tokens,
                is_embedding: request.is_embedding(),
            };
            let tokens = self.check(&entry, &text, request, encoding).await?;
            Ok((wishes, tokens, entry.facts.context_tokens_max))
        };
        match checked.await {
            Ok((wishes, tokens, context_tokens_max)) => {
                let output_tokens_max = wishes.output_tokens_max(tokens, context_tokens_max);
                Admitted::Valid {
                    cancel_on_disconnect: wishes.cancel_on_disconnect,
                    arrival: Box::new(arrival(
                        envelope,
                        origin,
                        answer_encoding,
                        wishes,
                        tokens,
                        output_tokens_max,
                    )),
                }
            }
            Err(error) => Admitted::Invalid {
                sequence: envelope.pulled.sequence,
                request: envelope.request.clone(),
                encoding: answer_encoding,
                error,
                seen: (origin == Origin::MaybeSeen)
                    .then(|| Box::new(unchecked(envelope, origin, answer_encoding))),
            },
        }
    }

    async fn check(
        &self,
        entry: &CatalogEntry,
        text: &TextCell,
        request: InferenceRequest,
        encoding: Encoding,
    ) -> Result<PromptTokens, RequestError> {
        let field = request.input.field();
        let (bytes, bytes_max) = (text_bytes(&request.input), self.prompt_bytes_max);
        if bytes > bytes_max {
            return Err(RequestError {
                code: ErrorCode::TooLarge,
                message: format!("the prompt has {bytes} bytes, at most {bytes_max} are allowed"),
                param: Some(field.to_owned()),
            });
        }
        if let (Input::Embed(texts), ModelTask::Embed { dimensions }) = (&request.input, entry.facts.task) {
            check_answer_bytes(texts.len(), dimensions, encoding, self.event_bytes_max)?;
        }
        prompt::count(entry, text, request).await
    }

    /// Reads the catalog itself, because the watch may be behind.
    async fn find(&self, model: &ModelName) -> Result<Arc<CatalogEntry>, RequestError> {
        let mut backoff = Backoff::new();
        loop {
            match timeout(self.request_timeout, self.catalog.entry(model)).await {
                Ok(Ok(Some(entry))) => return Ok(Arc::new(entry)),
                Ok(Ok(None)) => {
                    return Err(RequestError {
                        code: ErrorCode::UnknownModel,
                        message: format!("the catalog has no model {:?}", model.as_str()),
                        param: Some("model".to_owned()),
                    });
                }
                Ok(Err(error @ CatalogError::NotAnEntry { .. })) => {
                    warn!(%model, error = chain(&error), "a catalog entry is broken");
                    return Err(RequestError {
                        code: ErrorCode::ModelUnloadable,
                        message: format!("the catalog entry of model {:?} cannot be read", model.as_str()),
                        param: None,
                    });
                }
                Ok(Err(error)) => {
                    warn!(%model, error = chain(&error), "the catalog cannot be read yet");
                }
                Err(_) => warn!(%model, "no answer from the catalog"),
            }
            backoff.pause().await;
        }
    }
}

/// What a request says about when and on whose account it is to be answered, and how long the answer may be.
struct Wishes {
    /// After the publish.
    deadline: Option<Duration>,
    cancel_on_disconnect: bool,
    slo: Option<Slo>,
    tenant: Option<Tenant>,
    only_worker: Option<WorkerId>,
    max_tokens: Option<u32>,
    is_embedding: bool,
}

impl Wishes {
    /// Most tokens that the answer may have; one that is a vector counts as one.
    fn output_tokens_max(&self, prompt: PromptTokens, context_tokens_max: u32) -> u32 {
        let room = context_tokens_max.saturating_sub(prompt.number());
        match self.is_embedding {
            true => 1,
            false => self.max_tokens.unwrap_or(room).max(1),
        }
    }
}

/// A request of which only the envelope could be made sense of; nothing is ever planned with its figures.
fn unchecked(envelope: Envelope, origin: Origin, encoding: Encoding) -> Arrival {
    let nothing = Wishes {
        deadline: None,
        cancel_on_disconnect: false,
        slo: None,
        tenant: None,
        only_worker: None,
        max_tokens: None,
        is_embedding: false,
    };
    let tokens = PromptTokens::Estimated(0);
    arrival(envelope, origin, encoding, nothing, tokens, 1)
}

fn arrival(
    envelope: Envelope,
    origin: Origin,
    encoding: Encoding,
    wishes: Wishes,
    tokens: PromptTokens,
    output_tokens_max: u32,
) -> Arrival {
    let Envelope {
        request: id,
        class,
        model,
        pulled,
    } = envelope;
    let age = pulled.age();
    Arrival {
        sequence: pulled.sequence,
        request: id,
        class,
        model,
        encoding,
        body: pulled.message.payload,
        prompt_tokens: tokens.number(),
        prompt_count: tokens.count(),
        output_tokens_max,
        tenant: wishes.tenant,
        slo: wishes.slo,
        only_worker: wishes.only_worker,
        age,
        deadline_in: wishes.deadline.map(|deadline| deadline.saturating_sub(age)),
        origin,
    }
}

/// The worker that the message's header names. That worker may never come, and every wait has an end.
fn only_worker(pulled: &Pulled, deadline_ms: Option<u64>) -> Result<Option<WorkerId>, RequestError> {
    let refused = |param: &str, message| RequestError {
        code: ErrorCode::InvalidRequest,
        message,
        param: Some(param.to_owned()),
    };
    let Some(named) = pulled.header(headers::WORKER) else {
        return Ok(None);
    };
    let worker = WorkerId::new(named).map_err(|error| {
        let message = format!("the header {} names no worker: {error}", headers::WORKER);
        refused(headers::WORKER, message)
    })?;
    if deadline_ms.is_none() {
        let message = format!(
            "is missing; a request with the header {} needs one",
            headers::WORKER
        );
        return Err(refused("deadline_ms", message));
    }
    Ok(Some(worker))
}

/// All vectors of a request travel in one event: what the server would not take is refused before it is made.
fn check_answer_bytes(
    texts: usize,
    dimensions: u32,
    encoding: Encoding,
    event_bytes_max: usize,
) -> Result<(), RequestError> {
    let bytes = embeddings_bytes_max(texts, dimensions, encoding);
    if bytes <= event_bytes_max {
        return Ok(());
    }
    let none = embeddings_bytes_max(0, dimensions, encoding);
    let one = embeddings_bytes_max(1, dimensions, encoding) - none;
    let fitting = event_bytes_max.saturating_sub(none) / one;
    let advice = match encoding {
        Encoding::Json => "send fewer at once, or send MessagePack, which takes a quarter",
        Encoding::MessagePack => "send fewer at once",
    };
    Err(RequestError {
        code: ErrorCode::TooLarge,
        message: format!(
            "{texts} vectors of {dimensions} numbers do not fit into one event of {event_bytes_max} bytes, \
             {fitting} do: {advice}"
        ),
        param: Some("input".to_owned()),
    })
}

/// What a message's publisher calls it; our request id.
pub(crate) const MESSAGE_ID: &str = "Nats-Msg-Id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_vectors_as_are_said_to_fit_do_and_one_more_does_not() {
        for (encoding, fitting) in [(Encoding::Json, 67), (Encoding::MessagePack, 251)] {
            let check = |texts| check_answer_bytes(texts, 1024, encoding, 1 << 20);
            assert_eq!(check(fitting), Ok(()));
            let error = check(fitting + 1).unwrap_err();
            assert_eq!(
                (error.code, error.param.as_deref()),
                (ErrorCode::TooLarge, Some("input"))
            );
            assert!(error.message.contains(&format!("{fitting} do")), "{error}");
        }
        let error = check_answer_bytes(1, u32::MAX, Encoding::Json, 1 << 20).unwrap_err();
        assert!(error.message.contains("0 do"), "{error}");
    }
}
