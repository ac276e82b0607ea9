//! Putting objects in and taking them out.

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishAckFuture;
use bytes::Bytes;
use flotilla_client::is_full;
use ring::digest::digest;
use serde_json::json;

use crate::background::in_background;

use super::{CopyName, CopyObject, OFFSET_HEADER, Relay, RelayError, base64_url, late, nuid, object_name};

impl Relay {
    /// Puts an object in, all its chunks at a time, and then its description, from which on it is there. Dropped
    /// or failed, it may leave chunks; [`Self::delete`] removes them.
    ///
    /// # Errors
    /// [`RelayError::Full`], or [`RelayError::Write`].
    pub async fn put(&self, name: CopyName, object: CopyObject, bytes: Bytes) -> Result<(), RelayError> {
        // For clients that insist on it. It takes as long as all the rest, so it is made beside, on another thread:
        // this one may be the only one of a worker.
        let digest = {
            let bytes = bytes.clone();
            tokio::spawn(in_background(move || digest(&ring::digest::SHA256, &bytes)))
        };
        let subject = self.chunk_subject(name, object);
        let mut acks = Vec::new();
        let mut offset = 0;
        while offset < bytes.len() {
            let end = bytes.len().min(offset + self.chunk_bytes);
            let mut headers = HeaderMap::new();
            headers.insert(OFFSET_HEADER, offset.to_string());
            acks.push(self.publish(&subject, headers, bytes.slice(offset..end)).await?);
            offset = end;
        }
        let chunks = acks.len();
        for ack in acks {
            self.stored(&subject, ack).await?;
        }
        let digest = digest.await.expect("hashing does not panic");
        let info = json!({
            "name": object_name(name, object),
            "bucket": self.bucket,
            "nuid": nuid(name, object),
            "size": bytes.len(),
            "chunks": chunks,
            "digest": format!("SHA-256={}", base64_url(digest.as_ref())),
            "options": {"max_chunk_size": self.chunk_bytes},
        });
        let subject = self.meta_subject(name, object);
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_ROLLUP, "sub");
        let ack = self.publish(&subject, headers, info.to_string().into()).await?;
        self.stored(&subject, ack).await
    }

    /// Takes an object out, whole or partly there. A description that another copy has written since for the same
    /// segment may go with it: stock tools then miss an object, receivers do not look at descriptions.
    ///
    /// # Errors
    /// [`RelayError::Remove`].
    pub async fn delete(&self, name: CopyName, object: CopyObject) -> Result<(), RelayError> {
        for subject in [self.meta_subject(name, object), self.chunk_subject(name, object)] {
            self.purge(subject).await?;
        }
        Ok(())
    }

    /// Removes whatever lies under a subject.
    pub(super) async fn purge(&self, subject: String) -> Result<(), RelayError> {
        let purged = self.stream.purge().filter(&subject).into_future();
        match self.connection.within(purged).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(RelayError::Remove { subject, source }),
            Err(_) => Err(late(&subject)),
        }
    }

    async fn publish(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<PublishAckFuture, RelayError> {
        let jetstream = &self.connection.jetstream;
        let published = jetstream.publish_with_headers(subject.to_owned(), headers, payload);
        let published = self.connection.within(published).await;
        let published = published.map_err(|_| late(subject))?;
        published.map_err(|source| RelayError::Write {
            subject: subject.to_owned(),
            source,
        })
    }

    async fn stored(&self, subject: &str, ack: PublishAckFuture) -> Result<(), RelayError> {
        match self.connection.within(ack.into_future()).await {
            Err(_) => Err(late(subject)),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if is_full(&error) => Err(RelayError::Full {
                bucket: self.bucket.clone(),
            }),
            Ok(Err(source)) => Err(RelayError::Write {
                subject: subject.to_owned(),
                source,
            }),
        }
    }
}
