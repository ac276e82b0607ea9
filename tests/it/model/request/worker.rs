//! What a worker does with an attempt.

use std::cmp::Ordering;

use super::steps::{Step, Steps};
use super::{
    Append, Record, Rules, Run, Stage, State, TOKENS, What, Worker, count, is_same_writer, tokens_in,
};

impl State {
    pub(super) fn worker_steps(&self, at: u8, rules: &Rules, steps: &mut Steps<'_>) {
        let Some(run) = self.workers[usize::from(at)].run else {
            return;
        };
        steps.fault(Step::DiesAndStartsAgain { worker: at }, |next| {
            next.start_again(at)
        });
        if let Stage::Waits(what) = run.stage {
            steps.fault(Step::DiesBeforeItAppends { worker: at, what }, |next| {
                next.appends.remove(&run.append(at, what));
                next.start_again(at);
            });
        }
        match run.stage {
            Stage::Opens => {
                steps.free(
                    Step::Opens {
                        worker: at,
                        attempt: run.attempt,
                    },
                    |next| {
                        next.go_on(at, self.opened(at, run, rules));
                    },
                );
            }
            Stage::Waits(what) => {
                let append = run.append(at, what);
                let step = Step::WaitsNoLonger { worker: at, what };
                let doubt = |next: &mut Self| next.put(at, run, Stage::Doubts(what));
                if self.appends.contains(&append) {
                    steps.fault(step, doubt);
                } else {
                    steps.free(step, doubt);
                }
            }
            Stage::Ready | Stage::Repeats(_) => unreachable!("what may append does so at once"),
            Stage::Doubts(what) if rules.reads_after_doubt => {
                steps.free(Step::LooksUp { worker: at, what }, |next| {
                    next.go_on(at, self.looked_up(at, run, what, rules));
                });
            }
            Stage::Doubts(what) => {
                let known = count(self.journal.len());
                steps.free(Step::AppendsAgain { worker: at, what }, |next| {
                    next.send(at, Run { known, ..run }, what);
                });
            }
        }
    }

    /// The attempt on the journal as it is; the first one takes it for empty.
    fn opened(&self, at: u8, run: Run, rules: &Rules) -> Option<Run> {
        if run.attempt == 1 {
            return Some(Run {
                stage: Stage::Ready,
                ..run
            });
        }
        if self.stops(at, run, rules) {
            return None;
        }
        let is_own = |record: &Record| is_same_writer(record, &run.record(at, record.what), rules);
        Some(Run {
            stage: Stage::Ready,
            known: count(self.journal.len()),
            has_begun: self.journal.iter().any(is_own),
            tokens: tokens_in(&self.journal),
            ..run
        })
    }

    /// The attempt once it knows what became of an append.
    fn looked_up(&self, at: u8, run: Run, what: What, rules: &Rules) -> Option<Run> {
        let own = run.record(at, what);
        let first = self.journal.get(usize::from(run.known));
        let is_stored = first.is_some_and(|first| first.what == what && is_same_writer(first, &own, rules));
        let run = if is_stored {
            run.stored(what)?
        } else {
            Run {
                stage: Stage::Repeats(what),
                ..run
            }
        };
        if self.stops(at, run, rules) {
            return None;
        }
        // What does not stop it is absorbed; before it has begun, an older attempt may have added to the answer.
        Some(Run {
            known: count(self.journal.len()),
            tokens: tokens_in(&self.journal),
            ..run
        })
    }

    fn stops(&self, at: u8, run: Run, rules: &Rules) -> bool {
        let is_fence = |record: &Record| match record.attempt.cmp(&run.attempt) {
            Ordering::Less => false,
            Ordering::Equal if record.worker == at => record.life != run.life && rules.earlier_starts_fence,
            Ordering::Equal => rules.equal_attempts_fence,
            Ordering::Greater => true,
        };
        self.has_end() || self.journal.iter().any(is_fence)
    }

    fn start_again(&mut self, at: u8) {
        let worker = &mut self.workers[usize::from(at)];
        *worker = Worker {
            life: worker.life + 1,
            epoch_seen: 0,
            run: None,
        };
    }

    /// What may append does so in the same step: that its message is late comes to the same as that it was.
    pub(super) fn go_on(&mut self, at: u8, run: Option<Run>) {
        self.workers[usize::from(at)].run = run;
        if let Some(run) = run {
            match run.stage {
                Stage::Ready => self.send(at, run, run.next_event()),
                Stage::Repeats(what) => self.send(at, run, what),
                Stage::Opens | Stage::Waits(_) | Stage::Doubts(_) => {}
            }
        }
    }

    fn send(&mut self, at: u8, run: Run, what: What) {
        self.appends.insert(run.append(at, what));
        self.put(at, run, Stage::Waits(what));
    }

    pub(super) fn put(&mut self, at: u8, run: Run, stage: Stage) {
        self.workers[usize::from(at)].run = Some(Run { stage, ..run });
    }
}

impl Run {
    fn next_event(&self) -> What {
        if !self.has_begun {
            What::Accepted
        } else if self.tokens < TOKENS {
            What::Token(self.tokens)
        } else {
            What::End
        }
    }

    fn record(&self, worker: u8, what: What) -> Record {
        Record {
            attempt: self.attempt,
            worker,
            life: self.life,
            what,
        }
    }

    fn append(&self, worker: u8, what: What) -> Append {
        Append {
            expected: self.known,
            record: self.record(worker, what),
        }
    }

    /// The attempt after an append of its own; none after the end.
    pub(super) fn stored(self, what: What) -> Option<Self> {
        let run = Self {
            known: self.known + 1,
            stage: Stage::Ready,
            ..self
        };
        match what {
            What::Accepted => Some(Self {
                has_begun: true,
                ..run
            }),
            What::Token(index) => Some(Self {
                tokens: index + 1,
                ..run
            }),
            What::End => None,
        }
    }
}
