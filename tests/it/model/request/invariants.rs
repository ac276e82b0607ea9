//! What has to hold in every state.

use std::collections::BTreeSet;

use super::{Record, State, TOKENS, What, tokens_in};

/// The first invariant that a state breaks.
pub(in super::super) fn broken_invariant(state: &State) -> Option<&'static str> {
    type Invariant = (&'static str, fn(&State) -> bool);
    let invariants: [Invariant; 6] = [
        ("request_leaves_its_stream_only_after_its_end", |state| {
            state.queued || state.has_end()
        }),
        ("one_worker_writes_each_attempt", one_worker_writes_each_attempt),
        ("older_attempt_never_writes_after_a_newer_one", |state| {
            state.journal.is_sorted_by_key(|record| record.attempt)
        }),
        ("every_event_is_stored_once", every_event_is_stored_once),
        ("no_token_is_skipped", no_token_is_skipped),
        ("nothing_follows_the_end", |state| {
            let end = state.journal.iter().position(|record| record.what == What::End);
            end.is_none_or(|end| end + 1 == state.journal.len())
        }),
    ];
    let broken = invariants.iter().find(|(_, holds)| !holds(state));
    broken.map(|(name, _)| *name)
}

fn one_worker_writes_each_attempt(state: &State) -> bool {
    let writers = state.journal.iter().map(|it| (it.attempt, it.worker, it.life));
    let writers: BTreeSet<(u8, u8, u8)> = writers.collect();
    let attempts: BTreeSet<u8> = state.journal.iter().map(|it| it.attempt).collect();
    writers.len() == attempts.len()
}

/// A token and the end once in all, `accepted` once for each attempt.
fn every_event_is_stored_once(state: &State) -> bool {
    let key = |record: &Record| match record.what {
        What::Accepted => (record.what, record.attempt),
        What::Token(_) | What::End => (record.what, 0),
    };
    let different: BTreeSet<(What, u8)> = state.journal.iter().map(key).collect();
    different.len() == state.journal.len()
}

fn no_token_is_skipped(state: &State) -> bool {
    let tokens = state.journal.iter().filter_map(|record| match record.what {
        What::Token(index) => Some(index),
        What::Accepted | What::End => None,
    });
    let whole = !state.has_end() || tokens_in(&state.journal) == TOKENS;
    whole && tokens.eq(0..tokens_in(&state.journal))
}
