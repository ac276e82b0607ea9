//! Which workers an operator's order about a model goes to.

use flotilla_protocol::fleet::{DeviceReport, Report, WorkerState};
use flotilla_protocol::{ModelName, WorkerId};

/// Where to load a model: on the worker that has it already, else on the one with most free bytes on one
/// device. `None` when no worker takes work.
#[must_use]
pub fn worker_to_load<'a>(
    reports: impl IntoIterator<Item = &'a Report>,
    model: &ModelName,
) -> Option<&'a WorkerId> {
    let ready = reports
        .into_iter()
        .filter(|report| report.state == WorkerState::Ready);
    ready
        .max_by_key(|report| {
            let free_bytes = report.devices.iter().map(DeviceReport::free_bytes).max();
            (holds(report, model), free_bytes)
        })
        .map(|report| &report.worker)
}

/// Every worker that has a model on a device.
#[must_use]
pub fn workers_to_unload<'a>(
    reports: impl IntoIterator<Item = &'a Report>,
    model: &ModelName,
) -> Vec<WorkerId> {
    let holders = reports.into_iter().filter(|report| holds(report, model));
    holders.map(|report| report.worker.clone()).collect()
}

fn holds(report: &Report, model: &ModelName) -> bool {
    let mut models = report.models.iter();
    models.any(|held| held.model == *model && held.device.is_some())
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::Epoch;
    use flotilla_protocol::fleet::{DeviceState, ModelReport, ModelState};

    use super::*;

    fn report(worker: &str, pages_free: u64, state: WorkerState) -> Report {
        Report {
            worker: WorkerId::new(worker).unwrap(),
            incarnation: 1,
            seq: 1,
            epoch_seen: Epoch(1),
            state,
            free_slots: 1,
            running: Vec::new(),
            models: Vec::new(),
            devices: vec![DeviceReport {
                device: 0,
                page_bytes: 10,
                pages_total: 100,
                pages_weights: 100 - pages_free,
                pages_kv: 0,
                pages_workspace: 0,
                pages_kv_kept: None,
                resident_bytes: None,
                state: DeviceState::Working,
            }],
            host: None,
            resident_bytes: None,
            departures: Vec::new(),
            fetches: Vec::new(),
        }
    }

    fn resident(model: &ModelName) -> ModelReport {
        ModelReport {
            model: model.clone(),
            state: ModelState::Ready,
            device: Some(0),
            leases: 0,
            waiting: 0,
            weights_bytes: 1,
            expires_in_ms: None,
            load_ms: None,
            shards: Vec::new(),
            kv_tokens_max: None,
            loaded_from: None,
        }
    }

    #[test]
    fn load_goes_to_the_holder_else_to_most_room_and_never_to_one_that_drains() {
        let model = ModelName::new("m").unwrap();
        let mut fleet = [
            report("a", 10, WorkerState::Ready),
            report("b", 20, WorkerState::Ready),
            report("c", 90, WorkerState::Draining),
        ];
        assert_eq!(worker_to_load(&fleet, &model).unwrap().as_str(), "b");
        assert!(workers_to_unload(&fleet, &model).is_empty());
        fleet[0].models.push(resident(&model));
        assert_eq!(worker_to_load(&fleet, &model).unwrap().as_str(), "a");
        assert_eq!(workers_to_unload(&fleet, &model), [WorkerId::new("a").unwrap()]);
    }
}
