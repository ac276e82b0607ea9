//! What must hold after every input.

use std::collections::BTreeSet;

use super::Residency;
use super::loading::Loading;
use super::model::{Model, Ready, State};

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
        self.invariant_no_model_runs_on_a_device_that_failed();
        self.invariant_parts_of_a_model_are_all_its_layers_each_on_a_device_of_its_own();
        self.host.check_invariants();
    }

    fn invariant_no_model_runs_on_a_device_that_failed(&self) {
        for (name, model) in &self.models {
            if let State::Ready(ready) | State::Draining(ready) = &model.state {
                let fault = ready.home.devices().find_map(|device| self.device_fault(device));
                assert_eq!(fault, None, "{name} runs on a device that failed");
            }
        }
    }

    fn invariant_parts_of_a_model_are_all_its_layers_each_on_a_device_of_its_own(&self) {
        for (name, model) in &self.models {
            let (State::Loading(Loading { home, .. }) | State::Ready(Ready { home, .. })) = &model.state
            else {
                continue;
            };
            let cut = home.cut();
            assert!(
                cut.is_empty() || cut[0].start == 0,
                "{name} begins with its first layer"
            );
            let is_joined = cut.windows(2).all(|pair| pair[0].end == pair[1].start);
            assert!(is_joined, "{name} has every layer once: {cut:?}");
            let devices: BTreeSet<_> = home.devices().collect();
            assert_eq!(
                devices.len(),
                home.devices().count(),
                "{name} is on a device once"
            );
            assert_eq!(home.is_split(), devices.len() > 1, "{name} is whole or in parts");
        }
    }

    fn invariant_each_ledger_holds_what_its_models_hold(&self) {
        for ledger in &self.ledgers {
            ledger.check_invariants();
            let pages = |model: &Model| model.pages_on(ledger.device());
            let held: u64 = self.models.values().map(pages).sum();
            assert_eq!(
                held + ledger.pool_pages() + ledger.pages_free(),
                ledger.pages_total(),
                "models and the pool hold all that is taken"
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
                for request in ready.leases.keys() {
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
                State::Loading(loading) => assert!(
                    model.is_wanted() || loading.is_ending(),
                    "{name} is loaded for nobody"
                ),
                State::Inspecting | State::Fetching | State::Unloading { .. } => {}
            }
        }
    }

    fn invariant_no_device_holds_more_models_than_allowed(&self) {
        for ledger in &self.ledgers {
            let here = |model: &&Model| model.is_on(ledger.device());
            let count = self.models.values().filter(here).count();
            assert!(
                count <= self.settings.models_max,
                "device {} is overfull",
                ledger.device().0
            );
        }
    }
}
