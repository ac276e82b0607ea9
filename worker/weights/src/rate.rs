//! How fast weights may leave a worker.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A cap on the bytes a second that all copies of a worker send together. Clones share it.
#[derive(Debug, Clone)]
pub struct RateCap {
    // Every send of every copy waits its turn here; held to compute the turn, never while waiting.
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// `None` caps nothing.
    bytes_per_s: Option<u64>,
    /// When the next bytes may leave.
    free_at: Instant,
}

impl RateCap {
    /// So many bytes a second, `None` for as many as go.
    #[must_use]
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        let state = State {
            bytes_per_s,
            free_at: Instant::now(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Changes the cap for everything that waits from now on.
    pub fn set(&self, bytes_per_s: Option<u64>) {
        self.lock().bytes_per_s = bytes_per_s;
    }

    /// Waits until so many bytes may leave. Cancelled while it waits, their time is lost to the others.
    pub async fn take(&self, bytes: u64) {
        let turn = self.turn(bytes);
        if let Some(turn) = turn {
            sleep_until(turn).await;
        }
    }

    fn turn(&self, bytes: u64) -> Option<Instant> {
        let mut state = self.lock();
        let bytes_per_s = state.bytes_per_s?.max(1);
        let turn = state.free_at.max(Instant::now());
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_s);
        state.free_at = turn + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Some(turn)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A turn is computed without anything that panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_of_all_together_leave_at_the_cap() {
        let rate = RateCap::new(Some(1000));
        let started = Instant::now();
        let other = rate.clone();
        tokio::join!(async { rate.take(500).await }, async { other.take(500).await });
        assert_eq!(started.elapsed().as_millis(), 500, "the first leaves at once");
        rate.take(1).await;
        assert_eq!(started.elapsed().as_millis(), 1000);
        rate.set(None);
        rate.take(1 << 40).await;
        assert_eq!(started.elapsed().as_millis(), 1000);
    }
}
