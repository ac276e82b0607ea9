//! One loaded model and the requests that hold it.

use std::collections::VecDeque;
use std::time::Duration;

use flotilla_protocol::Moment;

use super::gpu::Place;
use crate::policy::Arriving;

/// A server process with one model.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) gpu: usize,
    /// Pages that it is estimated to take.
    pub(super) pages: u64,
    slots: u32,
    pub(super) stage: Stage,
    /// How long it stays when idle.
    pub(super) keep_alive: Duration,
    /// When it leaves; none while it is in use.
    pub(super) expires: Option<Moment>,
    /// Requests that wait for a slot.
    waiting: VecDeque<Arriving>,
    /// Requests in its slots.
    pub(super) running: u32,
}

/// Whether it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Loading,
    Ready,
}

impl Runner {
    pub(super) fn new(place: Place, stage: Stage) -> Self {
        Self {
            gpu: place.gpu,
            pages: place.pages,
            slots: place.slots,
            stage,
            keep_alive: KEEP_ALIVE,
            expires: None,
            waiting: VecDeque::new(),
            running: 0,
        }
    }

    /// No request holds it, and it is not on its way in.
    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Ready && self.running == 0 && self.waiting.is_empty()
    }

    /// A request holds it from now on.
    pub(super) fn attach(&mut self, arriving: Arriving) {
        self.expires = None;
        self.waiting.push_back(arriving);
    }

    /// The next request that gets a slot; those whose clients have left are passed over.
    pub(super) fn start_next(&mut self, now: Moment) -> Option<Arriving> {
        if self.running >= self.slots {
            return None;
        }
        let stays = |arriving: &Arriving| arriving.deadline.is_none_or(|deadline| now < deadline);
        let next = loop {
            let next = self.waiting.pop_front()?;
            if stays(&next) {
                break next;
            }
        };
        self.running += 1;
        Some(next)
    }
}

/// How long a model stays when nobody says otherwise.
const KEEP_ALIVE: Duration = Duration::from_secs(300);
