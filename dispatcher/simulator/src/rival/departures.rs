//! Clients that wait in a router's queue, and when they give up.

use std::collections::BTreeMap;

use flotilla_protocol::{Moment, RequestId};

use crate::policy::EndReason;

/// When each client leaves, and what is said of it then.
#[derive(Debug, Default)]
pub(super) struct Departures {
    due: BTreeMap<(Moment, RequestId), EndReason>,
}

impl Departures {
    /// A client waits until `at`.
    pub(super) fn expect(&mut self, at: Moment, request: &RequestId, reason: EndReason) {
        self.due.insert((at, request.clone()), reason);
    }

    /// A client waits in the queue no more.
    pub(super) fn forget(&mut self, at: Moment, request: &RequestId) {
        self.due.remove(&(at, request.clone()));
    }

    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next client that has left by now.
    pub(super) fn next(&mut self, now: Moment) -> Option<(RequestId, EndReason)> {
        let first = self.due.first_entry().filter(|first| first.key().0 <= now)?;
        let ((_, request), reason) = first.remove_entry();
        Some((request, reason))
    }
}
