//! What operators are told about a term.

use std::collections::HashSet;

use flotilla_protocol::WorkerId;
use flotilla_protocol::admin::{
    FleetStatus, ProfileStatuses, QUEUE_ENTRY_COUNT_MAX, QueueStatus, WorkerStatus,
};
use flotilla_protocol::fleet::Registration;
use tokio::sync::oneshot;

use super::Term;
use crate::services::Query;

impl Term {
    /// Answers a question.
    pub(super) fn answer(&mut self, query: Query) {
        match query {
            Query::Queue(asker) => tell(asker, self.queue_status()),
            Query::Fleet(asker) => tell(asker, self.fleet_status()),
            Query::Why(request, asker) => {
                let found = self.core.why(self.now(), &request);
                tell(asker, found.map(Box::new));
            }
            Query::Holds(request, asker) => tell(asker, self.core.holds(&request)),
            Query::Profiles(asker) => {
                let profiles = self.core.profiles().collect();
                tell(asker, ProfileStatuses { profiles });
            }
            Query::Reconciliation(asker) => tell(asker, self.reconciliation()),
            Query::Cancel(request, asker) => {
                let reply = self.core.handle_cancel(self.now(), &request);
                tracing::info!(request_id = %request, ?reply, "cancelled by an operator");
                tell(asker, reply);
            }
        }
    }

    /// Remembers what a worker is. Beyond the limit only workers that report are remembered.
    pub(super) fn register(&mut self, registration: Registration) {
        let limit = self.ground.config.dispatcher.workers_max;
        if self.registrations.len() >= limit {
            let now = self.now();
            let reporting: HashSet<&WorkerId> =
                self.core.fleet(now).map(|(report, _)| &report.worker).collect();
            self.registrations.retain(|worker, _| reporting.contains(worker));
        }
        if self.registrations.len() < limit {
            self.registrations
                .insert(registration.worker.clone(), registration);
        }
    }

    fn queue_status(&self) -> QueueStatus {
        let now = self.now();
        QueueStatus {
            dispatcher: self.ground.id.to_string(),
            epoch: self.core.epoch(),
            queued: self.core.queued(now).take(QUEUE_ENTRY_COUNT_MAX).collect(),
            queued_total: u64::try_from(self.core.queued_count()).unwrap_or(u64::MAX),
            assigned: self.core.assigned(now).collect(),
            stream_pending: 0,
        }
    }

    fn fleet_status(&self) -> FleetStatus {
        let workers = self.core.fleet(self.now()).map(|(report, age)| WorkerStatus {
            registration: self.registrations.get(&report.worker).cloned(),
            report: report.clone(),
            report_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        });
        FleetStatus {
            workers: workers.collect(),
        }
    }
}

/// An asker that is gone needs no answer, so a send that fails is no failure.
fn tell<T>(asker: oneshot::Sender<T>, answer: T) {
    let _ = asker.send(answer);
}
