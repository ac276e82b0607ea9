//! Growing pauses between tries.

use std::time::Duration;

/// Pauses that double from 50 ms to 5 s: soon enough after a hiccup, seldom enough during an outage.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: PAUSE_MIN }
    }

    /// Waits for the next pause.
    pub(crate) async fn pause(&mut self) {
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        tokio::time::sleep(pause).await;
    }

    /// Starts again with the shortest pause.
    pub(crate) fn reset(&mut self) {
        self.next = PAUSE_MIN;
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
