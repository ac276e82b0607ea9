//! Devices that fail: they are taken out for good, and what was on them goes elsewhere. A model in parts is lost with
//! any of its devices, and the others are told to give its memory back.
//!
//! A request that holds a lease there loses it, so that it can go on from its journal on another worker; one that
//! waits is served by another device of this worker, or learns why none will. Loads and unloads under way there
//! end as all others do, by the caller's word.

use flotilla_protocol::fleet::DepartureReason;
use flotilla_protocol::{ModelName, Moment};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::model::State;
use super::shard::{Holding, Home};
use super::{Action, Keep, Residency};
use crate::ledger::DeviceIndex;

/// What broke a device. Text alone: what it was is the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{reason}")]
pub struct DeviceFault {
    /// What broke, with its causes.
    pub reason: String,
}

impl Residency {
    /// A device failed. Its models are absent at once, and nothing is loaded there any more. One that has failed
    /// already keeps its first reason.
    pub fn handle_device_fault(&mut self, now: Moment, device: DeviceIndex, fault: DeviceFault) {
        if self.device_fault(device).is_some() {
            return;
        }
        self.changes += 1;
        let reason = fault.reason.clone();
        self.device_faults.insert(device, fault);
        let is_here = |state: &State| match state {
            State::Loading(loading) => loading.home.is_on(device),
            State::Ready(ready) | State::Draining(ready) => ready.home.is_on(device),
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Unloading { .. }
            | State::Failed { .. } => false,
        };
        let here = self.models.iter().filter(|(_, model)| is_here(&model.state));
        let here: Vec<ModelName> = here.map(|(name, _)| name.clone()).collect();
        for model in here {
            self.lose(now, &model, device, &reason);
            self.advance(now, &model);
        }
        self.settle(now);
    }

    /// Why a device is out, if it is.
    #[must_use]
    pub fn device_fault(&self, device: DeviceIndex) -> Option<&DeviceFault> {
        self.device_faults.get(&device)
    }

    /// Takes a model away from a device that failed.
    fn lose(&mut self, now: Moment, model: &ModelName, device: DeviceIndex, reason: &str) {
        let entry = self.model_mut(model);
        if let State::Loading(loading) = &entry.state {
            if !loading.is_ending() {
                self.cancel_load(now, model);
            }
            return;
        }
        let state = std::mem::replace(&mut entry.state, State::Absent);
        let (State::Ready(ready) | State::Draining(ready)) = state else {
            panic!("{model} was on the device: {state:?}");
        };
        for request in ready.leases.into_keys() {
            self.requests.remove(&request);
            self.actions.push_back(Action::LeaseLost {
                request,
                model: model.clone(),
                reason: reason.to_owned(),
            });
        }
        let reason = reason.to_owned();
        let departure = DepartureReason::DeviceFailed { reason };
        let resident_for = now.since(ready.since);
        self.departures.note(now, model, device, departure, resident_for);
        self.give_up_home(model, ready.home);
    }

    /// Takes back the pages of a model that lost a device: those of devices that failed at once, the others when they
    /// have been given back. Nothing of it is kept, as a part alone is of no use.
    pub(super) fn give_up_home(&mut self, model: &ModelName, home: Home) {
        let has_failed = |it: &Holding| self.device_faults.contains_key(&it.shard.device);
        let (lost, left): (Vec<_>, Vec<_>) = home.into_holdings().into_iter().partition(has_failed);
        if !lost.is_empty() {
            self.release(Home::new(lost));
        }
        if left.is_empty() {
            return;
        }
        let home = Home::new(left);
        self.actions.push_back(Action::Unload {
            model: model.clone(),
            devices: home.devices().collect(),
            keep: Keep::Nowhere,
        });
        self.model_mut(model).state = State::Unloading { home };
    }
}
