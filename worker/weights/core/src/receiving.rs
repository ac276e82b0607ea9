//! What a receiver repairs, when it tells its sender what it has, and when it gives the sender up.
//!
//! Segments arrive live, as they are stored in the relay; live delivery may lose some. The sender's news say what
//! lies in the relay: what does and has not arrived within a moment is fetched from there. Nothing counts as had
//! before its hash was compared.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_protocol::Moment;
use flotilla_protocol::weights::{CopyEnd, CopyNews, Generation, SegmentSet};

/// How long a receiver waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivingSettings {
    /// A segment of the relay of which nothing arrived for so long is fetched from there.
    pub repair_after: Duration,
    /// Most segments that are fetched at once.
    pub repairs_max: usize,
    /// The sender hears after so many segments, ...
    pub report_segments: usize,
    /// ... and this often at least.
    pub report_every: Duration,
    /// A sender that was not heard of for so long is lost.
    pub silence: Duration,
    /// A copy of which no segment was had for so long is given up, whatever its sender says.
    pub patience: Duration,
    /// So many segments whose bytes were not theirs end the copy.
    pub bad_max: u32,
}

impl Default for ReceivingSettings {
    /// What suits a healthy network. At most four segments are fetched at once: half of what a server lets pend for a
    /// connection.
    fn default() -> Self {
        Self {
            repair_after: Duration::from_millis(250),
            repairs_max: 4,
            report_segments: 8,
            report_every: Duration::from_millis(100),
            silence: Duration::from_secs(5),
            patience: Duration::from_secs(30),
            bad_max: 16,
        }
    }
}

/// What the shell of a receiver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceivingAction {
    /// Fetch a segment from the relay; then [`Receiving::handle_arrived`] or [`Receiving::handle_not_there`].
    Repair {
        /// Which.
        segment: usize,
    },
    /// Tell the sender what is there, [`Receiving::have`], and ...
    Report {
        /// ... what it thinks is in the relay and was not found there.
        missing: SegmentSet,
    },
    /// The copy is over.
    End {
        /// Why.
        end: ReceivingEnd,
    },
}

/// Why a receiver has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceivingEnd {
    /// It has everything.
    Complete,
    /// The sender is not heard of any more.
    SenderLost,
    /// The sender says that it has ended.
    SenderEnded {
        /// Why.
        end: CopyEnd,
    },
    /// Nothing new for too long, although the sender is heard of.
    Stalled,
    /// Too often the bytes were not those of the segment.
    Corrupt,
}

/// One copy of one root, from the side of one receiver.
///
/// Call `handle_*` with what happened, then [`Self::poll_action`] until it gives none, and again at
/// [`Self::poll_timeout`] at the latest.
#[derive(Debug)]
pub struct Receiving {
    settings: ReceivingSettings,
    generation: Generation,
    have: SegmentSet,
    /// Segments that are missing and of which something is known, and nothing of the others.
    known: BTreeMap<usize, Known>,
    /// What was looked for in the relay and not found, since the last report.
    missing: SegmentSet,
    heard: Moment,
    advanced: Moment,
    reported: Moment,
    unreported: usize,
    bad: u32,
    repairs: u64,
    repairing: usize,
    end: Option<ReceivingEnd>,
    ended: bool,
}

/// What is known of a segment that is missing.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// The sender says that it lies in the relay.
    stored: bool,
    /// When something of it arrived, or it was heard of first.
    touched: Moment,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// On its way, or not even that.
    Awaited,
    /// It is being fetched from the relay.
    Repairing,
    /// Its bytes are there and being compared.
    Verifying,
}

impl Receiving {
    /// Of a copy, by a receiver that has this already.
    #[must_use]
    pub fn new(settings: ReceivingSettings, generation: Generation, have: SegmentSet, now: Moment) -> Self {
        Self {
            settings,
            generation,
            end: have.is_all().then_some(ReceivingEnd::Complete),
            missing: SegmentSet::none(have.segments()),
            have,
            known: BTreeMap::new(),
            heard: now,
            advanced: now,
            reported: now,
            unreported: 0,
            bad: 0,
            repairs: 0,
            repairing: 0,
            ended: false,
        }
    }

    /// The sender says what lies in the relay. News of another generation are ignored.
    pub fn handle_news(&mut self, now: Moment, news: &CopyNews) {
        if news.generation != self.generation || news.stored.segments() != self.have.segments() {
            return;
        }
        self.heard = now;
        if let Some(end) = news.end {
            self.end.get_or_insert(ReceivingEnd::SenderEnded { end });
        }
        for (segment, known) in &mut self.known {
            known.stored = news.stored.contains(*segment);
        }
        for segment in news.stored.iter().filter(|segment| !self.have.contains(*segment)) {
            self.known.entry(segment).or_insert(Known {
                stored: true,
                touched: now,
                stage: Stage::Awaited,
            });
        }
    }

    /// A part of a segment arrived live. `false` means that the segment is not wanted and its parts need not be kept.
    #[must_use]
    pub fn handle_part(&mut self, now: Moment, segment: usize) -> bool {
        if segment >= self.have.segments() || self.have.contains(segment) {
            return false;
        }
        self.heard = now;
        let known = self.known.entry(segment).or_insert(Known {
            stored: false,
            touched: now,
            stage: Stage::Awaited,
        });
        known.touched = now;
        known.stage == Stage::Awaited
    }

    /// All bytes of a segment are there, live or by repair, and are being compared with its hash. `false` means
    /// that it is not wanted any more.
    ///
    /// # Panics
    /// The manifest has no such segment.
    #[must_use]
    pub fn handle_arrived(&mut self, now: Moment, segment: usize) -> bool {
        if self.have.contains(segment) {
            return false;
        }
        let known = self.known.entry(segment).or_insert(Known {
            stored: false,
            touched: now,
            stage: Stage::Awaited,
        });
        let before = std::mem::replace(&mut known.stage, Stage::Verifying);
        known.touched = now;
        self.left(before);
        before != Stage::Verifying
    }

    /// A segment's bytes are its own and are kept.
    ///
    /// # Panics
    /// The manifest has no such segment.
    pub fn handle_verified(&mut self, now: Moment, segment: usize) {
        if let Some(known) = self.known.remove(&segment) {
            self.left(known.stage);
        }
        self.have.insert(segment);
        self.advanced = now;
        self.unreported += 1;
        if self.have.is_all() {
            // Even if the sender has just ended: nothing more is needed of it.
            self.end = Some(ReceivingEnd::Complete);
        }
    }

    /// A segment's bytes are not its own. It is fetched again, until that has happened too often.
    pub fn handle_bad(&mut self, now: Moment, segment: usize) {
        self.bad += 1;
        self.back_to_awaited(now, segment);
        if self.bad >= self.settings.bad_max {
            self.end.get_or_insert(ReceivingEnd::Corrupt);
        }
    }

    /// A segment that was to be repaired is not in the relay. The sender hears of it, as the relay may have lost it: its
    /// server has started again, or somebody has removed it.
    ///
    /// # Panics
    /// The manifest has no such segment.
    pub fn handle_not_there(&mut self, now: Moment, segment: usize) {
        self.missing.insert(segment);
        self.back_to_awaited(now, segment);
    }

    /// A segment that was to be repaired could not be read from the relay.
    pub fn handle_unreadable(&mut self, now: Moment, segment: usize) {
        self.back_to_awaited(now, segment);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        if now.since(self.heard) >= self.settings.silence {
            self.end.get_or_insert(ReceivingEnd::SenderLost);
        } else if now.since(self.advanced) >= self.settings.patience {
            self.end.get_or_insert(ReceivingEnd::Stalled);
        }
    }

    /// What to do next. Call until it gives nothing.
    #[must_use]
    pub fn poll_action(&mut self, now: Moment) -> Option<ReceivingAction> {
        if self.ended {
            return None;
        }
        if self.report_is_due(now) {
            self.reported = now;
            self.unreported = 0;
            let none = SegmentSet::none(self.have.segments());
            let missing = std::mem::replace(&mut self.missing, none);
            return Some(ReceivingAction::Report { missing });
        }
        if let Some(end) = self.end {
            self.ended = true;
            return Some(ReceivingAction::End { end });
        }
        let segment = self.next_repair(now)?;
        self.known.get_mut(&segment)?.stage = Stage::Repairing;
        self.repairing += 1;
        self.repairs += 1;
        Some(ReceivingAction::Repair { segment })
    }

    /// When [`Self::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        if self.ended {
            return None;
        }
        let ReceivingSettings {
            repair_after,
            report_every,
            silence,
            patience,
            ..
        } = self.settings;
        let room = self.repairing < self.settings.repairs_max;
        let awaited = self.known.values().filter(|known| room && known.is_repairable());
        let repair = awaited.map(|known| known.touched + repair_after).min();
        let others = [
            self.reported + report_every,
            self.heard + silence,
            self.advanced + patience,
        ];
        others.into_iter().chain(repair).min()
    }

    /// What has been verified.
    #[must_use]
    pub const fn have(&self) -> &SegmentSet {
        &self.have
    }

    /// The copy.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Segments that live delivery lost and that were fetched instead, and segments that came with wrong bytes.
    #[must_use]
    pub const fn repaired_and_bad(&self) -> (u64, u32) {
        (self.repairs, self.bad)
    }

    fn report_is_due(&self, now: Moment) -> bool {
        let complete = self.have.is_all() && self.unreported > 0;
        complete
            || self.unreported >= self.settings.report_segments
            || now.since(self.reported) >= self.settings.report_every
    }

    fn next_repair(&self, now: Moment) -> Option<usize> {
        if self.repairing >= self.settings.repairs_max {
            return None;
        }
        let due =
            |known: &Known| known.is_repairable() && now.since(known.touched) >= self.settings.repair_after;
        self.known
            .iter()
            .find(|(_, known)| due(known))
            .map(|(segment, _)| *segment)
    }

    fn back_to_awaited(&mut self, now: Moment, segment: usize) {
        let Some(known) = self.known.get_mut(&segment) else {
            return;
        };
        let before = std::mem::replace(&mut known.stage, Stage::Awaited);
        // What the next news say counts: it may have been deleted because somebody thought that all have it.
        known.stored = false;
        known.touched = now;
        self.left(before);
    }

    fn left(&mut self, stage: Stage) {
        if stage == Stage::Repairing {
            self.repairing -= 1;
        }
    }
}

impl Known {
    fn is_repairable(&self) -> bool {
        self.stored && self.stage == Stage::Awaited
    }
}
