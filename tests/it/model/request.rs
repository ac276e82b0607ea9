//! The rules of dispatchers, workers and server for one request, as far as its answer depends on them.
//!
//! The stream keeps the request until an acknowledgement arrives, whoever sent it. Whoever takes the lease has the
//! request delivered anew. Messages arrive late or never; who waits gives up at any time. Processes of workers die
//! and forget. All of that is a fault and counted; what a part does about it is free, so that a state from which
//! free steps lead nowhere is one in which somebody waits for ever.

mod invariants;
mod steps;
mod worker;

use std::collections::BTreeSet;

pub(super) use invariants::broken_invariant;
pub(super) use steps::Step;
use steps::Steps;

/// Which rules hold; by default those of Flotilla.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Faults in all.
    pub(super) faults: u8,
    /// The request is acknowledged when it is assigned, as queues are that lose work.
    pub(super) acks_when_assigned: bool,
    /// The server stores an append only behind the sequence that it expects.
    pub(super) server_compares_sequences: bool,
    /// A worker that does not know whether an append is stored reads the journal before anything else.
    pub(super) reads_after_doubt: bool,
    /// An equal attempt of another worker stops an attempt, as a larger one does.
    pub(super) equal_attempts_fence: bool,
    /// So does one of an earlier start of the same worker.
    pub(super) earlier_starts_fence: bool,
    /// What is not acknowledged is delivered anew to whoever takes the lease.
    pub(super) delivers_to_new_leaders: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            faults: 2,
            acks_when_assigned: false,
            server_compares_sequences: true,
            reads_after_doubt: true,
            equal_attempts_fence: true,
            earlier_starts_fence: true,
            delivers_to_new_leaders: true,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum What {
    Accepted,
    Token(u8),
    End,
}

/// An event with who wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Record {
    attempt: u8,
    worker: u8,
    /// Which start of the worker.
    life: u8,
    what: What,
}

/// What a dispatcher knows of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Case {
    /// It was not delivered.
    None,
    /// It was published in this term, so that nobody has seen it.
    Fresh,
    /// Its journal has to be read. Of this term's own attempts the newest is known.
    Unread { newest: u8 },
    /// It waits for a worker.
    Open { newest: u8 },
    /// A worker has it, or will.
    Given { worker: u8, attempt: u8 },
    /// Its journal has an end.
    Acked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Dispatcher {
    StandsBy,
    /// It believes that it leads.
    Leads {
        epoch: u8,
        case: Case,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// It has to look at the journal first.
    Opens,
    /// It may append.
    Ready,
    /// An append is under way.
    Waits(What),
    /// Nobody knows what became of this append.
    Doubts(What),
    /// This append was not stored.
    Repeats(What),
}

/// An attempt that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Run {
    attempt: u8,
    /// That of its worker.
    life: u8,
    stage: Stage,
    /// Entries of the journal that it knows.
    known: u8,
    has_begun: bool,
    /// Tokens of the answer up to here.
    tokens: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Worker {
    /// Which start of it this is.
    life: u8,
    epoch_seen: u8,
    run: Option<Run>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Assign {
    worker: u8,
    epoch: u8,
    attempt: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Append {
    expected: u8,
    record: Record,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    journal: Vec<Record>,
    /// The request is in its stream.
    queued: bool,
    /// Who holds the lease, by the server.
    lease: Option<u8>,
    /// The newest epoch.
    epoch: u8,
    dispatchers: [Dispatcher; 2],
    workers: [Worker; 2],
    /// On their way.
    assigns: BTreeSet<Assign>,
    appends: BTreeSet<Append>,
    ack: bool,
    faults_left: u8,
}

fn is_same_writer(one: &Record, other: &Record, rules: &Rules) -> bool {
    let is_same_start = one.life == other.life || !rules.earlier_starts_fence;
    is_same_start && (one.attempt, one.worker) == (other.attempt, other.worker)
}

fn tokens_in(journal: &[Record]) -> u8 {
    let tokens = journal.iter().filter(|it| matches!(it.what, What::Token(_)));
    count(tokens.count())
}

impl State {
    /// A leader has just got a request that nobody has seen.
    pub(super) fn at_the_beginning(rules: &Rules) -> Self {
        let worker = Worker {
            life: 0,
            epoch_seen: 0,
            run: None,
        };
        let leader = Dispatcher::Leads {
            epoch: 1,
            case: Case::Fresh,
        };
        Self {
            journal: Vec::new(),
            queued: true,
            lease: Some(0),
            epoch: 1,
            dispatchers: [leader, Dispatcher::StandsBy],
            workers: [worker; 2],
            assigns: BTreeSet::new(),
            appends: BTreeSet::new(),
            ack: false,
            faults_left: rules.faults,
        }
    }

    /// The answer has its end and the stream no request.
    pub(super) fn is_over(&self) -> bool {
        !self.queued && self.has_end()
    }

    fn has_end(&self) -> bool {
        self.journal.iter().any(|record| record.what == What::End)
    }

    /// Everything that can happen next, by name.
    pub(super) fn steps(&self, rules: &Rules) -> Vec<(Step, Self)> {
        let mut steps = Steps {
            of: self,
            next: Vec::new(),
        };
        self.lease_steps(rules, &mut steps);
        for at in 0..2 {
            self.dispatcher_steps(at, rules, &mut steps);
            self.worker_steps(at, rules, &mut steps);
        }
        self.message_steps(rules, &mut steps);
        steps.next
    }

    fn lease_steps(&self, rules: &Rules, steps: &mut Steps<'_>) {
        if self.lease.is_some() {
            steps.fault(Step::LeaseExpires, |next| next.lease = None);
        }
        for at in 0..2 {
            match self.dispatchers[usize::from(at)] {
                Dispatcher::StandsBy if self.lease.is_none() => {
                    steps.free(Step::TakesLease { dispatcher: at }, |next| {
                        next.lease = Some(at);
                        next.epoch += 1;
                        let case = if next.queued && rules.delivers_to_new_leaders {
                            Case::Unread { newest: 0 }
                        } else {
                            Case::None
                        };
                        let epoch = next.epoch;
                        next.dispatchers[usize::from(at)] = Dispatcher::Leads { epoch, case };
                    });
                }
                Dispatcher::Leads { .. } if self.lease != Some(at) => {
                    steps.free(Step::NoticesLoss { dispatcher: at }, |next| {
                        next.dispatchers[usize::from(at)] = Dispatcher::StandsBy;
                    });
                }
                Dispatcher::StandsBy | Dispatcher::Leads { .. } => {}
            }
        }
    }

    fn dispatcher_steps(&self, at: u8, rules: &Rules, steps: &mut Steps<'_>) {
        let Dispatcher::Leads { epoch, case } = self.dispatchers[usize::from(at)] else {
            return;
        };
        match case {
            Case::None => {}
            Case::Fresh => self.assign_steps(at, epoch, 1, rules, steps),
            Case::Open { newest } => {
                self.assign_steps(at, epoch, newest + 1, rules, steps);
                self.adopt_steps(at, newest, steps);
            }
            Case::Unread { newest } => {
                let stored = self.journal.iter().map(|record| record.attempt).max();
                let case = if self.has_end() {
                    Case::Acked
                } else {
                    let newest = newest.max(stored.unwrap_or(0));
                    Case::Open { newest }
                };
                steps.free(Step::ReadsJournal { dispatcher: at }, |next| {
                    next.learn(at, case);
                    next.ack |= case == Case::Acked;
                });
            }
            Case::Given { worker, attempt } => {
                let unread = Case::Unread { newest: attempt };
                let runs = self.workers[usize::from(worker)].run;
                let is_there = runs.is_some_and(|run| run.attempt == attempt)
                    || self
                        .assigns
                        .iter()
                        .any(|it| (it.worker, it.attempt) == (worker, attempt));
                let step = Step::GivesUp {
                    dispatcher: at,
                    worker,
                    attempt,
                };
                if is_there {
                    steps.fault(step, |next| next.learn(at, unread));
                } else {
                    steps.free(step, |next| next.learn(at, unread));
                }
            }
            Case::Acked => {
                if self.queued && !self.ack {
                    let redelivered = Case::Unread { newest: 0 };
                    steps.free(Step::GetsAgain { dispatcher: at }, |next| {
                        next.learn(at, redelivered);
                    });
                }
            }
        }
    }

    /// Who leads no more and does not know yet may still assign: that is a fault as well, since what it believes in
    /// has an end by its own clock.
    fn assign_steps(&self, at: u8, epoch: u8, attempt: u8, rules: &Rules, steps: &mut Steps<'_>) {
        for worker in 0..2 {
            let step = Step::Assigns {
                dispatcher: at,
                worker,
                attempt,
            };
            let assign = |next: &mut Self| {
                next.assigns.insert(Assign {
                    worker,
                    epoch,
                    attempt,
                });
                next.learn(at, Case::Given { worker, attempt });
                next.ack |= rules.acks_when_assigned;
            };
            if self.lease == Some(at) {
                steps.free(step, assign);
            } else {
                steps.fault(step, assign);
            }
        }
    }

    /// A new leader learns from a report that a worker has the request.
    fn adopt_steps(&self, at: u8, newest: u8, steps: &mut Steps<'_>) {
        for worker in 0..2 {
            let run = self.workers[usize::from(worker)].run;
            if let Some(run) = run.filter(|run| run.attempt >= newest) {
                let attempt = run.attempt;
                steps.free(
                    Step::Adopts {
                        dispatcher: at,
                        worker,
                        attempt,
                    },
                    |next| {
                        next.learn(at, Case::Given { worker, attempt });
                    },
                );
            }
        }
    }

    fn learn(&mut self, at: u8, learnt: Case) {
        if let Dispatcher::Leads { case, .. } = &mut self.dispatchers[usize::from(at)] {
            *case = learnt;
        }
    }

    fn message_steps(&self, rules: &Rules, steps: &mut Steps<'_>) {
        for assign in &self.assigns {
            steps.free(Step::AssignArrives(*assign), |next| next.take_assign(*assign));
            steps.fault(Step::AssignIsLost(*assign), |next| {
                next.assigns.remove(assign);
            });
        }
        for append in &self.appends {
            steps.free(Step::AppendIsAnswered(*append), |next| {
                let is_stored = next.take_append(*append, rules);
                next.answer(*append, is_stored);
            });
            steps.fault(Step::AppendArrivesUnanswered(*append), |next| {
                next.take_append(*append, rules);
            });
            steps.fault(Step::AppendIsLost(*append), |next| {
                next.appends.remove(append);
            });
        }
        if self.ack {
            steps.free(Step::AckArrives, |next| {
                next.ack = false;
                next.queued = false;
            });
            steps.fault(Step::AckIsLost, |next| next.ack = false);
        }
    }

    /// A worker refuses an older leader, who steps down then, and an attempt that is not newer than what it runs.
    fn take_assign(&mut self, assign: Assign) {
        self.assigns.remove(&assign);
        let worker = &mut self.workers[usize::from(assign.worker)];
        if assign.epoch < worker.epoch_seen {
            for dispatcher in &mut self.dispatchers {
                if matches!(dispatcher, Dispatcher::Leads { epoch, .. } if *epoch == assign.epoch) {
                    *dispatcher = Dispatcher::StandsBy;
                }
            }
            return;
        }
        if worker.run.is_some_and(|run| run.attempt >= assign.attempt) {
            return;
        }
        *worker = Worker {
            epoch_seen: assign.epoch,
            life: worker.life,
            run: Some(Run {
                attempt: assign.attempt,
                life: worker.life,
                stage: Stage::Opens,
                known: 0,
                has_begun: false,
                tokens: 0,
            }),
        };
    }

    fn take_append(&mut self, append: Append, rules: &Rules) -> bool {
        self.appends.remove(&append);
        let follows = usize::from(append.expected) == self.journal.len();
        let is_stored = follows || !rules.server_compares_sequences;
        if is_stored {
            self.journal.push(append.record);
        }
        is_stored
    }

    /// Tells who still waits for it what became of an append.
    fn answer(&mut self, append: Append, is_stored: bool) {
        let Record {
            attempt,
            worker,
            life,
            what,
        } = append.record;
        let waits = |run: &Run| {
            (run.attempt, run.life) == (attempt, life)
                && run.stage == Stage::Waits(what)
                && run.known == append.expected
        };
        if let Some(run) = self.workers[usize::from(worker)].run.filter(waits) {
            if is_stored {
                self.go_on(worker, run.stored(what));
            } else {
                self.put(worker, run, Stage::Doubts(what));
            }
        }
    }
}

fn count(number: usize) -> u8 {
    u8::try_from(number).expect("journals of the model are short")
}

/// Tokens of the whole answer.
const TOKENS: u8 = 1;
