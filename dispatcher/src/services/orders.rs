//! Orders to single workers: who can be told, and what they answer.

use async_nats::Request;
use async_nats::client::RequestErrorKind;
use flotilla_client::Unanswered;
use flotilla_protocol::admin::{DrainReply, DrainRequest, FleetStatus};
use flotilla_protocol::assignment::{Control, ControlReply};
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::{DecodeError, WorkerId};
use thiserror::Error;
use tracing::info;

use crate::ground::Ground;

/// Why a worker does not do what it is told.
#[derive(Debug, Error)]
pub(super) enum ControlFault {
    #[error("nobody listens there any more")]
    Gone,
    #[error("it does not answer; it is busy or lost, or of a version that does not know the order")]
    Silent,
    #[error(transparent)]
    Unasked(#[from] async_nats::client::RequestError),
    #[error(transparent)]
    Late(#[from] Unanswered),
    #[error("its answer cannot be read: {0}")]
    Unreadable(#[from] DecodeError),
    #[error("{reason}")]
    Refused { reason: String },
}

/// Has a worker take no new work, finish or hand back what it runs, and end.
///
/// # Errors
/// A [`RequestError`] when there is no such worker, or it does not take the order.
pub(super) async fn drain(
    ground: &Ground,
    fleet: &FleetStatus,
    asked: DrainRequest,
) -> Result<DrainReply, RequestError> {
    let DrainRequest { worker } = asked;
    let incarnation = known(fleet, &worker)?.incarnation;
    let given = give(ground, &worker, &Control::Drain).await;
    given.map_err(|fault| RequestError {
        code: ErrorCode::Internal,
        message: format!("{worker} was not drained: {fault}; SIGTERM to its process drains it as well"),
        param: None,
    })?;
    info!(worker_id = %worker, incarnation, "drained by an operator");
    Ok(DrainReply { worker, incarnation })
}

/// The newest report of a worker that is named.
///
/// # Errors
/// A [`RequestError`] when none of that name reports.
pub(super) fn known<'a>(fleet: &'a FleetStatus, worker: &WorkerId) -> Result<&'a Report, RequestError> {
    let found = reports(fleet).find(|report| report.worker == *worker);
    found.ok_or_else(|| RequestError {
        code: ErrorCode::InvalidRequest,
        message: format!("no worker {worker} reports; `flotilla ps` lists those that do"),
        param: Some("worker".to_owned()),
    })
}

/// The newest reports of all workers.
pub(super) fn reports(fleet: &FleetStatus) -> impl Iterator<Item = &Report> {
    fleet.workers.iter().map(|status| &status.report)
}

/// Gives an order to a worker, and waits until it is accepted.
///
/// # Errors
/// [`ControlFault`].
pub(super) async fn give(ground: &Ground, worker: &WorkerId, control: &Control) -> Result<(), ControlFault> {
    let body = encode_internal(control).expect("an order can be written");
    let limit = ground.config.dispatcher.assign_timeout;
    let request = Request::new().payload(body).timeout(Some(limit));
    let subject = ground.connection.subjects.control(worker);
    let asked = ground.connection.client.send_request(subject, request);
    let message = ground.connection.within(asked).await?;
    let message = message.map_err(|error| match error.kind() {
        RequestErrorKind::NoResponders => ControlFault::Gone,
        RequestErrorKind::TimedOut => ControlFault::Silent,
        RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::Other => {
            ControlFault::Unasked(error)
        }
    })?;
    match decode_internal(&message.payload)? {
        ControlReply::Accepted => Ok(()),
        ControlReply::Refused { reason } => Err(ControlFault::Refused { reason }),
    }
}
