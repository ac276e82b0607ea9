//! One device of a worker and what is booked on it.

use std::cell::OnceCell;
use std::time::Duration;

use flotilla_protocol::{ModelName, Moment, RequestId};

use crate::micros::Micros;
use crate::models::Kind;
use crate::pace::Crew;
use crate::price::Asked;
use crate::share::Share;

/// One device.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) kind: Kind,
    /// Shares booked, together; above [`Share::FULL`] only by what others gave it.
    pub(crate) load: Share,
    /// Requests booked.
    pub(crate) booked_count: usize,
    /// When the first of them is expected to end.
    pub(crate) frees_at: Option<Moment>,
    /// How much of its time it reads prompts lately.
    reading: Reading,
    /// What runs on it, put together when it is first asked after a change.
    crew: OnceCell<Crew>,
    /// The request that it is kept for: nothing else is placed here until that fits.
    pub(crate) reserved_for: Option<RequestId>,
}

/// The capacity that one request takes. It exists from the assignment, or from the first report that lists the
/// request, to the end of the attempt.
#[derive(Debug, Clone)]
pub(crate) struct Booking {
    pub(crate) device: usize,
    pub(crate) model: ModelName,
    /// What was asked and predicted.
    pub(crate) asked: Asked,
    pub(crate) published: Micros,
    /// What it takes to read its prompt.
    pub(crate) reads: Duration,
    /// When it was given to the worker.
    pub(crate) began: Moment,
    /// Tokens that it had made by the last report.
    pub(crate) made: u32,
    /// When that report came.
    pub(crate) made_at: Moment,
    /// What is booked, from its beginning to its end: what it was admitted with.
    pub(crate) share: Share,
    /// Tokens of keys and values that it may come to need.
    pub(crate) kv_tokens: u64,
    /// When it is expected to end.
    pub(crate) ends_at: Moment,
    /// Whether its share was measured, and it is on the device that it was given to; of others the worker's slots
    /// decide how many fit.
    pub(crate) is_measured: bool,
    /// Who gave it to the worker.
    pub(crate) giver: Giver,
    /// Models that go for it.
    pub(crate) victims: Vec<ModelName>,
}

/// Who gave a request to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Giver {
    /// We did.
    Us,
    /// A former leader did, and we have taken it over.
    Former,
    /// Somebody else did, and we do not hold the request: it takes capacity for as long as it is listed.
    Stranger,
}

impl Device {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            load: Share::NONE,
            booked_count: 0,
            frees_at: None,
            reading: Reading::default(),
            crew: OnceCell::new(),
            reserved_for: None,
        }
    }

    /// The part of its time, from 0 to [`READING_MAX`], that it reads prompts: what came lately will go on coming.
    pub(crate) fn reading_part(&self, now: Moment) -> f64 {
        self.reading.at(now).min(READING_MAX)
    }

    /// Notes that it was given a prompt that takes so long to read.
    pub(super) fn note_prompt(&mut self, now: Moment, reads: Duration) {
        let part = self.reading.at(now) + reads.as_secs_f64() / READING_MEMORY_S;
        self.reading = Reading { part, at: now };
    }

    /// Whether it runs nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.booked_count == 0
    }

    /// Whether a request of this share fits: an idle device takes any.
    pub(crate) fn has_room_for(&self, share: Share) -> bool {
        self.is_idle() || self.load.has_room_for(share)
    }

    /// How long until the first of its requests is expected to end. One that has outlived its prediction is taken to go
    /// on for as long as it did so far beyond it.
    pub(crate) fn frees_in(&self, now: Moment) -> Duration {
        let frees_at = self.frees_at.unwrap_or(now);
        frees_at.since(now).max(now.since(frees_at))
    }

    /// Whether a request may be placed here as far as reservations go.
    pub(crate) fn is_open_to(&self, request: &RequestId) -> bool {
        self.reserved_for
            .as_ref()
            .is_none_or(|reserved| reserved == request)
    }

    /// Whether nothing but this request is placed here.
    pub(super) fn is_kept_for(&self, request: &RequestId) -> bool {
        self.reserved_for.as_ref() == Some(request)
    }

    /// What runs on it, as `make` puts it together.
    pub(super) fn crew(&self, make: impl FnOnce() -> Crew) -> &Crew {
        self.crew.get_or_init(make)
    }

    /// Forgets what runs on it, as that goes at another pace now.
    pub(super) fn forget_crew(&mut self) {
        self.crew.take();
    }

    pub(super) fn clear(&mut self) {
        self.forget_crew();
        self.load = Share::NONE;
        self.booked_count = 0;
        self.frees_at = None;
    }

    /// A set of devices is as full as the fullest of them, and free when the first of all has ended.
    pub(super) fn add_member(&mut self, member: &Self) {
        self.load = self.load.max(member.load);
        self.booked_count = self.booked_count.max(member.booked_count);
        self.frees_at = [self.frees_at, member.frees_at].into_iter().flatten().min();
    }

    pub(super) fn add(&mut self, booking: &Booking) {
        self.load = self.load + booking.share;
        self.booked_count += 1;
        self.frees_at = Some(
            self.frees_at
                .map_or(booking.ends_at, |at| at.min(booking.ends_at)),
        );
    }
}

/// An exponentially weighted mean.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    part: f64,
    at: Moment,
}

impl Reading {
    fn at(self, now: Moment) -> f64 {
        self.part * (-now.since(self.at).as_secs_f64() / READING_MEMORY_S).exp()
    }
}

/// How long prompts are remembered, in seconds: as long as most answers run, since that is how far ahead it is looked.
const READING_MEMORY_S: f64 = 10.0;
/// No device reads all the time for long: decoding goes on in between.
const READING_MAX: f64 = 0.9;
