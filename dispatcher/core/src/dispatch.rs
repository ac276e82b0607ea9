//! How an assignment was decided, kept for as long as it runs.

use std::time::Duration;

use flotilla_protocol::Moment;
use serde::{Deserialize, Serialize};

use crate::models::Kind;
use crate::policy::{Candidate, Readiness, Room};
use crate::share::Share;

/// What was expected of an assignment, to learn from its end and to explain it.
#[derive(Debug, Clone)]
pub(crate) struct Dispatch {
    pub(crate) at: Moment,
    pub(crate) kind: Kind,
    pub(crate) readiness: Readiness,
    pub(crate) share: Share,
    /// What was booked on the device with it.
    pub(crate) load: Share,
    pub(crate) starts_in: Duration,
    pub(crate) ends_in: Duration,
    pub(crate) slack_us: i64,
    /// The devices that did not get it.
    pub(crate) losers: Losers,
}

/// Why how many devices did not get a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Losers {
    /// They could have run it, but another was preferred.
    pub(crate) not_preferred: u32,
    /// They would have missed the target.
    pub(crate) too_late: u32,
    /// They had no room.
    pub(crate) no_room: u32,
    /// They lack the model.
    pub(crate) no_copy: u32,
}

impl Losers {
    /// Counts all candidates but the chosen one.
    pub(crate) fn count(candidates: &[Candidate<'_>], chosen: usize) -> Self {
        let mut losers = Self::default();
        for (index, candidate) in candidates.iter().enumerate() {
            if index == chosen {
                continue;
            }
            let counter = match candidate.room {
                Room::Now if candidate.slack_us < 0 => &mut losers.too_late,
                Room::Now => &mut losers.not_preferred,
                Room::NoShare | Room::NoSlot | Room::NoKv | Room::Harm | Room::Reserved => {
                    &mut losers.no_room
                }
                Room::NoCopy => &mut losers.no_copy,
            };
            *counter += 1;
        }
        losers
    }
}
