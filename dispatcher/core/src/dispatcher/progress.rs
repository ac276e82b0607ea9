//! What waiting clients hear.

use std::ops::Range;
use std::time::Duration;

use flotilla_protocol::event::{Phase, Progress};
use flotilla_protocol::{Encoding, Moment, RequestId};

use super::Dispatcher;
use crate::action::Action;
use crate::queue::POSITION_COUNT_MAX;
use crate::request::Held;
use crate::timers::Timer;

impl Dispatcher {
    /// Sees to it that those who were queued hear of their places, now and again.
    pub(super) fn schedule_news(&mut self, now: Moment) {
        if self.newly_queued && !self.timers.is_set(&Timer::Newcomers) {
            self.timers.set(Timer::Newcomers, now + NEWS_AFTER);
        }
        if self.queue.is_empty() {
            self.timers.clear(&Timer::Progress);
            self.told_until = 0;
        } else if !self.timers.is_set(&Timer::Progress) {
            let wait = match self.told_until {
                0 => self.settings.progress_interval,
                _ => PART_PAUSE,
            };
            self.timers.set(Timer::Progress, now + wait);
        }
    }

    /// Tells those who were queued a moment ago and still wait.
    pub(super) fn tell_newcomers(&mut self) {
        self.newly_queued = false;
        self.tell_those(0..POSITION_COUNT_MAX, |told_position| told_position.is_none());
    }

    /// Tells those whose place has changed, some at a time.
    pub(super) fn tell_positions(&mut self) {
        let end = (self.told_until + PART_COUNT).min(POSITION_COUNT_MAX);
        self.tell_those(self.told_until..end, |_| true);
        let is_done = end == POSITION_COUNT_MAX || end >= self.queue.len();
        self.told_until = if is_done { 0 } else { end };
    }

    /// Tells those at some places of the queue whom `whom` picks by the place that they were told last.
    fn tell_those(&mut self, places: Range<usize>, whom: fn(Option<u64>) -> bool) {
        let first = (0_u64..)
            .zip(self.queue.iter().take(places.end))
            .skip(places.start);
        let picked = first.filter(|(_, request)| match self.held.get(*request) {
            Some(Held::Queued { told_position, .. }) => whom(*told_position),
            _ => false,
        });
        let picked: Vec<(u64, RequestId)> = picked.map(|(at, request)| (at, request.clone())).collect();
        for (position, request) in &picked {
            self.tell_position(request, *position);
        }
    }

    fn tell_position(&mut self, request: &RequestId, position: u64) {
        let Some(Held::Queued {
            job, told_position, ..
        }) = self.held.get_mut(request)
        else {
            return;
        };
        if *told_position != Some(position) {
            *told_position = Some(position);
            let encoding = job.encoding;
            self.push(queued_at(request, encoding, position));
        }
    }
}

fn queued_at(request: &RequestId, encoding: Encoding, position: u64) -> Action {
    Action::Progress {
        request: request.clone(),
        encoding,
        progress: Progress {
            phase: Phase::Queued,
            position: Some(position),
            fraction: None,
            eta_ms: None,
        },
    }
}

/// A wait that a person notices: under load most requests wait for less, and news of it would cost more than it
/// is worth.
const NEWS_AFTER: Duration = Duration::from_millis(50);
/// How many hear of their places at a time: less than a millisecond's work.
const PART_COUNT: usize = 256;
/// Time until the next of them do: what came meanwhile goes first.
const PART_PAUSE: Duration = Duration::from_millis(2);
