//! A thread with a runtime of its own, as every role of `flotilla` is: what holds up that thread holds up all of it.

use std::thread;

use anyhow::Context as _;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Such a thread. Ends with the value.
pub(super) struct Role {
    runtime: Handle,
    _end: DropGuard,
}

impl Role {
    /// Starts one.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn start(name: &str) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start a runtime")?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ended = end.clone();
        let run = move || runtime.block_on(ended.cancelled());
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .context("cannot start a thread")?;
        Ok(Self {
            runtime: handle,
            _end: end.drop_guard(),
        })
    }

    /// Does something there.
    ///
    /// # Errors
    /// When it panics.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.runtime
            .spawn(work)
            .await
            .context("a thread of the benchmark broke")
    }
}
