//! Everything that happens because time passes.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_protocol::{ModelName, Moment, RequestId, WorkerId};

/// What a moment is waited for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Workers that this term's journals name but that have not reported by now are lost.
    TermSettled,
    /// The worker was silent for too long.
    WorkerLost(WorkerId),
    /// The worker is late with its report.
    WorkerLate(WorkerId),
    /// The worker may try the model again.
    ExclusionEnds(ModelName, WorkerId),
    /// The waiting request is too late.
    Deadline(RequestId),
    /// What depends on time alone is decided again.
    Review,
    /// Queues whose heads are lost are gone on with.
    Placing,
    /// Those that were queued a moment ago and still wait hear of their places.
    Newcomers,
    /// The waiting requests hear of their places.
    Progress,
}

/// At most one moment for each [`Timer`].
#[derive(Debug, Default)]
pub(crate) struct Timers {
    by_moment: BTreeSet<(Moment, Timer)>,
    moments: BTreeMap<Timer, Moment>,
}

impl Timers {
    /// Starts a timer, or moves it.
    pub(crate) fn set(&mut self, timer: Timer, at: Moment) {
        self.clear(&timer);
        self.by_moment.insert((at, timer.clone()));
        self.moments.insert(timer, at);
    }

    pub(crate) fn clear(&mut self, timer: &Timer) {
        if let Some((timer, at)) = self.moments.remove_entry(timer) {
            self.by_moment.remove(&(at, timer));
        }
    }

    pub(crate) fn is_set(&self, timer: &Timer) -> bool {
        self.moments.contains_key(timer)
    }

    /// The earliest moment that is waited for.
    pub(crate) fn next(&self) -> Option<Moment> {
        self.by_moment.first().map(|(at, _)| *at)
    }

    /// Takes the earliest timer out, if it is due.
    pub(crate) fn pop_due(&mut self, now: Moment) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.by_moment.pop_first()?;
        self.moments.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::after_origin(Duration::from_millis(ms))
    }

    #[test]
    fn a_moved_timer_fires_once_at_its_new_moment() {
        let mut timers = Timers::default();
        timers.set(Timer::Progress, at(1));
        timers.set(Timer::Progress, at(5));
        timers.set(Timer::TermSettled, at(3));
        assert_eq!(timers.pop_due(at(2)), None);
        assert_eq!(timers.pop_due(at(9)), Some(Timer::TermSettled));
        assert_eq!(timers.pop_due(at(9)), Some(Timer::Progress));
        assert_eq!(timers.pop_due(at(9)), None);
        assert!(!timers.is_set(&Timer::Progress));
    }
}
