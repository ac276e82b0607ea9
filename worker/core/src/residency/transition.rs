//! The steps of one model from state to state, each with what it means for those who wait and hold.

use flotilla_protocol::{ModelName, Moment, RequestId};

use super::model::{Model, Ready, State, Stay};
use super::{Action, Residency};
use crate::ledger::{DeviceIndex, Ledger, Reservation};

impl Residency {
    /// Takes the steps of a model that depend on nothing but itself.
    pub(super) fn advance(&mut self, now: Moment, model: &ModelName) {
        self.changes += 1;
        let entry = self.model_mut(model);
        let is_wanted = entry.is_wanted();
        match &mut entry.state {
            State::Absent if is_wanted => {
                entry.state = State::Inspecting;
                let model = model.clone();
                self.actions.push_back(Action::Inspect { model });
            }
            State::Failed { retry_at, .. } if is_wanted && *retry_at <= now => {
                entry.state = State::Absent;
                self.advance(now, model);
            }
            State::WaitingForRoom { .. } if !is_wanted => entry.state = State::Absent,
            State::Ready(ready) if ready.is_expired(now) && entry.waiters.is_empty() => self.evict(model),
            State::Ready(_) => self.grant(model),
            State::Draining(ready) if ready.leases.is_empty() => self.evict(model),
            State::Absent
            | State::Inspecting
            | State::WaitingForRoom { .. }
            | State::Loading { .. }
            | State::Draining(_)
            | State::Unloading { .. }
            | State::Failed { .. } => {}
        }
        self.forget_if_blank(model);
    }

    /// Opens a model that was just loaded to those who wait for it. When nobody does any more, it is idle.
    pub(super) fn open(&mut self, now: Moment, model: &ModelName, mut ready: Ready, stay: Stay) {
        let default = self.settings.keep_alive;
        let entry = self.model_mut(model);
        match (entry.order.take(), entry.waiters.is_empty()) {
            (Some(keep_alive), _) => ready.stay_for(keep_alive),
            (None, true) => ready.stay_for(default),
            (None, false) => {}
        }
        if entry.waiters.is_empty() {
            ready.rest_if_idle(now, entry.pin);
        }
        entry.state = State::Ready(ready);
        self.grant(model);
        if stay == Stay::LeaveWhenLoaded {
            self.evict(model);
        }
    }

    /// Gives a ready model to everyone who waits for it.
    pub(super) fn grant(&mut self, model: &ModelName) {
        let ticket = self.next_ticket();
        let entry = self.models.get_mut(model).expect("a ready model is known");
        let State::Ready(ready) = &mut entry.state else {
            panic!("only a ready model grants leases: {:?}", entry.state);
        };
        for lease in entry.waiters.drain(..) {
            ready.used = ticket;
            let request = lease.request.clone();
            let model = model.clone();
            ready.lease(lease);
            self.actions.push_back(Action::LeaseGranted { request, model });
        }
    }

    /// Makes a ready or draining model leave: at once when it is idle, else when its leases end.
    pub(super) fn evict(&mut self, model: &ModelName) {
        self.changes += 1;
        let entry = self.models.get_mut(model).expect("a resident model is known");
        let state = std::mem::replace(&mut entry.state, State::Absent);
        let (State::Ready(ready) | State::Draining(ready)) = state else {
            panic!("only a resident model can leave: {state:?}");
        };
        if !ready.leases.is_empty() {
            entry.state = State::Draining(ready);
            return;
        }
        let (device, model) = (ready.device, model.clone());
        entry.state = State::Unloading {
            device,
            reservations: ready.reservations,
        };
        self.actions.push_back(Action::Unload { model, device });
    }

    /// A model could not be inspected, fitted or loaded: everyone who waits learns it.
    pub(super) fn fail(&mut self, now: Moment, model: &ModelName, reason: String) {
        self.changes += 1;
        let entry = self.models.get_mut(model).expect("a model that fails is known");
        entry.order = None;
        let retry_in = entry.back_off();
        for lease in entry.waiters.drain(..) {
            self.requests.remove(&lease.request);
            self.actions.push_back(Action::ModelFailed {
                request: lease.request,
                reason: reason.clone(),
                retry_in,
            });
        }
        entry.state = State::Failed {
            reason,
            retry_at: now + retry_in,
        };
    }

    pub(super) fn detach(&mut self, now: Moment, request: &RequestId) {
        self.actions.retain(|action| action.request() != Some(request));
        let Some(model) = self.requests.remove(request) else {
            return;
        };
        let ticket = self.next_ticket();
        let entry = self.model_mut(&model);
        entry.waiters.retain(|lease| lease.request != *request);
        let pin = entry.pin;
        match &mut entry.state {
            State::Ready(ready) | State::Draining(ready) => {
                if ready.leases.remove(request) {
                    ready.used = ticket;
                    ready.rest_if_idle(now, pin);
                }
            }
            State::Absent
            | State::Inspecting
            | State::WaitingForRoom { .. }
            | State::Loading { .. }
            | State::Unloading { .. }
            | State::Failed { .. } => {}
        }
        self.advance(now, &model);
        self.settle(now);
    }

    pub(super) fn release(&mut self, device: DeviceIndex, reservations: Vec<Reservation>) {
        let ledger = self.ledger_mut(device);
        reservations
            .into_iter()
            .for_each(|reservation| ledger.release(reservation));
    }

    pub(super) fn ledger_mut(&mut self, device: DeviceIndex) -> &mut Ledger {
        let found = self.ledgers.iter_mut().find(|ledger| ledger.device() == device);
        found.expect("models are only placed on devices that there are")
    }

    pub(super) fn model_mut(&mut self, model: &ModelName) -> &mut Model {
        self.models.entry(model.clone()).or_default()
    }

    pub(super) fn next_ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    /// Drops what says nothing, so that names that came once do not stay for ever.
    pub(super) fn forget_if_blank(&mut self, model: &ModelName) {
        if self.models.get(model).is_some_and(Model::is_blank) {
            self.models.remove(model);
        }
    }
}
