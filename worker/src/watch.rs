//! The catalog's changes, for as long as the worker lives.

use std::time::Duration;

use flotilla_client::{Catalog, CatalogChange};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::error::chain;

/// Follows the catalog in a task of its own; dropping the handle ends it.
///
/// Opening the watch may take `limit`.
pub(crate) fn watch(
    catalog: Catalog,
    limit: Duration,
) -> (mpsc::Receiver<CatalogChange>, AbortOnDropHandle<()>) {
    let (changes, inbox) = mpsc::channel(CHANGES_MAX);
    (
        inbox,
        AbortOnDropHandle::new(tokio::spawn(follow(catalog, changes, limit))),
    )
}

/// A watch that ends is opened again: it begins with everything that is there, so nothing is missed but the
/// removal of a model in between, which its next load notices.
async fn follow(catalog: Catalog, changes: mpsc::Sender<CatalogChange>, limit: Duration) {
    loop {
        match timeout(limit, catalog.changes()).await {
            Ok(Ok(mut stream)) => {
                while let Some(change) = stream.next().await {
                    if changes.send(change).await.is_err() {
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

/// Changes that wait for the owner; the watch waits when there are more.
const CHANGES_MAX: usize = 256;
/// Between two tries to open the watch.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
