//! What a term waits for, and what it does at intervals.

use std::time::Duration;

use flotilla_protocol::RequestId;
use flotilla_telemetry::Ask;
use tokio::task::JoinError;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Checked;
use super::reconciling::{Looked, Swept};
use crate::courier::{Errand, Outcome};
use crate::intake::Pulled;
use crate::listen::Heard;
use crate::listeners;
use crate::services::Query;

/// What a term waits for.
pub(super) enum Happened {
    /// Nothing, for a while.
    Turn,
    Scrape(Ask),
    /// A timer of the core.
    Due,
    Outcome(Result<(RequestId, Outcome), JoinError>),
    Checked(Result<Checked, JoinError>),
    Pulled(Pulled),
    Heard(Heard),
    Asked(Query),
    SignOfLifeDue,
    ClientRoundDue,
    Probed(Result<Vec<listeners::Heard>, JoinError>),
    Extended(Result<(), JoinError>),
    ErrandRun(Result<Errand, JoinError>),
    ReconcilingDue,
    Looked(Result<Looked, JoinError>),
    Swept(Result<Swept, JoinError>),
    ChildEnded(Result<(), JoinError>),
}

impl Happened {
    /// Whether the core hears of it and decides.
    pub(super) fn concerns_core(&self) -> bool {
        matches!(
            self,
            Self::Due
                | Self::Outcome(_)
                | Self::Checked(_)
                | Self::Heard(_)
                | Self::Probed(_)
                | Self::ErrandRun(_)
        )
    }
}

/// What a term does at intervals.
pub(super) struct Ticks {
    pub(super) turns: Interval,
    pub(super) signs_of_life: Interval,
    pub(super) client_rounds: Interval,
    pub(super) reconcilings: Interval,
}

impl Ticks {
    pub(super) fn new(signs_of_life: Duration, client_rounds: Duration, reconcilings: Duration) -> Self {
        let ticks = |every| {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        Self {
            turns: ticks(TURN_EVERY),
            signs_of_life: ticks(signs_of_life),
            client_rounds: ticks(client_rounds),
            reconcilings: ticks(reconcilings),
        }
    }
}

/// A term without anything to do turns so often, as whoever watches it wants to see.
const TURN_EVERY: Duration = Duration::from_secs(1);
