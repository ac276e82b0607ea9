//! Attempts that race over one journal, over a network that loses, delays and refuses.
#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

use flotilla_protocol::event::{Event, FinishReason, Finished, Timings, TokenLogprobs, Usage};
use flotilla_protocol::{Attempt, ModelName, RequestId, Strikes, WorkerId};
use flotilla_worker_core::answer::{
    Action, Answer, Append, BeginError, Ended, JournalError, JournalView, Record, Writer,
};
use proptest::prelude::*;

/// What JetStream does: it stores an append whose expectation holds.
#[derive(Debug, Default)]
struct Journal {
    records: Vec<Record>,
    stream_sequence: u64,
}

impl Journal {
    fn last_sequence(&self) -> u64 {
        self.records.last().map_or(0, |record| record.sequence)
    }

    /// The stored sequence; `None` for a conflict.
    fn store(&mut self, writer: &Writer, append: Append) -> Option<u64> {
        if append.expected_last_sequence != self.last_sequence() {
            return None;
        }
        self.stream_sequence += 3;
        let has_strikes = matches!(append.event, Event::Accepted(_));
        self.records.push(Record {
            sequence: self.stream_sequence,
            attempt: writer.attempt,
            worker: Some(writer.worker.clone()),
            incarnation: has_strikes.then_some(writer.incarnation),
            strikes: if has_strikes { writer.strikes } else { Strikes(0) },
            event: append.event,
        });
        Some(self.stream_sequence)
    }

    fn after(&self, sequence: u64) -> Vec<Record> {
        let newer = self.records.iter().filter(|record| record.sequence > sequence);
        newer.cloned().collect()
    }

    fn view(&self) -> JournalView {
        JournalView::from_records(self.records.clone()).unwrap()
    }
}

/// How the network treats one append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    AnswerLost,
    Lost,
    /// It arrives later, perhaps after the writer gave it up.
    Late,
}

#[derive(Debug, Clone)]
enum Step {
    Begin {
        attempt_step: u32,
        worker: u8,
    },
    Turn {
        writer: prop::sample::Index,
        fate: Fate,
    },
    Generate {
        writer: prop::sample::Index,
        count: usize,
    },
    Finish {
        writer: prop::sample::Index,
    },
    Stop {
        writer: prop::sample::Index,
    },
    DeliverLate {
        append: prop::sample::Index,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let writer = any::<prop::sample::Index>;
    let fate = prop_oneof![
        4 => Just(Fate::Answered),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Late),
    ];
    prop_oneof![
        1 => (0..2_u32, 0..3_u8).prop_map(|(attempt_step, worker)| Step::Begin { attempt_step, worker }),
        12 => (writer(), fate).prop_map(|(writer, fate)| Step::Turn { writer, fate }),
        6 => (writer(), 0..4_usize).prop_map(|(writer, count)| Step::Generate { writer, count }),
        1 => writer().prop_map(|writer| Step::Finish { writer }),
        1 => writer().prop_map(|writer| Step::Stop { writer }),
        2 => writer().prop_map(|append| Step::DeliverLate { append }),
    ]
}

/// One worker with one attempt.
struct Run {
    writer: Writer,
    answer: Answer,
    /// Tokens of the answer as this worker knows it; `None` before the start.
    made: Option<usize>,
    has_closed: bool,
    ended: Option<Ended>,
}

#[derive(Default)]
struct World {
    journal: Journal,
    runs: Vec<Run>,
    late: Vec<(Writer, Append)>,
    newest: u32,
}

fn writer(attempt: u32, worker: u8) -> Writer {
    Writer {
        attempt: Attempt(attempt),
        strikes: Strikes(attempt / 2),
        worker: WorkerId::new(format!("w{worker}")).unwrap(),
        incarnation: 1,
        request: RequestId::new("r").unwrap(),
        model: ModelName::new("m").unwrap(),
        prompt_tokens: 4,
    }
}

fn finished() -> Event {
    Event::Finished(Finished {
        finish_reason: FinishReason::Stop,
        usage: Usage::new(4, 0),
        timings: Timings::default(),
        data: None,
    })
}

/// A token tells its place and who made it.
fn token(index: usize, writer: &Writer) -> u32 {
    u32::try_from(index).unwrap() * 100 + writer.attempt.0
}

fn letter(index: usize) -> char {
    char::from(b'a' + u8::try_from(index % 26).unwrap())
}

impl World {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Begin { attempt_step, worker } => self.begin(attempt_step, worker),
            Step::Turn { writer, fate } => self.turn(writer, fate),
            Step::Generate { writer, count } => {
                if let Some(run) = self.pick(writer) {
                    run.generate(count);
                }
            }
            Step::Finish { writer } => {
                if let Some(run) = self.pick(writer) {
                    run.has_closed = true;
                    run.answer.handle_end(finished());
                }
            }
            Step::Stop { writer } => {
                if let Some(run) = self.pick(writer) {
                    run.has_closed = true;
                    run.answer.handle_stop();
                }
            }
            Step::DeliverLate { append } => {
                if !self.late.is_empty() {
                    let (writer, append) = self.late.swap_remove(append.index(self.late.len()));
                    self.journal.store(&writer, append);
                }
            }
        }
    }

    fn pick(&mut self, index: prop::sample::Index) -> Option<&mut Run> {
        (!self.runs.is_empty()).then(|| {
            let index = index.index(self.runs.len());
            &mut self.runs[index]
        })
    }

    fn begin(&mut self, attempt_step: u32, worker: u8) {
        let attempt = (self.newest + attempt_step).max(1);
        let is_new = attempt > self.newest;
        // One attempt may reach two workers, but each of them only once.
        let name = writer(attempt, worker);
        if self.runs.iter().any(|run| run.writer == name) {
            return;
        }
        self.newest = attempt;
        let view = self.journal.view();
        let is_terminal = view.terminal().is_some();
        let newest = view.attempt();
        match Answer::begin(name.clone(), view) {
            Ok(answer) => {
                assert!(!is_terminal && newest <= name.attempt);
                self.runs.push(Run {
                    writer: name,
                    answer,
                    made: None,
                    has_closed: false,
                    ended: None,
                });
            }
            Err(BeginError::AlreadyTerminal) => assert!(is_terminal),
            Err(BeginError::Fenced { attempt, .. }) => assert!(attempt == newest && !is_new),
        }
    }

    fn turn(&mut self, index: prop::sample::Index, fate: Fate) {
        if !self.runs.is_empty() {
            let index = index.index(self.runs.len());
            self.turn_of(index, fate);
        }
    }

    /// Lets one worker act; says whether it had something to do.
    fn turn_of(&mut self, index: usize, fate: Fate) -> bool {
        let run = &mut self.runs[index];
        let Some(action) = run.answer.poll_action() else {
            return false;
        };
        assert!(run.ended.is_none(), "nothing follows the end: {action:?}");
        match action {
            Action::Append(append) => {
                let stored = match fate {
                    Fate::Answered | Fate::AnswerLost => self.journal.store(&run.writer, append),
                    Fate::Lost => None,
                    Fate::Late => {
                        self.late.push((run.writer.clone(), append));
                        None
                    }
                };
                match stored.filter(|_| fate == Fate::Answered) {
                    Some(sequence) => run.answer.handle_appended(sequence),
                    None => run.answer.handle_append_unknown(),
                }
            }
            Action::ReadJournal { after_sequence } => match fate {
                Fate::Answered | Fate::Late => run.answer.handle_journal(self.journal.after(after_sequence)),
                Fate::AnswerLost | Fate::Lost => run.answer.handle_journal_unread(),
            },
            Action::Started(start) => {
                assert!(run.made.is_none(), "it starts once");
                assert_eq!(start.text.chars().count(), start.token_ids.len());
                run.made = Some(start.token_ids.len());
            }
            Action::Ended(ended) => run.ended = Some(ended),
        }
        true
    }

    /// The network heals; every worker goes on until it has nothing to do.
    fn quiesce(&mut self) {
        for (writer, append) in std::mem::take(&mut self.late) {
            self.journal.store(&writer, append);
        }
        for index in 0..self.runs.len() {
            while self.turn_of(index, Fate::Answered) {}
        }
    }

    /// A last attempt finishes what nobody did.
    fn finish(&mut self) {
        self.quiesce();
        if self.journal.view().terminal().is_some() {
            return;
        }
        self.begin(1, 0);
        let last = self.runs.len() - 1;
        while self.turn_of(last, Fate::Answered) {}
        self.runs[last].generate(2);
        self.runs[last].answer.handle_end(finished());
        while self.turn_of(last, Fate::Answered) {}
        assert_eq!(self.runs[last].ended, Some(Ended::Terminal));
        self.quiesce();
    }

    fn check_journal(&self) {
        let mut index = 0;
        let mut newest = (Attempt(0), None);
        for record in &self.journal.records {
            assert!(record.attempt >= newest.0, "a fenced attempt never writes again");
            match &record.event {
                Event::Accepted(_) => {
                    assert!(record.attempt > newest.0, "an attempt begins once, on one worker");
                    newest = (record.attempt, record.worker.clone());
                }
                Event::Tokens(tokens) => {
                    assert_eq!((record.attempt, &record.worker), (newest.0, &newest.1));
                    assert_eq!(tokens.offset as usize, index, "no token is skipped or doubled");
                    let ids = tokens.token_ids.iter().zip(tokens.text.chars());
                    for (id, text) in ids {
                        assert_eq!(*id as usize / 100, index);
                        assert_eq!(*id % 100, record.attempt.0);
                        assert_eq!(text, letter(index));
                        index += 1;
                    }
                }
                Event::Finished(_) | Event::Failed(_) | Event::Progress(_) => {}
            }
        }
        let terminals = self
            .journal
            .records
            .iter()
            .filter(|record| record.event.kind().is_terminal());
        assert_eq!(terminals.count(), 1, "an answer ends once");
        assert!(self.journal.records.last().unwrap().event.kind().is_terminal());
    }
}

impl Run {
    fn generate(&mut self, count: usize) {
        let Some(made) = self.made.filter(|_| !self.has_closed) else {
            return;
        };
        let range = made..made + count;
        let token_ids: Vec<_> = range.clone().map(|index| token(index, &self.writer)).collect();
        let text: String = range.map(letter).collect();
        self.answer.handle_tokens(&token_ids, &[], &text);
        self.made = Some(made + count);
        if self.ended.is_none() && self.answer.backlog_tokens() > 0 {
            assert_eq!(
                self.answer.stored_tokens() + self.answer.backlog_tokens(),
                made + count
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn racing_attempts_over_a_bad_network_make_one_whole_answer(
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut world = World::default();
        world.begin(1, 0);
        steps.into_iter().for_each(|step| world.apply(step));
        world.finish();
        world.check_journal();
        let view = world.journal.view();
        for run in &world.runs {
            match &run.ended {
                Some(Ended::Corrupt(error)) => prop_assert!(false, "our writers make no such journal: {error}"),
                Some(Ended::Fenced { attempt, .. }) => prop_assert!(*attempt >= run.writer.attempt),
                Some(Ended::Terminal) => {
                    prop_assert_eq!(view.attempt(), run.writer.attempt);
                    prop_assert_eq!(run.made, Some(view.token_ids().len()));
                }
                Some(Ended::AlreadyTerminal | Ended::LeftOpen) | None => {}
            }
        }
    }
}

/// Acts on a perfect network until nothing is left to do.
fn settle(answer: &mut Answer, writer: &Writer, journal: &mut Journal) -> Vec<Action> {
    let mut seen = Vec::new();
    while let Some(action) = answer.poll_action() {
        if let Action::Append(append) = &action {
            let sequence = journal.store(writer, append.clone()).unwrap();
            answer.handle_appended(sequence);
        }
        seen.push(action);
    }
    seen
}

#[test]
fn tokens_made_during_an_append_travel_together_in_the_next() {
    let (mut journal, writer) = (Journal::default(), writer(1, 0));
    let mut answer = Answer::begin(writer.clone(), JournalView::default()).unwrap();
    settle(&mut answer, &writer, &mut journal);
    let logprobs = [-1.0, -2.0, -3.0].map(|logprob| TokenLogprobs::new(logprob, [(7, -0.5)]));
    answer.handle_tokens(&[1], &logprobs[..1], "a");
    let Some(Action::Append(append)) = answer.poll_action() else {
        panic!("tokens are appended")
    };
    answer.handle_tokens(&[2], &logprobs[..1], "b");
    answer.handle_tokens(&[3, 4], &logprobs[1..], "cd");
    assert_eq!(answer.poll_action(), None, "one append is under way at a time");
    assert_eq!(answer.backlog_tokens(), 4);
    answer.handle_appended(journal.store(&writer, append).unwrap());
    assert_eq!(answer.backlog_tokens(), 3);
    settle(&mut answer, &writer, &mut journal);
    let Event::Tokens(tokens) = &journal.records[2].event else {
        panic!("the rest follows")
    };
    assert_eq!(
        (tokens.offset, tokens.token_ids.as_slice(), tokens.text.as_str()),
        (1, &[2, 3, 4][..], "bcd")
    );
    assert_eq!(tokens.logprobs, logprobs);
}

/// A number may lose its last bit in JSON; a lost answer to an append must not be taken for somebody else's event.
#[test]
fn append_whose_log_probabilities_came_back_inexact_is_still_ours() {
    let (mut journal, writer) = (Journal::default(), writer(1, 0));
    let mut answer = Answer::begin(writer.clone(), JournalView::default()).unwrap();
    settle(&mut answer, &writer, &mut journal);
    answer.handle_tokens(&[1], &[TokenLogprobs::new(-0.3, [])], "a");
    let Some(Action::Append(mut append)) = answer.poll_action() else {
        panic!("tokens are appended")
    };
    if let Event::Tokens(tokens) = &mut append.event {
        tokens.logprobs[0].logprob = -0.300_000_03;
    }
    let before = journal.records.len();
    journal.store(&writer, append).unwrap();
    answer.handle_append_unknown();
    assert!(matches!(answer.poll_action(), Some(Action::ReadJournal { .. })));
    answer.handle_journal(journal.records[before..].iter().cloned());
    assert_eq!(answer.poll_action(), None, "nothing is stored twice");
    assert_eq!(answer.stored_tokens(), 1);
}

#[test]
fn a_new_attempt_starts_from_what_the_old_one_stored() {
    let (mut journal, old, new) = (Journal::default(), writer(1, 0), writer(2, 1));
    let mut answer = Answer::begin(old.clone(), journal.view()).unwrap();
    settle(&mut answer, &old, &mut journal);
    answer.handle_tokens(&[7, 8], &[], "xy");
    settle(&mut answer, &old, &mut journal);

    let mut next = Answer::begin(new.clone(), journal.view()).unwrap();
    let seen = settle(&mut next, &new, &mut journal);
    let Some(Action::Started(start)) = seen.last() else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (start.token_ids.as_slice(), start.text.as_str()),
        (&[7, 8][..], "xy")
    );

    answer.handle_tokens(&[9], &[], "z");
    assert!(matches!(answer.poll_action(), Some(Action::Append(_))));
    answer.handle_append_unknown();
    let Some(Action::ReadJournal { after_sequence }) = answer.poll_action() else {
        panic!("it must read")
    };
    answer.handle_journal(journal.after(after_sequence));
    let fenced = Ended::Fenced {
        attempt: Attempt(2),
        strikes: Strikes(1),
    };
    assert_eq!(answer.poll_action(), Some(Action::Ended(fenced)));
    answer.handle_tokens(&[10], &[], "!");
    assert_eq!(answer.poll_action(), None, "a fenced attempt writes no more");
}

/// A search of the model of leases and late messages found this: two leaders gave the same worker the same attempt,
/// it died between the two, and its last append, longer than what its successor had made, came late.
#[test]
fn attempt_of_an_earlier_start_of_the_worker_fences_its_equal() {
    let (mut journal, first) = (Journal::default(), writer(1, 0));
    let second = Writer {
        incarnation: 2,
        ..first.clone()
    };
    let fenced = Ended::Fenced {
        attempt: Attempt(1),
        strikes: Strikes(0),
    };
    let mut successor = Answer::begin(second.clone(), JournalView::default()).unwrap();
    let Some(Action::Append(accepted)) = successor.poll_action() else {
        panic!("it begins")
    };
    let mut answer = Answer::begin(first.clone(), journal.view()).unwrap();
    settle(&mut answer, &first, &mut journal);
    assert_eq!(journal.store(&second, accepted), None, "the first start wrote");
    successor.handle_append_unknown();
    assert!(matches!(
        successor.poll_action(),
        Some(Action::ReadJournal { .. })
    ));
    successor.handle_journal(journal.after(0));
    assert_eq!(successor.poll_action(), Some(Action::Ended(fenced)));
    let refused = Answer::begin(second, journal.view()).unwrap_err();
    let BeginError::Fenced { attempt, .. } = refused else {
        panic!("{refused}")
    };
    assert_eq!(attempt, Attempt(1));
}

#[test]
fn an_end_by_the_dispatcher_stops_the_attempt() {
    let (mut journal, writer) = (Journal::default(), writer(1, 0));
    let mut answer = Answer::begin(writer.clone(), journal.view()).unwrap();
    settle(&mut answer, &writer, &mut journal);
    let mut terminal = journal.records[0].clone();
    terminal = Record {
        sequence: 99,
        attempt: Attempt(0),
        worker: None,
        event: finished(),
        ..terminal
    };
    journal.records.push(terminal);
    answer.handle_tokens(&[1], &[], "a");
    assert!(matches!(answer.poll_action(), Some(Action::Append(_))));
    answer.handle_append_unknown();
    assert!(matches!(answer.poll_action(), Some(Action::ReadJournal { .. })));
    answer.handle_journal(journal.after(3));
    assert_eq!(answer.poll_action(), Some(Action::Ended(Ended::AlreadyTerminal)));
    assert_eq!(
        Answer::begin(writer, journal.view()).unwrap_err(),
        BeginError::AlreadyTerminal
    );
}

#[test]
fn an_attempt_of_another_worker_is_not_continued_under_its_number() {
    let (mut journal, one) = (Journal::default(), writer(2, 0));
    let mut answer = Answer::begin(one.clone(), journal.view()).unwrap();
    settle(&mut answer, &one, &mut journal);
    for (attempt, worker) in [(2, 1), (1, 1), (1, 0)] {
        let error = Answer::begin(writer(attempt, worker), journal.view()).unwrap_err();
        assert_eq!(
            error,
            BeginError::Fenced {
                attempt: Attempt(2),
                strikes: Strikes(1)
            }
        );
    }
    let mut again = Answer::begin(one.clone(), journal.view()).unwrap();
    let seen = settle(&mut again, &one, &mut journal);
    assert!(
        matches!(seen[..], [Action::Started(_)]),
        "its `accepted` is there already: {seen:?}"
    );
}

#[test]
fn journals_that_no_writer_makes_are_named() {
    let (mut journal, writer) = (Journal::default(), writer(1, 0));
    let mut answer = Answer::begin(writer.clone(), journal.view()).unwrap();
    settle(&mut answer, &writer, &mut journal);
    for token in 0..3 {
        answer.handle_tokens(&[token], &[], "x");
        settle(&mut answer, &writer, &mut journal);
    }
    answer.handle_end(finished());
    settle(&mut answer, &writer, &mut journal);
    let broken = |change: fn(&mut Vec<Record>)| {
        let mut records = journal.records.clone();
        change(&mut records);
        JournalView::from_records(records).unwrap_err()
    };
    let lost = broken(|records| drop(records.remove(2)));
    assert_eq!(
        lost,
        JournalError::Offset {
            sequence: 12,
            offset: 2,
            expected: 1
        }
    );
    let beheaded = broken(|records| drop(records.remove(0)));
    assert_eq!(beheaded, JournalError::Beginning { sequence: 6 });
    let swapped = broken(|records| records.swap(1, 2));
    assert!(matches!(swapped, JournalError::Offset { .. }), "{swapped}");
    let reread = broken(|records| records.push(records[0].clone()));
    assert_eq!(
        reread,
        JournalError::Order {
            previous: 15,
            sequence: 3
        }
    );
    let more = broken(|records| {
        records.push(Record {
            sequence: 50,
            ..records[1].clone()
        })
    });
    assert_eq!(more, JournalError::AfterEnd { sequence: 50 });
    let stray = broken(|records| records[2].attempt = Attempt(9));
    assert_eq!(
        stray,
        JournalError::StrayWriter {
            sequence: 9,
            attempt: Attempt(9)
        }
    );
    let again = broken(|records| records[1].event = records[0].event.clone());
    assert!(
        matches!(again, JournalError::AttemptOrder { sequence: 6, .. }),
        "{again}"
    );
}
