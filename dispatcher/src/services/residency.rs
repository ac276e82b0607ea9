//! Loading and unloading models by order of an operator.

use flotilla_client::Catalog;
use flotilla_dispatcher_core::{worker_to_load, workers_to_unload};
use flotilla_protocol::admin::{FleetStatus, ResidencyReply, ResidencyRequest};
use flotilla_protocol::assignment::Control;
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::{ModelName, WorkerId};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::orders::{give, known, reports};
use crate::ground::Ground;

/// Has a model loaded on the worker that is named, or on the one with most room.
///
/// # Errors
/// A [`RequestError`] when there is no such model or worker, or the worker refuses.
pub(super) async fn load(
    ground: &Ground,
    fleet: &FleetStatus,
    asked: &ResidencyRequest,
) -> Result<ResidencyReply, RequestError> {
    let worker = worker_of(ground, fleet, asked).await?;
    let control = Control::Load {
        model: asked.model.clone(),
        keep_alive: asked.keep_alive,
    };
    tell(ground, vec![worker.clone()], &control).await
}

/// Has a model's files brought to the worker that is named, or to the one with most room.
///
/// # Errors
/// A [`RequestError`] when there is no such model or worker, or the worker refuses.
pub(super) async fn fetch(
    ground: &Ground,
    fleet: &FleetStatus,
    asked: &ResidencyRequest,
) -> Result<ResidencyReply, RequestError> {
    let worker = worker_of(ground, fleet, asked).await?;
    let control = Control::Fetch {
        model: asked.model.clone(),
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
        Some(worker) => vec![known(fleet, worker)?.worker.clone()],
        None => workers_to_unload(reports(fleet), &asked.model),
    };
    let control = Control::Unload {
        model: asked.model.clone(),
    };
    tell(ground, workers, &control).await
}

/// The worker for a model that is to come.
async fn worker_of<'a>(
    ground: &Ground,
    fleet: &'a FleetStatus,
    asked: &ResidencyRequest,
) -> Result<&'a WorkerId, RequestError> {
    check_model(ground, &asked.model).await?;
    match &asked.worker {
        Some(worker) => Ok(&known(fleet, worker)?.worker),
        None => worker_to_load(reports(fleet), &asked.model).ok_or_else(|| RequestError {
            code: ErrorCode::ModelUnloadable,
            message: "no worker takes work".to_owned(),
            param: None,
        }),
    }
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

/// Gives an order to workers, all at once; good when one accepts or there is none to be told.
async fn tell(
    ground: &Ground,
    workers: Vec<WorkerId>,
    control: &Control,
) -> Result<ResidencyReply, RequestError> {
    let replies = join_all(workers.iter().map(|worker| give(ground, worker, control))).await;
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
