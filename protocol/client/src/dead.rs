//! Dead letters: what the dispatcher has kept of requests that it gave up, for operators.
//!
//! A letter is written by the leading dispatcher alone. Operators read, replay and remove; a letter that is replayed is
//! removed after its request was stored, and its new request's id is a function of the letter: if we die between the
//! two, replaying it again publishes the same request, which the server or its journal recognises.

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use bytes::Bytes;
use flotilla_protocol::subject::SubjectError;
use flotilla_protocol::{Class, Encoding, ModelName, RequestId, headers};
use futures_util::StreamExt;
use serde::Serialize;
use thiserror::Error;
use tokio::time::timeout;

use crate::bucket::is_missing_stream;
use crate::connection::Connection;
use crate::submit::{NewRequest, SubmitError, submit};

/// What is told of a letter without its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// Its place in the stream of dead letters, which names it.
    pub letter: u64,
    /// When it was stored, in milliseconds of Unix time.
    pub stored_ms: u64,
    /// The request's class; `None` where its subject could not be read.
    pub class: Option<Class>,
    /// The request's model; `None` where its subject could not be read.
    pub model: Option<ModelName>,
    /// The request's id; `None` where it had none.
    pub request: Option<RequestId>,
    /// Where it was published.
    pub published_to: String,
    /// Why it is dead, in words.
    pub reason: String,
    /// Encoding of the body, as its client wrote it.
    pub content_type: Option<String>,
    /// Length of the body.
    pub body_bytes: usize,
}

/// Why dead letters could not be read, replayed or removed.
#[derive(Debug, Error)]
pub enum DeadLettersError {
    /// The stream does not exist.
    #[error("the stream {stream} is missing; has a dispatcher been started in this namespace?")]
    NoStream {
        /// Its name.
        stream: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The server could not be asked.
    #[error("cannot {operation} dead letters")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// No answer in time.
    #[error("no answer when reading dead letters")]
    TimedOut,
    /// There is no such letter.
    #[error("there is no dead letter {letter}; `flotilla dead list` shows those that are there")]
    Unknown {
        /// The letter.
        letter: u64,
    },
    /// It was not published where requests are, so it cannot become one.
    #[error("letter {letter} was published to {published_to}, where no request can be")]
    NoRequest {
        /// The letter.
        letter: u64,
        /// Where.
        published_to: String,
        /// What is wrong with that.
        #[source]
        source: SubjectError,
    },
    /// Its body's encoding is none of ours.
    #[error("letter {letter} has the content type {content_type:?}, which no request can have")]
    Encoding {
        /// The letter.
        letter: u64,
        /// What it says.
        content_type: String,
    },
    /// Its request could not be published; the letter stays.
    #[error("letter {letter} stays: its request could not be published")]
    Submit {
        /// The letter.
        letter: u64,
        /// Why.
        #[source]
        source: SubmitError,
    },
}

/// The dead letters of a namespace.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    connection: Connection,
    stream: Stream,
}

impl DeadLetters {
    /// Opens the stream.
    ///
    /// # Errors
    /// [`DeadLettersError::NoStream`], or [`DeadLettersError::Store`].
    pub async fn open(connection: &Connection) -> Result<Self, DeadLettersError> {
        let name = connection.subjects.dead_stream();
        let opened = connection.within(connection.jetstream.get_stream(&name)).await;
        let opened = opened.map_err(|late| failed("open", late))?;
        let stream = opened.map_err(|error| match is_missing_stream(&error) {
            true => DeadLettersError::NoStream {
                stream: name,
                source: error.into(),
            },
            false => failed("open", error),
        })?;
        Ok(Self {
            connection: connection.clone(),
            stream,
        })
    }

    /// The oldest letters, at most `letters_max`, of one model or of all; and how many there are.
    ///
    /// # Errors
    /// [`DeadLettersError`].
    pub async fn list(
        &self,
        model: Option<&ModelName>,
        letters_max: usize,
    ) -> Result<(Vec<DeadLetter>, u64), DeadLettersError> {
        let consumer = self.stream.create_consumer(pull::OrderedConfig {
            filter_subject: self.filter(model),
            deliver_policy: DeliverPolicy::All,
            headers_only: true,
            ..pull::OrderedConfig::default()
        });
        let consumer = self.done("list", consumer).await?;
        let total = consumer.cached_info().num_pending;
        let wanted = usize::try_from(total).unwrap_or(usize::MAX).min(letters_max);
        let mut messages = self.done("list", consumer.messages()).await?;
        let mut letters = Vec::new();
        while letters.len() < wanted {
            let message = timeout(self.connection.request_timeout, messages.next()).await;
            let message = message.map_err(|_| DeadLettersError::TimedOut)?;
            // An ordered consumer goes on for ever.
            let message = message.ok_or(DeadLettersError::TimedOut)?;
            let message = message.map_err(|error| failed("list", error))?;
            let info = message.info().map_err(|error| failed("list", error))?;
            let found = self.letter(Stored {
                letter: info.stream_sequence,
                stored_ns: info.published.unix_timestamp_nanos(),
                headers: message.headers.as_ref(),
                body_bytes: None,
            });
            let is_last = info.pending == 0;
            letters.push(found);
            if is_last {
                break;
            }
        }
        Ok((letters, total))
    }

    /// One letter and its body.
    ///
    /// # Errors
    /// [`DeadLettersError::Unknown`] and others.
    pub async fn read(&self, letter: u64) -> Result<(DeadLetter, Bytes), DeadLettersError> {
        let message = self.answered("read", self.stream.get_raw_message(letter));
        let message = message.await?.map_err(|error| match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => DeadLettersError::Unknown { letter },
            _ => failed("read", error),
        })?;
        let found = self.letter(Stored {
            letter,
            stored_ns: message.time.unix_timestamp_nanos(),
            headers: Some(&message.headers),
            body_bytes: Some(message.payload.len()),
        });
        Ok((found, message.payload))
    }

    /// Publishes a letter's request again, under an id of its own since the journal of the old one has ended, and removes
    /// the letter. Returns the new id.
    ///
    /// # Errors
    /// [`DeadLettersError`]; the letter stays then.
    pub async fn replay(&self, letter: u64) -> Result<RequestId, DeadLettersError> {
        let (found, body) = self.read(letter).await?;
        let parsed = self.connection.subjects.parse_request(&found.published_to);
        let (class, model) = parsed.map_err(|source| DeadLettersError::NoRequest {
            letter,
            published_to: found.published_to.clone(),
            source,
        })?;
        let encoding = Encoding::from_content_type(found.content_type.as_deref()).map_err(|_| {
            DeadLettersError::Encoding {
                letter,
                content_type: found.content_type.clone().unwrap_or_default(),
            }
        })?;
        let request = found.replayed_as();
        let new = NewRequest {
            request: request.clone(),
            class,
            model,
            encoding,
            body,
        };
        let submitted = submit(&self.connection, new).await;
        submitted.map_err(|source| DeadLettersError::Submit { letter, source })?;
        self.remove(letter).await?;
        Ok(request)
    }

    /// Removes a letter. One that is not there is no error: somebody else was faster.
    ///
    /// # Errors
    /// [`DeadLettersError::Store`].
    pub async fn remove(&self, letter: u64) -> Result<(), DeadLettersError> {
        match self
            .answered("remove", self.stream.delete_message(letter))
            .await?
        {
            Ok(_) => Ok(()),
            Err(error) => match self.read(letter).await {
                Err(DeadLettersError::Unknown { .. }) => Ok(()),
                Ok(_) | Err(_) => Err(failed("remove", error)),
            },
        }
    }

    /// Removes all letters, or all of one model. Returns how many.
    ///
    /// # Errors
    /// [`DeadLettersError::Store`].
    pub async fn purge(&self, model: Option<&ModelName>) -> Result<u64, DeadLettersError> {
        let purge = self.stream.purge().filter(self.filter(model));
        Ok(self.done("remove", purge.into_future()).await?.purged)
    }

    /// What the server answers in time.
    async fn answered<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = T>,
    ) -> Result<T, DeadLettersError> {
        let answer = self.connection.within(answer).await;
        answer.map_err(|late| failed(operation, late))
    }

    /// What the server did in time.
    async fn done<T, E: Into<async_nats::Error>>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, DeadLettersError> {
        let answer = self.answered(operation, answer).await?;
        answer.map_err(|error| failed(operation, error))
    }

    fn filter(&self, model: Option<&ModelName>) -> String {
        let subjects = &self.connection.subjects;
        model.map_or_else(|| subjects.dead_all(), |model| subjects.dead_of(model))
    }

    fn letter(&self, stored: Stored<'_>) -> DeadLetter {
        let header = |name: &str| Some(stored.headers?.get(name)?.as_str().to_owned());
        let published_to = header(headers::DEAD_SUBJECT).unwrap_or_default();
        let parsed = self.connection.subjects.parse_request(&published_to).ok();
        let (class, model) = parsed.unzip();
        let body_bytes = stored.body_bytes.or_else(|| header(SIZE_HEADER)?.parse().ok());
        DeadLetter {
            letter: stored.letter,
            stored_ms: u64::try_from(stored.stored_ns / 1_000_000).unwrap_or(0),
            class,
            model,
            request: header(headers::DEAD_REQUEST).and_then(|id| RequestId::new(id).ok()),
            published_to,
            reason: header(headers::DEAD_REASON).unwrap_or_default(),
            content_type: header(headers::CONTENT_TYPE),
            body_bytes: body_bytes.unwrap_or(0),
        }
    }
}

impl DeadLetter {
    /// The id under which the letter is replayed: nobody can guess it who does not know the first one, it tells where it
    /// comes from, and it is always the same.
    #[must_use]
    pub fn replayed_as(&self) -> RequestId {
        let nameless = format!("{:x}", self.stored_ms);
        let first = self.request.as_ref().map_or(nameless.as_str(), RequestId::as_str);
        // Ids are ASCII.
        let first = &first[..first.len().min(FIRST_CHARS_MAX)];
        RequestId::new(format!("{first}-r{}", self.letter)).expect("an id and a number are an id")
    }
}

/// A message of the stream.
struct Stored<'a> {
    letter: u64,
    stored_ns: i128,
    headers: Option<&'a HeaderMap>,
    body_bytes: Option<usize>,
}

fn failed(operation: &'static str, error: impl Into<async_nats::Error>) -> DeadLettersError {
    DeadLettersError::Store {
        operation,
        source: error.into(),
    }
}

/// What the server adds to a message that it delivers without its body.
const SIZE_HEADER: &str = "Nats-Msg-Size";
/// The rest of an id's 64 characters is the letter's: two and up to 20 digits.
const FIRST_CHARS_MAX: usize = 42;
