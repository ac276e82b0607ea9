//! Loading and unloading models by order of an operator.

use async_nats::Request;
use flotilla_client::Catalog;
use flotilla_protocol::admin::{FleetStatus, ResidencyReply, ResidencyRequest, WorkerStatus};
use flotilla_protocol::assignment::{Control, ControlReply};
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::fleet::{DeviceReport, WorkerState};
use flotilla_protocol::{DecodeError, ModelName, WorkerId};
use futures_util::future::join_all;
use thiserror::Error;
use tokio::time::timeout;

use crate::ground::Ground;

/// Why a worker does not do what it is told.
#[derive(Debug, Error)]
enum ControlFault {
    #[error(transparent)]
    NoAnswer(#[from] async_nats::client::RequestError),
    #[error("its answer cannot be read: {0}")]
    Unreadable(#[from] DecodeError),
    #[error("{reason}")]
    Refused { reason: String },
}

/// Has a model loaded on the worker that is named, or on the one with most room.
///
/// # Errors
/// A [`RequestError`] when there is no such model or worker, or the worker refuses.
pub(super) async fn load(
    ground: &Ground,
    fleet: &FleetStatus,
    asked: &ResidencyRequest,
) -> Result<ResidencyReply, RequestError> {
    check_model(ground, &asked.model).await?;
    let worker = match &asked.worker {
        Some(worker) => known(fleet, worker)?,
        None => roomiest(fleet, &asked.model).ok_or_else(|| RequestError {
            code: ErrorCode::ModelUnloadable,
            message: "no worker takes work".to_owned(),
            param: None,
        })?,
    };
    let control = Control::Load {
        model: asked.model.clone(),
        keep_alive: asked.keep_alive,
    };
    tell(ground, vec![worker.clone()], &control).await
}

/// Has a model unloaded on the worker that is named, or wherever it is.
///
/// # Errors
/// A [`RequestError`] when there is no such worker, or every worker refuses.
pub(super) async fn unload(
    ground: &Ground,
    fleet: &FleetStatus,
    asked: &ResidencyRequest,
) -> Result<ResidencyReply, RequestError> {
    let workers = match &asked.worker {
        Some(worker) => vec![known(fleet, worker)?.clone()],
        None => holders(fleet, &asked.model),
    };
    let control = Control::Unload {
        model: asked.model.clone(),
    };
    tell(ground, workers, &control).await
}

async fn check_model(ground: &Ground, model: &ModelName) -> Result<(), RequestError> {
    let found = timeout(ground.connection.request_timeout, async {
        Catalog::open(&ground.connection).await?.entry(model).await
    });
    let (code, message) = match found.await {
        Ok(Ok(Some(_))) => return Ok(()),
        Ok(Ok(None)) => (
            ErrorCode::UnknownModel,
            format!("the catalog has no model {:?}", model.as_str()),
        ),
        Ok(Err(error)) => (ErrorCode::Internal, error.to_string()),
        Err(_) => (ErrorCode::Internal, "no answer from the catalog".to_owned()),
    };
    Err(RequestError {
        code,
        message,
        param: Some("model".to_owned()),
    })
}

fn known<'a>(fleet: &'a FleetStatus, worker: &WorkerId) -> Result<&'a WorkerId, RequestError> {
    let mut workers = fleet.workers.iter().map(|status| &status.report.worker);
    workers
        .find(|known| *known == worker)
        .ok_or_else(|| RequestError {
            code: ErrorCode::InvalidRequest,
            message: format!("no worker {worker} reports"),
            param: Some("worker".to_owned()),
        })
}

/// The worker that has the model already, else the one with most free bytes on one device.
fn roomiest<'a>(fleet: &'a FleetStatus, model: &ModelName) -> Option<&'a WorkerId> {
    let ready = fleet
        .workers
        .iter()
        .filter(|status| status.report.state == WorkerState::Ready);
    ready
        .max_by_key(|status| {
            let free_bytes = status.report.devices.iter().map(free_bytes).max();
            (holds(status, model), free_bytes)
        })
        .map(|status| &status.report.worker)
}

fn holders(fleet: &FleetStatus, model: &ModelName) -> Vec<WorkerId> {
    fleet
        .workers
        .iter()
        .filter(|status| holds(status, model))
        .map(|status| status.report.worker.clone())
        .collect()
}

fn holds(status: &WorkerStatus, model: &ModelName) -> bool {
    let mut models = status.report.models.iter();
    models.any(|held| held.model == *model && held.device.is_some())
}

fn free_bytes(device: &DeviceReport) -> u64 {
    let used = device.pages_weights + device.pages_kv + device.pages_workspace;
    device
        .pages_total
        .saturating_sub(used)
        .saturating_mul(device.page_bytes)
}

/// Gives an order to workers, all at once; good when one accepts or there is none to be told.
async fn tell(
    ground: &Ground,
    workers: Vec<WorkerId>,
    control: &Control,
) -> Result<ResidencyReply, RequestError> {
    let replies = join_all(workers.iter().map(|worker| tell_one(ground, worker, control))).await;
    let mut accepted = Vec::new();
    let mut refusals = Vec::new();
    for (worker, reply) in workers.into_iter().zip(replies) {
        match reply {
            Ok(()) => accepted.push(worker),
            Err(fault) => refusals.push(format!("{worker}: {fault}")),
        }
    }
    if accepted.is_empty() && !refusals.is_empty() {
        return Err(RequestError {
            code: ErrorCode::ModelUnloadable,
            message: refusals.join("; "),
            param: None,
        });
    }
    Ok(ResidencyReply { workers: accepted })
}

async fn tell_one(ground: &Ground, worker: &WorkerId, control: &Control) -> Result<(), ControlFault> {
    let body = encode_internal(control).expect("an order can be written");
    let limit = ground.config.dispatcher.assign_timeout;
    let request = Request::new().payload(body).timeout(Some(limit));
    let subject = ground.connection.subjects.control(worker);
    let message = ground.connection.client.send_request(subject, request).await;
    match decode_internal(&message?.payload)? {
        ControlReply::Accepted => Ok(()),
        ControlReply::Refused { reason } => Err(ControlFault::Refused { reason }),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::Epoch;
    use flotilla_protocol::fleet::{ModelReport, ModelState, Report};

    use super::*;

    fn status(worker: &str, pages_free: u64, state: WorkerState) -> WorkerStatus {
        let report = Report {
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
            }],
        };
        WorkerStatus {
            registration: None,
            report,
            report_age_ms: 0,
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
        }
    }

    #[test]
    fn load_goes_to_the_holder_else_to_most_room_and_never_to_one_that_drains() {
        let model = ModelName::new("m").unwrap();
        let mut fleet = FleetStatus {
            workers: vec![
                status("a", 10, WorkerState::Ready),
                status("b", 20, WorkerState::Ready),
                status("c", 90, WorkerState::Draining),
            ],
        };
        assert_eq!(roomiest(&fleet, &model).unwrap().as_str(), "b");
        assert!(holders(&fleet, &model).is_empty());
        fleet.workers[0].report.models.push(resident(&model));
        assert_eq!(roomiest(&fleet, &model).unwrap().as_str(), "a");
        assert_eq!(holders(&fleet, &model), [WorkerId::new("a").unwrap()]);
    }
}
