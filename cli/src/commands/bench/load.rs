//! A closed loop: a fixed number of requests under way, each followed by the next.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::stream::{self, StreamExt, TryStreamExt};

/// How long each request took, and all together.
#[derive(Debug)]
pub(super) struct Measured {
    latencies: Vec<Duration>,
    elapsed: Duration,
}

/// How many requests, and how many of them at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// All.
    pub(super) requests: u32,
    /// At once.
    pub(super) concurrency: u32,
}

impl Load {
    /// Runs `ask` for every request.
    ///
    /// # Errors
    /// The first that fails, or takes longer than [`REQUEST_MAX`].
    pub(super) async fn run<F, A>(self, ask: F) -> anyhow::Result<Measured>
    where
        F: Fn() -> A,
        A: Future<Output = anyhow::Result<()>>,
    {
        let start = Instant::now();
        let latencies = stream::iter(0..self.requests)
            .map(|_| async {
                let begun = Instant::now();
                tokio::time::timeout(REQUEST_MAX, ask())
                    .await
                    .context("a request of the benchmark has no answer")??;
                anyhow::Ok(begun.elapsed())
            })
            .buffer_unordered(usize::try_from(self.concurrency)?)
            .try_collect()
            .await?;
        Ok(Measured {
            latencies,
            elapsed: start.elapsed(),
        })
    }
}

impl Measured {
    /// Requests a second.
    pub(super) fn throughput(&self) -> f64 {
        let count = u32::try_from(self.latencies.len()).unwrap_or(u32::MAX);
        f64::from(count) / self.elapsed.as_secs_f64()
    }

    /// The latency that this share of the requests does not exceed, in milliseconds.
    ///
    /// # Panics
    /// When nothing was measured; a load has at least one request.
    pub(super) fn percentile_ms(&self, percent: usize) -> f64 {
        assert!(
            !self.latencies.is_empty() && percent <= 100,
            "something was measured"
        );
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted[rank - 1].as_secs_f64() * 1e3
    }
}

/// Far beyond any queue of a benchmark.
const REQUEST_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn percentiles_are_ranks_of_what_was_measured() {
        let measured = Measured {
            latencies: [5, 1, 4, 2, 3].map(Duration::from_millis).to_vec(),
            elapsed: Duration::from_secs(2),
        };
        assert!((measured.percentile_ms(50) - 3.0).abs() < 1e-9);
        assert!((measured.percentile_ms(99) - 5.0).abs() < 1e-9);
        assert!((measured.percentile_ms(0) - 1.0).abs() < 1e-9);
        assert!((measured.throughput() - 2.5).abs() < 1e-9);
    }

    #[tokio::test]
    async fn every_request_runs_once_and_never_too_many_at_a_time() {
        let (under_way, most, done) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let load = Load {
            requests: 50,
            concurrency: 7,
        };
        load.run(|| async {
            under_way.set(under_way.get() + 1);
            most.set(most.get().max(under_way.get()));
            tokio::task::yield_now().await;
            under_way.set(under_way.get() - 1);
            done.set(done.get() + 1);
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!((done.get(), most.get()), (50, 7));
    }
}
