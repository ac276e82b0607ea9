//! What the worker says of its models and devices.

use std::time::Duration;

use flotilla_protocol::fleet::{
    DepartureReport, DeviceReport, DeviceState, ModelReport, ModelState, ShardReport,
};
use flotilla_protocol::{ModelName, Moment};

use super::Residency;
use super::departures::Departed;
use super::kv::Pool;
use super::model::{Model, State};
use super::shard::{Home, Shard};
use crate::ledger::{Ledger, PAGE_BYTES, Purpose};

impl Residency {
    /// Every model that is not absent.
    #[must_use]
    pub fn model_reports(&self, now: Moment) -> Vec<ModelReport> {
        let reports = self.models.iter();
        reports
            .filter_map(|(name, model)| self.model_report(now, name, model))
            .collect()
    }

    /// Why models left lately, oldest first.
    #[must_use]
    pub fn departure_reports(&self, now: Moment) -> Vec<DepartureReport> {
        self.departures.reports(now)
    }

    /// The next departure to count; call until `None`.
    #[must_use]
    pub fn poll_departure(&mut self) -> Option<Departed> {
        self.departures.poll()
    }

    /// Each device's ledger.
    #[must_use]
    pub fn device_reports(&self) -> Vec<DeviceReport> {
        let report = |(index, (ledger, pool)): (usize, (&Ledger, &Pool))| DeviceReport {
            device: ledger.device().0,
            page_bytes: PAGE_BYTES,
            pages_total: ledger.pages_total(),
            pages_weights: ledger.pages_for(Purpose::Weights),
            pages_kv: pool.pages_used + kv_pages_fixed(ledger),
            pages_workspace: ledger.pages_for(Purpose::Workspace),
            pages_kv_kept: Some(self.kv_pages_kept(index) + kv_pages_fixed(ledger)),
            resident_bytes: None,
            state: match self.device_fault(ledger.device()) {
                None => DeviceState::Working,
                Some(fault) => DeviceState::Failed {
                    reason: fault.reason.clone(),
                },
            },
        };
        let sites = self.ledgers.iter().zip(&self.pools);
        sites.enumerate().map(report).collect()
    }

    /// Tokens for which the pool has room, if all of it were this model's, or its own pages where it is in parts;
    /// `None` while it has no place, or keeps no keys and values.
    fn kv_tokens_max(&self, model: &Model) -> Option<u64> {
        let home = model.home()?;
        if let Some(part) = home.shards().find_map(|shard| shard.part) {
            return Some(part.kv_blocks.saturating_mul(model.kv_block?.tokens));
        }
        let device = home.first();
        let mut sites = self.ledgers.iter().zip(&self.pools);
        let (_, pool) = sites.find(|(ledger, _)| ledger.device() == device)?;
        Some(model.kv_block?.tokens_on(pool.pages()))
    }

    fn model_report(&self, now: Moment, name: &ModelName, model: &Model) -> Option<ModelReport> {
        let mut expires_at = None;
        let state = match &model.state {
            State::Absent => return None,
            State::Loading(loading) if loading.is_ending() => ModelState::Unloading,
            State::Fetching if !model.is_wanted() => return None,
            State::Inspecting | State::Fetching | State::WaitingForRoom { .. } | State::Loading(_) => {
                ModelState::Loading
            }
            State::Ready(ready) => {
                expires_at = ready.expires_at();
                ModelState::Ready
            }
            State::Draining(_) => ModelState::Draining,
            State::Unloading { .. } => ModelState::Unloading,
            State::Failed { fault, retry_at } => ModelState::Failed {
                reason: fault.to_string(),
                retry_in_ms: millis(retry_at.since(now)),
            },
        };
        Some(ModelReport {
            model: name.clone(),
            state,
            device: model.home().map(|home| home.first().0),
            leases: count(model.lease_count()),
            waiting: count(model.waiters.len()),
            weights_bytes: model.weights_pages.saturating_mul(PAGE_BYTES),
            expires_in_ms: expires_at.map(|at| millis(at.since(now))),
            load_ms: model.load_time.map(millis),
            shards: shard_reports(model),
            kv_tokens_max: self.kv_tokens_max(model),
            loaded_from: match model.state {
                State::Loading(_) => Some(self.host.source(name)),
                State::Absent
                | State::Inspecting
                | State::Fetching
                | State::WaitingForRoom { .. }
                | State::Ready(_)
                | State::Draining(_)
                | State::Unloading { .. }
                | State::Failed { .. } => model.loaded_from,
            },
        })
    }
}

/// Pages for keys and values of models in parts.
fn kv_pages_fixed(ledger: &Ledger) -> u64 {
    ledger.pages_for(Purpose::Kv) - ledger.pool_pages()
}

fn shard_reports(model: &Model) -> Vec<ShardReport> {
    let shards = model.home().into_iter().flat_map(Home::shards);
    let report = |shard: &Shard| {
        let part = shard.part?;
        Some(ShardReport {
            device: shard.device.0,
            first_layer: part.first_layer,
            layers: part.layers,
            weights_bytes: shard.grant.weights_pages.saturating_mul(PAGE_BYTES),
        })
    };
    shards.filter_map(report).collect()
}

fn count(requests: usize) -> u32 {
    u32::try_from(requests).unwrap_or(u32::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
