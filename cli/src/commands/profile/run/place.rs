//! The worker that is measured: which one, whether it is idle, and the model on it.

use std::time::Duration;

use flotilla_client::Connection;
use flotilla_protocol::admin::{FleetStatus, ResidencyReply, ResidencyRequest, WorkerStatus};
use flotilla_protocol::fleet::{DeviceDescription, ModelReport, ModelState, WorkerState, kind_of_set};
use flotilla_protocol::{ModelName, WorkerId};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::arguments::RunArguments;
use crate::admin::{self, Nothing};
use crate::commands::UsageError;

/// Why a worker cannot be measured.
#[derive(Debug, Error)]
pub(super) enum PlaceError {
    /// Others use it.
    #[error(
        "worker {worker} runs {requests} request(s), which would be measured as well; wait for them, or take another"
    )]
    Busy {
        /// The worker.
        worker: WorkerId,
        /// How many.
        requests: usize,
    },
    /// It was there.
    #[error("worker {worker} is gone, or was started anew, in the middle of the measurement")]
    Gone {
        /// The worker.
        worker: WorkerId,
    },
    /// The model cannot be loaded there.
    #[error("worker {worker} cannot load {model}: {reason}")]
    Unloadable {
        /// The worker.
        worker: WorkerId,
        /// The model.
        model: ModelName,
        /// Why.
        reason: String,
    },
    /// The model does not come.
    #[error("worker {worker} has not loaded {model} after {} s", LOAD_MAX.as_secs())]
    NotLoaded {
        /// The worker.
        worker: WorkerId,
        /// The model.
        model: ModelName,
    },
}

/// The worker that is measured.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) worker: WorkerId,
    pub(super) incarnation: u64,
    /// Requests that it takes at once.
    pub(super) slots: u32,
    /// The device that has the model, or will have it; of a model in parts all its devices as one, whose kind says so.
    pub(super) device: DeviceDescription,
}

/// A model that is there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Resident {
    devices: Vec<u32>,
    /// How long it took to get there, when that was just now.
    pub(super) load: Option<Duration>,
}

impl Place {
    /// The worker that the flags mean: the one that they name, an idle one of the kind, or the only one.
    ///
    /// # Errors
    /// When there is none or more than one, or it is busy.
    pub(super) async fn find(connection: &Connection, arguments: &RunArguments) -> anyhow::Result<Self> {
        let fleet: FleetStatus = admin::ask(connection, "workers", &Nothing {}).await?;
        let ready = fleet
            .workers
            .iter()
            .filter(|it| it.report.state == WorkerState::Ready && it.registration.is_some());
        let meant: Vec<&WorkerStatus> = ready.filter(|it| is_meant(it, arguments)).collect();
        let chosen = match (meant.as_slice(), &arguments.kind) {
            ([], _) => return Err(none_meant(arguments).into()),
            ([one], _) => one,
            (several, Some(_)) => idlest(several),
            (several, None) => return Err(ambiguous(several).into()),
        };
        Ok(Self::of(chosen, arguments.kind.as_deref())?)
    }

    fn of(status: &WorkerStatus, kind: Option<&str>) -> Result<Self, PlaceError> {
        let worker = status.report.worker.clone();
        let requests = status.report.running.len();
        if requests > 0 {
            return Err(PlaceError::Busy { worker, requests });
        }
        let gone = || PlaceError::Gone {
            worker: worker.clone(),
        };
        let mut devices = status.registration.iter().flat_map(|it| &it.devices);
        let device = devices.find(|device| kind.is_none_or(|kind| device.kind == kind));
        Ok(Self {
            incarnation: status.report.incarnation,
            slots: status.report.free_slots,
            device: device.cloned().ok_or_else(gone)?,
            worker,
        })
    }

    /// Whether the worker is still there, and the same process.
    ///
    /// # Errors
    /// When nobody can be asked.
    pub(super) async fn is_there(&self, connection: &Connection) -> anyhow::Result<bool> {
        let status = self.status(connection).await?;
        Ok(status.is_some_and(|it| it.report.incarnation == self.incarnation))
    }

    async fn status(&self, connection: &Connection) -> anyhow::Result<Option<WorkerStatus>> {
        let fleet: FleetStatus = admin::ask(connection, "workers", &Nothing {}).await?;
        let mut workers = fleet.workers.into_iter();
        Ok(workers.find(|it| it.report.worker == self.worker))
    }

    /// Has the model loaded and waits until it is there.
    ///
    /// # Errors
    /// [`PlaceError`] and others.
    pub(super) async fn load(
        &mut self,
        connection: &Connection,
        model: &ModelName,
    ) -> anyhow::Result<Resident> {
        let question = ResidencyRequest {
            model: model.clone(),
            worker: Some(self.worker.clone()),
            keep_alive: None,
        };
        let was_there = self.resident(connection, model).await?.is_some();
        let _: ResidencyReply = admin::ask(connection, "load", &question).await?;
        let begin = Instant::now();
        while begin.elapsed() < LOAD_MAX {
            if let Some(mut resident) = self.resident(connection, model).await? {
                resident.load = resident.load.filter(|_| !was_there);
                self.move_to(connection, &resident.devices).await?;
                return Ok(resident);
            }
            sleep(POLL_INTERVAL).await;
        }
        Err(PlaceError::NotLoaded {
            worker: self.worker.clone(),
            model: model.clone(),
        }
        .into())
    }

    /// The model, when it can run.
    async fn resident(&self, connection: &Connection, model: &ModelName) -> anyhow::Result<Option<Resident>> {
        let worker = self.worker.clone();
        let Some(status) = self.status(connection).await? else {
            return Err(PlaceError::Gone { worker }.into());
        };
        let report = status.report.models.into_iter().find(|it| it.model == *model);
        match report {
            Some(ModelReport {
                state: ModelState::Failed { reason, .. },
                ..
            }) => Err(PlaceError::Unloadable {
                worker,
                model: model.clone(),
                reason,
            }
            .into()),
            Some(it) if it.state == ModelState::Ready => Ok(Some(Resident {
                devices: it.devices().collect(),
                load: it.load_ms.map(Duration::from_millis),
            })),
            Some(_) | None => Ok(None),
        }
    }

    /// The worker may have chosen another of its devices, or several.
    async fn move_to(&mut self, connection: &Connection, devices: &[u32]) -> anyhow::Result<()> {
        let status = self.status(connection).await?;
        let registration = status.and_then(|status| status.registration);
        let described = registration.map(|it| it.devices).unwrap_or_default();
        let of = |index: &u32| described.iter().find(|it| it.index == *index).cloned();
        let found: Vec<DeviceDescription> = devices.iter().filter_map(of).collect();
        if let Some(together) = together(&found) {
            self.device = together;
        }
        Ok(())
    }
}

/// Devices as one: the first of them, of which it has the number and the name, if there is no other.
fn together(devices: &[DeviceDescription]) -> Option<DeviceDescription> {
    let first = devices.first()?.clone();
    if devices.len() == 1 {
        return Some(first);
    }
    let kinds: Vec<&str> = devices.iter().map(|it| it.kind.as_str()).collect();
    Some(DeviceDescription {
        kind: kind_of_set(&kinds),
        memory_bytes: devices.iter().map(|it| it.memory_bytes).sum(),
        cost: devices.iter().map(|it| it.cost).sum(),
        ..first
    })
}

fn is_meant(status: &WorkerStatus, arguments: &RunArguments) -> bool {
    let is_named = arguments
        .worker
        .as_ref()
        .is_none_or(|worker| status.report.worker == *worker);
    let has_kind = arguments.kind.as_ref().is_none_or(|kind| {
        let mut devices = status.registration.iter().flat_map(|it| &it.devices);
        devices.any(|device| device.kind == *kind)
    });
    is_named && has_kind
}

fn idlest<'a>(several: &[&'a WorkerStatus]) -> &'a WorkerStatus {
    let idlest = several.iter().min_by_key(|it| it.report.running.len());
    idlest.expect("there are several")
}

fn none_meant(arguments: &RunArguments) -> UsageError {
    let which = match (&arguments.worker, &arguments.kind) {
        (Some(worker), _) => format!("no worker {worker}"),
        (None, Some(kind)) => format!("no worker with a device of kind {kind:?}"),
        (None, None) => "no worker".to_owned(),
    };
    UsageError::new(format!("{which} takes work; `flotilla ps` shows who does"))
}

fn ambiguous(several: &[&WorkerStatus]) -> UsageError {
    let names: Vec<&str> = several.iter().map(|it| it.report.worker.as_str()).collect();
    UsageError::new(format!(
        "there are several workers ({}): say which one to measure by --worker or --kind",
        names.join(", ")
    ))
}

/// Longest load that is waited for: a large model from a slow disk.
const LOAD_MAX: Duration = Duration::from_secs(600);
/// How often a worker's reports are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
