//! The steps of one model from state to state, each with what it means for those who wait and hold.

use flotilla_protocol::fleet::DepartureReason;
use flotilla_protocol::{ModelName, Moment, RequestId};

use super::fault::ModelFault;
use super::loading::Stay;
use super::model::{Model, Ready, State};
use super::shard::Home;
use super::{Action, Residency};
use crate::ledger::{DeviceIndex, Ledger};

impl Residency {
    /// Takes the steps of a model that depend on nothing but itself.
    pub(super) fn advance(&mut self, now: Moment, model: &ModelName) {
        self.changes += 1;
        let entry = self.model_mut(model);
        let is_wanted = entry.is_wanted();
        match &mut entry.state {
            State::Absent if is_wanted || entry.is_expected => {
                entry.state = State::Inspecting;
                let model = model.clone();
                self.actions.push_back(Action::Inspect { model });
            }
            State::Failed { retry_at, .. } if is_wanted && *retry_at <= now => {
                entry.state = State::Absent;
                self.advance(now, model);
            }
            State::WaitingForRoom { .. } if !is_wanted => entry.state = State::Absent,
            State::Loading(loading) if !is_wanted && !loading.is_ending() => self.cancel_load(now, model),
            State::Ready(ready) if ready.is_expired(now) && entry.waiters.is_empty() => {
                self.evict(now, model, DepartureReason::Idle);
            }
            State::Ready(_) => self.grant(now, model),
            State::Draining(ready) if ready.leases.is_empty() => self.unload(now, model),
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Loading(_)
            | State::Draining(_)
            | State::Unloading { .. }
            | State::Failed { .. } => {}
        }
        self.forget_if_at_rest(model);
    }

    /// Opens a model that was just loaded to those who wait for it. When nobody does any more, it is idle.
    pub(super) fn open(&mut self, now: Moment, model: &ModelName, mut ready: Ready, stay: Stay) {
        let (default, residency_max) = (self.settings.keep_alive, self.settings.min_residency_max);
        ready.since = now;
        let entry = self.model_mut(model);
        let load_time = entry.load_time.unwrap_or_default();
        ready.guard_until(now + load_time.min(residency_max));
        match (entry.order.take(), entry.waiters.is_empty()) {
            (Some(keep_alive), _) => ready.stay_for(keep_alive),
            (None, true) => ready.stay_for(default),
            (None, false) => {}
        }
        if entry.waiters.is_empty() {
            ready.rest_if_idle(now, entry.pin);
        }
        entry.state = State::Ready(ready);
        self.grant(now, model);
        if let Stay::LeaveWhenLoaded(reason) = stay {
            self.evict(now, model, reason.into());
        }
    }

    /// Gives a ready model to everyone who waits for it.
    pub(super) fn grant(&mut self, now: Moment, model: &ModelName) {
        let ticket = self.next_ticket();
        let entry = self.models.get_mut(model).expect("a ready model is known");
        let State::Ready(ready) = &mut entry.state else {
            panic!("only a ready model grants leases: {:?}", entry.state);
        };
        for lease in entry.waiters.drain(..) {
            entry.uses.count(now);
            let request = lease.request.clone();
            let model = model.clone();
            ready.lease(lease, ticket);
            self.actions.push_back(Action::LeaseGranted { request, model });
        }
    }

    /// Makes a ready model leave: at once when it is idle, else when its leases end.
    pub(super) fn evict(&mut self, now: Moment, model: &ModelName, reason: DepartureReason) {
        self.changes += 1;
        let entry = self.models.get_mut(model).expect("a resident model is known");
        let state = std::mem::replace(&mut entry.state, State::Absent);
        let State::Ready(ready) = state else {
            panic!("only a ready model is told to leave: {state:?}");
        };
        let resident_for = now.since(ready.since);
        self.departures
            .note(now, model, ready.home.first(), reason, resident_for);
        let is_idle = ready.leases.is_empty();
        entry.state = State::Draining(ready);
        if is_idle {
            self.unload(now, model);
        }
    }

    /// Takes a model out that was told to leave and has no leases any more.
    fn unload(&mut self, now: Moment, model: &ModelName) {
        let keep = self.keep_in_host(now, model);
        let entry = self.models.get_mut(model).expect("a resident model is known");
        let state = std::mem::replace(&mut entry.state, State::Absent);
        let State::Draining(ready) = state else {
            panic!("only a model that was told to leave is unloaded: {state:?}");
        };
        assert!(ready.leases.is_empty(), "a model with leases is never unloaded");
        let model = model.clone();
        let devices = ready.home.devices().collect();
        entry.state = State::Unloading { home: ready.home };
        self.actions.push_back(Action::Unload { model, devices, keep });
    }

    /// A model could not be inspected, fitted or loaded: everyone who waits learns it.
    pub(super) fn fail(&mut self, now: Moment, model: &ModelName, fault: ModelFault) {
        self.changes += 1;
        let retry_at = self.refuse_waiters(now, model, &fault);
        self.model_mut(model).state = State::Failed { fault, retry_at };
    }

    /// Counts a failure and tells everyone who waits; says when the next try is allowed.
    pub(super) fn refuse_waiters(&mut self, now: Moment, model: &ModelName, fault: &ModelFault) -> Moment {
        let entry = self.models.get_mut(model).expect("a model that fails is known");
        entry.order = None;
        let retry_in = entry.back_off();
        for lease in entry.waiters.drain(..) {
            self.requests.remove(&lease.request);
            self.actions.push_back(Action::ModelFailed {
                request: lease.request,
                reason: fault.to_string(),
                retry_in,
            });
        }
        now + retry_in
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
                if ready.leases.remove(request).is_some() {
                    ready.used = ticket;
                    ready.rest_if_idle(now, pin);
                }
            }
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Loading(_)
            | State::Unloading { .. }
            | State::Failed { .. } => {}
        }
        self.advance(now, &model);
        self.settle(now);
    }

    /// Takes all pages of a model back.
    pub(super) fn release(&mut self, home: Home) {
        for holding in home.into_holdings() {
            let ledger = self.ledger_mut(holding.shard.device);
            let reservations = holding.reservations.into_iter();
            reservations.for_each(|reservation| ledger.release(reservation));
        }
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

    /// Drops a model that says nothing, and the oldest memory when there are too many, so that names that came
    /// once do not stay for ever.
    pub(super) fn forget_if_at_rest(&mut self, model: &ModelName) {
        let ticket = self.next_ticket();
        let Some(entry) = self.models.get_mut(model).filter(|entry| entry.is_at_rest()) else {
            return;
        };
        if self.host.has(model) {
            return;
        }
        if !entry.has_history() {
            self.models.remove(model);
            return;
        }
        entry.touched = ticket;
        let at_rest = self
            .models
            .iter()
            .filter(|(name, model)| model.is_at_rest() && !self.host.has(name));
        if at_rest.clone().count() > REMEMBERED_MAX {
            let oldest = at_rest.min_by_key(|(_, model)| model.touched);
            let oldest = oldest.map(|(name, _)| name.clone());
            oldest.and_then(|oldest| self.models.remove(&oldest));
        }
    }
}

/// Models that are gone and remembered: what their loads took, how often they were wanted and when they left. As
/// many as a machine may serve in turn; each takes some hundred bytes.
const REMEMBERED_MAX: usize = 256;
