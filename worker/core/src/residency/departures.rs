//! Why models left, for people who ask.

use std::collections::VecDeque;

use flotilla_protocol::fleet::{DepartureReason, DepartureReport};
use flotilla_protocol::{ModelName, Moment};

use crate::ledger::DeviceIndex;

/// Departures that are remembered: what a person reads at once, in every report.
const DEPARTURES_MAX: usize = 16;

/// The newest departures, oldest first.
#[derive(Debug, Default)]
pub(super) struct Departures {
    newest: VecDeque<Departure>,
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
    ) {
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
