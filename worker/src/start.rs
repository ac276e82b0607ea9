//! What must be there before a worker can work: the journals, the catalog, the bucket of workers. The relay for weights is
//! waited for as well, but not for ever: it has one copy, and a worker can do without.

use std::time::Duration;

use async_nats::jetstream::kv;
use flotilla_client::{Catalog, Connection};
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use crate::error::{WorkerError, chain};

/// The objects that a worker uses; a dispatcher makes them.
#[derive(Debug)]
pub(crate) struct Objects {
    /// The models.
    pub(crate) catalog: Catalog,
    /// The registrations.
    pub(crate) workers: kv::Store,
    /// How long a registration lasts; zero when it lasts for ever.
    pub(crate) registration_ttl: Duration,
}

impl Objects {
    /// Waits until everything is there. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`WorkerError::NotReady`] after [`PATIENCE`].
    pub(crate) async fn wait(connection: &Connection) -> Result<Self, WorkerError> {
        let started = Instant::now();
        let mut announced = false;
        let mut complete_since = None;
        loop {
            let missing = match connection.within(Self::open(connection)).await {
                Ok(Ok(objects)) => {
                    let since: Instant = *complete_since.get_or_insert_with(Instant::now);
                    match missing_relay(connection).await {
                        Some(relay) if since.elapsed() < RELAY_PATIENCE => relay,
                        Some(_) | None => return Ok(objects),
                    }
                }
                Ok(Err(missing)) => missing,
                Err(_) => "an answer of the server".to_owned(),
            };
            let waited = started.elapsed();
            if waited >= PATIENCE {
                return Err(WorkerError::NotReady { missing, waited });
            }
            if !announced {
                info!(
                    missing,
                    "waiting for a dispatcher to make the streams and buckets"
                );
                announced = true;
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Opens everything, or names the first object that cannot be.
    async fn open(connection: &Connection) -> Result<Self, String> {
        let journal = connection.subjects.journal_stream();
        if let Err(error) = connection.jetstream.get_stream(&journal).await {
            debug!(stream = journal, error = chain(&error), "a stream is not there");
            return Err(journal);
        }
        let catalog = match Catalog::open(connection).await {
            Ok(catalog) => catalog,
            Err(error) => {
                debug!(error = chain(&error), "the catalog is not there");
                return Err(connection.subjects.bucket("models"));
            }
        };
        let bucket = connection.subjects.bucket("workers");
        let missing = |error: &dyn std::error::Error| {
            debug!(bucket, error = chain(error), "a bucket is not there");
            bucket.clone()
        };
        let workers = connection.jetstream.get_key_value(&bucket).await;
        let workers = workers.map_err(|error| missing(&error))?;
        let status = workers.status().await.map_err(|error| missing(&error))?;
        Ok(Self {
            catalog,
            registration_ttl: status.max_age(),
            workers,
        })
    }
}

/// The name of the relay's stream, if that is not there.
async fn missing_relay(connection: &Connection) -> Option<String> {
    let relay = flotilla_weights::stream_name(&connection.subjects.bucket(flotilla_weights::BUCKET));
    match connection.within(connection.jetstream.get_stream(&relay)).await {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => debug!(stream = relay, error = chain(&error), "a stream is not there"),
        Err(late) => debug!(stream = relay, error = chain(&late), "a stream is not there"),
    }
    Some(relay)
}

/// A dispatcher makes the relay last, a moment after what else is missing.
const RELAY_PATIENCE: Duration = Duration::from_secs(10);
/// How long a dispatcher may take to make what is missing.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const RETRY_AFTER: Duration = Duration::from_millis(500);
