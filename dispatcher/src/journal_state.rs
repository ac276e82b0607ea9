//! What a journal means for the core.

use flotilla_client::Entry;
use flotilla_dispatcher_core::JournalState;
use flotilla_protocol::Strikes;
use flotilla_protocol::event::EventKind;

/// Sums up a journal. Entries of no worker that are not terminal are none of ours and say nothing.
pub(crate) fn journal_state(entries: &[Entry]) -> JournalState {
    if entries.iter().any(|entry| entry.event.kind().is_terminal()) {
        return JournalState::Terminal;
    }
    let newest = entries
        .iter()
        .filter_map(|entry| Some((entry.attempt, entry.worker.clone()?)))
        .max_by_key(|(attempt, _)| *attempt);
    let Some((attempt, worker)) = newest else {
        return JournalState::Empty;
    };
    let strikes = entries
        .iter()
        .filter(|entry| entry.event.kind() == EventKind::Accepted)
        .map(|entry| entry.strikes)
        .max();
    JournalState::Open {
        attempt,
        strikes: strikes.unwrap_or(Strikes(0)),
        worker,
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::event::{Accepted, ErrorCode, Event, RequestError};
    use flotilla_protocol::{Attempt, Encoding, ModelName, RequestId, WorkerId};

    use super::*;

    fn accepted(attempt: u32, strikes: u32, worker: &str) -> Entry {
        Entry {
            sequence: u64::from(attempt),
            attempt: Attempt(attempt),
            worker: Some(WorkerId::new(worker).unwrap()),
            incarnation: None,
            strikes: Strikes(strikes),
            encoding: Encoding::Json,
            event: Event::Accepted(Accepted {
                request: RequestId::new("r").unwrap(),
                model: ModelName::new("m").unwrap(),
                prompt_tokens: 1,
            }),
        }
    }

    fn failed() -> Entry {
        Entry {
            worker: None,
            attempt: Attempt(0),
            event: Event::failed(RequestError {
                code: ErrorCode::Internal,
                message: String::new(),
                param: None,
            }),
            ..accepted(9, 0, "w")
        }
    }

    #[test]
    fn newest_attempt_counts_with_its_strikes() {
        let state = journal_state(&[accepted(1, 0, "a"), accepted(3, 2, "b")]);
        let worker = WorkerId::new("b").unwrap();
        let (attempt, strikes) = (Attempt(3), Strikes(2));
        assert_eq!(
            state,
            JournalState::Open {
                attempt,
                strikes,
                worker
            }
        );
    }

    #[test]
    fn terminal_event_wins_over_every_attempt() {
        assert_eq!(
            journal_state(&[accepted(1, 0, "a"), failed()]),
            JournalState::Terminal
        );
        assert_eq!(journal_state(&[]), JournalState::Empty);
    }
}
