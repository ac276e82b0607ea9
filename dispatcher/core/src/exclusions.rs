//! Which worker cannot load which model for now, and why.

use std::collections::BTreeMap;

use flotilla_protocol::{ModelName, WorkerId};

/// Reasons by model and worker. When each ends is a timer of the dispatcher.
#[derive(Debug, Default)]
pub(crate) struct Exclusions {
    models: BTreeMap<ModelName, BTreeMap<WorkerId, String>>,
}

impl Exclusions {
    pub(crate) fn insert(&mut self, model: &ModelName, worker: &WorkerId, reason: String) {
        self.models
            .entry(model.clone())
            .or_default()
            .insert(worker.clone(), reason);
    }

    /// Ends one; whether it was there.
    pub(crate) fn remove(&mut self, model: &ModelName, worker: &WorkerId) -> bool {
        let Some(workers) = self.models.get_mut(model) else {
            return false;
        };
        let removed = workers.remove(worker).is_some();
        if workers.is_empty() {
            self.models.remove(model);
        }
        removed
    }

    /// Models that a worker is excluded from.
    pub(crate) fn models_of(&self, worker: &WorkerId) -> Vec<ModelName> {
        let models = self
            .models
            .iter()
            .filter(|(_, workers)| workers.contains_key(worker));
        models.map(|(model, _)| model.clone()).collect()
    }

    /// Models with an exclusion.
    pub(crate) fn models(&self) -> Vec<ModelName> {
        self.models.keys().cloned().collect()
    }

    /// Workers that a model is excluded from, with the reasons.
    pub(crate) fn of(&self, model: &ModelName) -> Option<&BTreeMap<WorkerId, String>> {
        self.models.get(model)
    }
}
