//! The profiles: one JSON document a model and device kind in the KV bucket `profiles`, written by
//! compare-and-set. The key says whose it is, and rules over what the document calls itself.

use async_nats::jetstream::kv::{self, Operation, UpdateErrorKind};
use flotilla_profile::{BadProfile, DeviceProfile};
use flotilla_protocol::subject::{decode_token, encode_token};
use flotilla_protocol::{Encoding, ModelName};
use futures_util::{FutureExt, Stream, StreamExt};
use thiserror::Error;
use tracing::warn;

use crate::bucket::{is_missing_bucket, newest_entry};
use crate::connection::Connection;

/// Why the profiles could not be read or written.
#[derive(Debug, Error)]
pub enum ProfilesError {
    /// The bucket does not exist.
    #[error("the bucket {bucket} is missing; has a dispatcher been started in this namespace?")]
    NoBucket {
        /// Its name.
        bucket: String,
        /// What the client says.
        #[source]
        source: async_nats::jetstream::context::KeyValueError,
    },
    /// The server could not be asked.
    #[error("cannot {operation} profile {key:?}")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// On which key; `*` for all.
        key: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// A newer one is stored.
    #[error(
        "the profile of {model} on {kind} is newer: created at {stored}, this one at {given} (Unix seconds); \
         remove it first to go back"
    )]
    Older {
        /// The model.
        model: ModelName,
        /// The device kind.
        kind: String,
        /// When the stored one was made.
        stored: f64,
        /// When the refused one was made.
        given: f64,
    },
    /// Others wrote the same one again and again.
    #[error("the profile of {model} on {kind} is being written by others; try again")]
    Contended {
        /// The model.
        model: ModelName,
        /// The device kind.
        kind: String,
    },
    /// It is not there.
    #[error("there is no profile of {model} on {kind}")]
    Unknown {
        /// The model.
        model: ModelName,
        /// The device kind.
        kind: String,
    },
    /// What is stored cannot be used.
    #[error("what is stored for key {key:?} is not a profile")]
    NotAProfile {
        /// The key.
        key: String,
        /// Why not.
        #[source]
        source: BadProfile,
    },
}

/// A change of the profiles.
#[derive(Debug, Clone, PartialEq)]
pub enum ProfileChange {
    /// A profile is there, newly or with other figures.
    Put {
        /// The model.
        model: ModelName,
        /// The device kind.
        kind: String,
        /// What it says.
        profile: Box<DeviceProfile>,
    },
    /// A profile is gone.
    Removed {
        /// The model.
        model: ModelName,
        /// The device kind.
        kind: String,
    },
}

/// What is stored under one key.
#[derive(Debug)]
pub struct StoredProfile {
    /// The model.
    pub model: ModelName,
    /// The device kind.
    pub kind: String,
    /// The profile, or why it is none.
    pub profile: Result<DeviceProfile, ProfilesError>,
}

/// The profiles. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Profiles {
    store: kv::Store,
    connection: Connection,
}

impl Profiles {
    /// Opens the bucket.
    ///
    /// # Errors
    /// [`ProfilesError::NoBucket`], or [`ProfilesError::Store`].
    pub async fn open(connection: &Connection) -> Result<Self, ProfilesError> {
        let bucket = connection.subjects.bucket("profiles");
        let opened = connection.within(connection.jetstream.get_key_value(&bucket));
        let opened = opened.await.map_err(|late| failed("open", "*", late))?;
        let store = opened.map_err(|source| match is_missing_bucket(&source) {
            true => ProfilesError::NoBucket { bucket, source },
            false => failed("open", "*", source),
        })?;
        Ok(Self {
            store,
            connection: connection.clone(),
        })
    }

    /// One profile, or `None`.
    ///
    /// # Errors
    /// [`ProfilesError`].
    pub async fn entry(&self, model: &ModelName, kind: &str) -> Result<Option<DeviceProfile>, ProfilesError> {
        let key = key(model, kind);
        let value = self.done("read", &key, self.store.get(&key)).await?;
        value.map(|value| decode(&key, kind, &value)).transpose()
    }

    /// Everything that is stored, by model and kind, also what cannot be used.
    ///
    /// # Errors
    /// [`ProfilesError`] when the server cannot be asked.
    pub async fn list(&self) -> Result<Vec<StoredProfile>, ProfilesError> {
        let mut keys = self.done("list", "*", self.store.keys()).await?;
        let mut stored = Vec::new();
        // What lists keys waits for the next one for ever.
        while let Some(key) = self.done("list", "*", keys.next().map(Option::transpose)).await? {
            let Some((model, kind)) = owner(&key) else {
                continue;
            };
            if let Some(value) = self.done("read", &key, self.store.get(&key)).await? {
                let profile = decode(&key, &kind, &value);
                stored.push(StoredProfile { model, kind, profile });
            }
        }
        stored.sort_by(|a, b| (&a.model, &a.kind).cmp(&(&b.model, &b.kind)));
        Ok(stored)
    }

    /// Stores a profile under its own kind, unless a newer one is there. One that was made at the same time is
    /// replaced, and so is what is no profile. Cancelled, it is stored or it is not.
    ///
    /// # Errors
    /// [`ProfilesError::Older`] and others.
    pub async fn put(&self, model: &ModelName, profile: &DeviceProfile) -> Result<(), ProfilesError> {
        let kind = profile.kind();
        let key = key(model, kind);
        let body = Encoding::Json
            .encode(profile.document())
            .map_err(|error| failed("store", &key, error))?;
        for _ in 0..PUT_TRIES {
            let found = self.done("read", &key, newest_entry(&self.store, &key)).await?;
            if let Some(stored) = found.as_ref().and_then(|entry| usable(entry, kind))
                && !profile.replaces(&stored)
            {
                return Err(ProfilesError::Older {
                    model: model.clone(),
                    kind: kind.to_owned(),
                    stored: stored.created(),
                    given: profile.created(),
                });
            }
            // Revision 0 is that of a key which was never written.
            let revision = found.map_or(0, |entry| entry.revision);
            let updated = self.store.update(&key, body.clone(), revision);
            match self.answered("store", &key, updated).await? {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(failed("store", &key, error)),
            }
        }
        Err(ProfilesError::Contended {
            model: model.clone(),
            kind: kind.to_owned(),
        })
    }

    /// Removes a profile, also one that cannot be used.
    ///
    /// # Errors
    /// [`ProfilesError::Unknown`] and others.
    pub async fn remove(&self, model: &ModelName, kind: &str) -> Result<(), ProfilesError> {
        let key = key(model, kind);
        if self.done("read", &key, self.store.get(&key)).await?.is_none() {
            return Err(ProfilesError::Unknown {
                model: model.clone(),
                kind: kind.to_owned(),
            });
        }
        self.done("remove", &key, self.store.delete(&key)).await
    }

    /// Everything that is there, then every change. What cannot be used is logged with its faults and skipped, so
    /// that a broken profile never takes the place of the one before it. The stream ends only with the
    /// connection.
    ///
    /// # Errors
    /// [`ProfilesError`].
    pub async fn changes(&self) -> Result<impl Stream<Item = ProfileChange> + Unpin + use<>, ProfilesError> {
        let watch = self
            .done("watch", "*", self.store.watch_with_history(">"))
            .await?;
        Ok(watch
            .filter_map(|entry| {
                std::future::ready(match entry {
                    Ok(entry) => change(&entry),
                    Err(error) => {
                        warn!(%error, "the watch of the profiles faltered and goes on");
                        None
                    }
                })
            })
            .boxed())
    }

    /// What the server answers in time.
    async fn answered<T>(
        &self,
        operation: &'static str,
        key: &str,
        answer: impl Future<Output = T>,
    ) -> Result<T, ProfilesError> {
        let answer = self.connection.within(answer).await;
        answer.map_err(|late| failed(operation, key, late))
    }

    /// What the server did in time.
    async fn done<T, E: std::error::Error + Send + Sync + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ProfilesError> {
        let answer = self.answered(operation, key, answer).await?;
        answer.map_err(|error| failed(operation, key, error))
    }
}

fn change(entry: &kv::Entry) -> Option<ProfileChange> {
    let Some((model, kind)) = owner(&entry.key) else {
        warn!(key = entry.key, "a profile's key names no model and device kind");
        return None;
    };
    match entry.operation {
        Operation::Delete | Operation::Purge => Some(ProfileChange::Removed { model, kind }),
        Operation::Put => match decode(&entry.key, &kind, &entry.value) {
            Ok(profile) => Some(ProfileChange::Put {
                model,
                kind,
                profile: Box::new(profile),
            }),
            Err(error) => {
                let error: &(dyn std::error::Error + 'static) = &error;
                warn!(%model, kind, error, "a profile cannot be used; the one before it stays");
                None
            }
        },
    }
}

/// What is stored when it can be used: what cannot may be overwritten by anything that can.
fn usable(entry: &kv::Entry, kind: &str) -> Option<DeviceProfile> {
    match entry.operation {
        Operation::Put => decode(&entry.key, kind, &entry.value).ok(),
        Operation::Delete | Operation::Purge => None,
    }
}

fn key(model: &ModelName, kind: &str) -> String {
    format!("{}.{}", encode_token(model.as_str()), encode_token(kind))
}

/// The model and device kind of a key; `None` when nobody here wrote it.
fn owner(key: &str) -> Option<(ModelName, String)> {
    let (model, kind) = key.split_once('.')?;
    let model = ModelName::new(decode_token(model).ok()?).ok()?;
    Some((model, decode_token(kind).ok()?))
}

fn decode(key: &str, kind: &str, value: &[u8]) -> Result<DeviceProfile, ProfilesError> {
    DeviceProfile::from_json(value, Some(kind)).map_err(|source| ProfilesError::NotAProfile {
        key: key.to_owned(),
        source,
    })
}

fn failed(
    operation: &'static str,
    key: &str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> ProfilesError {
    ProfilesError::Store {
        operation,
        key: key.to_owned(),
        source: Box::new(source),
    }
}

/// How often a write is tried against others: each failure is another's success, so this many writers of one
/// profile at the same moment are served.
const PUT_TRIES: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_two_tokens_and_names_its_model_and_kind() {
        let model = ModelName::new("org/llama3.1:8b").unwrap();
        let key = key(&model, "NVIDIA A10 (24.0 GB)");
        assert_eq!(key.matches('.').count(), 1, "{key}");
        assert_eq!(owner(&key), Some((model, "NVIDIA A10 (24.0 GB)".to_owned())));
        for foreign in ["nothing", "a.b=Z", "=Z.b", ".b"] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }
}
