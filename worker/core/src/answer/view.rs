//! What a journal says, checked.

use flotilla_protocol::event::{Event, EventKind, Tokens};
use flotilla_protocol::{Attempt, Strikes, WorkerId};
use thiserror::Error;

use super::Writer;

/// One message of a journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// The attempt that wrote it; 0 for the dispatcher.
    pub attempt: Attempt,
    /// The worker that wrote it; `None` for the dispatcher.
    pub worker: Option<WorkerId>,
    /// Which start of the worker wrote it; on `accepted`.
    pub incarnation: Option<u64>,
    /// Strikes when the attempt began; 0 on what is not `accepted`.
    pub strikes: Strikes,
    /// The event.
    pub event: Event,
}

impl Record {
    pub(super) fn is_by(&self, writer: &Writer) -> bool {
        let is_of_its_start = match self.event {
            Event::Accepted(_) => self.incarnation == Some(writer.incarnation),
            // Behind an `accepted` of the same start, or the writer is fenced.
            Event::Tokens(_) | Event::Finished(_) | Event::Failed(_) | Event::Progress(_) => true,
        };
        is_of_its_start && self.attempt == writer.attempt && self.worker.as_ref() == Some(&writer.worker)
    }
}

/// Why records are not a journal that our writers make.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JournalError {
    /// Sequences do not ascend.
    #[error("record {sequence} follows record {previous}")]
    Order {
        /// Sequence of the earlier record.
        previous: u64,
        /// Sequence of the later record.
        sequence: u64,
    },
    /// It does not begin with an attempt.
    #[error(
        "record {sequence} is no beginning: the journal stream has dropped what was before it, for size or age; raise \
         nats.journal_max_bytes"
    )]
    Beginning {
        /// Sequence of the first record.
        sequence: u64,
    },
    /// A token is missing or doubled.
    #[error("record {sequence} begins with token {offset}, token {expected} is next")]
    Offset {
        /// Sequence of the record.
        sequence: u64,
        /// The index of its first token.
        offset: u32,
        /// The index that should have been.
        expected: usize,
    },
    /// Something follows a terminal event.
    #[error("record {sequence} follows a terminal event")]
    AfterEnd {
        /// Sequence of the record.
        sequence: u64,
    },
    /// An attempt began that is not newer than the one before it.
    #[error("attempt {attempt} began with record {sequence}, after attempt {newest}")]
    AttemptOrder {
        /// Sequence of the record.
        sequence: u64,
        /// The attempt.
        attempt: Attempt,
        /// The newest attempt before it.
        newest: Attempt,
    },
    /// An event of an attempt that is not the newest.
    #[error("record {sequence} is of attempt {attempt}, which is not the one that writes")]
    StrayWriter {
        /// Sequence of the record.
        sequence: u64,
        /// Its attempt.
        attempt: Attempt,
    },
    /// An event that never is in a journal.
    #[error("record {sequence} is {kind}, which no journal holds")]
    Foreign {
        /// Sequence of the record.
        sequence: u64,
        /// Its kind.
        kind: EventKind,
    },
}

/// A journal's content up to a record, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalView {
    attempt: Attempt,
    worker: Option<WorkerId>,
    incarnation: Option<u64>,
    strikes: Strikes,
    token_count: usize,
    token_ids: Vec<u32>,
    text: String,
    last_sequence: u64,
    terminal: Option<EventKind>,
}

impl JournalView {
    /// Reads a whole journal, oldest record first. None at all is a view as well.
    ///
    /// # Errors
    /// [`JournalError`] when our writers cannot have made it.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Result<Self, JournalError> {
        let mut view = Self::default();
        records.into_iter().try_for_each(|record| view.absorb(record))?;
        Ok(view)
    }

    /// The newest attempt; 0 when none began.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// The newest attempt's worker.
    #[must_use]
    pub fn worker(&self) -> Option<&WorkerId> {
        self.worker.as_ref()
    }

    /// Strikes that the newest attempt began with.
    #[must_use]
    pub fn strikes(&self) -> Strikes {
        self.strikes
    }

    /// The answer's tokens.
    #[must_use]
    pub fn token_ids(&self) -> &[u32] {
        &self.token_ids
    }

    /// The answer's text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Sequence of the last record; 0 when there is none.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// The terminal event, when there is one.
    #[must_use]
    pub fn terminal(&self) -> Option<EventKind> {
        self.terminal
    }

    pub(super) fn token_count(&self) -> usize {
        self.token_count
    }

    /// The answer so far, handed out once; its tokens stay counted.
    pub(super) fn take_answer(&mut self) -> (Vec<u32>, String) {
        (
            std::mem::take(&mut self.token_ids),
            std::mem::take(&mut self.text),
        )
    }

    /// Whether the newest attempt is this writer's.
    pub(super) fn is_of(&self, writer: &Writer) -> bool {
        self.attempt == writer.attempt
            && self.worker.as_ref() == Some(&writer.worker)
            && self.incarnation == Some(writer.incarnation)
    }

    /// The attempt that keeps this writer from writing, if one does.
    pub(super) fn fence(&self, writer: &Writer) -> Option<(Attempt, Strikes)> {
        let is_fenced =
            self.attempt > writer.attempt || self.attempt == writer.attempt && !self.is_of(writer);
        is_fenced.then_some((self.attempt, self.strikes))
    }

    /// Books the writer's own event, which the server stored right after the last known record.
    pub(super) fn count_own(&mut self, writer: &Writer, sequence: u64, event: &Event) {
        assert!(
            sequence > self.last_sequence,
            "an append is stored after what was there"
        );
        self.last_sequence = sequence;
        match event {
            Event::Accepted(_) => self.begin(Beginning {
                attempt: writer.attempt,
                worker: Some(writer.worker.clone()),
                incarnation: Some(writer.incarnation),
                strikes: writer.strikes,
            }),
            Event::Tokens(tokens) => self.token_count += tokens.token_ids.len(),
            Event::Finished(_) | Event::Failed(_) => self.terminal = Some(event.kind()),
            Event::Progress(_) => unreachable!("progress is never appended"),
        }
    }

    /// Adds the next record.
    pub(super) fn absorb(&mut self, record: Record) -> Result<(), JournalError> {
        let (sequence, attempt) = (record.sequence, record.attempt);
        if sequence <= self.last_sequence {
            return Err(JournalError::Order {
                previous: self.last_sequence,
                sequence,
            });
        }
        if self.terminal.is_some() {
            return Err(JournalError::AfterEnd { sequence });
        }
        if self.last_sequence == 0 && matches!(record.event, Event::Tokens(_)) {
            return Err(JournalError::Beginning { sequence });
        }
        let is_newest = attempt == self.attempt && record.worker == self.worker;
        match record.event {
            Event::Accepted(_) if attempt > self.attempt => {
                self.begin(Beginning {
                    attempt,
                    worker: record.worker,
                    incarnation: record.incarnation,
                    strikes: record.strikes,
                });
            }
            Event::Accepted(_) => {
                return Err(JournalError::AttemptOrder {
                    sequence,
                    attempt,
                    newest: self.attempt,
                });
            }
            Event::Tokens(tokens) if is_newest && self.worker.is_some() => {
                self.absorb_tokens(sequence, tokens)?;
            }
            Event::Finished(_) | Event::Failed(_) if is_newest || record.worker.is_none() => {
                self.terminal = Some(record.event.kind());
            }
            Event::Tokens(_) | Event::Finished(_) | Event::Failed(_) => {
                return Err(JournalError::StrayWriter { sequence, attempt });
            }
            Event::Progress(_) => {
                return Err(JournalError::Foreign {
                    sequence,
                    kind: EventKind::Progress,
                });
            }
        }
        self.last_sequence = sequence;
        Ok(())
    }

    fn absorb_tokens(&mut self, sequence: u64, tokens: Tokens) -> Result<(), JournalError> {
        if usize::try_from(tokens.offset) != Ok(self.token_count) {
            return Err(JournalError::Offset {
                sequence,
                offset: tokens.offset,
                expected: self.token_count,
            });
        }
        self.token_count += tokens.token_ids.len();
        self.token_ids.extend(tokens.token_ids);
        self.text.push_str(&tokens.text);
        Ok(())
    }

    fn begin(&mut self, beginning: Beginning) {
        self.attempt = beginning.attempt;
        self.worker = beginning.worker;
        self.incarnation = beginning.incarnation;
        self.strikes = beginning.strikes;
    }
}

/// Who writes from an `accepted` on.
struct Beginning {
    attempt: Attempt,
    worker: Option<WorkerId>,
    incarnation: Option<u64>,
    strikes: Strikes,
}
