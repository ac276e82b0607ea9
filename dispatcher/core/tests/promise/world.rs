//! Everything around the dispatcher, small enough to be obviously right: stream, journals, workers, and a
//! network that delays, reorders and loses.

pub mod facts;
pub mod journal;
pub mod residency;
pub mod stream;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_dispatcher_core::{
    Action, AssignOutcome, Dispatcher, JournalState, PolicySettings, Settings, Stats, StreamSequence,
};
use flotilla_protocol::assignment::{AssignReply, Assignment, Done};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::{Attempt, Epoch, ModelName, Moment, RequestId, Strikes, WorkerId};

use facts::Fact;
use journal::{Entry, Journal};
use stream::{Message, Wish};
use worker::{Work, Worker};

/// One thing that happens; a `usize` picks among what there is.
#[derive(Debug, Clone)]
pub enum Step {
    Publish(Wish),
    PublishAgain(usize),
    Deliver(usize),
    Drop(usize),
    Wait {
        ms: u64,
    },
    /// The process sleeps, and then finds that so much time has passed.
    Jump {
        minutes: u64,
    },
    Report(usize),
    Work(usize, usize, Work),
    /// Models and memory of a worker change.
    Shake(usize, usize),
    Learn(Fact),
    Die(usize),
    Start(usize),
    Miss(usize),
    Drain(usize),
    Cancel(usize),
    GiveUpAssign(usize),
    Redeliver(usize),
    NewLeader,
    RemoveModel,
}

/// What is under way.
#[derive(Debug)]
enum Packet {
    Message(StreamSequence),
    Report(Report),
    Done(Done),
    Assign {
        term: u64,
        worker: usize,
        assignment: Assignment,
    },
    Reply {
        term: u64,
        worker: WorkerId,
        request: RequestId,
        attempt: Attempt,
        reply: AssignReply,
    },
    Cancel {
        worker: usize,
        request: RequestId,
    },
    Read {
        term: u64,
        request: RequestId,
    },
    Journal {
        term: u64,
        request: RequestId,
        state: JournalState,
    },
    End {
        term: u64,
        request: RequestId,
    },
    Ended {
        term: u64,
        request: RequestId,
    },
    Ack(Vec<StreamSequence>),
}

pub struct World {
    now_ms: u64,
    term: u64,
    term_began_ms: u64,
    pub dispatcher: Dispatcher,
    stream: BTreeMap<StreamSequence, Message>,
    pub journals: BTreeMap<RequestId, Journal>,
    pub workers: Vec<Worker>,
    network: Vec<Packet>,
    /// Assignments whose outcome the shell owes to the dispatcher; a request that was published again after
    /// its end may be here twice.
    outstanding: Vec<(WorkerId, RequestId, Attempt)>,
    removed_models: BTreeSet<u8>,
    facts: Vec<Fact>,
    past: Vec<Stats>,
    /// Requests that became dead letters.
    pub dead: BTreeSet<RequestId>,
}

impl World {
    pub fn new(slots: &[u32]) -> Self {
        Self {
            now_ms: 0,
            term: 1,
            term_began_ms: 0,
            dispatcher: Dispatcher::new(Moment::default(), settings(1)),
            stream: BTreeMap::new(),
            journals: BTreeMap::new(),
            workers: slots
                .iter()
                .enumerate()
                .map(|(index, slots)| Worker::new(index, *slots))
                .collect(),
            network: Vec::new(),
            outstanding: Vec::new(),
            removed_models: BTreeSet::new(),
            facts: Vec::new(),
            past: Vec::new(),
            dead: BTreeSet::new(),
        }
    }

    /// Stats of every term.
    pub fn stats(&self) -> Vec<Stats> {
        self.past
            .iter()
            .copied()
            .chain([self.dispatcher.stats()])
            .collect()
    }

    pub fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish(ref wish) => self.publish(wish),
            Step::PublishAgain(pick) => self.publish_again(pick),
            Step::Deliver(pick) => {
                if let Some(index) = index_of(pick, self.network.len()) {
                    let packet = self.network.remove(index);
                    self.deliver(packet);
                }
            }
            Step::Drop(pick) => self.lose(pick),
            Step::Wait { ms } => self.wait(ms),
            Step::Jump { minutes } => self.jump(minutes),
            Step::Shake(worker, pick) => self.picked(worker).shake(pick),
            Step::Learn(ref fact) => self.learn(fact),
            Step::Report(pick) => self.report(pick % self.workers.len()),
            Step::Work(worker, pick, work) => self.work(worker % self.workers.len(), pick, work),
            Step::Die(pick) => self.picked(pick).die(),
            Step::Start(pick) => self.start(pick % self.workers.len()),
            Step::Miss(pick) => self.miss(pick),
            Step::Drain(pick) => self.picked(pick).draining = true,
            Step::Cancel(pick) => self.cancel(pick),
            Step::GiveUpAssign(pick) => self.give_up_assign(pick),
            Step::Redeliver(pick) => self.redeliver(pick),
            Step::NewLeader => self.new_leader(),
            Step::RemoveModel => self.remove_model(),
        }
        self.run_actions();
    }

    /// Faults stop: what is under way arrives, workers are up and finish what they run. Panics unless
    /// every request comes to its one end.
    pub fn end_well(&mut self) {
        for index in 0..self.workers.len() {
            self.workers[index].draining = false;
            self.start(index);
        }
        self.unpin_everything();
        for _ in 0..400 {
            for index in 0..self.workers.len() {
                self.start(index);
                for (pick, _) in self.workers[index].requests().into_iter().enumerate() {
                    self.work(index, pick, Work::Finish);
                }
                self.report(index);
            }
            self.deliver_everything();
            while !self.outstanding.is_empty() {
                self.give_up_assign(0);
                self.run_actions();
                self.deliver_everything();
            }
            for sequence in self.unacked() {
                self.network.push(Packet::Message(sequence));
            }
            self.deliver_everything();
            if self.unacked().is_empty() && self.network.is_empty() {
                break;
            }
            self.wait(250);
            self.run_actions();
        }
        self.assert_promise();
    }

    pub fn assert_promise(&self) {
        for message in self.stream.values() {
            let journal = self.journals.get(&message.request);
            assert!(
                message.acked,
                "{} was never acknowledged: {journal:?}\n{:?}",
                message.request, self.dispatcher
            );
            assert_eq!(
                journal.map(Journal::terminal_count),
                Some(1),
                "{}",
                message.request
            );
        }
        for journal in self.journals.values() {
            journal.assert_attempts_do_not_interleave();
        }
        assert_eq!(self.dispatcher.held_count(), 0, "{:?}", self.dispatcher);
        assert_eq!(
            self.dispatcher.assigned_count() + self.dispatcher.queued_count(),
            0
        );
    }

    fn deliver_everything(&mut self) {
        let mut delivered = 0;
        while !self.network.is_empty() {
            delivered += 1;
            assert!(delivered < 5000, "messages go round for ever: {:?}", self.network);
            let packet = self.network.remove(0);
            self.deliver(packet);
            self.run_actions();
        }
    }

    fn picked(&mut self, pick: usize) -> &mut Worker {
        let index = pick % self.workers.len();
        &mut self.workers[index]
    }

    fn now(&self) -> Moment {
        Moment::after_origin(Duration::from_millis(self.now_ms))
    }

    fn lose(&mut self, pick: usize) {
        let Some(index) = index_of(pick, self.network.len()) else {
            return;
        };
        // The shell tries journal and terminal events again for ever, and the stream delivers again.
        match self.network[index] {
            Packet::Report(_)
            | Packet::Done(_)
            | Packet::Assign { .. }
            | Packet::Reply { .. }
            | Packet::Cancel { .. }
            | Packet::Ack(_)
            | Packet::Message(_) => drop(self.network.remove(index)),
            Packet::Read { .. } | Packet::Journal { .. } | Packet::End { .. } | Packet::Ended { .. } => {}
        }
    }

    fn wait(&mut self, ms: u64) {
        let until = Moment::after_origin(Duration::from_millis(self.now_ms + ms));
        while let Some(at) = self.dispatcher.poll_timeout().filter(|at| *at <= until) {
            let at = at.max(self.now());
            self.dispatcher.handle_timeout(at);
            self.dispatcher.check_invariants();
            assert!(
                self.dispatcher.poll_timeout().is_none_or(|next| next > at),
                "a timer fires for ever"
            );
        }
        self.now_ms += ms;
    }

    fn jump(&mut self, minutes: u64) {
        self.now_ms += minutes * 60_000;
        let now = self.now();
        self.dispatcher.handle_timeout(now);
    }

    fn report(&mut self, index: usize) {
        if self.workers[index].alive {
            let report = self.workers[index].report();
            self.network.push(Packet::Report(report));
        }
    }

    fn work(&mut self, index: usize, pick: usize, work: Work) {
        let requests = self.workers[index].requests();
        let Some(pick) = index_of(pick, requests.len()) else {
            return;
        };
        let request = &requests[pick];
        let computes = matches!(work, Work::Step | Work::Finish) && self.workers[index].computes(request);
        if computes && self.is_poison(request) {
            return self.workers[index].die();
        }
        let journal = self.journals.entry(requests[pick].clone()).or_default();
        if let Some(done) = self.workers[index].work(&requests[pick], journal, work) {
            self.network.push(Packet::Done(done));
        }
    }

    fn start(&mut self, index: usize) {
        if !self.workers[index].alive {
            self.workers[index].start();
        }
    }

    /// Nobody listens where a worker would, dead or only cut off.
    fn miss(&mut self, pick: usize) {
        let worker = self.picked(pick).id.clone();
        let now = self.now();
        self.dispatcher.handle_absent(now, &worker);
    }

    fn cancel(&mut self, pick: usize) {
        let Some(index) = index_of(pick, self.stream.len()) else {
            return;
        };
        let request = self.stream.values().nth(index).unwrap().request.clone();
        let now = self.now();
        self.dispatcher.handle_cancel(now, &request);
    }

    fn give_up_assign(&mut self, pick: usize) {
        let Some(index) = index_of(pick, self.outstanding.len()) else {
            return;
        };
        let (worker, request, attempt) = self.outstanding[index].clone();
        self.outcome(&worker, &request, attempt, AssignOutcome::NoAnswer);
    }

    /// The leader dies, whatever it has sent is still under way, and its successor knows nothing.
    fn new_leader(&mut self) {
        self.past.push(self.dispatcher.stats());
        self.term += 1;
        self.term_began_ms = self.now_ms;
        self.outstanding.clear();
        self.dispatcher = Dispatcher::new(self.now(), settings(self.term));
        self.tell_all_facts();
        for sequence in self.unacked() {
            self.network.push(Packet::Message(sequence));
        }
    }

    fn remove_model(&mut self) {
        self.removed_models.insert(2);
        let now = self.now();
        self.dispatcher.handle_model_removed(now, &model(2));
    }

    fn deliver(&mut self, packet: Packet) {
        let now = self.now();
        match packet {
            Packet::Message(sequence) => self.deliver_message(sequence),
            Packet::Report(report) => self.dispatcher.handle_report(now, report),
            Packet::Done(done) => self.dispatcher.handle_done(now, done),
            Packet::Assign {
                term,
                worker,
                assignment,
            } => self.deliver_assign(term, worker, &assignment),
            Packet::Reply {
                term,
                worker,
                request,
                attempt,
                reply,
            } if term == self.term => {
                self.outcome(&worker, &request, attempt, AssignOutcome::Replied(reply));
            }
            Packet::Cancel { worker, request } => self.workers[worker].cancel(&request),
            Packet::Read { term, request } => {
                let state = self.journals.entry(request.clone()).or_default().state();
                self.network.push(Packet::Journal { term, request, state });
            }
            Packet::Journal { term, request, state } if term == self.term => {
                self.dispatcher.handle_journal(now, &request, state);
            }
            Packet::End { term, request } => {
                let journal = self.journals.entry(request.clone()).or_default();
                if !journal.is_terminal() {
                    assert!(journal.append(journal.last(), Entry::Terminal));
                }
                self.network.push(Packet::Ended { term, request });
            }
            Packet::Ended { term, request } if term == self.term => {
                self.dispatcher.handle_ended(now, &request)
            }
            Packet::Ack(sequences) => {
                for sequence in sequences {
                    self.stream.get_mut(&sequence).unwrap().acked = true;
                }
            }
            // Addressed to a leader that is gone.
            Packet::Reply { .. } | Packet::Journal { .. } | Packet::Ended { .. } => {}
        }
    }

    fn deliver_assign(&mut self, term: u64, index: usize, assignment: &Assignment) {
        let worker = &mut self.workers[index];
        if !worker.alive {
            return;
        }
        let reply = worker.assign(assignment);
        self.network.push(Packet::Reply {
            term,
            worker: worker.id.clone(),
            request: assignment.request.clone(),
            attempt: assignment.attempt,
            reply,
        });
    }

    fn outcome(&mut self, worker: &WorkerId, request: &RequestId, attempt: Attempt, outcome: AssignOutcome) {
        let key = (worker.clone(), request.clone(), attempt);
        if let Some(index) = self.outstanding.iter().position(|known| *known == key) {
            self.outstanding.remove(index);
            let now = self.now();
            self.dispatcher
                .handle_assign_reply(now, worker, request, attempt, outcome);
        }
    }

    fn run_actions(&mut self) {
        self.dispatcher.check_invariants();
        while let Some(action) = self.dispatcher.poll_action() {
            let term = self.term;
            match action {
                Action::Assign { worker, assignment } => {
                    assert_eq!(assignment.epoch, Epoch(term));
                    let key = (worker.clone(), assignment.request.clone(), assignment.attempt);
                    self.outstanding.push(key);
                    let worker = self.index_of_worker(&worker);
                    self.network.push(Packet::Assign {
                        term,
                        worker,
                        assignment,
                    });
                }
                Action::ReadJournal { request } => self.network.push(Packet::Read { term, request }),
                Action::End { request, .. } => self.network.push(Packet::End { term, request }),
                Action::DeadLetter {
                    request, sequences, ..
                } => {
                    assert!(!sequences.is_empty());
                    self.dead.insert(request);
                }
                Action::Ack { request, sequences } => self.ack(&request, sequences),
                Action::CancelOnWorker { worker, request } => {
                    let worker = self.index_of_worker(&worker);
                    self.network.push(Packet::Cancel { worker, request });
                }
                Action::Prefetch { .. } => {}
                Action::AskForReport { worker } => self.report(self.index_of_worker(&worker)),
                Action::Progress { progress, .. } => assert!(progress.position.is_some()),
                Action::StepDown { .. } => panic!("no newer leader exists"),
            }
        }
    }

    fn ack(&mut self, request: &RequestId, sequences: Vec<StreamSequence>) {
        assert!(
            self.journals.get(request).is_some_and(Journal::is_terminal),
            "{request} is not terminal"
        );
        for sequence in &sequences {
            assert_eq!(self.stream[sequence].request, *request);
        }
        self.network.push(Packet::Ack(sequences));
    }

    fn index_of_worker(&self, id: &WorkerId) -> usize {
        self.workers.iter().position(|worker| worker.id == *id).unwrap()
    }
}

fn settings(term: u64) -> Settings {
    Settings {
        epoch: Epoch(term),
        worker_lost_after: Duration::from_secs(4),
        strikes_max: Strikes(2),
        held_max: 64,
        workers_max: 16,
        progress_interval: Duration::from_secs(1),
        policy: PolicySettings::default(),
    }
}

fn model(index: u8) -> ModelName {
    ModelName::new(format!("model-{index}")).unwrap()
}

fn index_of(pick: usize, count: usize) -> Option<usize> {
    pick.checked_rem(count)
}
