//! What the core counts in a term, added to what the process has counted.

use flotilla_dispatcher_core::Stats;
use flotilla_protocol::admin::Reconciliation;

use super::{
    ACKED, ASSIGNMENTS, ATTEMPTS, COLD_ASSIGNMENTS, INTERFERENCES, JOURNAL_READS, MESSAGES, PREFETCHES,
    PROMISES_BROKEN, PROMPTS_ESTIMATED, RECONCILIATIONS, REPRICINGS, REQUESTS_ENDED, RESERVATIONS,
    STALE_REPORTS, STRIKES, SUSPECTS, VICTIMS, WORKER_EVENTS,
};

/// How much of a term's counters was added already.
#[derive(Debug, Default)]
pub(crate) struct Counted(Stats, Reconciliation);

impl Counted {
    /// Adds what came since the last call.
    pub(crate) fn add(&mut self, now: Stats) {
        let before = std::mem::replace(&mut self.0, now);
        Self::add_messages(&before, &now);
        Self::add_attempts(&before, &now);
        Self::add_ends(&before, &now);
        COLD_ASSIGNMENTS.increment(&[], now.assigned_cold - before.assigned_cold);
        VICTIMS.increment(&[], now.victims - before.victims);
        RESERVATIONS.increment(&[], now.reservations - before.reservations);
        PREFETCHES.increment(&[], now.prefetches - before.prefetches);
        REPRICINGS.increment(&[], now.repricings - before.repricings);
        STALE_REPORTS.increment(&[], now.reports_stale - before.reports_stale);
        WORKER_EVENTS.increment(&["lost"], now.workers_lost - before.workers_lost);
        WORKER_EVENTS.increment(&["restarted"], now.workers_restarted - before.workers_restarted);
        let turned_away = now.workers_turned_away - before.workers_turned_away;
        WORKER_EVENTS.increment(&["turned_away"], turned_away);
    }

    /// Adds what came since the last call to the account.
    pub(crate) fn add_account(&mut self, now: &Reconciliation) {
        let before = std::mem::replace(&mut self.1, now.clone());
        RECONCILIATIONS.increment(&["done"], now.rounds - before.rounds);
        RECONCILIATIONS.increment(&["failed"], now.rounds_failed - before.rounds_failed);
        INTERFERENCES.increment(&["stuck"], now.stuck_total - before.stuck_total);
        let max_deliveries = now.max_deliveries_total - before.max_deliveries_total;
        INTERFERENCES.increment(&["max_deliveries"], max_deliveries);
        INTERFERENCES.increment(&["terminated"], now.terminated_total - before.terminated_total);
        INTERFERENCES.increment(&["lost"], now.lost_total - before.lost_total);
        let ended_unacked = now.ended_unacked_total - before.ended_unacked_total;
        INTERFERENCES.increment(&["ended_unacked"], ended_unacked);
    }

    fn add_messages(before: &Stats, now: &Stats) {
        let told = |stats: &Stats| {
            let others = stats.duplicates + stats.redeliveries + stats.turned_away + stats.rejected;
            stats.arrivals - others
        };
        MESSAGES.increment(&["taken"], told(now) - told(before));
        MESSAGES.increment(&["redelivered"], now.redeliveries - before.redeliveries);
        MESSAGES.increment(&["duplicate"], now.duplicates - before.duplicates);
        MESSAGES.increment(&["turned_away"], now.turned_away - before.turned_away);
        MESSAGES.increment(&["rejected"], now.rejected - before.rejected);
        PROMPTS_ESTIMATED.increment(&[], now.prompts_estimated - before.prompts_estimated);
        ACKED.increment(&[], now.acked - before.acked);
    }

    fn add_attempts(before: &Stats, now: &Stats) {
        ASSIGNMENTS.increment(&["sent"], now.assigned - before.assigned);
        ASSIGNMENTS.increment(&["refused"], now.refused - before.refused);
        ASSIGNMENTS.increment(&["unanswered"], now.unanswered - before.unanswered);
        ATTEMPTS.increment(&["adopted"], now.adopted - before.adopted);
        ATTEMPTS.increment(&["fenced"], now.fenced - before.fenced);
        ATTEMPTS.increment(&["handed_back"], now.handed_back - before.handed_back);
        ATTEMPTS.increment(&["done_lost"], now.done_lost - before.done_lost);
        STRIKES.increment(&[], now.strikes - before.strikes);
        SUSPECTS.increment(&["suspected"], now.suspects - before.suspects);
        SUSPECTS.increment(&["cleared"], now.cleared - before.cleared);
        SUSPECTS.increment(&["alone"], now.alone - before.alone);
        JOURNAL_READS.increment(&[], now.journal_reads - before.journal_reads);
    }

    fn add_ends(before: &Stats, now: &Stats) {
        REQUESTS_ENDED.increment(&["cancelled"], now.cancelled - before.cancelled);
        REQUESTS_ENDED.increment(&["deadline"], now.deadlines_passed - before.deadlines_passed);
        REQUESTS_ENDED.increment(&["unloadable"], now.unloadable - before.unloadable);
        REQUESTS_ENDED.increment(&["dead"], now.dead - before.dead);
        REQUESTS_ENDED.increment(&["broken"], now.journals_broken - before.journals_broken);
        PROMISES_BROKEN.increment(&["late"], now.late - before.late);
        PROMISES_BROKEN.increment(&["given_up"], now.given_up - before.given_up);
    }
}
