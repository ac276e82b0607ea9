//! The catalog's changes, for as long as the workers of this process live.

use std::sync::Arc;
use std::time::Duration;

use flotilla_client::{Catalog, CatalogChange};
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::CatalogEntry;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::error::chain;

/// What happened to the catalog. Cheap to clone: every worker of a process gets the same entries.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// A model is there, newly or with other settings.
    Put(Arc<CatalogEntry>),
    /// A model is gone.
    Removed(ModelName),
}

/// Follows the catalog for so many workers in one task; dropping the handle ends it. One that reads too slowly
/// holds up the others: none of them waits for anything else between two changes.
///
/// Opening the watch may take `limit`.
pub(crate) fn watch(
    catalog: Catalog,
    limit: Duration,
    workers: usize,
) -> (Vec<mpsc::Receiver<Change>>, AbortOnDropHandle<()>) {
    let (changes, inboxes) = (0..workers).map(|_| mpsc::channel(CHANGES_MAX)).unzip();
    (
        inboxes,
        AbortOnDropHandle::new(tokio::spawn(follow(catalog, changes, limit))),
    )
}

/// A watch that ends is opened again: it begins with everything that is there, so nothing is missed but the
/// removal of a model in between, which its next load notices.
async fn follow(catalog: Catalog, mut changes: Vec<mpsc::Sender<Change>>, limit: Duration) {
    loop {
        match timeout(limit, catalog.changes()).await {
            Ok(Ok(mut stream)) => {
                while let Some(change) = stream.next().await {
                    tell_all(&mut changes, change).await;
                    if changes.is_empty() {
                        return;
                    }
                }
                warn!("the catalog's watch ended and is opened again");
            }
            Err(_) => warn!("the catalog's watch is not answered; trying again"),
            Ok(Err(error)) => warn!(
                error = chain(&error),
                "the catalog cannot be watched; trying again"
            ),
        }
        sleep(REOPEN_AFTER).await;
    }
}

/// Tells every worker, and forgets those that have ended.
async fn tell_all(workers: &mut Vec<mpsc::Sender<Change>>, change: CatalogChange) {
    let change = match change {
        CatalogChange::Put(entry) => Change::Put(Arc::from(entry)),
        CatalogChange::Removed(model) => Change::Removed(model),
    };
    for worker in workers.iter() {
        // It has ended, which is noticed below.
        let _ = worker.send(change.clone()).await;
    }
    workers.retain(|worker| !worker.is_closed());
}

/// Changes that wait for an owner; the watch waits when there are more.
const CHANGES_MAX: usize = 256;
/// Between two tries to open the watch.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
