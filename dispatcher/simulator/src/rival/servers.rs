//! Which devices can serve a model at all.

use std::collections::BTreeMap;

use flotilla_protocol::ModelName;

use crate::device::memory;
use crate::fleet::FleetSpec;

/// The devices that have room for each model, by index.
#[derive(Debug)]
pub(super) struct Servers(BTreeMap<ModelName, Vec<usize>>);

impl Servers {
    pub(super) fn new(fleet: &FleetSpec) -> Self {
        let models = fleet.models.iter().map(|model| {
            let devices = fleet.devices.iter().enumerate();
            let holders = devices.filter(|(_, device)| memory::can_hold(device, model));
            (model.name.clone(), holders.map(|(index, _)| index).collect())
        });
        Self(models.collect())
    }

    pub(super) fn of(&self, model: &ModelName) -> &[usize] {
        self.0.get(model).map_or(&[], Vec::as_slice)
    }
}
