//! Whether a process lives, and whether it is ready.

use std::fmt::Write as _;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

/// A part of a process that says how it is; gone when it is dropped.
#[derive(Debug)]
pub struct Part {
    state: Arc<PartState>,
    health: Arc<Health>,
}

/// What all parts of a process say.
#[derive(Debug)]
pub(crate) struct Health {
    origin: Instant,
    /// A lock, because parts come and go while probes look at them; it is held for a look.
    parts: Mutex<Vec<Arc<PartState>>>,
}

struct PartState {
    name: String,
    /// Milliseconds from the origin to the last turn of its loop.
    turned_ms: AtomicU64,
    /// A lock, because probes read what the part writes; it is held for a copy.
    standing: Mutex<Standing>,
    /// What it needs besides to be ready.
    need: Box<dyn Fn() -> Result<(), &'static str> + Send + Sync>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ready(&'static str),
    NotReady(&'static str),
}

/// The answer to a probe.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) is_well: bool,
    /// A line for each part.
    pub(crate) text: String,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
            parts: Mutex::default(),
        }
    }

    /// A part that is alive and not ready yet.
    pub(crate) fn part(
        self: &Arc<Self>,
        name: String,
        need: impl Fn() -> Result<(), &'static str> + Send + Sync + 'static,
    ) -> Part {
        let state = Arc::new(PartState {
            name,
            turned_ms: AtomicU64::new(self.now_ms()),
            standing: Mutex::new(Standing::NotReady("starting")),
            need: Box::new(need),
        });
        self.parts().push(Arc::clone(&state));
        Part {
            state,
            health: Arc::clone(self),
        }
    }

    /// Whether the loop of every part turns.
    pub(crate) fn live(&self) -> Verdict {
        let now_ms = self.now_ms();
        let mut verdict = Verdict::new();
        for part in self.parts().iter() {
            let silent_ms = now_ms.saturating_sub(part.turned_ms.load(Ordering::Relaxed));
            let turns = Duration::from_millis(silent_ms) <= STUCK_AFTER;
            let word = if turns { "turns" } else { "does not turn" };
            verdict.add(
                turns,
                &part.name,
                format_args!("{word}, last turn {silent_ms} ms ago"),
            );
        }
        verdict
    }

    /// Whether every part is ready, and there is one.
    pub(crate) fn ready(&self) -> Verdict {
        let mut verdict = Verdict::new();
        let parts = self.parts();
        if parts.is_empty() {
            verdict.add(false, "process", format_args!("starting"));
        }
        for part in parts.iter() {
            match ((part.need)(), *lock(&part.standing)) {
                (Ok(()), Standing::Ready(how)) => verdict.add(true, &part.name, format_args!("{how}")),
                (Ok(()), Standing::NotReady(why)) | (Err(why), _) => {
                    verdict.add(false, &part.name, format_args!("{why}"));
                }
            }
        }
        verdict
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn parts(&self) -> MutexGuard<'_, Vec<Arc<PartState>>> {
        lock(&self.parts)
    }
}

impl Part {
    /// Its loop has turned. To be said at least once a second.
    pub fn turned(&self) {
        self.state
            .turned_ms
            .store(self.health.now_ms(), Ordering::Relaxed);
    }

    /// Waits for what has limits of its own, in the place of the loop: the task that waits counts as turning for as long
    /// as it can be woken.
    pub async fn while_waiting<T>(&self, what: impl Future<Output = T>) -> T {
        let mut turns = interval(TURN_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(what);
        loop {
            tokio::select! {
                came = &mut what => return came,
                _ = turns.tick() => self.turned(),
            }
        }
    }

    /// It is ready from now on, and how.
    pub fn set_ready(&self, how: &'static str) {
        *lock(&self.state.standing) = Standing::Ready(how);
    }

    /// It is not ready from now on, and why.
    pub fn set_not_ready(&self, why: &'static str) {
        *lock(&self.state.standing) = Standing::NotReady(why);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.health.parts().retain(|part| !Arc::ptr_eq(part, &self.state));
    }
}

impl std::fmt::Debug for PartState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartState")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Verdict {
    fn new() -> Self {
        Self {
            is_well: true,
            text: String::new(),
        }
    }

    fn add(&mut self, is_well: bool, name: &str, word: std::fmt::Arguments<'_>) {
        self.is_well &= is_well;
        writeln!(self.text, "{name}: {word}").expect("a text takes anything");
    }
}

/// Nothing that is locked here is left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Silence after which a loop counts as stuck: ten turns that it owes, more than a machine whose cores are all busy
/// with models makes it wait.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// Between two turns of a task that waits.
const TURN_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    fn health() -> Arc<Health> {
        Arc::new(Health::new())
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_no_longer_turns_is_not_alive() {
        let health = health();
        let part = health.part("worker".to_owned(), || Ok(()));
        sleep(STUCK_AFTER).await;
        assert!(health.live().is_well);
        sleep(Duration::from_millis(1)).await;
        assert!(!health.live().is_well, "{}", health.live().text);
        part.turned();
        assert!(health.live().is_well);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_is_alive() {
        let health = health();
        let part = health.part("dispatcher".to_owned(), || Ok(()));
        part.while_waiting(sleep(STUCK_AFTER * 5)).await;
        assert!(health.live().is_well);
    }

    #[tokio::test]
    async fn a_process_is_ready_when_all_its_parts_are_and_nothing_is_missing() {
        let health = health();
        assert!(!health.ready().is_well, "nothing has begun");
        let missing = Arc::new(Mutex::new(false));
        let need = {
            let missing = Arc::clone(&missing);
            move || {
                if *lock(&missing) {
                    Err("not connected")
                } else {
                    Ok(())
                }
            }
        };
        let (one, other) = (
            health.part("one".to_owned(), need),
            health.part("other".to_owned(), || Ok(())),
        );
        one.set_ready("leads");
        assert!(!health.ready().is_well);
        other.set_ready("stands by");
        assert_eq!(health.ready().text, "one: leads\nother: stands by\n");
        assert!(health.ready().is_well);
        *lock(&missing) = true;
        assert!(!health.ready().is_well);
        assert_eq!(health.ready().text, "one: not connected\nother: stands by\n");
        *lock(&missing) = false;
        other.set_not_ready("drains");
        assert!(!health.ready().is_well);
        drop(other);
        assert!(health.ready().is_well, "who is gone is not asked");
    }
}
