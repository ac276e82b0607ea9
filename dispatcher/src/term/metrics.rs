//! What a term counts and tells.

use flotilla_telemetry::Ask;
use tokio::time::Instant;

use super::Term;
use crate::metrics::{GONE, LOST, SUSPECTS_WAITING, UNACCOUNTED, publish};

impl Term {
    /// One thing was handled and all that follows was started; `woken` is when it came, if the core heard of it.
    pub(super) fn note_turn(&mut self, woken: Option<Instant>) {
        if let Some(woken) = woken {
            self.observed.decided(woken.elapsed());
        }
        while let Some(observation) = self.core.poll_observation() {
            self.observed.note(observation);
        }
    }

    /// Tells a scrape how everything stands.
    pub(super) fn answer_scrape(&mut self, ask: Ask) {
        self.counted.add(self.core.stats());
        let account = self.reconciliation();
        self.counted.add_account(&account);
        let overview = self.core.overview(self.now());
        let suspects = count(self.core.suspect_count());
        ask.answer(move |readings| {
            publish(&overview, readings);
            readings.count(&SUSPECTS_WAITING, &[], suspects);
            readings.count(&UNACCOUNTED, &[], account.unaccounted_messages);
            readings.count(&GONE, &[], account.gone_messages);
            readings.count(&LOST, &[], account.lost_requests);
        });
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        self.counted.add(self.core.stats());
        let account = self.reconciliation();
        self.counted.add_account(&account);
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
