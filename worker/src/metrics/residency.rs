//! What is counted of models that come and go.

use std::time::Duration;

use flotilla_protocol::fleet::{DepartureReason, LoadSource};
use flotilla_worker_core::residency::{Departed, LoadFailure};

use super::{DEPARTURE_AGE, DEPARTURES, LOAD_BYTES, LOAD_SECONDS, LOADS_FAILED};

/// Why models leave, as labels.
pub(super) const DEPARTURE_REASONS: [&str; 6] =
    ["idle", "room", "ordered", "replaced", "removed", "device_failed"];

/// A model was told to leave.
pub(crate) fn count_departure(departed: &Departed) {
    let reason = match departed.reason {
        DepartureReason::Idle => "idle",
        DepartureReason::Room { .. } => "room",
        DepartureReason::Ordered => "ordered",
        DepartureReason::Replaced => "replaced",
        DepartureReason::Removed => "removed",
        DepartureReason::DeviceFailed { .. } => "device_failed",
        // Of another version; none of ours.
        DepartureReason::Other => return,
    };
    DEPARTURES.increment(&[reason], 1);
    DEPARTURE_AGE.record(&[reason], departed.resident_for.as_secs_f64());
}

/// A load ended: so many bytes came from there, some of them perhaps while they came to this machine.
pub(crate) fn count_load(
    result: Result<u64, &LoadFailure>,
    source: LoadSource,
    came_meanwhile: bool,
    took: Duration,
) {
    let tier = match source {
        LoadSource::Host => "host",
        LoadSource::Origin if came_meanwhile => "peer",
        LoadSource::Origin => "disk",
    };
    match result {
        Ok(bytes) => {
            LOAD_SECONDS.record(&[tier], took.as_secs_f64());
            LOAD_BYTES.increment(&[tier], bytes);
        }
        Err(LoadFailure::Cancelled) => LOADS_FAILED.increment(&["cancelled"], 1),
        Err(LoadFailure::Broken(_)) => LOADS_FAILED.increment(&["broken"], 1),
    }
}
