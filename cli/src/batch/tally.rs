//! How far a batch is, for the line on the terminal.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::output::StatusLine;
use crate::progress::bar;

/// Counts of one batch; whoever works on it counts, and one line shows.
#[derive(Debug)]
pub(crate) struct Tally {
    requests: usize,
    goal: Goal,
    published: Cell<usize>,
    waiting: Cell<usize>,
    answered: Cell<usize>,
    failed: Cell<usize>,
}

/// What the bar shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Requests that are published.
    Publish,
    /// Requests that have their answer; all were published before.
    Collect,
    /// The same, while they are published.
    Both,
}

/// A publish waits for room while this lives.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a Cell<usize>);

impl Tally {
    /// Nothing is done yet.
    pub(crate) fn new(requests: usize, goal: Goal) -> Self {
        Self {
            requests,
            goal,
            published: Cell::new(0),
            waiting: Cell::new(0),
            answered: Cell::new(0),
            failed: Cell::new(0),
        }
    }

    /// One more is published.
    pub(crate) fn published(&self) {
        self.published.set(self.published.get() + 1);
    }

    /// One waits for room in the queue.
    pub(crate) fn waits(&self) -> Waiting<'_> {
        self.waiting.set(self.waiting.get() + 1);
        Waiting(&self.waiting)
    }

    /// So many more have their answer, an error or not.
    pub(crate) fn answered(&self, count: usize) {
        self.answered.set(self.answered.get() + count);
    }

    /// One of these is an error.
    pub(crate) fn failed(&self) {
        self.failed.set(self.failed.get() + 1);
    }

    /// Shows how far it is until the work is done.
    pub(crate) async fn show<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut ticks = interval(SHOWN_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut status = StatusLine::new();
        loop {
            tokio::select! {
                done = &mut work => {
                    status.clear();
                    return done;
                }
                _ = ticks.tick() => status.show(&self.line()),
            }
        }
    }

    fn line(&self) -> String {
        let (published, answered) = (self.published.get(), self.answered.get());
        let (done, word) = match self.goal {
            Goal::Publish => (published, "published"),
            Goal::Collect | Goal::Both => (answered, "answered"),
        };
        let mut line = format!(
            "{}, {done} of {} {word}",
            bar(done as u64, self.requests as u64),
            self.requests
        );
        if self.goal == Goal::Both && published < self.requests {
            line.push_str(&format!(", {published} published"));
        }
        if self.failed.get() > 0 {
            line.push_str(&format!(", {} of them failed", self.failed.get()));
        }
        if self.waiting.get() > 0 {
            line.push_str("; the queue is full, waiting for room");
        }
        line
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

const SHOWN_EVERY: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_tells_what_is_done_what_failed_and_what_it_waits_for() {
        let tally = Tally::new(4, Goal::Both);
        tally.published();
        tally.published();
        tally.answered(1);
        tally.failed();
        let waiting = tally.waits();
        assert_eq!(
            tally.line(),
            "[######..................] 25 %, 1 of 4 answered, 2 published, 1 of them failed; the queue is full, \
             waiting for room"
        );
        drop(waiting);
        let tally = Tally::new(4, Goal::Publish);
        tally.published();
        assert_eq!(tally.line(), "[######..................] 25 %, 1 of 4 published");
    }
}
