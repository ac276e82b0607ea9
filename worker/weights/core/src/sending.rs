//! What a sender puts into the relay next, and what it deletes.
//!
//! The relay holds a window of the model and no more: a segment goes in when a receiver lacks it, and out when
//! none does and half of the window is in use. So a sender is never further ahead than a window of its slowest receiver, whatever the size of the
//! model. A receiver that takes nothing although something is there for it stops counting among those who are
//! waited for, and gets the rest after the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_protocol::Moment;
use flotilla_protocol::weights::{CopyEnd, ReceiverId, SegmentSet};

/// How much a sender puts into the relay and for how long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendingSettings {
    /// Most bytes of the copy in the relay at once. A single segment may always go in.
    pub window_bytes: u64,
    /// Most segments on their way into the relay at once.
    pub puts_max: usize,
    /// A receiver that got nothing new for so long, although something was there for it, holds up nobody.
    pub stall: Duration,
    /// A receiver that was not heard of, or got nothing new, for so long is gone.
    pub patience: Duration,
    /// How long to wait for receivers when there are none.
    pub linger: Duration,
    /// How long to wait after the relay refused a segment; twice as long each further time.
    pub backoff: Duration,
    /// So many refusals one after the other end the copy.
    pub refusals_max: u32,
}

impl Default for SendingSettings {
    /// What suits a healthy network: a window that hides a round trip at any rate, and waits that outlast a hiccup.
    fn default() -> Self {
        Self {
            window_bytes: 256 << 20,
            puts_max: 4,
            stall: Duration::from_secs(2),
            patience: Duration::from_secs(10),
            linger: Duration::from_secs(10),
            backoff: Duration::from_millis(200),
            refusals_max: 8,
        }
    }
}

/// What the shell of a sender is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendingAction {
    /// Put a segment into the relay; then [`Sending::handle_stored`] or [`Sending::handle_refused`].
    Put {
        /// Which.
        segment: usize,
    },
    /// Take a segment out of the relay; then [`Sending::handle_deleted`].
    Delete {
        /// Which.
        segment: usize,
    },
    /// Nothing of the copy is in the relay any more and nothing follows.
    End {
        /// Why.
        end: CopyEnd,
    },
}

/// One copy of one root, from the side of its sender.
///
/// Call `handle_*` with what happened, then [`Self::poll_action`] until it gives none, and again at
/// [`Self::poll_timeout`] at the latest.
#[derive(Debug)]
pub struct Sending {
    settings: SendingSettings,
    segment_bytes: Vec<u64>,
    places: Vec<Place>,
    /// What lies in the relay, and since when.
    stored: BTreeMap<usize, Moment>,
    /// What the relay has lost although it was stored.
    lost: BTreeSet<usize>,
    receivers: BTreeMap<ReceiverId, Receiver>,
    /// Bytes that are in the relay, or may be.
    relay_bytes: u64,
    puts: usize,
    /// The next segment is looked for from here on.
    cursor: usize,
    refusals: u32,
    /// The relay refused: nothing is put before this.
    put_not_before: Option<Moment>,
    /// Since when there are no receivers.
    alone_since: Option<Moment>,
    ending: Option<CopyEnd>,
    ended: bool,
}

/// Where a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Not in the relay.
    Out,
    /// On its way into it.
    Putting,
    /// In it.
    Stored,
    /// On its way out.
    Deleting,
}

#[derive(Debug)]
struct Receiver {
    have: SegmentSet,
    heard: Moment,
    /// When it last had something new.
    advanced: Moment,
    /// Since when it is waited for; `None` while it lags and nobody waits for it.
    waited_for: Option<Moment>,
}

impl Sending {
    /// Of a model with segments of these lengths.
    #[must_use]
    pub fn new(settings: SendingSettings, segment_bytes: Vec<u64>, now: Moment) -> Self {
        Self {
            settings,
            places: vec![Place::Out; segment_bytes.len()],
            segment_bytes,
            stored: BTreeMap::new(),
            lost: BTreeSet::new(),
            receivers: BTreeMap::new(),
            relay_bytes: 0,
            puts: 0,
            cursor: 0,
            refusals: 0,
            put_not_before: None,
            alone_since: Some(now),
            ending: None,
            ended: false,
        }
    }

    /// A receiver says what it has; the first time, it joins. A set of another manifest is ignored.
    pub fn handle_have(&mut self, now: Moment, id: ReceiverId, have: &SegmentSet) {
        if have.segments() != self.places.len() {
            return;
        }
        if have.is_all() {
            return self.handle_left(now, id);
        }
        let receiver = self.receivers.entry(id).or_insert_with(|| Receiver {
            have: SegmentSet::none(have.segments()),
            heard: now,
            advanced: now,
            waited_for: Some(now),
        });
        receiver.heard = now;
        if have.count() > receiver.have.count() {
            receiver.advanced = now;
        }
        receiver.have = have.clone();
        self.alone_since = None;
    }

    /// A receiver did not find in the relay what should be there: the relay has forgotten it. It goes in again. Whether
    /// anything does.
    pub fn handle_missing(&mut self, now: Moment, missing: &SegmentSet) -> bool {
        // What went in a moment ago may have been looked for before it did. It will be again.
        let is_lost = |since: &Moment| now.since(*since) >= self.settings.stall;
        let lost = missing
            .iter()
            .filter(|segment| self.stored.get(segment).is_some_and(is_lost));
        self.lost.extend(lost);
        !self.lost.is_empty()
    }

    /// A receiver needs nothing more, or gave up.
    pub fn handle_left(&mut self, now: Moment, id: ReceiverId) {
        self.receivers.remove(&id);
        self.wait_for_laggards(now);
    }

    /// A segment lies in the relay.
    ///
    /// # Panics
    /// It was not being put there.
    pub fn handle_stored(&mut self, now: Moment, segment: usize) {
        self.put_ended(segment, Place::Stored);
        self.stored.insert(segment, now);
        self.refusals = 0;
    }

    /// The relay did not take a segment, and holds nothing of it.
    ///
    /// # Panics
    /// It was not being put there.
    pub fn handle_refused(&mut self, now: Moment, segment: usize) {
        self.put_ended(segment, Place::Out);
        self.relay_bytes -= self.segment_bytes[segment];
        self.cursor = segment;
        let doublings = self.refusals.min(BACKOFF_DOUBLINGS_MAX);
        self.put_not_before = Some(now + self.settings.backoff * (1 << doublings));
        self.refusals += 1;
        if self.refusals >= self.settings.refusals_max {
            self.handle_ending(CopyEnd::RelayUnavailable);
        }
    }

    /// A segment is out of the relay, or as far out as the shell can bring it.
    ///
    /// # Panics
    /// It was not being deleted.
    pub fn handle_deleted(&mut self, segment: usize) {
        assert_eq!(
            self.places[segment],
            Place::Deleting,
            "segment {segment} is being deleted"
        );
        self.places[segment] = Place::Out;
        self.relay_bytes -= self.segment_bytes[segment];
    }

    /// The copy is to end for a reason of the shell's. The first reason stays.
    pub fn handle_ending(&mut self, end: CopyEnd) {
        self.ending.get_or_insert(end);
    }

    /// Whether the copy is about to end.
    #[must_use]
    pub const fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        let SendingSettings {
            stall,
            patience,
            linger,
            ..
        } = self.settings;
        let gone = self.those(|receiver, waits_since| {
            let silent = now.since(receiver.heard) >= patience;
            silent || waits_since.is_some_and(|since| now.since(since) >= patience)
        });
        gone.iter().for_each(|id| {
            self.receivers.remove(id);
        });
        let stalled = self.those(|receiver, waits_since| {
            let since = waits_since
                .zip(receiver.waited_for)
                .map(|(waits, waited_for)| waits.max(waited_for));
            since.is_some_and(|since| now.since(since) >= stall)
        });
        for id in stalled {
            self.receivers
                .entry(id)
                .and_modify(|receiver| receiver.waited_for = None);
        }
        self.wait_for_laggards(now);
        self.put_not_before = self.put_not_before.filter(|until| *until > now);
        if let Some(since) = self.alone_since
            && now.since(since) >= linger
        {
            self.handle_ending(CopyEnd::Done);
        }
    }

    /// What to do next. Call until it gives nothing.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<SendingAction> {
        if self.ended {
            return None;
        }
        let action = match self.ending {
            Some(end) => self.next_of_ending(end),
            None => self.next_delete().or_else(|| self.next_put()),
        };
        match action {
            Some(SendingAction::Put { segment }) => {
                self.places[segment] = Place::Putting;
                self.relay_bytes += self.segment_bytes[segment];
                self.puts += 1;
                self.cursor = segment + 1;
            }
            Some(SendingAction::Delete { segment }) => {
                self.places[segment] = Place::Deleting;
                self.stored.remove(&segment);
                self.lost.remove(&segment);
            }
            Some(SendingAction::End { .. }) => self.ended = true,
            None => {}
        }
        self.check_invariants();
        action
    }

    /// When [`Self::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        if self.ended {
            return None;
        }
        let SendingSettings {
            stall,
            patience,
            linger,
            ..
        } = self.settings;
        let receivers = self.receivers.values().flat_map(|receiver| {
            let waits = self.waits_since(receiver);
            let stall = waits
                .zip(receiver.waited_for)
                .map(|(waits, waited_for)| waits.max(waited_for) + stall);
            [
                Some(receiver.heard + patience),
                waits.map(|since| since + patience),
                stall,
            ]
        });
        // Who ends waits for nobody.
        let alone = self.alone_since.filter(|_| self.ending.is_none());
        let alone = alone.map(|since| since + linger);
        receivers.chain([alone, self.put_not_before]).flatten().min()
    }

    /// What lies in the relay.
    #[must_use]
    pub fn stored(&self) -> SegmentSet {
        let mut stored = SegmentSet::none(self.places.len());
        self.stored.keys().for_each(|segment| stored.insert(*segment));
        stored
    }

    /// Receivers that still need something.
    #[must_use]
    pub fn receivers(&self) -> usize {
        self.receivers.len()
    }

    fn put_ended(&mut self, segment: usize, place: Place) {
        assert_eq!(
            self.places[segment],
            Place::Putting,
            "segment {segment} is being put"
        );
        self.places[segment] = place;
        self.puts -= 1;
    }

    fn next_of_ending(&self, end: CopyEnd) -> Option<SendingAction> {
        if let Some(segment) = self.stored.keys().next() {
            return Some(SendingAction::Delete { segment: *segment });
        }
        let nothing_left = self.places.iter().all(|place| *place == Place::Out);
        nothing_left.then_some(SendingAction::End { end })
    }

    /// First what the relay has lost, so that nothing of it is left when it goes in again. Then, when half of the window
    /// is in use, a segment that nobody lacks; when it is full, one that nobody lacks who is
    /// waited for. Until then segments stay: receivers that ask together come one after the other, and would cost a
    /// second upload of what the first of them has already.
    fn next_delete(&self) -> Option<SendingAction> {
        if let Some(segment) = self.lost.first() {
            return Some(SendingAction::Delete { segment: *segment });
        }
        let is_crowded = self.relay_bytes > self.settings.window_bytes / 2;
        let unwanted = is_crowded.then(|| {
            let lacked = self.lacked_by(|_| true);
            self.stored
                .keys()
                .find(|segment| !lacked.contains(**segment))
                .copied()
        });
        let segment = unwanted.flatten().or_else(|| {
            let lacked = self.lacked_by(|receiver| receiver.waited_for.is_some());
            self.wanted_next(&lacked)
                .filter(|segment| !self.has_room(*segment))?;
            self.stored
                .keys()
                .find(|segment| !lacked.contains(**segment))
                .copied()
        });
        segment.map(|segment| SendingAction::Delete { segment })
    }

    fn next_put(&self) -> Option<SendingAction> {
        if self.puts >= self.settings.puts_max || self.put_not_before.is_some() {
            return None;
        }
        let segment = self.wanted_next(&self.lacked_by(|receiver| receiver.waited_for.is_some()))?;
        self.has_room(segment).then_some(SendingAction::Put { segment })
    }

    /// The first segment from the cursor on, and then from the beginning, that is lacked and not in the relay.
    fn wanted_next(&self, lacked: &SegmentSet) -> Option<usize> {
        let wanted = |segment: &usize| self.places[*segment] == Place::Out && lacked.contains(*segment);
        let (before, after) = (0..self.cursor, self.cursor..self.places.len());
        after.chain(before).find(wanted)
    }

    fn has_room(&self, segment: usize) -> bool {
        let bytes = self.relay_bytes + self.segment_bytes[segment];
        self.relay_bytes == 0 || bytes <= self.settings.window_bytes
    }

    /// What any of the receivers lacks that pass.
    fn lacked_by(&self, passes: impl Fn(&Receiver) -> bool) -> SegmentSet {
        let mut lacked = SegmentSet::none(self.places.len());
        for receiver in self.receivers.values().filter(|receiver| passes(receiver)) {
            lacked.insert_all(&receiver.have.complement());
        }
        lacked
    }

    /// Receivers that pass, by what they are and since when they have got nothing new although something lies
    /// there for them.
    fn those(&self, passes: impl Fn(&Receiver, Option<Moment>) -> bool) -> Vec<ReceiverId> {
        let passing = self
            .receivers
            .iter()
            .filter(|(_, receiver)| passes(receiver, self.waits_since(receiver)));
        passing.map(|(id, _)| *id).collect()
    }

    fn waits_since(&self, receiver: &Receiver) -> Option<Moment> {
        let there = self
            .stored
            .iter()
            .filter(|(segment, _)| !receiver.have.contains(**segment));
        there
            .map(|(_, since)| *since)
            .min()
            .map(|since| since.max(receiver.advanced))
    }

    /// When only laggards are left, they are waited for; when nobody is left, for newcomers.
    fn wait_for_laggards(&mut self, now: Moment) {
        if self.receivers.is_empty() {
            self.alone_since.get_or_insert(now);
        }
        if self
            .receivers
            .values()
            .all(|receiver| receiver.waited_for.is_none())
        {
            for receiver in self.receivers.values_mut() {
                receiver.waited_for = Some(now);
            }
        }
    }

    fn check_invariants(&self) {
        let in_relay = self
            .places
            .iter()
            .zip(&self.segment_bytes)
            .filter(|(place, _)| **place != Place::Out);
        let (mut count, mut bytes) = (0, 0);
        in_relay.for_each(|(_, segment_bytes)| {
            count += 1;
            bytes += segment_bytes;
        });
        assert_eq!(bytes, self.relay_bytes, "every byte in the relay is counted");
        assert!(
            count <= 1 || bytes <= self.settings.window_bytes,
            "the relay holds a window at most"
        );
        assert!(
            self.puts <= self.settings.puts_max,
            "a bounded number of segments is on its way"
        );
    }
}

/// Beyond that, the wait after a refusal does not grow.
const BACKOFF_DOUBLINGS_MAX: u32 = 6;
