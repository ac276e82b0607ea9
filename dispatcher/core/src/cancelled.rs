//! Requests that were cancelled before they came.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flotilla_protocol::{Moment, RequestId};

/// How many are remembered; the oldest goes first.
const COUNT_MAX: usize = 10_000;
/// How long one is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// Remembers a bounded number of ids for a bounded time.
#[derive(Debug, Default)]
pub(crate) struct Cancelled {
    since: BTreeMap<RequestId, Moment>,
    /// Oldest first. A request that was cancelled again stands here twice; only its newest entry counts.
    order: VecDeque<(Moment, RequestId)>,
}

impl Cancelled {
    pub(crate) fn remember(&mut self, now: Moment, request: RequestId) {
        self.since.insert(request.clone(), now);
        self.order.push_back((now, request));
        while self.order.len() > COUNT_MAX || self.order.front().is_some_and(|(at, _)| expired(now, *at)) {
            let Some((at, request)) = self.order.pop_front() else {
                break;
            };
            if self.since.get(&request) == Some(&at) {
                self.since.remove(&request);
            }
        }
    }

    pub(crate) fn contains(&self, now: Moment, request: &RequestId) -> bool {
        self.since.get(request).is_some_and(|at| !expired(now, *at))
    }
}

fn expired(now: Moment, since: Moment) -> bool {
    now.since(since) >= REMEMBERED_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(index: usize) -> RequestId {
        RequestId::from_random(index as u128)
    }

    #[test]
    fn the_oldest_cancellation_makes_room_for_the_newest() {
        let mut cancelled = Cancelled::default();
        for index in 0..=COUNT_MAX {
            cancelled.remember(Moment::default(), request(index));
        }
        assert!(!cancelled.contains(Moment::default(), &request(0)));
        assert!(cancelled.contains(Moment::default(), &request(1)));
        assert!(cancelled.contains(Moment::default(), &request(COUNT_MAX)));
        assert_eq!(cancelled.since.len(), COUNT_MAX);
    }

    #[test]
    fn a_repeated_cancellation_is_remembered_from_its_last_time() {
        let mut cancelled = Cancelled::default();
        let at = |seconds| Moment::after_origin(Duration::from_secs(seconds));
        cancelled.remember(at(0), request(1));
        cancelled.remember(at(500), request(1));
        cancelled.remember(at(700), request(2));
        assert!(cancelled.contains(at(1099), &request(1)));
        assert!(!cancelled.contains(at(1100), &request(1)));
    }
}
