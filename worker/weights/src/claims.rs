//! Who sends a root, and who holds one: entries of two buckets that expire unless they are renewed.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use flotilla_client::{Connection, newest_entry};
use flotilla_protocol::WorkerId;
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::weights::{Claim, Holding, Root};
use futures_util::TryStreamExt;
use thiserror::Error;
use tracing::warn;

use crate::relay::CopyName;

/// The buckets of claims and holders.
#[derive(Debug, Clone)]
pub struct Registry {
    connection: Connection,
    claims: kv::Store,
    holders: kv::Store,
    /// How often an entry is to be renewed.
    pub renew_every: Duration,
    /// For how long one that is not renewed is there.
    pub expires_after: Duration,
}

/// A claim that was taken. It must be renewed, and ends nobody's wait by being dropped: it expires.
#[derive(Debug)]
pub struct HeldClaim {
    root: Root,
    entry: HeldEntry,
}

/// The same of a download from an origin.
#[derive(Debug)]
pub struct HeldDownload {
    entry: HeldEntry,
}

#[derive(Debug)]
struct HeldEntry {
    claim: Claim,
    key: String,
    revision: u64,
}

/// Why the registry does not do what is asked.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// A bucket is not there.
    #[error("there is no bucket {bucket}; a dispatcher makes it when it starts")]
    Missing {
        /// Its name.
        bucket: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// The server does not answer, or refuses.
    #[error("cannot {operation} {key}")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// Of which entry.
        key: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
}

impl Registry {
    /// Opens the buckets of the connection's namespace.
    ///
    /// # Errors
    /// [`RegistryError::Missing`].
    pub async fn open(connection: &Connection) -> Result<Self, RegistryError> {
        let open = async |name: &str| {
            let bucket = connection.subjects.bucket(name);
            let store = connection.within(connection.jetstream.get_key_value(&bucket));
            let store = store.await.map_err(|late| failed("open", &bucket)(late.into()))?;
            store.map_err(|error| RegistryError::Missing {
                bucket,
                source: error.into(),
            })
        };
        let claims = open(CLAIMS).await?;
        let status = connection.within(claims.status()).await;
        let expires_after = match status {
            Ok(Ok(status)) if !status.max_age().is_zero() => status.max_age(),
            _ => EXPIRY_DEFAULT,
        };
        Ok(Self {
            connection: connection.clone(),
            claims,
            holders: open(HOLDERS).await?,
            renew_every: expires_after / RENEWALS,
            expires_after,
        })
    }

    /// Takes the claim of a root, or says who has it.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn take(&self, root: Root, claim: Claim) -> Result<Result<HeldClaim, Claim>, RegistryError> {
        let taken = self.take_entry(root.to_string(), claim).await?;
        Ok(taken.map(|entry| HeldClaim { root, entry }))
    }

    /// Takes the claim to download what an origin calls by this name, or says who has it.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn take_download(
        &self,
        origin: &str,
        claim: Claim,
    ) -> Result<Result<HeldDownload, Claim>, RegistryError> {
        let taken = self.take_entry(download_key(origin), claim).await?;
        Ok(taken.map(|entry| HeldDownload { entry }))
    }

    /// Who sends a root; `None` when nobody does.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn claim_of(&self, root: Root) -> Result<Option<Claim>, RegistryError> {
        self.claim_at(&root.to_string()).await
    }

    /// Who downloads what an origin calls by this name; `None` when nobody does.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn downloader_of(&self, origin: &str) -> Result<Option<Claim>, RegistryError> {
        self.claim_at(&download_key(origin)).await
    }

    /// Renews a claim; `false` when it is somebody else's or has expired.
    ///
    /// # Errors
    /// [`RegistryError`]: nobody knows whether it was renewed. The next call finds out.
    pub async fn renew(&self, held: &mut HeldClaim) -> Result<bool, RegistryError> {
        self.renew_entry(&mut held.entry).await
    }

    /// The same of a download.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn renew_download(&self, held: &mut HeldDownload) -> Result<bool, RegistryError> {
        self.renew_entry(&mut held.entry).await
    }

    /// Gives a claim back. One that is somebody else's by now stays.
    ///
    /// # Errors
    /// [`RegistryError`]: it expires by itself.
    pub async fn release(&self, held: HeldClaim) -> Result<(), RegistryError> {
        self.release_entry(held.entry).await
    }

    /// The same of a download.
    ///
    /// # Errors
    /// [`RegistryError`]: it expires by itself.
    pub async fn release_download(&self, held: HeldDownload) -> Result<(), RegistryError> {
        self.release_entry(held.entry).await
    }

    async fn take_entry(&self, key: String, claim: Claim) -> Result<Result<HeldEntry, Claim>, RegistryError> {
        let body = encode(&claim);
        loop {
            let created = self.claims.create(&key, body.clone());
            match self.answered("create the claim of", &key, created).await? {
                Ok(revision) => {
                    return Ok(Ok(HeldEntry { claim, key, revision }));
                }
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("create the claim of", &key)(error.into())),
            }
            // It may go between the two looks; then it is tried again.
            if let Some(claim) = self.claim_at(&key).await? {
                return Ok(Err(claim));
            }
        }
    }

    async fn claim_at(&self, key: &str) -> Result<Option<Claim>, RegistryError> {
        let found = self
            .done("read the claim of", key, newest_entry(&self.claims, key))
            .await?;
        let found = found.filter(|entry| entry.operation == Operation::Put);
        Ok(found.and_then(|entry| decode(key, &entry.value)))
    }

    async fn renew_entry(&self, held: &mut HeldEntry) -> Result<bool, RegistryError> {
        let key = &held.key;
        let updated = self.claims.update(key, encode(&held.claim), held.revision);
        match self.answered("renew the claim of", key, updated).await? {
            Ok(revision) => held.revision = revision,
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                // The answer to an earlier renewal may have been lost.
                let entry = self
                    .done("read the claim of", key, newest_entry(&self.claims, key))
                    .await?;
                match entry.filter(|entry| entry.operation == Operation::Put) {
                    Some(entry) if decode(key, &entry.value) == Some(held.claim.clone()) => {
                        held.revision = entry.revision;
                    }
                    _ => return Ok(false),
                }
            }
            Err(error) => return Err(failed("renew the claim of", key)(error.into())),
        }
        Ok(true)
    }

    async fn release_entry(&self, held: HeldEntry) -> Result<(), RegistryError> {
        let deleted = self.claims.delete_expect_revision(&held.key, Some(held.revision));
        self.done("give back the claim of", &held.key, deleted).await
    }

    /// Every copy that somebody sends.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn copies(&self) -> Result<BTreeSet<CopyName>, RegistryError> {
        let mut copies = BTreeSet::new();
        for key in self.keys(&self.claims, ">").await? {
            let Ok(root) = key.parse() else { continue };
            copies.extend(self.claim_of(root).await?.map(|claim| CopyName {
                root,
                generation: claim.generation,
            }));
        }
        Ok(copies)
    }

    /// Whether this worker is the one that sweeps the relay now: the first who asks, until the entry expires.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn take_turn_to_sweep(&self, worker: &WorkerId) -> Result<bool, RegistryError> {
        let created = self.claims.create(SWEEP_KEY, encode(worker));
        match self.answered("create", SWEEP_KEY, created).await? {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(failed("create", SWEEP_KEY)(error.into())),
        }
    }

    /// Says that a worker holds a root; to be said again within [`Self::renew_every`].
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn hold(&self, root: Root, holding: &Holding) -> Result<(), RegistryError> {
        let key = holder_key(root, &holding.worker);
        let put = self.holders.put(&key, encode(holding));
        self.done("write the holder", &key, put).await.map(drop)
    }

    /// Says that a worker does not hold a root any more.
    ///
    /// # Errors
    /// [`RegistryError`]: the entry expires by itself.
    pub async fn let_go(&self, root: Root, worker: &WorkerId) -> Result<(), RegistryError> {
        let key = holder_key(root, worker);
        self.done("remove the holder", &key, self.holders.delete(&key))
            .await
    }

    /// Who holds a root.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn holders_of(&self, root: Root) -> Result<Vec<Holding>, RegistryError> {
        let mut holders = Vec::new();
        for key in self.keys(&self.holders, &format!("{root}.>")).await? {
            let found = self.done("read the holder", &key, self.holders.get(&key)).await?;
            holders.extend(found.and_then(|body| decode(&key, &body)));
        }
        Ok(holders)
    }

    /// The keys of entries, some of which may have been deleted.
    async fn keys(&self, store: &kv::Store, wanted: &str) -> Result<Vec<String>, RegistryError> {
        let subjects = store
            .stream
            .info_with_subjects(format!("{}{wanted}", store.prefix));
        let subjects = self.done("list", wanted, subjects).await?;
        let subjects: Vec<(String, usize)> = self.done("list", wanted, subjects.try_collect()).await?;
        let key = |(subject, _): (String, usize)| subject.strip_prefix(&store.prefix).map(str::to_owned);
        Ok(subjects.into_iter().filter_map(key).collect())
    }

    /// What the server answers in time.
    async fn answered<T>(
        &self,
        operation: &'static str,
        key: &str,
        answer: impl Future<Output = T>,
    ) -> Result<T, RegistryError> {
        let answer = self.connection.within(answer).await;
        answer.map_err(|late| failed(operation, key)(late.into()))
    }

    /// What the server did in time.
    async fn done<T, E: Into<async_nats::Error>>(
        &self,
        operation: &'static str,
        key: &str,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, RegistryError> {
        let answer = self.answered(operation, key, answer).await?;
        answer.map_err(|error| failed(operation, key)(error.into()))
    }
}

impl HeldClaim {
    /// The copy that it allows to send.
    #[must_use]
    pub const fn copy(&self) -> CopyName {
        CopyName {
            root: self.root,
            generation: self.entry.claim.generation,
        }
    }
}

fn holder_key(root: Root, worker: &WorkerId) -> String {
    format!("{root}.{worker}")
}

/// Names of origins have characters that keys may not have.
fn download_key(origin: &str) -> String {
    format!("origin-{}", blake3::hash(origin.as_bytes()).to_hex())
}

fn encode<T: serde::Serialize>(entry: &T) -> bytes::Bytes {
    encode_internal(entry).expect("texts and numbers can be encoded")
}

/// An entry, unless it is of another release and cannot be read.
fn decode<T: serde::de::DeserializeOwned>(key: &str, body: &[u8]) -> Option<T> {
    match decode_internal(body) {
        Ok(entry) => Some(entry),
        Err(error) => {
            warn!(key, %error, "an entry about weights cannot be read");
            None
        }
    }
}

fn failed(operation: &'static str, key: &str) -> impl FnOnce(async_nats::Error) -> RegistryError {
    let key = key.to_owned();
    move |source| RegistryError::Failed {
        operation,
        key,
        source,
    }
}

/// No root is called that.
const SWEEP_KEY: &str = "sweep";
/// The bucket of claims, after the namespace.
pub const CLAIMS: &str = "claims";
/// The bucket of holders, after the namespace.
pub const HOLDERS: &str = "holders";
/// Two renewals may go missing.
const RENEWALS: u32 = 3;
/// Of buckets that keep entries for ever: they are renewed as if they did not.
const EXPIRY_DEFAULT: Duration = Duration::from_secs(15);
