//! What the owner counts and tells.

use flotilla_protocol::assignment::{AssignReply, Refusal};
use flotilla_protocol::fleet::WorkerState;
use flotilla_telemetry::{Ask, Part};

use super::Owner;
use crate::memory::ResidentMemory;
use crate::metrics::{REFUSALS, Standing, count_departure, publish};
use crate::weights::Weights;

impl Owner {
    /// The loop has turned.
    pub(super) fn note_turn(&mut self, health: &Part) {
        health.turned();
        match self.desk.state() {
            WorkerState::Ready => health.set_ready("takes work"),
            WorkerState::Draining => health.set_not_ready("drains"),
        }
        while let Some(departed) = self.desk.residency_mut().poll_departure() {
            count_departure(&departed);
        }
    }

    /// Tells a scrape how the worker stands.
    pub(super) fn answer_scrape(&self, ask: Ask) {
        let residency = self.desk.residency();
        let standing = Standing {
            state: self.desk.state(),
            epoch_seen: self.desk.epoch_seen().0,
            slots: self.settings.slots,
            held: self.desk.held_count(),
            models: residency.model_reports(self.now()),
            devices: residency.device_reports(),
            resident_bytes: self.resident.as_ref().and_then(ResidentMemory::bytes),
            host: residency.host_report(),
            relay_bytes: self.weights.as_ref().map_or(0, Weights::relay_bytes),
            connection: self.connection.clone(),
        };
        ask.answer(move |readings| publish(&standing, readings));
    }
}

/// Counts an assignment that was not taken.
pub(super) fn count_refusal(answer: &AssignReply) {
    if let AssignReply::Refused(refusal) = answer {
        let reason = match refusal {
            Refusal::Full => "full",
            Refusal::Draining => "draining",
            Refusal::StaleEpoch { .. } => "stale_epoch",
            Refusal::ModelUnloadable { .. } => "model_unloadable",
        };
        REFUSALS.increment(&[reason], 1);
    }
}
