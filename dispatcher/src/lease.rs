//! The leader's lease: one key with a time to live, renewed by compare-and-set.
//!
//! Whoever creates the key leads; the revision of that write is the epoch, so a later leader's is larger.
//! A leader counts from the moment at which it *sent* its last confirmed renewal and gives up a margin
//! before the server can have dropped the key: two processes never both believe that they lead, as long as
//! their clocks run at about the same speed. Where they do not, the epoch and the journal fence.

use std::future::Future;
use std::time::Duration;

use async_nats::jetstream::kv::{Entry, Operation, Store, UpdateErrorKind, Watch};
use bytes::Bytes;
use flotilla_client::{Connection, Foothold, is_missing_bucket, newest_entry};
use flotilla_protocol::Epoch;
use futures_util::StreamExt;
use serde::Serialize;
use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::chain;

/// Why the lease cannot be asked for.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// The bucket does not exist.
    #[error("the bucket {bucket} is missing; was it removed by hand?")]
    NoBucket {
        /// Its name.
        bucket: String,
        /// What the client says.
        #[source]
        source: async_nats::jetstream::context::KeyValueError,
    },
    /// The server could not be asked.
    #[error("cannot {operation} the lease")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// No answer in time.
    #[error(
        "no answer to {operation} the lease; if the server answers otherwise, its disk is full or broken, which its log says: \
         make room, and start nats-server again"
    )]
    TimedOut {
        /// What was tried.
        operation: &'static str,
    },
}

/// A process that wants to lead.
#[derive(Debug, Clone)]
pub struct Candidate {
    store: Store,
    value: Bytes,
    ttl: Duration,
    connection: Connection,
}

/// Leadership. It is kept only while [`Lease::keep`] runs.
#[derive(Debug)]
pub struct Lease {
    candidate: Candidate,
    epoch: Epoch,
    revision: u64,
    /// When the last renewal that the server confirmed was sent.
    confirmed: Instant,
}

/// How leadership ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The lease is not ours any more, or may not be.
    Lost,
    /// It was given back, so that another can lead at once.
    Released,
}

/// What the key holds.
#[derive(Serialize)]
struct Holder<'a> {
    dispatcher: &'a str,
    host: &'a str,
    /// Random, so that a process knows its own write from one of its predecessor under the same name.
    incarnation: u64,
}

impl Candidate {
    /// Opens the bucket for the process called `dispatcher` on `host`.
    ///
    /// # Errors
    /// [`LeaseError`] when the bucket is missing or the server does not answer.
    ///
    /// # Panics
    /// When the operating system gives no random bytes, which it does from boot on.
    pub async fn open(
        connection: &Connection,
        dispatcher: &str,
        host: &str,
        ttl: Duration,
    ) -> Result<Self, LeaseError> {
        let bucket = connection.subjects.bucket("lease");
        let mut bits = [0; 8];
        getrandom::fill(&mut bits).expect("the operating system gives random bytes");
        let holder = Holder {
            dispatcher,
            host,
            incarnation: u64::from_ne_bytes(bits),
        };
        let value = serde_json::to_vec(&holder).expect("two texts and a number can be written");
        let operation = "open";
        let opened = connection
            .within(connection.jetstream.get_key_value(&bucket))
            .await;
        let opened = opened.map_err(|_| LeaseError::TimedOut { operation })?;
        let store = opened.map_err(|source| match is_missing_bucket(&source) {
            true => LeaseError::NoBucket { bucket, source },
            false => LeaseError::Store {
                operation,
                source: source.into(),
            },
        })?;
        Ok(Self {
            store,
            value: value.into(),
            ttl,
            connection: connection.clone(),
        })
    }

    /// Waits until this process leads. Cancelling loses nothing but a lease that may have been taken and
    /// then expires by itself.
    pub async fn wait(&self) -> Lease {
        let mut changes = None;
        let mut foothold = Foothold::new(&self.connection);
        loop {
            match self.try_take().await {
                Ok(Some(lease)) => return lease,
                Ok(None) => foothold.holds(),
                Err(error) => {
                    warn!(error = chain(&error), "no leadership");
                    foothold.slips().await;
                }
            }
            if changes.is_none() {
                changes = self.watch().await;
            }
            let released = async {
                match &mut changes {
                    Some(watch) => until_released(watch).await,
                    None => std::future::pending().await,
                }
            };
            // A key that expires is not told to watchers, so the key is also tried for: often enough that a leader's
            // death costs little more than the lease's life.
            if timeout(self.ttl / 4, released).await == Ok(Released::WatchEnded) {
                changes = None;
                sleep(self.ttl / 2).await;
            }
        }
    }

    /// Takes the lease if nobody holds it, or this very process does: it may have written it without hearing the answer.
    ///
    /// # Errors
    /// [`LeaseError`]; the lease may have been taken all the same, which the next call finds out.
    pub async fn try_take(&self) -> Result<Option<Lease>, LeaseError> {
        let expected = match self.newest().await? {
            None => 0,
            Some(entry) if entry.operation != Operation::Put || self.is_own(&entry) => entry.revision,
            Some(_) => return Ok(None),
        };
        let asked = Instant::now();
        let written = self.answered("take", self.store.update(KEY, self.value.clone(), expected));
        match written.await? {
            Ok(revision) => self.lease(revision, asked).map(Some),
            // Another was quicker.
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(LeaseError::Store {
                operation: "take",
                source: error.into(),
            }),
        }
    }

    /// What was written, unless it may have expired before we heard of it: another may lead by now.
    fn lease(&self, revision: u64, confirmed: Instant) -> Result<Lease, LeaseError> {
        if confirmed.elapsed() >= held_for(self.ttl) {
            return Err(LeaseError::TimedOut { operation: "take" });
        }
        Ok(Lease {
            candidate: self.clone(),
            epoch: Epoch(revision),
            revision,
            confirmed,
        })
    }

    /// What the key holds now.
    async fn newest(&self) -> Result<Option<Entry>, LeaseError> {
        let entry = self.answered("read", newest_entry(&self.store, KEY)).await?;
        entry.map_err(|error| LeaseError::Store {
            operation: "read",
            source: error.into(),
        })
    }

    fn is_own(&self, entry: &Entry) -> bool {
        entry.operation == Operation::Put && entry.value == self.value
    }

    /// Waits for an answer for as long as it can come, and not for ever.
    async fn answered<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = T>,
    ) -> Result<T, LeaseError> {
        let answer = self.connection.answered(answer);
        match timeout(self.connection.request_timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(disconnected)) => Err(LeaseError::Store {
                operation,
                source: disconnected.into(),
            }),
            Err(_) => Err(LeaseError::TimedOut { operation }),
        }
    }

    async fn watch(&self) -> Option<Watch> {
        match timeout(self.connection.request_timeout, self.store.watch(KEY)).await {
            Ok(Ok(watch)) => Some(watch),
            Ok(Err(error)) => {
                warn!(%error, "the lease cannot be watched");
                None
            }
            Err(_) => None,
        }
    }
}

impl Lease {
    /// The term.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Renews the lease every third of its life until it is lost or `stop` is cancelled, which gives it back.
    pub async fn keep(mut self, stop: CancellationToken) -> Kept {
        let pause = self.candidate.ttl / 3;
        loop {
            // Counted as the lease is: what was confirmed late has to be renewed soon, or is lost already.
            let due = self.confirmed + pause;
            let renewed = async {
                sleep_until(due).await;
                self.renew().await
            };
            let renewed = tokio::select! {
                () = stop.cancelled() => None,
                renewed = renewed => Some(renewed),
            };
            match renewed {
                Some(Renewal::Confirmed) => {}
                Some(Renewal::Lost) => return Kept::Lost,
                None => {
                    self.release().await;
                    return Kept::Released;
                }
            }
        }
    }

    /// Tries until the server confirms, or until it may have given the lease to another.
    async fn renew(&mut self) -> Renewal {
        let ttl = self.candidate.ttl;
        let deadline = self.confirmed + held_for(ttl);
        let tried = timeout_at(deadline, async {
            loop {
                let asked = Instant::now();
                match self.write().await {
                    Ok(Written::Confirmed(revision)) => {
                        self.revision = revision;
                        self.confirmed = asked;
                        return Renewal::Confirmed;
                    }
                    Ok(Written::Taken) => return Renewal::Lost,
                    Err(error) => {
                        warn!(error = chain(&error), "the lease was not renewed");
                        sleep(ttl / 20).await;
                    }
                }
            }
        });
        tried.await.unwrap_or(Renewal::Lost)
    }

    async fn write(&mut self) -> Result<Written, LeaseError> {
        let candidate = &self.candidate;
        let written = candidate
            .store
            .update(KEY, candidate.value.clone(), self.revision);
        match candidate.answered("renew", written).await? {
            Ok(revision) => Ok(Written::Confirmed(revision)),
            // An earlier renewal may have been stored without its answer reaching us.
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                match candidate.newest().await?.filter(|entry| candidate.is_own(entry)) {
                    Some(found) => {
                        self.revision = found.revision;
                        Err(LeaseError::TimedOut { operation: "renew" })
                    }
                    None => Ok(Written::Taken),
                }
            }
            Err(error) => Err(LeaseError::Store {
                operation: "renew",
                source: error.into(),
            }),
        }
    }

    async fn release(self) {
        let Candidate {
            store, connection, ..
        } = &self.candidate;
        let deleted = store.delete_expect_revision(KEY, Some(self.revision));
        match timeout(connection.request_timeout, deleted).await {
            Ok(Ok(())) => info!(epoch = self.epoch.0, "leadership given back"),
            Ok(Err(error)) => warn!(%error, "the lease was not given back and will expire"),
            Err(_) => warn!("no answer to giving back the lease; it will expire"),
        }
    }
}

/// What came of a renewal.
enum Renewal {
    Confirmed,
    Lost,
}

/// What came of one write of the key.
enum Written {
    Confirmed(u64),
    Taken,
}

/// Why a wait for the key ended.
#[derive(Debug, PartialEq)]
enum Released {
    KeyGone,
    WatchEnded,
}

async fn until_released(watch: &mut Watch) -> Released {
    while let Some(entry) = watch.next().await {
        match entry {
            Ok(entry) if entry.operation == Operation::Put => {}
            Ok(_) => return Released::KeyGone,
            Err(error) => {
                warn!(%error, "the watch of the lease faltered");
                return Released::WatchEnded;
            }
        }
    }
    Released::WatchEnded
}

/// How long a lease is believed in after it was asked for: less than the server keeps it.
fn held_for(ttl: Duration) -> Duration {
    ttl - ttl / 10
}

const KEY: &str = "leader";
