//! What is counted of weights that travel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_telemetry::catalogue;

catalogue! {
    WEIGHTS_BYTES: counter "flotilla_worker_weights_bytes_total" ["tier", "direction"]
        "Bytes of weights that came to this worker (in) or left it (out), over the relay or from a hub; verified when they came.";
    VERIFY_FAILURES: counter "flotilla_worker_weights_verify_failures_total" []
        "Segments that came with wrong bytes, and came again.";
    RELAY_REFUSALS: counter "flotilla_worker_weights_relay_refusals_total" []
        "Segments that the relay did not take, as it was full or not there.";
}

/// Bytes that the copies of a worker have in the relay. Clones share them; they are for eyes, so a stale number does no
/// harm.
#[derive(Debug, Clone, Default)]
pub struct RelayBytes(Arc<AtomicU64>);

impl RelayBytes {
    /// How many there are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn share(&self) -> RelayShare {
        RelayShare {
            all: self.clone(),
            bytes: 0,
        }
    }
}

/// Those of one copy; gone with it.
#[derive(Debug)]
pub(crate) struct RelayShare {
    all: RelayBytes,
    bytes: u64,
}

impl RelayShare {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.all.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn take_out(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.all.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for RelayShare {
    fn drop(&mut self) {
        self.take_out(self.bytes);
    }
}
