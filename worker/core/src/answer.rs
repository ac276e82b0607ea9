//! The journal side of one attempt: what is appended next, and whether the attempt may still write.
//!
//! One append is under way at a time; tokens made meanwhile travel in the next. Every append carries the
//! last sequence that the attempt knows of the journal, so a stale attempt's append is refused. An append
//! whose fate is unknown (no answer, or a conflict) is settled by reading the journal: either it is there,
//! or nothing is and it is tried again, or somebody else wrote and this attempt stops for good.
//!
//! The order: [`Answer::begin`] with the journal as read, then actions until [`Action::Ended`]. Tokens
//! are taken only after [`Action::Started`], which tells what the answer holds so far: before the
//! attempt's own `accepted` is stored, an older attempt may still add to it.

mod view;

use flotilla_protocol::event::{Accepted, Event, EventKind, TokenLogprobs, Tokens};
use flotilla_protocol::{Attempt, ModelName, RequestId, Strikes, WorkerId};
use thiserror::Error;

pub use view::{JournalError, JournalView, Record};

/// Who writes, and for which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// The attempt.
    pub attempt: Attempt,
    /// Strikes that the request had when the attempt began.
    pub strikes: Strikes,
    /// The worker.
    pub worker: WorkerId,
    /// Which start of it: one that died may come back under its name and get an attempt of the same number.
    pub incarnation: u64,
    /// The request.
    pub request: RequestId,
    /// The model.
    pub model: ModelName,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
}

/// Why an attempt may not begin; it wrote nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BeginError {
    /// The answer is complete.
    #[error("the journal is terminal")]
    AlreadyTerminal,
    /// The journal holds a newer attempt, or as new a one of another worker or of an earlier start of this one.
    #[error("attempt {attempt} has begun elsewhere")]
    Fenced {
        /// The newest attempt.
        attempt: Attempt,
        /// Strikes that it began with.
        strikes: Strikes,
    },
}

/// One append to store.
#[derive(Debug, Clone, PartialEq)]
pub struct Append {
    /// Sequence of the last message that the journal must hold; 0 for none.
    pub expected_last_sequence: u64,
    /// The event.
    pub event: Event,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Store this; report by [`Answer::handle_appended`] or [`Answer::handle_append_unknown`].
    Append(Append),
    /// Read the journal's records after this sequence; report by [`Answer::handle_journal`] or
    /// [`Answer::handle_journal_unread`].
    ReadJournal {
        /// The last sequence that is known.
        after_sequence: u64,
    },
    /// `accepted` is stored: generate from here.
    Started(Start),
    /// The attempt writes no more. Last.
    Ended(Ended),
}

/// What the answer holds when the attempt starts to generate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Tokens of earlier attempts.
    pub token_ids: Vec<u32>,
    /// Their text.
    pub text: String,
}

/// How an attempt's writing ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// This attempt's last event is stored.
    Terminal,
    /// Somebody else ended the answer.
    AlreadyTerminal,
    /// A newer attempt writes, or as new a one of another worker or of another start of this one.
    Fenced {
        /// The newest attempt.
        attempt: Attempt,
        /// Strikes that it began with.
        strikes: Strikes,
    },
    /// The attempt was stopped without an end of the answer; its tokens are stored.
    LeftOpen,
    /// The journal is not one that our writers make.
    Corrupt(JournalError),
}

/// One attempt's hand on the journal of its request.
#[derive(Debug)]
pub struct Answer {
    writer: Writer,
    /// The journal as far as it is known; tokens of this attempt are counted, not kept.
    view: JournalView,
    pending: Pending,
    close: Close,
    stage: Stage,
    start: StartNotice,
}

/// Tokens and text that are in no append yet.
#[derive(Debug, Default)]
struct Pending {
    token_ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    text: String,
}

/// What comes after the last token.
#[derive(Debug)]
enum Close {
    /// Not known yet.
    Unknown,
    /// This event, once the tokens are stored.
    Event(Event),
    /// Nothing, once the tokens are stored.
    Stop,
    /// It is on its way.
    Taken,
}

/// Whether the caller knows where to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StartNotice {
    /// `accepted` is not stored.
    Early,
    /// It is, and nobody was told.
    Due,
    /// Told.
    Given,
}

#[derive(Debug)]
enum Stage {
    /// No append is under way.
    Idle,
    /// This append is to be made.
    Ready(Event),
    /// This append is under way.
    Appending(Event),
    /// Nobody knows whether this append is stored, and nobody was asked to read.
    Unknown(Event),
    /// Nobody knows whether this append is stored; the journal is being read.
    Reading(Event),
    /// The end is to be told.
    Ending(Ended),
    /// Over.
    Ended,
}

impl Answer {
    /// Begins an attempt on the journal as it was read.
    ///
    /// # Errors
    /// [`BeginError`] when the attempt may not write.
    pub fn begin(writer: Writer, view: JournalView) -> Result<Self, BeginError> {
        if view.terminal().is_some() {
            return Err(BeginError::AlreadyTerminal);
        }
        if let Some((attempt, strikes)) = view.fence(&writer) {
            return Err(BeginError::Fenced { attempt, strikes });
        }
        let has_begun = view.is_of(&writer);
        let accepted = Event::Accepted(Accepted {
            request: writer.request.clone(),
            model: writer.model.clone(),
            prompt_tokens: writer.prompt_tokens,
        });
        Ok(Self {
            stage: if has_begun {
                Stage::Idle
            } else {
                Stage::Ready(accepted)
            },
            start: if has_begun {
                StartNotice::Due
            } else {
                StartNotice::Early
            },
            writer,
            view,
            pending: Pending::default(),
            close: Close::Unknown,
        })
    }

    /// The next thing to do, if any.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        if self.start == StartNotice::Due && !self.is_over() {
            self.start = StartNotice::Given;
            let (token_ids, text) = self.view.take_answer();
            return Some(Action::Started(Start { token_ids, text }));
        }
        self.prepare();
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Ready(event) => {
                self.stage = Stage::Appending(event.clone());
                Some(Action::Append(Append {
                    expected_last_sequence: self.view.last_sequence(),
                    event,
                }))
            }
            Stage::Unknown(event) => {
                self.stage = Stage::Reading(event);
                Some(Action::ReadJournal {
                    after_sequence: self.view.last_sequence(),
                })
            }
            Stage::Ending(ended) => {
                self.stage = Stage::Ended;
                Some(Action::Ended(ended))
            }
            quiet @ (Stage::Idle | Stage::Appending(_) | Stage::Reading(_) | Stage::Ended) => {
                self.stage = quiet;
                None
            }
        }
    }

    /// Takes tokens that were made, how likely each was where that is wanted, and text that became certain with
    /// them. Ignored once the writing ended.
    ///
    /// # Panics
    /// Before [`Action::Started`] and after an end, and when some tokens have a log-probability and some none.
    pub fn handle_tokens(&mut self, token_ids: &[u32], logprobs: &[TokenLogprobs], text: &str) {
        if self.is_over() {
            return;
        }
        assert_eq!(self.start, StartNotice::Given, "tokens come after the start");
        assert!(matches!(self.close, Close::Unknown), "no token follows the end");
        assert!(
            logprobs.is_empty() || logprobs.len() == token_ids.len(),
            "every token has its log-probability or none has"
        );
        self.pending.token_ids.extend_from_slice(token_ids);
        self.pending.logprobs.extend_from_slice(logprobs);
        self.pending.text.push_str(text);
    }

    /// Takes the end of the answer, to be stored after its tokens; only the first end counts. A `failed`
    /// may come at any time, also before the start. Ignored once the writing ended.
    ///
    /// # Panics
    /// When the event is not terminal.
    pub fn handle_end(&mut self, event: Event) {
        assert!(event.kind().is_terminal(), "an answer ends with a terminal event");
        self.close_with(Close::Event(event));
    }

    /// Stops the attempt and leaves the answer open for another; what was made is stored first.
    pub fn handle_stop(&mut self) {
        self.close_with(Close::Stop);
    }

    /// The append under way is stored, as this sequence.
    ///
    /// # Panics
    /// When no append is under way.
    pub fn handle_appended(&mut self, sequence: u64) {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Appending(event) => self.stored(sequence, &event),
            other => panic!("an append is answered once, while it is under way: {other:?}"),
        }
    }

    /// Nobody knows whether the append under way is stored: no answer came, or a conflict.
    ///
    /// # Panics
    /// When no append is under way.
    pub fn handle_append_unknown(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Appending(event) => self.stage = Stage::Unknown(event),
            other => panic!("an append is answered once, while it is under way: {other:?}"),
        }
    }

    /// The journal could not be read; it has to be tried again.
    ///
    /// # Panics
    /// When no reading was asked for.
    pub fn handle_journal_unread(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Reading(event) => self.stage = Stage::Unknown(event),
            other => panic!("the journal is read when asked for: {other:?}"),
        }
    }

    /// The records after the last known one, all of them, in order.
    ///
    /// # Panics
    /// When no reading was asked for.
    pub fn handle_journal(&mut self, records: impl IntoIterator<Item = Record>) {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Reading(event) => self.settle(event, records),
            other => panic!("the journal is read when asked for: {other:?}"),
        }
    }

    /// Tokens that are still to be stored; the sequence is paused while they are too many.
    #[must_use]
    pub fn backlog_tokens(&self) -> usize {
        let pending = self.pending.token_ids.len();
        match &self.stage {
            Stage::Ready(event) | Stage::Appending(event) | Stage::Unknown(event) | Stage::Reading(event) => {
                token_count(event) + pending
            }
            Stage::Idle => pending,
            Stage::Ending(_) | Stage::Ended => 0,
        }
    }

    /// Tokens that are stored, those of earlier attempts included.
    #[must_use]
    pub fn stored_tokens(&self) -> usize {
        self.view.token_count()
    }

    /// Sequence of the last record that is known.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.view.last_sequence()
    }

    fn close_with(&mut self, close: Close) {
        if matches!(self.close, Close::Unknown) {
            self.close = close;
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Ending(_) | Stage::Ended)
    }

    /// Makes the next append when none is under way.
    fn prepare(&mut self) {
        if !matches!(self.stage, Stage::Idle) {
            return;
        }
        if !self.pending.token_ids.is_empty() || !self.pending.text.is_empty() {
            let Pending {
                token_ids,
                logprobs,
                text,
            } = std::mem::take(&mut self.pending);
            let offset = u32::try_from(self.view.token_count()).expect("an answer is shorter than a context");
            self.stage = Stage::Ready(Event::Tokens(Tokens {
                offset,
                token_ids,
                text,
                logprobs,
            }));
            return;
        }
        match std::mem::replace(&mut self.close, Close::Taken) {
            Close::Event(event) => self.stage = Stage::Ready(event),
            Close::Stop => self.stage = Stage::Ending(Ended::LeftOpen),
            same @ (Close::Unknown | Close::Taken) => self.close = same,
        }
    }

    fn stored(&mut self, sequence: u64, event: &Event) {
        self.view.count_own(&self.writer, sequence, event);
        match event.kind() {
            EventKind::Accepted => self.start = StartNotice::Due,
            EventKind::Tokens | EventKind::Progress => {}
            EventKind::Finished | EventKind::Failed => self.stage = Stage::Ending(Ended::Terminal),
        }
    }

    /// Decides what became of an append from what the journal holds after the last known record. Ours can
    /// only be the first of these: anything else in its place has made the server refuse it.
    fn settle(&mut self, event: Event, records: impl IntoIterator<Item = Record>) {
        let mut records = records.into_iter().peekable();
        let ours = records.next_if(|record| record.is_by(&self.writer) && is_same(&record.event, &event));
        let mut retry = None;
        match ours {
            Some(record) => self.stored(record.sequence, &event),
            None => retry = Some(event),
        }
        for record in records {
            if let Err(error) = self.view.absorb(record) {
                self.stage = Stage::Ending(Ended::Corrupt(error));
                return;
            }
        }
        if self.is_over() {
            return;
        }
        if self.view.terminal().is_some() {
            self.stage = Stage::Ending(Ended::AlreadyTerminal);
        } else if let Some((attempt, strikes)) = self.view.fence(&self.writer) {
            self.stage = Stage::Ending(Ended::Fenced { attempt, strikes });
        } else if let Some(event) = retry {
            self.stage = Stage::Ready(event);
        }
    }
}

/// Whether a stored event is the one that was appended. Terminal events of one attempt are all one: it makes a
/// single one, whose numbers need not survive the encoding to the last bit, nor need log-probabilities.
fn is_same(stored: &Event, appended: &Event) -> bool {
    match (stored, appended) {
        (Event::Tokens(stored), Event::Tokens(appended)) => {
            (stored.offset, &stored.token_ids, &stored.text)
                == (appended.offset, &appended.token_ids, &appended.text)
        }
        _ => stored.kind() == appended.kind(),
    }
}

fn token_count(event: &Event) -> usize {
    match event {
        Event::Tokens(tokens) => tokens.token_ids.len(),
        Event::Accepted(_) | Event::Progress(_) | Event::Finished(_) | Event::Failed(_) => 0,
    }
}
