//! Messages of the stream, and what the journals of known requests say.

use flotilla_protocol::event::{Event, RequestError};
use flotilla_protocol::{Attempt, Encoding, Moment, RequestId, WorkerId};

use super::Dispatcher;
use crate::action::Action;
use crate::input::{Admission, Arrival, JournalState, Origin, PromptCount, StreamSequence};
use crate::request::{Held, Job, StrikeReason, Verdict};

/// Whether a message is new to us.
enum Novelty {
    Known,
    TurnedAway,
    Duplicate,
    First,
}

impl Dispatcher {
    /// A valid request came in. The same message may come again and again while it is held.
    pub fn handle_arrival(&mut self, now: Moment, arrival: Arrival) -> Admission {
        match self.note_message(arrival.sequence, &arrival.request) {
            Novelty::TurnedAway => return Admission::Full,
            Novelty::Known | Novelty::Duplicate => return Admission::Held,
            Novelty::First => {}
        }
        let origin = arrival.origin;
        let asked = self.ask(now, &arrival);
        self.models.note_demand(now, &arrival.model);
        self.stats.prompts_estimated += u64::from(arrival.prompt_count == PromptCount::Estimated);
        let mut job = Box::new(Job::new(now, arrival, asked));
        if self.cancelled.contains(now, &job.request) {
            job.verdict = Some(Verdict::Cancelled);
        }
        match origin {
            Origin::Fresh => self.enqueue(now, job),
            Origin::MaybeSeen => self.read_journal(job),
        }
        self.settle(now);
        Admission::Held
    }

    /// A message came in whose body admission refuses: its request is ended, unless another message
    /// stands for it.
    pub fn handle_rejected(
        &mut self,
        sequence: StreamSequence,
        request: &RequestId,
        encoding: Encoding,
        error: RequestError,
    ) -> Admission {
        match self.note_message(sequence, request) {
            Novelty::TurnedAway => return Admission::Full,
            Novelty::Known | Novelty::Duplicate => return Admission::Held,
            Novelty::First => {}
        }
        self.stats.rejected += 1;
        self.put(
            request.clone(),
            Held::Ending {
                sequences: vec![sequence],
            },
        );
        self.push(Action::End {
            request: request.clone(),
            encoding,
            event: Event::failed(error),
        });
        Admission::Held
    }

    /// The answer to [`Action::ReadJournal`].
    pub fn handle_journal(&mut self, now: Moment, request: &RequestId, state: JournalState) {
        if !matches!(self.held.get(request), Some(Held::Reading(_))) {
            return;
        }
        let Some(mut job) = self.take(request) else { return };
        // Its last attempt is gone without an end in the journal. The worker may have been replaced by a
        // process that has not reported yet: asking it again at once would go round and round.
        if let (JournalState::Empty | JournalState::Open { .. }, Some(worker)) = (&state, &job.avoid) {
            self.fleet.shut(worker);
        }
        match state {
            JournalState::Terminal => self.acknowledge(request, job.sequences),
            JournalState::Empty => match self.fleet.newest_run(request, job.over) {
                Some((worker, attempt)) => self.adopt(now, job, &worker, attempt),
                None => self.enqueue(now, job),
            },
            JournalState::Open {
                attempt,
                strikes,
                worker,
            } => {
                job.used = job.used.max(attempt);
                job.strikes = job.strikes.max(strikes);
                self.resume(now, job, &worker, attempt);
            }
        }
        self.settle(now);
    }

    /// Requests whose workers had until now to report.
    pub(super) fn lose_awaited_workers(&mut self, now: Moment) {
        for (worker, requests) in std::mem::take(&mut self.awaiting) {
            for request in requests {
                if let Some(job) = self.take(&request) {
                    self.strike(now, job, StrikeReason::WorkerLost(worker.clone()));
                }
            }
        }
    }

    pub(super) fn read_journal(&mut self, job: Box<Job>) {
        self.stats.journal_reads += 1;
        let request = job.request.clone();
        self.put(request.clone(), Held::Reading(job));
        self.push(Action::ReadJournal { request });
    }

    /// Goes on with a request whose journal is open with `worker`'s `attempt`.
    fn resume(&mut self, now: Moment, job: Box<Job>, worker: &WorkerId, attempt: Attempt) {
        let listed = self
            .fleet
            .worker(worker)
            .and_then(|known| known.lists(&job.request));
        if attempt <= job.over {
            self.enqueue(now, job);
        } else if let Some(listed) = listed.filter(|listed| *listed >= attempt) {
            self.adopt(now, job, worker, listed);
        } else if let Some((other, newer)) = self.fleet.newest_run(&job.request, attempt) {
            self.adopt(now, job, &other, newer);
        } else if self.fleet.contains(worker) {
            self.requeue_closed(now, job, attempt);
        } else if now < self.settles {
            let request = job.request.clone();
            self.awaiting
                .entry(worker.clone())
                .or_default()
                .insert(request.clone());
            let worker = worker.clone();
            self.put(request, Held::Awaiting { job, worker, attempt });
        } else {
            self.strike(now, job, StrikeReason::WorkerLost(worker.clone()));
        }
    }

    fn note_message(&mut self, sequence: StreamSequence, request: &RequestId) -> Novelty {
        self.stats.arrivals += 1;
        if self.sequences.contains_key(&sequence) {
            self.stats.redeliveries += 1;
            return Novelty::Known;
        }
        if self.sequences.len() >= self.settings.held_max {
            self.stats.turned_away += 1;
            return Novelty::TurnedAway;
        }
        self.sequences.insert(sequence, request.clone());
        match self.held.get_mut(request) {
            Some(held) => {
                self.stats.duplicates += 1;
                held.sequences_mut().push(sequence);
                Novelty::Duplicate
            }
            None => Novelty::First,
        }
    }
}
