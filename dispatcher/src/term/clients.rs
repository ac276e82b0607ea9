//! Clients of requests that end with them.

use flotilla_protocol::event::Phase;
use tokio::time::Instant;
use tracing::info;

use super::Term;
use crate::listeners::{self, Probe};

impl Term {
    /// Asks after the clients of requests that end with them, unless the round before is still under way.
    pub(super) fn ask_after_clients(&mut self) {
        if !self.probes.is_empty() {
            return;
        }
        let round = self.listeners.next_round().into_iter();
        let in_phase = |probe: Probe| Some((self.core.phase(&probe.request)?, probe));
        let round: Vec<(Phase, Probe)> = round.filter_map(in_phase).collect();
        if !round.is_empty() {
            self.probes
                .spawn(listeners::probe(self.ground.connection.clone(), round));
        }
    }

    /// Cancels what nobody listens to any more.
    pub(super) fn take_probed(&mut self, found: Vec<listeners::Heard>) {
        for request in self.listeners.handle_round(Instant::now(), found) {
            let reply = self.core.handle_cancel(self.now(), &request);
            info!(request_id = %request, ?reply, "cancelled, as its client is gone");
        }
    }
}
