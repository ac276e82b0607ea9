//! What happened since the term began, for metrics.

use serde::{Deserialize, Serialize};

/// Counters of one term; each only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Messages handed in, valid or not.
    pub arrivals: u64,
    /// Of these, the ones of a request that another message stands for.
    pub duplicates: u64,
    /// Of these, the ones that were held already.
    pub redeliveries: u64,
    /// Of these, the ones turned away because `held_max` was reached.
    pub turned_away: u64,
    /// Of these, the ones that admission found invalid.
    pub rejected: u64,
    /// Assignments sent.
    pub assigned: u64,
    /// Runs found in reports and taken over.
    pub adopted: u64,
    /// Assignments refused.
    pub refused: u64,
    /// Assignments without an answer.
    pub unanswered: u64,
    /// Attempts whose `done` was lost and whose end a report showed.
    pub done_lost: u64,
    /// Attempts given back unharmed.
    pub handed_back: u64,
    /// Attempts that found a newer one in the journal.
    pub fenced: u64,
    /// Workers that fell silent.
    pub workers_lost: u64,
    /// Of these, the ones whose connection was gone when they were asked for a report.
    pub workers_absent: u64,
    /// Workers that came back as another process.
    pub workers_restarted: u64,
    /// Reports of workers beyond `workers_max`.
    pub workers_turned_away: u64,
    /// Reports that were overtaken by a newer one.
    pub reports_stale: u64,
    /// Requests that were on a worker when it died and had to run alone, each time.
    pub suspects: u64,
    /// Of these, the ones that need not any more, as another one was to blame.
    pub cleared: u64,
    /// Assignments of requests that run alone.
    pub alone: u64,
    /// Strikes given.
    pub strikes: u64,
    /// Requests that became dead letters.
    pub dead: u64,
    /// Requests ended because nobody can go on with their journals.
    pub journals_broken: u64,
    /// Requests ended because of a cancellation, by us.
    pub cancelled: u64,
    /// Requests ended because their deadline passed while they waited.
    pub deadlines_passed: u64,
    /// Requests ended because no worker can load their model.
    pub unloadable: u64,
    /// Requests that no worker can serve in time any more, when that was found.
    pub late: u64,
    /// Requests given up so that more of the others are in time.
    pub given_up: u64,
    /// Assignments to a worker that has to load the model first.
    pub assigned_cold: u64,
    /// Models named as victims with these.
    pub victims: u64,
    /// Devices kept for a request that fits nowhere.
    pub reservations: u64,
    /// Workers asked to prefetch a model.
    pub prefetches: u64,
    /// Times that waiting requests were priced anew.
    pub repricings: u64,
    /// Prompts whose tokens were estimated.
    pub prompts_estimated: u64,
    /// Requests that were delivered again, or anew to this term, and had an end already.
    pub ended_unacked: u64,
    /// Journals read.
    pub journal_reads: u64,
    /// Messages acknowledged.
    pub acked: u64,
}
