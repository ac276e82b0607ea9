//! The catalog: one JSON document a model in the KV bucket `models`, written by compare-and-set.

use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_protocol::subject::{decode_token, encode_token};
use flotilla_protocol::weights::Root;
use flotilla_protocol::{DecodeError, Encoding, ModelName};
use futures_util::{FutureExt, Stream, StreamExt};
use thiserror::Error;
use tracing::warn;

use crate::bucket::{is_missing_bucket, newest_entry};
use crate::connection::Connection;

/// Why the catalog could not be read or written.
#[derive(Debug, Error)]
pub enum CatalogError {
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
    #[error("cannot {operation} model {model:?}")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// On which model; `*` for all.
        model: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The model is there already.
    #[error("model {model:?} is in the catalog already; remove it first")]
    Exists {
        /// The model.
        model: ModelName,
    },
    /// The model is not there.
    #[error("model {model:?} is not in the catalog")]
    Unknown {
        /// The model.
        model: ModelName,
    },
    /// What is stored is not an entry.
    #[error("what is stored for key {key:?} is not a catalog entry{}", of_field(.source))]
    NotAnEntry {
        /// The key.
        key: String,
        /// Why not.
        #[source]
        source: DecodeError,
    },
}

/// A change of the catalog.
#[derive(Debug, Clone, PartialEq)]
pub enum CatalogChange {
    /// A model is there, newly or with other settings.
    Put(Box<CatalogEntry>),
    /// A model is gone.
    Removed(ModelName),
}

/// The catalog. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog {
    store: kv::Store,
    connection: Connection,
}

impl Catalog {
    /// Opens the bucket.
    ///
    /// # Errors
    /// [`CatalogError::NoBucket`], or [`CatalogError::Store`].
    pub async fn open(connection: &Connection) -> Result<Self, CatalogError> {
        let bucket = connection.subjects.bucket("models");
        let opened = connection.within(connection.jetstream.get_key_value(&bucket));
        let opened = opened.await.map_err(|late| failed("open", "*", late))?;
        let store = opened.map_err(|source| match is_missing_bucket(&source) {
            true => CatalogError::NoBucket { bucket, source },
            false => failed("open", "*", source),
        })?;
        Ok(Self {
            store,
            connection: connection.clone(),
        })
    }

    /// One model as it is now, or `None`.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn entry(&self, model: &ModelName) -> Result<Option<CatalogEntry>, CatalogError> {
        let key = encode_token(model.as_str());
        let found = self
            .done("read", model.as_str(), newest_entry(&self.store, &key))
            .await?;
        let found = found.filter(|found| found.operation == Operation::Put);
        found.map(|found| decode(&key, &found.value)).transpose()
    }

    /// Every model, by name.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn list(&self) -> Result<Vec<CatalogEntry>, CatalogError> {
        let mut keys = self.done("list", "*", self.store.keys()).await?;
        let mut entries = Vec::new();
        // What lists keys waits for the next one for ever.
        while let Some(key) = self.done("list", "*", keys.next().map(Option::transpose)).await? {
            if let Some(value) = self.done("read", &key, self.store.get(&key)).await? {
                entries.push(decode(&key, &value)?);
            }
        }
        entries.sort_by(|a: &CatalogEntry, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Adds a model that is not there.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] and others.
    pub async fn add(&self, entry: &CatalogEntry) -> Result<(), CatalogError> {
        let model = &entry.name;
        let body = Encoding::Json
            .encode(entry)
            .map_err(|error| failed("add", model.as_str(), error))?;
        let created = self.store.create(encode_token(model.as_str()), body);
        match self.answered("add", model.as_str(), created).await? {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {
                Err(CatalogError::Exists { model: model.clone() })
            }
            Err(error) => Err(failed("add", model.as_str(), error)),
        }
    }

    /// Notes what the bytes of a model's files are called, unless that is known already. Returns the entry's root, which is
    /// another one than the given one if somebody else has noted it; `None` when there is no such model, or it has another
    /// source by now.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn identify(
        &self,
        model: &ModelName,
        source: &ModelSource,
        root: Root,
    ) -> Result<Option<Root>, CatalogError> {
        let key = encode_token(model.as_str());
        loop {
            let found = self
                .done("read", model.as_str(), newest_entry(&self.store, &key))
                .await?;
            let Some(found) = found.filter(|found| found.operation == Operation::Put) else {
                return Ok(None);
            };
            let entry: CatalogEntry = decode(&key, &found.value)?;
            if entry.source != *source {
                return Ok(None);
            }
            if entry.root.is_some() {
                return Ok(entry.root);
            }
            let entry = CatalogEntry {
                root: Some(root),
                ..entry
            };
            let body = Encoding::Json.encode(&entry);
            let body = body.map_err(|error| failed("identify", model.as_str(), error))?;
            let updated = self.store.update(&key, body, found.revision);
            match self.answered("identify", model.as_str(), updated).await? {
                Ok(_) => return Ok(Some(root)),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(failed("identify", model.as_str(), error)),
            }
        }
    }

    /// Removes a model.
    ///
    /// # Errors
    /// [`CatalogError::Unknown`] and others.
    pub async fn remove(&self, model: &ModelName) -> Result<(), CatalogError> {
        if self.entry(model).await?.is_none() {
            return Err(CatalogError::Unknown { model: model.clone() });
        }
        let key = encode_token(model.as_str());
        self.done("remove", model.as_str(), self.store.delete(key)).await
    }

    /// Everything that is there, then every change. An entry that cannot be read is logged and skipped: one
    /// broken entry must not take the fleet down. The stream ends only with the connection.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub async fn changes(&self) -> Result<impl Stream<Item = CatalogChange> + Unpin + use<>, CatalogError> {
        let watch = self
            .done("watch", "*", self.store.watch_with_history(">"))
            .await?;
        Ok(watch
            .filter_map(|entry| {
                std::future::ready(match entry {
                    Ok(entry) => change(&entry),
                    Err(error) => {
                        warn!(%error, "the catalog's watch faltered and goes on");
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
        model: &str,
        answer: impl Future<Output = T>,
    ) -> Result<T, CatalogError> {
        let answer = self.connection.within(answer).await;
        answer.map_err(|late| failed(operation, model, late))
    }

    /// What the server did in time.
    async fn done<T, E: std::error::Error + Send + Sync + 'static>(
        &self,
        operation: &'static str,
        model: &str,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, CatalogError> {
        let answer = self.answered(operation, model, answer).await?;
        answer.map_err(|error| failed(operation, model, error))
    }
}

fn change(entry: &kv::Entry) -> Option<CatalogChange> {
    let change = match entry.operation {
        Operation::Put => decode(&entry.key, &entry.value).map(|entry| CatalogChange::Put(Box::new(entry))),
        Operation::Delete | Operation::Purge => {
            let name = decode_token(&entry.key)
                .ok()
                .and_then(|name| ModelName::new(name).ok());
            return name.map(CatalogChange::Removed);
        }
    };
    change
        .inspect_err(|error| {
            let error: &(dyn std::error::Error + 'static) = error;
            warn!(key = entry.key, error, "a catalog entry cannot be read");
        })
        .ok()
}

fn decode(key: &str, value: &[u8]) -> Result<CatalogEntry, CatalogError> {
    Encoding::Json
        .decode(value, ENTRY_BYTES_MAX)
        .map_err(|source| CatalogError::NotAnEntry {
            key: key.to_owned(),
            source,
        })
}

/// The field at fault, which the decoder's own words need not name.
fn of_field(error: &DecodeError) -> String {
    match error {
        DecodeError::Malformed { field, .. } if !field.is_empty() => format!("; the cause is {field}"),
        DecodeError::Malformed { .. } | DecodeError::TooLarge { .. } | DecodeError::ContentType { .. } => {
            String::new()
        }
    }
}

fn failed(
    operation: &'static str,
    model: &str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> CatalogError {
    CatalogError::Store {
        operation,
        model: model.to_owned(),
        source: Box::new(source),
    }
}

/// Largest entry that is read, in bytes; ours have a few hundred.
const ENTRY_BYTES_MAX: usize = 64 << 10;
