//! What a journal means for the core.

use flotilla_client::{Content, Entry};
use flotilla_dispatcher_core::JournalState;
use flotilla_protocol::Strikes;
use flotilla_protocol::event::EventKind;

/// Sums up a journal. Entries of no worker that are not terminal are none of ours and say nothing.
pub(crate) fn journal_state(content: &Content) -> JournalState {
    if content.has_end() {
        return JournalState::Terminal;
    }
    if let Some(fault) = &content.fault {
        let reason = fault.clone();
        return JournalState::Broken { reason };
    }
    open_state(&content.entries)
}

fn open_state(entries: &[Entry]) -> JournalState {
    let newest = entries
        .iter()
        .filter_map(|entry| Some((entry.attempt, entry.worker.clone()?)))
        .max_by_key(|(attempt, _)| *attempt);
    let Some((attempt, worker)) = newest else {
        return JournalState::Empty;
    };
    let accepted = || {
        let entries = entries.iter();
        entries.filter(|entry| entry.event.kind() == EventKind::Accepted)
    };
    let begun = accepted().rfind(|entry| entry.attempt == attempt);
    JournalState::Open {
        attempt,
        strikes: accepted().map(|entry| entry.strikes).max().unwrap_or(Strikes(0)),
        worker,
        incarnation: begun.and_then(|entry| entry.incarnation),
        alone: begun.is_some_and(|entry| entry.alone),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::event::{Accepted, ErrorCode, Event, RequestError};
    use flotilla_protocol::{Attempt, Encoding, ModelName, RequestId, WorkerId};

    use super::*;

    fn state_of(entries: &[Entry]) -> JournalState {
        journal_state(&Content {
            entries: entries.to_vec(),
            ..Content::default()
        })
    }

    fn accepted(attempt: u32, strikes: u32, worker: &str) -> Entry {
        Entry {
            sequence: u64::from(attempt),
            attempt: Attempt(attempt),
            worker: Some(WorkerId::new(worker).unwrap()),
            incarnation: None,
            strikes: Strikes(strikes),
            alone: false,
            encoding: Encoding::Json,
            event: Event::Accepted(Accepted {
                request: RequestId::new("r").unwrap(),
                model: ModelName::new("m").unwrap(),
                prompt_tokens: 1,
            }),
        }
    }

    /// An attempt that had its worker for itself, after one that died.
    fn alone(attempt: u32, worker: &str, incarnation: u64) -> Entry {
        Entry {
            incarnation: Some(incarnation),
            alone: true,
            ..accepted(attempt, 1, worker)
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
        let open = |attempt, strikes, worker, incarnation, alone| JournalState::Open {
            attempt: Attempt(attempt),
            strikes: Strikes(strikes),
            worker: WorkerId::new(worker).unwrap(),
            incarnation,
            alone,
        };
        let state = state_of(&[accepted(1, 0, "a"), accepted(3, 2, "b")]);
        assert_eq!(state, open(3, 2, "b", None, false));
        let state = state_of(&[accepted(1, 0, "a"), alone(2, "b", 7)]);
        assert_eq!(state, open(2, 1, "b", Some(7), true));
        let state = state_of(&[alone(2, "b", 7), accepted(3, 0, "a")]);
        assert_eq!(state, open(3, 1, "a", None, false));
    }

    #[test]
    fn terminal_event_wins_over_every_attempt() {
        assert_eq!(state_of(&[accepted(1, 0, "a"), failed()]), JournalState::Terminal);
        assert_eq!(state_of(&[]), JournalState::Empty);
    }

    #[test]
    fn journal_with_a_strange_message_is_broken_until_it_has_an_end() {
        let mut content = Content {
            entries: vec![accepted(1, 0, "a")],
            last_sequence: 2,
            fault: Some("no event".to_owned()),
        };
        let reason = "no event".to_owned();
        assert_eq!(journal_state(&content), JournalState::Broken { reason });
        content.entries.push(failed());
        assert_eq!(journal_state(&content), JournalState::Terminal);
    }
}
