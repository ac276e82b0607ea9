//! The fleet: who leads, which workers live, which devices they have.

use flotilla_client::Connection;
use flotilla_protocol::admin::{FleetStatus, QueueStatus};
use flotilla_protocol::fleet::WorkerState;

use super::{Finding, account};
use crate::admin::{self, Nothing};
use crate::table::bytes;

/// The dispatcher and the workers that it sees.
pub(super) async fn check(connection: &Connection) -> Vec<Finding> {
    let leader = admin::ask::<_, QueueStatus>(connection, "queue", &Nothing {}).await;
    let leader = match leader {
        Ok(status) => Finding::ok(
            "dispatcher",
            format!("{} leads, epoch {}", status.dispatcher, status.epoch),
        ),
        Err(error) => {
            let advice = "until one leads, requests wait in their stream";
            return vec![Finding::fail("dispatcher", error.to_string(), advice)];
        }
    };
    let mut findings = vec![leader];
    match admin::ask::<_, FleetStatus>(connection, "workers", &Nothing {}).await {
        Ok(fleet) => findings.extend(workers(&fleet)),
        Err(error) => findings.push(Finding::fail(
            "workers",
            error.to_string(),
            "see the dispatcher's log",
        )),
    }
    findings.push(account::check(connection).await);
    findings
}

fn workers(fleet: &FleetStatus) -> Vec<Finding> {
    let ready = fleet
        .workers
        .iter()
        .filter(|worker| worker.report.state == WorkerState::Ready)
        .count();
    if ready == 0 {
        let told = format!("none of {} takes work", fleet.workers.len());
        return vec![Finding::fail("workers", told, "start one with `flotilla worker`")];
    }
    let mut findings = vec![Finding::ok(
        "workers",
        format!("{ready} of {} take work", fleet.workers.len()),
    )];
    for registration in fleet
        .workers
        .iter()
        .filter_map(|worker| worker.registration.as_ref())
    {
        for device in &registration.devices {
            findings.push(Finding::ok(
                "device",
                format!(
                    "{} {}: {} ({}), {}",
                    registration.worker,
                    device.index,
                    device.name,
                    device.kind,
                    bytes(device.memory_bytes)
                ),
            ));
        }
    }
    findings
}
