//! Reading what lies in the relay, by batches of direct gets (ADR-31).

use std::time::Duration;

use async_nats::{Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::timeout;

use super::{CopyName, CopyObject, OFFSET_HEADER, Relay, RelayError, late, stream_name};

impl Relay {
    /// Reads the chunks of a segment into a buffer of its length. `false` when it is not there, or not whole; the buffer's
    /// content must not be used then. The bytes are not compared with anything.
    ///
    /// # Errors
    /// [`RelayError::Read`], or [`RelayError::Late`] when the server falls silent.
    pub async fn fetch(
        &self,
        name: CopyName,
        object: CopyObject,
        buffer: &mut [u8],
    ) -> Result<bool, RelayError> {
        let bytes = buffer.len();
        let mut missing = bytes;
        let subject = self.chunk_subject(name, object);
        // Outstanding bytes are those of one object: the server sends them without flow control.
        let batch = bytes.div_ceil(super::CHUNK_BYTES_MIN).max(1);
        let wanted =
            json!({"seq": 1, "next_by_subj": subject, "batch": batch, "max_bytes": bytes + MARGIN_BYTES});
        self.batch(&subject, &wanted, &mut |message| {
            let place = offset(&message)
                .and_then(|offset| buffer.get_mut(offset..)?.get_mut(..message.payload.len()));
            let Some(place) = place else {
                return;
            };
            place.copy_from_slice(&message.payload);
            missing = missing.saturating_sub(message.payload.len());
        })
        .await?;
        Ok(missing == 0)
    }

    /// Reads the manifest of a copy; `None` when it is not there. Its length is not known before, so that it is
    /// bounded here; the bytes are not compared with anything.
    ///
    /// # Errors
    /// [`RelayError::Read`], or [`RelayError::Late`] when the server falls silent.
    pub async fn fetch_manifest(
        &self,
        name: CopyName,
        bytes_max: usize,
    ) -> Result<Option<Bytes>, RelayError> {
        let subject = self.chunk_subject(name, CopyObject::Manifest);
        let mut found = Vec::new();
        let batch = bytes_max.div_ceil(super::CHUNK_BYTES_MIN).max(1);
        let wanted =
            json!({"seq": 1, "next_by_subj": subject, "batch": batch, "max_bytes": bytes_max + MARGIN_BYTES});
        self.batch(&subject, &wanted, &mut |message| {
            // A chunk that lies there twice has been stored twice.
            let is_next = offset(&message).is_none_or(|offset| offset == found.len());
            if is_next && found.len() + message.payload.len() <= bytes_max {
                found.extend_from_slice(&message.payload);
            }
        })
        .await?;
        Ok((!found.is_empty()).then(|| found.into()))
    }

    /// Asks for messages and hands each one on, until the server says that there are no more.
    async fn batch(
        &self,
        subject: &str,
        wanted: &serde_json::Value,
        take: &mut (dyn FnMut(Message) + Send),
    ) -> Result<(), RelayError> {
        let client = &self.connection.client;
        let unread = |source: async_nats::Error| RelayError::Read {
            subject: subject.to_owned(),
            source,
        };
        let inbox = client.new_inbox();
        let mut answers = self.subscribe(inbox.clone()).await?;
        let ask = format!("$JS.API.DIRECT.GET.{}", stream_name(&self.bucket));
        let asked = client.publish_with_reply(ask, inbox, wanted.to_string().into());
        let asked = self.connection.within(asked).await.map_err(|_| late(subject))?;
        asked.map_err(|error| unread(error.into()))?;
        let mut last_sequence = None;
        loop {
            let message = timeout(SILENCE_MAX, answers.next()).await;
            let message = message.map_err(|_| late(subject))?;
            let Some(message) = message else {
                return Err(unread("the connection was closed".into()));
            };
            match message.status {
                None => {
                    // What a network says twice is no second chunk.
                    let sequence = sequence(&message);
                    if sequence > last_sequence {
                        last_sequence = sequence;
                        take(message);
                    }
                }
                // "EOB" after the last one, "Message Not Found" when there is none.
                Some(status) if [204, 404].into_iter().any(|code| status.as_u16() == code) => return Ok(()),
                Some(StatusCode::NO_RESPONDERS) => {
                    return Err(RelayError::Missing {
                        bucket: self.bucket.clone(),
                    });
                }
                Some(status) => {
                    let told = message.description.unwrap_or_else(|| status.to_string());
                    return Err(unread(told.into()));
                }
            }
        }
    }
}

/// Where in its object a chunk begins, if it says so.
fn offset(message: &Message) -> Option<usize> {
    message
        .headers
        .as_ref()?
        .get(OFFSET_HEADER)?
        .as_str()
        .parse()
        .ok()
}

/// The place in the stream of a message that was read back.
fn sequence(message: &Message) -> Option<u64> {
    message
        .headers
        .as_ref()?
        .get(SEQUENCE_HEADER)?
        .as_str()
        .parse()
        .ok()
}

/// On messages that the server read back.
const SEQUENCE_HEADER: &str = "Nats-Sequence";
/// A healthy server sends a message of a batch within milliseconds.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Headers and subjects count as bytes of a batch.
const MARGIN_BYTES: usize = 64 << 10;
