//! Why a model is not there.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{DeviceFault, ModelNeeds};
use crate::ledger::PAGE_BYTES;

/// Why a model cannot be used, as the caller found out. Text alone: what broke is the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{reason}")]
pub struct Unusable {
    /// What broke, with its causes.
    pub reason: String,
}

/// Why a load ended without a model.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum LoadFailure {
    /// As [`super::Action::CancelLoad`] told.
    #[error("the load was cancelled")]
    Cancelled,
    /// It broke.
    #[error(transparent)]
    Broken(#[from] Unusable),
}

/// Why a model cannot be wanted now.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ModelFault {
    /// Its files, or its load.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// Its load did not advance.
    #[error("the load stalled: {placed_bytes} bytes were placed, and too few of them in the last {window:?}")]
    Stalled {
        /// Bytes that were placed in all.
        placed_bytes: u64,
        /// Time in which more was to come.
        window: Duration,
    },
    /// Every device has failed; this is the fault of one of them.
    #[error("no device works{}", .0.as_ref().map_or(String::new(), |fault| format!(": {fault}")))]
    NoDevice(Option<DeviceFault>),
    /// Pinned models have every place of every device.
    #[error("every place for a model is taken by a pinned one")]
    NoPlace,
    /// No device is large enough beside what is pinned.
    #[error(
        "it needs {needed} pages of {page_mib} MiB ({weights} for weights, {workspace} for workspace, {kv} for \
         keys and values); the largest device has {pages_total}, of which {pages_at_most} are not pinned{together}",
        needed = needs.pages_min(),
        page_mib = PAGE_BYTES >> 20,
        weights = needs.weights_pages,
        workspace = needs.workspace_pages,
        kv = needs.kv_pages_min,
        together = .together.map_or(String::new(), |it| it.to_string()),
    )]
    NoRoom {
        /// What it needs.
        needs: ModelNeeds,
        /// Pages of the device that comes closest.
        pages_total: u64,
        /// Those of them that it could have.
        pages_at_most: u64,
        /// All devices, where it could have been cut.
        together: Option<Together>,
    },
}

/// All devices that a model could be cut over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "; cut over all {devices} devices, which have {pages_at_most} for it, it does not fit either, as each part needs \
     a workspace of its own"
)]
pub struct Together {
    /// How many there are.
    pub devices: usize,
    /// Pages of them that it could have.
    pub pages_at_most: u64,
}
