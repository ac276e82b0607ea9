//! A worker, as far as the dispatcher can tell: it takes attempts, writes journals, reports, dies.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_dispatcher_core::JournalState;
use flotilla_protocol::assignment::{AssignReply, Assignment, AttemptEnd, Done, Refusal};
use flotilla_protocol::fleet::{Report, RunningRequest, WorkerState};
use flotilla_protocol::{Attempt, Epoch, ModelName, RequestId, Strikes, WorkerId};

use super::journal::{Entry, Journal};
use super::residency::Residency;

/// What a run does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Step,
    Finish,
    Panic,
    HandBack,
    FailToLoad,
}

#[derive(Debug)]
struct Run {
    attempt: Attempt,
    strikes: Strikes,
    alone: bool,
    model: ModelName,
    cancelled: bool,
    /// What it believes to be the journal's last sequence; `None` until it has read the journal.
    last: Option<usize>,
    accepted: bool,
    output_tokens: u32,
}

#[derive(Debug)]
pub struct Worker {
    pub id: WorkerId,
    pub incarnation: u64,
    pub alive: bool,
    pub draining: bool,
    seq: u64,
    epoch_seen: Epoch,
    slots: u32,
    running: BTreeMap<RequestId, Run>,
    pub residency: Residency,
    pub refused_full: u32,
    /// Models that were named as victims while it used them.
    pub victims_used: u32,
}

impl Worker {
    pub fn new(index: usize, slots: u32) -> Self {
        Self {
            id: WorkerId::new(format!("w{index}")).unwrap(),
            incarnation: 1,
            alive: true,
            draining: false,
            seq: 0,
            epoch_seen: Epoch(0),
            slots,
            running: BTreeMap::new(),
            // One room, two on one device, three on two.
            residency: Residency::new([vec![1], vec![2], vec![1, 2]][index % 3].clone()),
            refused_full: 0,
            victims_used: 0,
        }
    }

    pub fn die(&mut self) {
        self.alive = false;
        self.running.clear();
        self.residency.clear();
    }

    pub fn start(&mut self) {
        self.alive = true;
        self.draining = false;
        self.incarnation += 1;
        self.seq = 0;
        self.epoch_seen = Epoch(0);
    }

    pub fn requests(&self) -> Vec<RequestId> {
        self.running.keys().cloned().collect()
    }

    /// Models that requests use or wait for.
    fn used(&self) -> BTreeSet<ModelName> {
        self.running.values().map(|run| run.model.clone()).collect()
    }

    pub fn shake(&mut self, pick: usize) {
        let used = self.used();
        self.residency.shake(pick, &used);
    }

    pub fn report(&mut self) -> Report {
        self.seq += 1;
        let used = self.used();
        self.residency.go_on(&used);
        let running = self.running.iter().map(|(request, run)| RunningRequest {
            request: request.clone(),
            attempt: run.attempt,
            model: run.model.clone(),
            prompt_tokens: 1,
            output_tokens: run.output_tokens,
            alone: run.alone,
        });
        Report {
            worker: self.id.clone(),
            incarnation: self.incarnation,
            seq: self.seq,
            epoch_seen: self.epoch_seen,
            state: if self.draining {
                WorkerState::Draining
            } else {
                WorkerState::Ready
            },
            free_slots: self.free_slots(),
            running: running.collect(),
            models: self.residency.models(&used),
            devices: self.residency.devices(),
            host: None,
            resident_bytes: None,
            departures: Vec::new(),
            fetches: Vec::new(),
        }
    }

    pub fn assign(&mut self, assignment: &Assignment) -> AssignReply {
        if assignment.epoch < self.epoch_seen {
            return AssignReply::Refused(Refusal::StaleEpoch {
                seen: self.epoch_seen,
            });
        }
        self.epoch_seen = assignment.epoch;
        if self.draining {
            return AssignReply::Refused(Refusal::Draining);
        }
        let held = self.running.get(&assignment.request).map(|run| run.attempt);
        let mut others = self.running.keys().filter(|held| **held != assignment.request);
        let has_company = assignment.alone && others.next().is_some();
        if has_company || held.is_none() && self.free_slots() == 0 {
            self.refused_full += 1;
            return AssignReply::Refused(Refusal::Full);
        }
        if held.is_none_or(|held| held < assignment.attempt) {
            let run = Run {
                attempt: assignment.attempt,
                strikes: assignment.strikes,
                alone: assignment.alone,
                model: assignment.model.clone(),
                cancelled: false,
                last: (assignment.attempt == Attempt(1)).then_some(0),
                accepted: false,
                output_tokens: 0,
            };
            let used = self.used();
            let victims = assignment.evict_first.iter();
            let victims_used = victims.filter(|victim| self.residency.is_used(victim, &used));
            self.victims_used += u32::try_from(victims_used.count()).unwrap();
            self.residency
                .bring(&assignment.model, &assignment.evict_first, &used);
            self.running.insert(assignment.request.clone(), run);
        }
        AssignReply::Accepted {
            report_seq: self.seq,
            incarnation: Some(self.incarnation),
        }
    }

    pub fn cancel(&mut self, request: &RequestId) {
        if let Some(run) = self.running.get_mut(request) {
            run.cancelled = true;
        }
    }

    /// Whether a run has begun to compute.
    pub fn computes(&self, request: &RequestId) -> bool {
        self.running.get(request).is_some_and(|run| run.accepted)
    }

    /// Goes on with one run: reads the journal, or appends to it, or ends the attempt.
    pub fn work(&mut self, request: &RequestId, journal: &mut Journal, work: Work) -> Option<Done> {
        let used = self.used();
        self.residency.go_on(&used);
        let run = self.running.get_mut(request)?;
        let is_ready = self.residency.is_ready(&run.model);
        let end = match work {
            Work::Panic => Some(AttemptEnd::Panicked {
                message: "index out of bounds".into(),
            }),
            Work::HandBack => Some(AttemptEnd::HandedBack {
                reason: "drain".into(),
            }),
            Work::FailToLoad => Some(AttemptEnd::ModelUnloadable {
                reason: "no room".into(),
                retry_in_ms: 3000,
            }),
            Work::Step | Work::Finish if !is_ready => None,
            Work::Step | Work::Finish => run.advance(&self.id, self.incarnation, journal, work),
        }?;
        let run = self.running.remove(request)?;
        Some(Done {
            worker: self.id.clone(),
            incarnation: self.incarnation,
            request: request.clone(),
            attempt: run.attempt,
            end,
            prompt_tokens: 1,
            output_tokens: run.output_tokens,
        })
    }

    fn free_slots(&self) -> u32 {
        if self.running.values().any(|run| run.alone) {
            return 0;
        }
        self.slots - u32::try_from(self.running.len()).unwrap()
    }
}

impl Run {
    fn advance(
        &mut self,
        worker: &WorkerId,
        incarnation: u64,
        journal: &mut Journal,
        work: Work,
    ) -> Option<AttemptEnd> {
        let Some(last) = self.last else {
            return self.read(worker, journal);
        };
        let entry = if !self.accepted {
            let worker = worker.clone();
            Entry::Accepted {
                attempt: self.attempt,
                strikes: self.strikes,
                worker,
                incarnation,
                alone: self.alone,
            }
        } else if self.cancelled || work == Work::Finish {
            Entry::Terminal
        } else {
            self.output_tokens += 5;
            Entry::Tokens {
                attempt: self.attempt,
            }
        };
        if !journal.append(last, entry.clone()) {
            self.last = None;
            return None;
        }
        self.last = Some(last + 1);
        self.accepted = true;
        (entry == Entry::Terminal).then_some(AttemptEnd::Terminal)
    }

    fn read(&mut self, worker: &WorkerId, journal: &Journal) -> Option<AttemptEnd> {
        match journal.state() {
            JournalState::Terminal => return Some(AttemptEnd::Terminal),
            JournalState::Open {
                attempt,
                strikes,
                worker: other,
                ..
            } if attempt > self.attempt || (attempt == self.attempt && other != *worker) => {
                return Some(AttemptEnd::Fenced { attempt, strikes });
            }
            JournalState::Open { .. } | JournalState::Empty => {}
            JournalState::Broken { .. } => unreachable!("only workers write here"),
        }
        self.last = Some(journal.last());
        None
    }
}
