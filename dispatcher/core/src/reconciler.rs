//! What was accepted against what is answered: messages that nobody works on, and requests that nobody will end.
//!
//! The shell looks at the streams now and then and tells what it found; this remembers since when something is amiss
//! and says what is to be done. A message is held when the dispatcher answers for it, and pending while its consumer
//! has yet to deliver it. What is neither is on its way for a moment; after that it is stuck: the server has given it
//! up, or has lost sight of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_protocol::admin::Reconciliation;
use flotilla_protocol::{Moment, RequestId};

use crate::input::StreamSequence;

/// What one look at the streams found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Round {
    /// Messages in the request stream.
    pub messages: u64,
    /// Of these, the ones that consumers have yet to deliver for the first time.
    pub pending: u64,
    /// Messages that were delivered and not acknowledged, by the server's count.
    pub ack_pending: u64,
    /// Of these, the ones that were delivered more than once.
    pub redelivered: u64,
    /// Messages that were found and not held when the look began, although they are not pending.
    pub unheld: BTreeSet<StreamSequence>,
    /// Whether these are all; otherwise the next rounds look on.
    pub is_whole: bool,
    /// Messages that were held when the look began and are not in the stream.
    pub gone: Vec<StreamSequence>,
    /// Requests whose journals have no end and that nobody held; `None` when journals were not looked at.
    pub open: Option<BTreeSet<RequestId>>,
    /// Whether messages from before this term are pending: open journals may be theirs.
    pub has_backlog: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Get a message out of the stream and admit it as one that may have been seen.
    Sweep(StreamSequence),
    /// Tell people: the message of a held request is gone, so that the request ends with this leader or never.
    Gone(StreamSequence),
    /// Tell people: a request was begun, has no end, and nobody will end it.
    Lost(RequestId),
}

/// Remembers what is amiss. One for each term.
#[derive(Debug)]
pub struct Reconciler {
    /// After this long what nobody holds is stuck, or lost.
    patience: Duration,
    unheld: BTreeMap<StreamSequence, Moment>,
    gone: BTreeSet<StreamSequence>,
    open: BTreeMap<RequestId, Moment>,
    lost: BTreeSet<RequestId>,
    told: Reconciliation,
    last_round: Option<Moment>,
}

impl Reconciler {
    /// Knows nothing yet. What is on its way must have come within `patience`.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            unheld: BTreeMap::new(),
            gone: BTreeSet::new(),
            open: BTreeMap::new(),
            lost: BTreeSet::new(),
            told: Reconciliation::default(),
            last_round: None,
        }
    }

    /// A look has ended. `holds` and `knows` tell what is held now: messages, and requests that are held or that a
    /// worker lists.
    #[must_use]
    pub fn handle_round(
        &mut self,
        now: Moment,
        round: Round,
        holds: impl Fn(StreamSequence) -> bool,
        knows: impl Fn(&RequestId) -> bool,
    ) -> Vec<Order> {
        self.last_round = Some(now);
        self.told.rounds += 1;
        self.told.stream_messages = round.messages;
        self.told.pending_messages = round.pending;
        self.told.ack_pending_messages = round.ack_pending;
        self.told.redelivered_messages = round.redelivered;
        let mut orders = self.judge_unheld(now, &round, &holds);
        orders.extend(self.judge_gone(&round, holds));
        if let Some(open) = &round.open {
            let may_be_delivered = round.has_backlog || !self.unheld.is_empty() || !round.is_whole;
            orders.extend(self.judge_open(now, open, may_be_delivered, knows));
        }
        orders
    }

    /// A look did not come to its end.
    pub fn handle_failed_round(&mut self) {
        self.told.rounds_failed += 1;
    }

    /// The server says that it will not deliver a message any more.
    pub fn handle_max_deliveries(&mut self) {
        self.told.max_deliveries_total += 1;
    }

    /// Somebody else has taken a message out of the stream.
    pub fn handle_terminated(&mut self) {
        self.told.terminated_total += 1;
    }

    /// What is known; `held` messages are held now, and of so many redelivered ones the journals had an end.
    #[must_use]
    pub fn status(&self, now: Moment, held: u64, ended_unacked: u64) -> Reconciliation {
        let age = |at: Moment| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
        Reconciliation {
            last_round_age_ms: self.last_round.map(age),
            held_messages: held,
            unaccounted_messages: count(self.unheld.len()),
            gone_messages: count(self.gone.len()),
            lost_requests: count(self.lost.len()),
            lost: self.lost.iter().take(LOST_TOLD_MAX).cloned().collect(),
            ended_unacked_total: ended_unacked,
            ..self.told.clone()
        }
    }

    fn judge_unheld(
        &mut self,
        now: Moment,
        round: &Round,
        holds: &impl Fn(StreamSequence) -> bool,
    ) -> Vec<Order> {
        self.unheld
            .retain(|sequence, _| !holds(*sequence) && (!round.is_whole || round.unheld.contains(sequence)));
        for sequence in round.unheld.iter().filter(|sequence| !holds(**sequence)) {
            if self.unheld.len() < UNHELD_MAX {
                self.unheld.entry(*sequence).or_insert(now);
            }
        }
        let stuck = self
            .unheld
            .iter()
            .filter(|(_, since)| now.since(**since) >= self.patience);
        let stuck: Vec<StreamSequence> = stuck.map(|(sequence, _)| *sequence).collect();
        for sequence in &stuck {
            // What a sweep does not bring in is found again.
            self.unheld.remove(sequence);
            self.told.stuck_total += 1;
        }
        stuck.into_iter().map(Order::Sweep).collect()
    }

    fn judge_gone(&mut self, round: &Round, holds: impl Fn(StreamSequence) -> bool) -> Vec<Order> {
        self.gone.retain(|sequence| holds(*sequence));
        let gone = round.gone.iter().filter(|sequence| holds(**sequence));
        let new = gone.filter(|sequence| self.gone.insert(**sequence));
        new.map(|sequence| Order::Gone(*sequence)).collect()
    }

    /// An open journal of nobody is that of a lost request, unless its message may still be delivered.
    fn judge_open(
        &mut self,
        now: Moment,
        open: &BTreeSet<RequestId>,
        may_be_delivered: bool,
        knows: impl Fn(&RequestId) -> bool,
    ) -> Vec<Order> {
        self.lost.retain(|request| open.contains(request));
        let unknown: BTreeSet<&RequestId> = open.iter().filter(|request| !knows(request)).collect();
        self.open.retain(|request, _| unknown.contains(request));
        if may_be_delivered {
            self.open.clear();
            return Vec::new();
        }
        let mut orders = Vec::new();
        for request in unknown.into_iter().take(OPEN_MAX) {
            let since = *self.open.entry(request.clone()).or_insert(now);
            if now.since(since) >= self.patience && self.lost.insert(request.clone()) {
                self.told.lost_total += 1;
                orders.push(Order::Lost(request.clone()));
            }
        }
        orders
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Messages that are remembered as held by nobody; further ones wait until these are swept.
const UNHELD_MAX: usize = 4096;
/// Journals that are remembered as open and nobody's.
const OPEN_MAX: usize = 4096;
/// Lost requests that are told by their ids.
const LOST_TOLD_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(seconds))
    }

    fn seq(number: u64) -> StreamSequence {
        StreamSequence(number)
    }

    fn request(name: &str) -> RequestId {
        RequestId::new(name).expect("the test names a request")
    }

    fn found(unheld: &[u64]) -> Round {
        Round {
            messages: 9,
            unheld: unheld.iter().copied().map(StreamSequence).collect(),
            is_whole: true,
            ..Round::default()
        }
    }

    fn with_open(names: &[&str]) -> Round {
        Round {
            open: Some(names.iter().copied().map(request).collect()),
            ..found(&[])
        }
    }

    #[test]
    fn message_that_nobody_holds_for_long_is_swept_and_one_on_its_way_is_not() {
        let mut reconciler = Reconciler::new(PATIENCE);
        let mut round = |seconds, unheld: &[u64], held: u64| {
            let orders = reconciler.handle_round(at(seconds), found(unheld), |it| it == seq(held), |_| true);
            (orders, reconciler.status(at(seconds), 1, 0).unaccounted_messages)
        };
        assert_eq!(round(0, &[3, 4, 5], 9), (vec![], 3));
        // 4 was admitted, and 5 acknowledged, meanwhile.
        assert_eq!(round(10, &[3, 4], 4), (vec![], 1));
        assert_eq!(round(29, &[3], 4), (vec![], 1));
        assert_eq!(round(30, &[3, 8], 4), (vec![Order::Sweep(seq(3))], 1));
        // The sweep did not succeed: once more.
        assert_eq!(round(40, &[3, 8], 4), (vec![], 2));
        assert_eq!(round(70, &[3], 4), (vec![Order::Sweep(seq(3))], 0));
        assert_eq!(reconciler.status(at(70), 1, 0).stuck_total, 2);
    }

    #[test]
    fn look_that_was_not_whole_forgets_nothing() {
        let mut reconciler = Reconciler::new(PATIENCE);
        let _ = reconciler.handle_round(at(0), found(&[3]), |_| false, |_| true);
        let part = Round {
            is_whole: false,
            ..found(&[7])
        };
        let orders = reconciler.handle_round(at(30), part, |_| false, |_| true);
        assert_eq!(orders, [Order::Sweep(seq(3))]);
    }

    #[test]
    fn held_message_that_is_gone_is_told_once_for_as_long_as_it_is_held() {
        let mut reconciler = Reconciler::new(PATIENCE);
        let gone = |sequences: &[u64]| Round {
            gone: sequences.iter().copied().map(StreamSequence).collect(),
            ..found(&[])
        };
        // 6 was acknowledged while we looked.
        let orders = reconciler.handle_round(at(0), gone(&[5, 6]), |it| it == seq(5), |_| true);
        assert_eq!(orders, [Order::Gone(seq(5))]);
        let again = reconciler.handle_round(at(10), gone(&[5]), |it| it == seq(5), |_| true);
        assert!(again.is_empty());
        assert_eq!(reconciler.status(at(10), 1, 0).gone_messages, 1);
        let _ = reconciler.handle_round(at(20), gone(&[]), |_| false, |_| true);
        assert_eq!(reconciler.status(at(20), 0, 0).gone_messages, 0);
    }

    #[test]
    fn begun_request_that_nobody_knows_is_lost_unless_it_may_still_come() {
        let mut reconciler = Reconciler::new(PATIENCE);
        let known = |it: &RequestId| *it == request("runs");
        let mut round = |seconds, round| reconciler.handle_round(at(seconds), round, |_| false, known);
        let backlog = Round {
            has_backlog: true,
            ..with_open(&["a", "runs"])
        };
        assert!(round(0, backlog).is_empty());
        assert!(round(10, with_open(&["a", "runs"])).is_empty());
        assert!(round(39, with_open(&["a", "runs"])).is_empty());
        assert_eq!(round(40, with_open(&["a", "runs"])), [Order::Lost(request("a"))]);
        assert!(round(50, with_open(&["a", "runs"])).is_empty(), "it is told once");
        let told = reconciler.status(at(50), 0, 0);
        assert_eq!(
            (told.lost_requests, told.lost_total, told.lost),
            (1, 1, vec![request("a")])
        );
        // It has an end after all.
        let _ = reconciler.handle_round(at(60), with_open(&["runs"]), |_| false, known);
        let told = reconciler.status(at(60), 0, 0);
        assert_eq!((told.lost_requests, told.lost_total), (0, 1));
    }
}
