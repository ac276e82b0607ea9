//! The worker's entry in the bucket of workers: there while the worker lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::kv;
use flotilla_client::{Connection, Foothold};
use flotilla_protocol::codec::encode_internal;
use flotilla_protocol::fleet::Registration;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, warn};

use crate::error::chain;
use crate::start::Objects;

/// A registration that a task refreshes. Dropped, it expires by itself.
#[derive(Debug)]
pub(crate) struct Registered {
    is_there: Arc<AtomicBool>,
    end: CancellationToken,
    task: AbortOnDropHandle<()>,
    timeout: Duration,
}

impl Registered {
    /// Registers, and stays registered. Where no write succeeds, nothing else does: the connection goes to another server then.
    pub(crate) fn start(objects: &Objects, registration: Registration, connection: &Connection) -> Self {
        let timeout = connection.request_timeout;
        let end = CancellationToken::new();
        let is_there = Arc::new(AtomicBool::new(false));
        let ttl = if objects.registration_ttl.is_zero() {
            TTL_DEFAULT
        } else {
            objects.registration_ttl
        };
        let keeper = Keeper {
            store: objects.workers.clone(),
            registration,
            foothold: Foothold::new(connection),
            refresh_after: ttl / REFRESHES_PER_TTL,
            timeout,
            end: end.clone(),
            is_there: Arc::clone(&is_there),
        };
        Self {
            is_there,
            end,
            task: AbortOnDropHandle::new(tokio::spawn(keeper.run())),
            timeout,
        }
    }

    /// Whether the server has confirmed it since the start.
    pub(crate) fn is_there(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_there)
    }

    /// Removes the entry, if the server can be reached.
    pub(crate) async fn end(self) {
        self.end.cancel();
        match timeout(self.timeout * 2, self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the registration's task broke"),
            Err(_) => warn!("the registration was not removed in time; it expires"),
        }
    }
}

struct Keeper {
    store: kv::Store,
    registration: Registration,
    foothold: Foothold,
    refresh_after: Duration,
    timeout: Duration,
    end: CancellationToken,
    is_there: Arc<AtomicBool>,
}

impl Keeper {
    async fn run(mut self) {
        let key = self.registration.worker.as_str();
        let body = match encode_internal(&self.registration) {
            Ok(body) => body,
            Err(error) => {
                error!(%error, "the registration cannot be encoded");
                return;
            }
        };
        loop {
            match timeout(self.timeout, self.store.put(key, body.clone())).await {
                Ok(Ok(_revision)) => {
                    self.is_there.store(true, Ordering::Relaxed);
                    self.foothold.holds();
                }
                Ok(Err(error)) => {
                    warn!(error = chain(&error), "the registration was not refreshed");
                    self.foothold.slips().await;
                }
                Err(_) => {
                    warn!("the registration was not refreshed in time");
                    self.foothold.slips().await;
                }
            }
            tokio::select! {
                () = sleep(self.refresh_after) => {}
                () = self.end.cancelled() => break,
            }
        }
        match timeout(self.timeout, self.store.delete(key)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(
                error = chain(&error),
                "the registration was not removed; it expires"
            ),
            Err(_) => warn!("the registration was not removed in time; it expires"),
        }
    }
}

/// Two refreshes may go missing.
const REFRESHES_PER_TTL: u32 = 3;
/// For a bucket that keeps entries for ever: they are refreshed as if it did not.
const TTL_DEFAULT: Duration = Duration::from_secs(10);
