//! How a role is asked to stop: the first ask drains, the second ends it at once.

use std::time::Duration;

use anyhow::Context as _;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Whether the end of standard input is an ask as well: a parent that dies, even by SIGKILL, closes the
/// pipe and so leaves no orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StdinWatch {
    /// It is.
    Watched,
    /// It is not looked at.
    Ignored,
}

/// The drain was not waited for.
#[derive(Debug, Error)]
pub(crate) enum StoppedEarly {
    /// Somebody insisted.
    #[error("stopped by a second signal before the drain had ended")]
    SecondSignal,
    /// It took too long.
    #[error("the drain had not ended after {} s", limit.as_secs())]
    Deadline {
        /// How long it might take.
        limit: Duration,
    },
}

/// SIGINT and SIGTERM.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on neither ends the process by itself.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
        })
    }

    /// The next one of either.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// How a role is told.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    /// Finish what runs, then end.
    pub(crate) drain: CancellationToken,
    /// End now; `None` where a role needs no word to be ended safely.
    pub(crate) now: Option<CancellationToken>,
}

/// Runs a role until it ends by itself or has drained after an ask; `drain_max` bounds the time from the
/// first ask to the end.
///
/// # Errors
/// The role's own, or [`StoppedEarly`].
pub(crate) async fn run_until_asked<F>(
    role: F,
    asks: Asks,
    stdin: StdinWatch,
    drain_max: Duration,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut signals = Signals::new()?;
    let mut role = std::pin::pin!(role);
    tokio::select! {
        ended = &mut role => return ended,
        () = signals.next() => {}
        () = closed(stdin) => {}
    }
    tracing::info!("drain begins");
    asks.drain.cancel();
    let early = tokio::select! {
        ended = &mut role => return ended,
        () = signals.next() => StoppedEarly::SecondSignal,
        () = sleep(drain_max) => StoppedEarly::Deadline { limit: drain_max },
    };
    if let Some(now) = asks.now {
        now.cancel();
        // Late or with an error of its own: the reason to end it is the one to tell.
        drop(timeout(END_MAX, role).await);
    }
    Err(early.into())
}

/// How long a role may take to hand back its work when it must end now.
const END_MAX: Duration = Duration::from_secs(2);

async fn closed(stdin: StdinWatch) {
    if stdin == StdinWatch::Ignored {
        return std::future::pending().await;
    }
    let mut input = tokio::io::stdin();
    let mut ignored = [0; 64];
    // A pipe that cannot be read any more has no writer any more.
    while input.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}
