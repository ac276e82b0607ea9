//! Removing what copies left behind that ended without doing so.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use serde::Deserialize;

use super::{CopyName, Relay, RelayError, late};

/// What a sweep found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Copies whose claims are gone.
    pub copies: usize,
    /// Messages that were removed with them.
    pub messages: usize,
}

impl Relay {
    /// Removes the objects of copies that nobody claims. What somebody else put into the bucket stays.
    ///
    /// `claimed` is called after it was listed what is there: a claim is taken before the first object of its copy,
    /// so that a copy which is listed and not claimed afterwards has ended.
    ///
    /// # Errors
    /// [`RelayError`], also of `claimed`.
    pub async fn sweep(
        &self,
        claimed: impl AsyncFnOnce() -> Result<BTreeSet<CopyName>, RelayError>,
    ) -> Result<Swept, RelayError> {
        let (chunks, descriptions) = (self.subjects("C").await?, self.descriptions().await?);
        let mut swept = Swept::default();
        if chunks.is_empty() && descriptions.is_empty() {
            return Ok(swept);
        }
        let claimed = claimed().await?;
        let mut ended: BTreeMap<CopyName, usize> = BTreeMap::new();
        for (subject, messages) in chunks {
            if let Some(name) = copy_of(subject.split('.').skip(3)).filter(|name| !claimed.contains(name)) {
                *ended.entry(name).or_default() += messages;
            }
        }
        for (name, messages) in ended {
            self.purge(format!(
                "$O.{}.C.{}.{}.>",
                self.bucket, name.root, name.generation
            ))
            .await?;
            swept.copies += 1;
            swept.messages += messages;
        }
        for (subject, name) in descriptions {
            if !claimed.contains(&name) {
                self.purge(subject).await?;
                swept.messages += 1;
            }
        }
        Ok(swept)
    }

    /// The subjects of one kind with how many messages each has.
    async fn subjects(&self, kind: &str) -> Result<Vec<(String, usize)>, RelayError> {
        let subject = format!("$O.{}.{kind}.>", self.bucket);
        let unread = |source: async_nats::Error| RelayError::Read {
            subject: subject.clone(),
            source,
        };
        let subjects = self
            .connection
            .within(self.stream.info_with_subjects(&subject))
            .await;
        let subjects = subjects.map_err(|_| late(&subject))?;
        let subjects = subjects.map_err(|error| unread(error.into()))?;
        let subjects = self.connection.within(subjects.try_collect()).await;
        let subjects = subjects.map_err(|_| late(&subject))?;
        subjects.map_err(|error| unread(error.into()))
    }

    /// The subjects of descriptions, and the copy that each was written by.
    async fn descriptions(&self) -> Result<Vec<(String, CopyName)>, RelayError> {
        let mut descriptions = Vec::new();
        for (subject, _) in self.subjects("M").await? {
            // It may have gone since it was listed, or be of somebody else and of any form.
            let found = self.stream.direct_get_last_for_subject(&subject);
            let Ok(message) = self.connection.within(found).await.map_err(|_| late(&subject))? else {
                continue;
            };
            descriptions.extend(CopyName::from_description(&message.payload).map(|name| (subject, name)));
        }
        Ok(descriptions)
    }
}

impl CopyName {
    /// The copy that an object's description in the bucket is of; `None` for a description of anything else.
    #[must_use]
    pub fn from_description(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Description {
            nuid: String,
        }
        let described: Description = serde_json::from_slice(json).ok()?;
        copy_of(described.nuid.split('.'))
    }
}

/// The copy that tokens begin with.
fn copy_of<'a>(mut tokens: impl Iterator<Item = &'a str>) -> Option<CopyName> {
    Some(CopyName {
        root: tokens.next()?.parse().ok()?,
        generation: tokens.next()?.parse().ok()?,
    })
}
