//! The thread that carries weights: their connection reads and writes there, apart from the one on which requests are
//! served, and gives way to it.

use std::io;
use std::thread;

use flotilla_weights::give_way;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinError;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Such a thread. Ends with the value, and with it every task that began there, so a connection of it is closed then.
#[derive(Debug)]
pub(super) struct Carrier {
    runtime: Handle,
    _end: DropGuard,
}

impl Carrier {
    /// Starts one.
    ///
    /// # Errors
    /// The system gives no thread, or nothing to wait with.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ended = end.clone();
        let run = move || {
            give_way();
            runtime.block_on(ended.cancelled());
        };
        thread::Builder::new().name("weights-net".to_owned()).spawn(run)?;
        Ok(Self {
            runtime: handle,
            _end: end.drop_guard(),
        })
    }

    /// Does something there; tasks that it spawns stay there. Dropped, it goes on.
    ///
    /// # Errors
    /// It panics, or the thread has ended.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        self.runtime.spawn(work).await
    }
}
