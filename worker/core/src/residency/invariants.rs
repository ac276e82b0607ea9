//! What must hold after every input.

use super::Residency;
use super::model::{Model, State};

impl Residency {
    /// Checks everything that must hold between inputs.
    ///
    /// # Panics
    /// When something does not.
    pub fn check_invariants(&self) {
        self.invariant_each_ledger_holds_what_its_models_hold();
        self.invariant_every_request_is_attached_to_its_model_once();
        self.invariant_only_ready_and_draining_models_have_leases_and_only_absent_ones_ignore_waiters();
        self.invariant_no_device_holds_more_models_than_allowed();
    }

    fn invariant_each_ledger_holds_what_its_models_hold(&self) {
        for ledger in &self.ledgers {
            ledger.check_invariants();
            let here = |model: &&Model| model.place().is_some_and(|(device, _)| device == ledger.device());
            let held: u64 = self.models.values().filter(here).map(Model::pages).sum();
            assert_eq!(
                held + ledger.pages_free(),
                ledger.pages_total(),
                "models hold all that is taken"
            );
        }
    }

    fn invariant_every_request_is_attached_to_its_model_once(&self) {
        let mut attached = 0;
        for (name, model) in &self.models {
            attached += model.waiters.len() + model.lease_count();
            for lease in &model.waiters {
                assert_eq!(
                    self.requests.get(&lease.request),
                    Some(name),
                    "a waiter is attached"
                );
            }
            if let State::Ready(ready) | State::Draining(ready) = &model.state {
                for request in &ready.leases {
                    assert_eq!(self.requests.get(request), Some(name), "a lease is attached");
                }
            }
        }
        assert_eq!(
            attached,
            self.requests.len(),
            "nobody is attached twice or to nothing"
        );
    }

    fn invariant_only_ready_and_draining_models_have_leases_and_only_absent_ones_ignore_waiters(&self) {
        for (name, model) in &self.models {
            match &model.state {
                State::Absent | State::Failed { .. } => {
                    assert!(
                        !model.is_wanted(),
                        "{name} is wanted and nothing is done about it"
                    );
                }
                State::WaitingForRoom { .. } => assert!(model.is_wanted(), "{name} waits for nobody"),
                State::Ready(ready) => {
                    assert!(model.waiters.is_empty(), "{name} is ready and somebody waits");
                    let rests = ready.leases.is_empty();
                    assert!(
                        rests || ready.expires_at().is_none(),
                        "{name} is in use and expires"
                    );
                }
                State::Draining(ready) => assert!(!ready.leases.is_empty(), "{name} drains for nobody"),
                State::Inspecting | State::Loading { .. } | State::Unloading { .. } => {}
            }
        }
    }

    fn invariant_no_device_holds_more_models_than_allowed(&self) {
        for ledger in &self.ledgers {
            let here = |model: &&Model| model.place().is_some_and(|(device, _)| device == ledger.device());
            let count = self.models.values().filter(here).count();
            assert!(
                count <= self.settings.models_max,
                "device {} is overfull",
                ledger.device().0
            );
        }
    }
}
