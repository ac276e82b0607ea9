//! Why models left their devices lately.

use flotilla_protocol::admin::FleetStatus;
use flotilla_protocol::fleet::DepartureReason;

use crate::table::{Table, numbers, span_ms, words};

/// The newest departures of all workers, the newest of each first.
pub(super) fn table(fleet: &FleetStatus) -> Table {
    let mut table = Table::new([
        words("WORKER"),
        words("LEFT"),
        numbers("DEVICE"),
        numbers("WHEN"),
        words("WHY"),
    ]);
    for worker in &fleet.workers {
        for departure in worker.report.departures.iter().rev() {
            table.row([
                worker.report.worker.to_string(),
                departure.model.to_string(),
                departure.device.to_string(),
                format!("{} ago", span_ms(departure.ago_ms)),
                reason(&departure.reason),
            ]);
        }
    }
    table
}

fn reason(reason: &DepartureReason) -> String {
    match reason {
        DepartureReason::Idle => "nobody wanted it for its keep-alive".to_owned(),
        DepartureReason::Room { newcomer } => format!("{newcomer} needed its room"),
        DepartureReason::Ordered => "it was ordered out".to_owned(),
        DepartureReason::Replaced => "the catalog has another model of that name".to_owned(),
        DepartureReason::Removed => "the catalog has no such model any more".to_owned(),
        DepartureReason::DeviceFailed { reason } => format!("its device failed: {reason}"),
        DepartureReason::Other => "its worker is newer and knows why".to_owned(),
    }
}
