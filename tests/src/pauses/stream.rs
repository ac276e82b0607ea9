//! One answer as its client sees it: when tokens came.

use std::time::Duration;

use anyhow::{Context, Result};
use flotilla_client::Events;
use flotilla_protocol::event::EventKind;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::PATIENCE;

/// The moments at which tokens came.
#[derive(Debug)]
pub(super) struct Stream {
    moments: watch::Receiver<Vec<Instant>>,
    /// The task that follows the answer; aborted when dropped.
    _tasks: JoinSet<()>,
}

impl Stream {
    pub(super) fn follow(mut events: Events) -> Self {
        let (told, moments) = watch::channel(Vec::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // An answer that cannot be followed any more does not go on, which whoever waits for it tells.
            while let Ok(Some(delivered)) = events.next().await {
                if delivered.event.kind() == EventKind::Tokens {
                    told.send_modify(|moments| moments.push(Instant::now()));
                }
            }
        });
        Self {
            moments,
            _tasks: tasks,
        }
    }

    /// Waits until tokens have come for so long.
    pub(super) async fn has_run_for(&self, time: Duration) -> Result<()> {
        self.wait(|moments| {
            moments
                .last()
                .zip(moments.first())
                .is_some_and(|(last, first)| *last - *first >= time)
        })
        .await
    }

    /// Waits until so many messages with tokens have come after a moment.
    pub(super) async fn goes_on_after(&self, moment: Instant, messages: usize) -> Result<()> {
        self.wait(|moments| moments.iter().rev().take_while(|at| **at > moment).count() >= messages)
            .await
    }

    async fn wait(&self, is_so: impl Fn(&[Instant]) -> bool) -> Result<()> {
        let mut moments = self.moments.clone();
        let reached = timeout(PATIENCE, moments.wait_for(|moments| is_so(moments))).await;
        reached
            .context("an answer does not go on")?
            .context("an answer ended")?;
        Ok(())
    }

    /// The longest time between two messages with tokens that touches a span of time.
    pub(super) fn longest_pause(&self, from: Instant, to: Instant) -> Duration {
        let moments = self.moments.borrow();
        let pauses = moments.windows(2).filter(|pair| pair[1] >= from && pair[0] <= to);
        let open = moments.last().filter(|last| **last < to).map(|last| to - *last);
        pauses
            .map(|pair| pair[1] - pair[0])
            .chain(open)
            .max()
            .unwrap_or_default()
    }
}
