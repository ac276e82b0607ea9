//! What the worker says of its models and devices.

use std::time::Duration;

use flotilla_protocol::fleet::{DeviceReport, ModelReport, ModelState};
use flotilla_protocol::{ModelName, Moment};

use super::Residency;
use super::model::{Model, State};
use crate::ledger::{PAGE_BYTES, Purpose};

impl Residency {
    /// Every model that is not absent.
    #[must_use]
    pub fn model_reports(&self, now: Moment) -> Vec<ModelReport> {
        let reports = self
            .models
            .iter()
            .filter_map(|(name, model)| report(now, name, model));
        reports.collect()
    }

    /// Each device's ledger.
    #[must_use]
    pub fn device_reports(&self) -> Vec<DeviceReport> {
        let report = |ledger: &crate::ledger::Ledger| DeviceReport {
            device: ledger.device().0,
            page_bytes: PAGE_BYTES,
            pages_total: ledger.pages_total(),
            pages_weights: ledger.pages_for(Purpose::Weights),
            pages_kv: ledger.pages_for(Purpose::Kv),
            pages_workspace: ledger.pages_for(Purpose::Workspace),
        };
        self.ledgers.iter().map(report).collect()
    }
}

fn report(now: Moment, name: &ModelName, model: &Model) -> Option<ModelReport> {
    let mut expires_at = None;
    let state = match &model.state {
        State::Absent => return None,
        State::Inspecting | State::WaitingForRoom { .. } | State::Loading { .. } => ModelState::Loading,
        State::Ready(ready) => {
            expires_at = ready.expires_at();
            ModelState::Ready
        }
        State::Draining(_) => ModelState::Draining,
        State::Unloading { .. } => ModelState::Unloading,
        State::Failed { reason, retry_at } => ModelState::Failed {
            reason: reason.clone(),
            retry_in_ms: millis(retry_at.since(now)),
        },
    };
    Some(ModelReport {
        model: name.clone(),
        state,
        device: model.place().map(|(device, _)| device.0),
        leases: count(model.lease_count()),
        waiting: count(model.waiters.len()),
        weights_bytes: model.weights_pages.saturating_mul(PAGE_BYTES),
        expires_in_ms: expires_at.map(|at| millis(at.since(now))),
        load_ms: model.load_time.map(millis),
        kv_tokens_max: model.kv_tokens_max(),
    })
}

fn count(requests: usize) -> u32 {
    u32::try_from(requests).unwrap_or(u32::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
