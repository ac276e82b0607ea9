//! What comes in besides requests: reports, ends, cancellations, the catalog, registrations.

use async_nats::jetstream::kv::{Entry, Operation};
use async_nats::{Message, Subscriber};
use flotilla_client::{Catalog, CatalogChange, Connection, ProfileChange, Profiles};
use flotilla_protocol::assignment::{Cancel, Done};
use flotilla_protocol::codec::decode_internal;
use flotilla_protocol::fleet::{Registration, Report};
use flotilla_protocol::{DecodeError, Encoding, IdError, WorkerId, headers};
use futures_util::{Stream, StreamExt};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

use crate::advisory::{self, Advisory};
use crate::backoff::Backoff;
use crate::error::{TermError, chain};
use crate::ground::Ground;

/// Something that was heard.
#[derive(Debug)]
pub(crate) enum Heard {
    Report(Box<Report>),
    Done(Box<Done>),
    Cancel(Cancel),
    Catalog(CatalogChange),
    Profile(ProfileChange),
    Registered(Box<Registration>),
    Unregistered(WorkerId),
    Advisory(Advisory),
}

/// The subscriptions that must stand before a term begins, so that nothing said to it is missed.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    reports: Subscriber,
    done: Subscriber,
    cancels: Subscriber,
    max_deliveries: Subscriber,
    terminated: Subscriber,
}

/// Why the registrations cannot be watched.
#[derive(Debug, Error)]
enum WatchFault {
    #[error("the bucket cannot be opened")]
    Bucket(#[from] async_nats::jetstream::context::KeyValueError),
    #[error("the bucket cannot be watched")]
    Watch(#[from] async_nats::jetstream::kv::WatchError),
    #[error("the watch faltered")]
    Watcher(#[from] async_nats::jetstream::kv::WatcherError),
    #[error("no answer in time")]
    TimedOut,
    #[error("the watch ended")]
    Ended,
}

/// What can be wrong with a registration.
#[derive(Debug, Error)]
enum BrokenEntry {
    #[error(transparent)]
    Value(#[from] DecodeError),
    #[error(transparent)]
    Key(#[from] IdError),
}

impl Subscriptions {
    /// # Errors
    /// [`TermError::Subscribe`].
    pub(crate) async fn open(connection: &Connection) -> Result<Self, TermError> {
        let subjects = &connection.subjects;
        let [max_deliveries, terminated] = advisory::subjects(connection);
        Ok(Self {
            max_deliveries: subscribe(connection, max_deliveries).await?,
            terminated: subscribe(connection, terminated).await?,
            reports: subscribe(connection, subjects.reports_all()).await?,
            done: subscribe(connection, subjects.done()).await?,
            cancels: subscribe(connection, subjects.cancel()).await?,
        })
    }

    /// Starts handing over what is heard; each task ends only with the owner or the client.
    pub(crate) fn listen(
        self,
        ground: &Ground,
        catalog: Catalog,
        owner: &mpsc::Sender<Heard>,
        tasks: &mut JoinSet<()>,
    ) {
        tasks.spawn(forward(self.reports, read_report, owner.clone()));
        tasks.spawn(forward(self.done, read_done, owner.clone()));
        tasks.spawn(forward(self.cancels, read_cancel, owner.clone()));
        tasks.spawn(forward(self.max_deliveries, read_advisory, owner.clone()));
        tasks.spawn(forward(self.terminated, read_advisory, owner.clone()));
        tasks.spawn(watch_catalog(ground.connection.clone(), catalog, owner.clone()));
        tasks.spawn(watch_profiles(ground.connection.clone(), owner.clone()));
        tasks.spawn(watch_registrations(ground.connection.clone(), owner.clone()));
    }
}

async fn subscribe(connection: &Connection, subject: String) -> Result<Subscriber, TermError> {
    let subscribed = connection.client.subscribe(subject.clone()).await;
    subscribed.map_err(|source| TermError::Subscribe { subject, source })
}

async fn forward(
    mut messages: Subscriber,
    read: fn(&Message) -> Result<Heard, DecodeError>,
    owner: mpsc::Sender<Heard>,
) {
    while let Some(message) = messages.next().await {
        match read(&message) {
            Ok(heard) => {
                if owner.send(heard).await.is_err() {
                    return;
                }
            }
            Err(error) => warn!(subject = %message.subject, %error, "ignored a message that cannot be read"),
        }
    }
}

fn read_report(message: &Message) -> Result<Heard, DecodeError> {
    decode_internal(&message.payload).map(|report| Heard::Report(Box::new(report)))
}

fn read_done(message: &Message) -> Result<Heard, DecodeError> {
    decode_internal(&message.payload).map(|done| Heard::Done(Box::new(done)))
}

fn read_advisory(message: &Message) -> Result<Heard, DecodeError> {
    Advisory::read(&message.subject, &message.payload).map(Heard::Advisory)
}

/// A client's word, in either encoding.
fn read_cancel(message: &Message) -> Result<Heard, DecodeError> {
    let content_type = message
        .headers
        .as_ref()
        .and_then(|found| found.get(headers::CONTENT_TYPE));
    let encoding = Encoding::from_content_type(content_type.map(|value| value.as_str()))?;
    encoding
        .decode(&message.payload, CANCEL_BYTES_MAX)
        .map(Heard::Cancel)
}

async fn watch_catalog(connection: Connection, catalog: Catalog, owner: mpsc::Sender<Heard>) {
    let mut backoff = Backoff::new();
    while !owner.is_closed() {
        match timeout(connection.request_timeout, catalog.changes()).await {
            Ok(Ok(changes)) => {
                hand_over(changes.map(Heard::Catalog), &owner, &mut backoff).await;
                warn!("the catalog's watch ended and begins anew");
            }
            Ok(Err(error)) => {
                warn!(error = chain(&error), "the catalog cannot be watched yet");
            }
            Err(_) => warn!("no answer from the catalog"),
        }
        backoff.pause().await;
    }
}

async fn watch_profiles(connection: Connection, owner: mpsc::Sender<Heard>) {
    let mut backoff = Backoff::new();
    while !owner.is_closed() {
        let opened = timeout(connection.request_timeout, async {
            Profiles::open(&connection).await?.changes().await
        });
        match opened.await {
            Ok(Ok(changes)) => {
                hand_over(changes.map(Heard::Profile), &owner, &mut backoff).await;
                warn!("the profiles' watch ended and begins anew");
            }
            Ok(Err(error)) => {
                warn!(error = chain(&error), "the profiles cannot be watched yet");
            }
            Err(_) => warn!("no answer from the profiles"),
        }
        backoff.pause().await;
    }
}

async fn hand_over(
    mut changes: impl Stream<Item = Heard> + Unpin,
    owner: &mpsc::Sender<Heard>,
    backoff: &mut Backoff,
) {
    while let Some(change) = changes.next().await {
        backoff.reset();
        if owner.send(change).await.is_err() {
            return;
        }
    }
}

async fn watch_registrations(connection: Connection, owner: mpsc::Sender<Heard>) {
    let mut backoff = Backoff::new();
    while !owner.is_closed() {
        if let Err(fault) = watch_registrations_once(&connection, &owner, &mut backoff).await {
            let error = chain(&fault);
            warn!(error, "watching the workers' registrations begins anew");
            backoff.pause().await;
        }
    }
}

async fn watch_registrations_once(
    connection: &Connection,
    owner: &mpsc::Sender<Heard>,
    backoff: &mut Backoff,
) -> Result<(), WatchFault> {
    let opened = timeout(connection.request_timeout, async {
        let bucket = connection.subjects.bucket("workers");
        let store = connection.jetstream.get_key_value(bucket).await?;
        Ok::<_, WatchFault>(store.watch_with_history(">").await?)
    });
    let mut entries = opened.await.map_err(|_| WatchFault::TimedOut)??;
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        backoff.reset();
        let heard = read_registration(&entry);
        match heard {
            Ok(heard) => {
                if owner.send(heard).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) => warn!(key = entry.key, %error, "ignored a registration that cannot be read"),
        }
    }
    Err(WatchFault::Ended)
}

fn read_registration(entry: &Entry) -> Result<Heard, BrokenEntry> {
    Ok(match entry.operation {
        Operation::Put => Heard::Registered(Box::new(decode_internal(&entry.value)?)),
        Operation::Delete | Operation::Purge => Heard::Unregistered(WorkerId::new(&entry.key)?),
    })
}

/// Largest cancellation, in bytes: an id of at most 64 characters with its name around it.
const CANCEL_BYTES_MAX: usize = 1 << 10;
