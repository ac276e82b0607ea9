//! Waits of threads that are no tasks, such as those that read files.

use std::ops::Range;
use std::path::Path;

use thiserror::Error;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Arrival, ArrivalError};

/// Files that are on their way, for threads that may wait for them.
#[derive(Debug, Clone)]
pub struct ComingFiles {
    arrival: Arrival,
    runtime: Handle,
}

/// Why a wait ended without what was waited for.
#[derive(Debug, Error)]
pub enum WaitError {
    /// It does not come.
    #[error(transparent)]
    Arrival(#[from] ArrivalError),
    /// Nobody wants it any more.
    #[error("nobody waits for it any more")]
    Ended,
}

impl ComingFiles {
    /// What comes, for threads beside the runtime that this is called on.
    ///
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn new(arrival: Arrival) -> Self {
        Self {
            arrival,
            runtime: Handle::current(),
        }
    }

    /// What it comes by.
    #[must_use]
    pub const fn arrival(&self) -> &Arrival {
        &self.arrival
    }

    /// Since when nothing more comes.
    #[must_use]
    pub fn ended_at(&self) -> Option<Instant> {
        self.arrival.ended_at()
    }

    /// Waits as [`Arrival::there`] does, at most until `end`. Blocks the thread.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn wait_for(&self, file: &Path, bytes: Range<u64>, end: &CancellationToken) -> Result<(), WaitError> {
        self.wait(end, self.arrival.there(file, bytes))
    }

    /// Waits as [`Arrival::whole`] does, at most until `end`. Blocks the thread.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn wait_for_all(&self, end: &CancellationToken) -> Result<(), WaitError> {
        self.wait(end, async { self.arrival.whole().await.map(drop) })
    }

    fn wait(
        &self,
        end: &CancellationToken,
        until: impl Future<Output = Result<(), ArrivalError>>,
    ) -> Result<(), WaitError> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = end.cancelled() => Err(WaitError::Ended),
                reached = until => Ok(reached?),
            }
        })
    }
}
