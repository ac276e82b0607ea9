//! Why models left, for people who ask.

use std::collections::VecDeque;
use std::time::Duration;

use flotilla_protocol::fleet::{DepartureReason, DepartureReport};
use flotilla_protocol::{ModelName, Moment};

use crate::ledger::DeviceIndex;

/// Departures that are remembered: what a person reads at once, in every report.
const DEPARTURES_MAX: usize = 16;

/// Departures that wait to be counted: more than one input leads to. Who counts none loses them and nothing else.
const UNCOUNTED_MAX: usize = 256;

/// The newest departures, oldest first.
#[derive(Debug, Default)]
pub(super) struct Departures {
    newest: VecDeque<Departure>,
    /// Those that nobody has counted yet.
    uncounted: VecDeque<Departed>,
}

/// A model that was told to leave, for who counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departed {
    /// The model.
    pub model: ModelName,
    /// Why.
    pub reason: DepartureReason,
    /// How long it was ready.
    pub resident_for: Duration,
}

#[derive(Debug)]
struct Departure {
    model: ModelName,
    device: DeviceIndex,
    at: Moment,
    reason: DepartureReason,
}

impl Departures {
    /// A model was told to leave.
    pub(super) fn note(
        &mut self,
        now: Moment,
        model: &ModelName,
        device: DeviceIndex,
        reason: DepartureReason,
        resident_for: Duration,
    ) {
        if self.uncounted.len() < UNCOUNTED_MAX {
            self.uncounted.push_back(Departed {
                model: model.clone(),
                reason: reason.clone(),
                resident_for,
            });
        }
        if self.newest.len() == DEPARTURES_MAX {
            self.newest.pop_front();
        }
        self.newest.push_back(Departure {
            model: model.clone(),
            device,
            at: now,
            reason,
        });
    }

    pub(super) fn poll(&mut self) -> Option<Departed> {
        self.uncounted.pop_front()
    }

    pub(super) fn reports(&self, now: Moment) -> Vec<DepartureReport> {
        let reports = self.newest.iter().map(|departure| DepartureReport {
            model: departure.model.clone(),
            device: departure.device.0,
            ago_ms: u64::try_from(now.since(departure.at).as_millis()).unwrap_or(u64::MAX),
            reason: departure.reason.clone(),
        });
        reports.collect()
    }
}
