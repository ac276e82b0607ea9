//! Journals, read as they are stored: every token once, in order, one end, at the end.

use flotilla_client::{Connection, Entry, Journal};
use flotilla_protocol::RequestId;
use flotilla_protocol::event::Event;
use futures_util::{StreamExt, stream};
use std::time::Duration;
use tokio::time::{sleep, timeout};

use super::clients::Problem;
use super::questions::Questions;
use crate::PATIENCE;
use crate::known::Known;

/// Reads the journal of a request that has ended, and compares it with the undisturbed answer.
pub(super) async fn check(
    connection: &Connection,
    request: &RequestId,
    known: &Known,
) -> Result<(), Problem> {
    let journal = Journal::new(connection);
    let mut found = Err(Problem::Hung(format!("the journal of {request} cannot be read")));
    let read = async {
        loop {
            if let Ok(entries) = journal.read(request, 0).await {
                let compared = compare(&entries, &known.token_ids);
                // A copy that lags behind has the beginning of a journal.
                let is_final = compared != Err(Flaw::NoEnd);
                found = compared.map_err(|flaw| flaw.of(request));
                if is_final {
                    return;
                }
            }
            sleep(AGAIN_AFTER).await;
        }
    };
    drop(timeout(PATIENCE, read).await);
    found
}

/// Compares a journal with the tokens of its answer: each once, in order, and one end, at the end.
///
/// # Errors
/// What it has that it must not have, or not.
pub fn check_journal(request: &RequestId, entries: &[Entry], expected: &[u32]) -> Result<(), Problem> {
    compare(entries, expected).map_err(|flaw| flaw.of(request))
}

/// Reads the journals of many requests.
pub(super) async fn check_all(
    connection: &Connection,
    requests: &[(usize, RequestId)],
    questions: &Questions,
) -> Vec<(usize, Problem)> {
    let checked = stream::iter(requests).map(async |(number, request)| {
        let checked = check(connection, request, questions.of(*number)).await;
        checked.err().map(|problem| (*number, problem))
    });
    let checked = checked.buffer_unordered(READ_AT_ONCE);
    checked.filter_map(std::future::ready).collect().await
}

/// What a journal has that it must not have, or not.
#[derive(Debug, PartialEq, Eq)]
enum Flaw {
    NoEnd,
    Gap { at: usize },
    Twice { at: usize },
    Ends(usize),
    AfterTheEnd,
    Other { at: usize },
    OlderAttempt,
}

impl Flaw {
    fn of(self, request: &RequestId) -> Problem {
        let text = format!("the journal of {request}: {self:?}");
        match self {
            Self::NoEnd | Self::Gap { .. } => Problem::Lost(text),
            Self::Twice { .. } | Self::Ends(_) | Self::AfterTheEnd | Self::OlderAttempt => {
                Problem::Doubled(text)
            }
            Self::Other { .. } => Problem::Wrong(text),
        }
    }
}

fn compare(entries: &[Entry], expected: &[u32]) -> Result<(), Flaw> {
    let mut stored: Vec<u32> = Vec::new();
    let mut attempt = entries.first().map(|first| first.attempt);
    for entry in entries {
        if Some(entry.attempt) < attempt && entry.worker.is_some() {
            return Err(Flaw::OlderAttempt);
        }
        attempt = attempt.max(Some(entry.attempt));
        if let Event::Tokens(tokens) = &entry.event {
            let (at, offset) = (stored.len(), tokens.offset as usize);
            match offset.cmp(&at) {
                std::cmp::Ordering::Less => return Err(Flaw::Twice { at: offset }),
                std::cmp::Ordering::Greater => return Err(Flaw::Gap { at }),
                std::cmp::Ordering::Equal => stored.extend_from_slice(&tokens.token_ids),
            }
        }
    }
    let is_end = |entry: &Entry| entry.event.kind().is_terminal();
    match entries.iter().filter(|entry| is_end(entry)).count() {
        0 => return Err(Flaw::NoEnd),
        1 => {}
        ends => return Err(Flaw::Ends(ends)),
    }
    if !entries.last().is_some_and(is_end) {
        return Err(Flaw::AfterTheEnd);
    }
    let differs = stored.iter().zip(expected).position(|(one, other)| one != other);
    match differs {
        Some(at) => Err(Flaw::Other { at }),
        None if stored.len() < expected.len() => Err(Flaw::Gap { at: stored.len() }),
        None if stored.len() > expected.len() => Err(Flaw::Twice { at: expected.len() }),
        None => Ok(()),
    }
}

/// Reads under way at once.
const READ_AT_ONCE: usize = 16;
/// How soon a read that failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use flotilla_protocol::event::ErrorCode;
    use flotilla_protocol::event::{Accepted, RequestError, Tokens};
    use flotilla_protocol::{Attempt, Encoding, ModelName, Strikes, WorkerId};

    use super::*;

    fn entry(attempt: u32, event: Event) -> Entry {
        Entry {
            sequence: 1,
            attempt: Attempt(attempt),
            worker: (attempt > 0).then(|| WorkerId::new("w").unwrap()),
            incarnation: Some(1),
            strikes: Strikes(0),
            alone: false,
            encoding: Encoding::Json,
            event,
        }
    }

    fn begun(attempt: u32) -> Entry {
        let (request, model) = (flotilla_client::new_request_id(), ModelName::new("m").unwrap());
        let prompt_tokens = 1;
        entry(
            attempt,
            Event::Accepted(Accepted {
                request,
                model,
                prompt_tokens,
            }),
        )
    }

    fn tokens(attempt: u32, offset: u32, token_ids: &[u32]) -> Entry {
        let event = Event::Tokens(Tokens {
            offset,
            token_ids: token_ids.to_vec(),
            text: String::new(),
            logprobs: Vec::new(),
        });
        entry(attempt, event)
    }

    fn end(attempt: u32) -> Entry {
        let error = RequestError {
            code: ErrorCode::Internal,
            message: String::new(),
            param: None,
        };
        entry(attempt, Event::failed(error))
    }

    #[test]
    fn every_flaw_of_a_journal_is_found() {
        let whole = [
            begun(1),
            tokens(1, 0, &[7, 8]),
            begun(2),
            tokens(2, 2, &[9]),
            end(2),
        ];
        assert_eq!(compare(&whole, &[7, 8, 9]), Ok(()));
        let cases: [(&[Entry], Flaw); 9] = [
            (&[], Flaw::NoEnd),
            (&whole[..4], Flaw::NoEnd),
            (&[begun(1), tokens(1, 1, &[8, 9]), end(1)], Flaw::Gap { at: 0 }),
            (&[begun(1), tokens(1, 0, &[7, 8]), end(1)], Flaw::Gap { at: 2 }),
            (
                &[tokens(1, 0, &[7, 8]), tokens(1, 1, &[8, 9]), end(1)],
                Flaw::Twice { at: 1 },
            ),
            (&[tokens(1, 0, &[7, 8, 9]), end(1), end(0)], Flaw::Ends(2)),
            (&[end(1), tokens(1, 0, &[7, 8, 9])], Flaw::AfterTheEnd),
            (&[tokens(1, 0, &[7, 6, 9]), end(1)], Flaw::Other { at: 1 }),
            (&[begun(2), tokens(1, 0, &[7, 8, 9]), end(2)], Flaw::OlderAttempt),
        ];
        for (entries, flaw) in cases {
            assert_eq!(compare(entries, &[7, 8, 9]), Err(flaw));
        }
    }
}
