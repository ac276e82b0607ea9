//! Looks at the streams for messages that nobody answers for and for requests that nobody will end.
//!
//! It only finds; what is amiss for long enough to be acted upon is decided in [`flotilla_dispatcher_core::Reconciler`].
//! One look asks a bounded number of questions: what it does not get to, the next ones do.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use async_nats::jetstream::consumer;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use flotilla_client::{Connection, Journal, is_missing_stream};
use flotilla_dispatcher_core::{Round, StreamSequence};
use flotilla_protocol::{Class, RequestId};
use futures_util::TryStreamExt;
use tokio::time::{error::Elapsed, timeout};

/// What is known between looks.
#[derive(Debug)]
pub(crate) struct Scout {
    connection: Connection,
    /// Of each class: where the next walk goes on.
    cursors: [StreamSequence; Class::ALL.len()],
    /// Journals that have an end. Of too many the oldest are forgotten, and looked at again.
    ended: HashSet<RequestId>,
    ended_order: VecDeque<RequestId>,
    looks: u64,
}

/// What the owner knows when a look begins.
#[derive(Debug)]
pub(crate) struct Known {
    /// Messages that are held.
    pub(crate) messages: BTreeSet<StreamSequence>,
    /// Requests that are held or listed by a worker.
    pub(crate) requests: HashSet<RequestId>,
    /// Requests that were acknowledged since the last look.
    pub(crate) ended: Vec<RequestId>,
    /// Newest message of the stream when the term began.
    pub(crate) last_before_term: StreamSequence,
}

/// Why a look did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScoutFault {
    /// Somebody has removed it.
    #[error("{stream} does not exist")]
    Missing { stream: String },
    #[error("the server does not tell")]
    Server(#[source] async_nats::Error),
    #[error("no answer in time")]
    TimedOut(#[from] Elapsed),
}

/// One class as its consumer has it.
struct ClassView {
    class: Class,
    delivered: StreamSequence,
    pending: u64,
    ack_pending: u64,
    redelivered: u64,
}

impl Scout {
    pub(crate) fn new(connection: &Connection) -> Self {
        Self {
            connection: connection.clone(),
            cursors: [StreamSequence(0); Class::ALL.len()],
            ended: HashSet::new(),
            ended_order: VecDeque::new(),
            looks: 0,
        }
    }

    /// One look.
    ///
    /// # Errors
    /// [`ScoutFault`]; nothing is lost, the next look begins where this one did.
    pub(crate) async fn look(&mut self, known: Known) -> Result<Round, ScoutFault> {
        known.ended.iter().for_each(|request| self.note_ended(request));
        let mut stream = self.stream(self.connection.subjects.requests_stream()).await?;
        let mut classes = Vec::new();
        for class in Class::ALL {
            let info = self.answered(stream.consumer_info(class.as_str())).await?;
            classes.push(ClassView::new(class, &info));
        }
        // Asked last: whatever was delivered by now is in it.
        let state = self.answered(stream.info()).await?.state.clone();
        let sum = |of: fn(&ClassView) -> u64| classes.iter().map(of).sum::<u64>();
        let pending = sum(|class| class.pending);
        let delivered = state.messages.saturating_sub(pending);
        let held = u64::try_from(known.messages.len()).unwrap_or(u64::MAX);
        let mut round = Round {
            messages: state.messages,
            pending,
            ack_pending: sum(|class| class.ack_pending),
            redelivered: sum(|class| class.redelivered),
            is_whole: true,
            has_backlog: classes
                .iter()
                .any(|class| class.pending > 0 && class.delivered < known.last_before_term),
            ..Round::default()
        };
        if delivered > held {
            self.walk(&stream, &classes, &known.messages, &mut round).await?;
        }
        if held > delivered {
            round.gone = self.gone(&stream, &known.messages).await?;
        }
        self.looks += 1;
        if self.looks.is_multiple_of(JOURNALS_EVERY) {
            round.open = self.open_journals(&known.requests).await?;
        }
        Ok(round)
    }

    /// Finds messages that were delivered and are not held.
    async fn walk(
        &mut self,
        stream: &Stream,
        classes: &[ClassView],
        held: &BTreeSet<StreamSequence>,
        round: &mut Round,
    ) -> Result<(), ScoutFault> {
        for (index, view) in classes.iter().enumerate() {
            let begins_at = self.cursors[index].0.max(1);
            let mut cursor = begins_at;
            let mut asked = 0;
            round.is_whole &= begins_at == 1;
            let subject = self.connection.subjects.requests_of(view.class);
            while cursor <= view.delivered.0 {
                if held.contains(&StreamSequence(cursor)) {
                    cursor += 1;
                    continue;
                }
                if asked == WALK_MAX {
                    round.is_whole = false;
                    break;
                }
                asked += 1;
                let Some(found) = self.next_of(stream, &subject, cursor).await? else {
                    cursor = view.delivered.0 + 1;
                    break;
                };
                if found <= view.delivered && !held.contains(&found) {
                    round.unheld.insert(found);
                }
                cursor = found.0 + 1;
            }
            // From the beginning again, or on from here.
            let is_through = cursor > view.delivered.0;
            self.cursors[index] = StreamSequence(if is_through { 0 } else { cursor });
        }
        Ok(())
    }

    /// The first message of a subject from a sequence on.
    async fn next_of(
        &self,
        stream: &Stream,
        subject: &str,
        from: u64,
    ) -> Result<Option<StreamSequence>, ScoutFault> {
        let asked = stream.get_first_raw_message_by_subject(subject, from);
        match timeout(self.connection.request_timeout, asked).await? {
            Ok(message) => Ok(Some(StreamSequence(message.sequence))),
            Err(error) if is_missing(error.kind()) => Ok(None),
            Err(error) => Err(ScoutFault::Server(error.into())),
        }
    }

    /// Held messages that are not in the stream, of some of the oldest.
    async fn gone(
        &self,
        stream: &Stream,
        held: &BTreeSet<StreamSequence>,
    ) -> Result<Vec<StreamSequence>, ScoutFault> {
        let mut gone = Vec::new();
        for sequence in held.iter().take(WALK_MAX) {
            let asked = stream.get_raw_message(sequence.0);
            match timeout(self.connection.request_timeout, asked).await? {
                Ok(_) => {}
                Err(error) if is_missing(error.kind()) => gone.push(*sequence),
                Err(error) => return Err(ScoutFault::Server(error.into())),
            }
        }
        Ok(gone)
    }

    /// Journals without an end of requests that nobody knows; `None` when there are too many journals to list.
    async fn open_journals(
        &mut self,
        known: &HashSet<RequestId>,
    ) -> Result<Option<BTreeSet<RequestId>>, ScoutFault> {
        let stream = self.stream(self.connection.subjects.journal_stream()).await?;
        if stream.cached_info().state.subjects_count > JOURNALS_MAX {
            return Ok(None);
        }
        let subjects = self.connection.subjects.journal_all();
        let prefix = subjects.trim_end_matches('>');
        let listed = async {
            stream
                .info_with_subjects(&subjects)
                .await?
                .try_collect::<Vec<_>>()
                .await
        };
        let listed = timeout(LIST_TIMEOUT, listed).await?;
        let listed = listed.map_err(|error| ScoutFault::Server(error.into()))?;
        let requests = listed
            .into_iter()
            .filter_map(|(subject, _)| RequestId::new(subject.strip_prefix(prefix)?).ok())
            .filter(|request| !known.contains(request) && !self.ended.contains(request));
        let requests: Vec<RequestId> = requests.take(WALK_MAX).collect();
        let mut open = BTreeSet::new();
        let journal = Journal::new(&self.connection);
        for request in requests {
            let content = journal.read_all(&request).await;
            let content = content.map_err(|error| ScoutFault::Server(error.into()))?;
            if content.has_end() {
                self.note_ended(&request);
            } else {
                open.insert(request);
            }
        }
        Ok(Some(open))
    }

    async fn stream(&self, name: String) -> Result<Stream, ScoutFault> {
        let asked = self.connection.jetstream.get_stream(&name);
        match timeout(self.connection.request_timeout, asked).await? {
            Ok(stream) => Ok(stream),
            Err(error) if is_missing_stream(&error) => Err(ScoutFault::Missing { stream: name }),
            Err(error) => Err(ScoutFault::Server(error.into())),
        }
    }

    fn note_ended(&mut self, request: &RequestId) {
        if !self.ended.insert(request.clone()) {
            return;
        }
        self.ended_order.push_back(request.clone());
        if self.ended_order.len() > ENDED_MAX
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }

    async fn answered<T, E: Into<async_nats::Error>>(
        &self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ScoutFault> {
        let answer = timeout(self.connection.request_timeout, answer).await?;
        answer.map_err(|error| ScoutFault::Server(error.into()))
    }
}

impl ClassView {
    fn new(class: Class, info: &consumer::Info) -> Self {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        Self {
            class,
            delivered: StreamSequence(info.delivered.stream_sequence),
            pending: info.num_pending,
            ack_pending: count(info.num_ack_pending),
            redelivered: count(info.num_redelivered),
        }
    }
}

/// Whether there is no such message.
pub(crate) fn is_missing(kind: RawMessageErrorKind) -> bool {
    kind == RawMessageErrorKind::NoMessageFound
}

/// Messages, of each class, and journals that one look asks for: some tenths of a second of one connection, and bodies
/// of a few MiB.
const WALK_MAX: usize = 256;
/// Journals are looked at by every so many looks.
const JOURNALS_EVERY: u64 = 3;
/// Journals that are listed: more are an answer of many MiB.
const JOURNALS_MAX: u64 = 100_000;
/// Ends that are remembered: of as many requests as journals are listed of.
const ENDED_MAX: usize = 100_000;
/// A list of that many takes the server a while.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
