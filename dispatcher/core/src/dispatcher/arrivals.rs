//! Messages of the stream, and what the journals of known requests say.

use flotilla_protocol::event::{Event, RequestError};
use flotilla_protocol::{Attempt, Encoding, Moment, RequestId};

use super::Dispatcher;
use crate::action::Action;
use crate::input::{Admission, Arrival, JournalState, Origin, PromptCount, StreamSequence};
use crate::request::{Begun, Held, Job, StrikeReason, Verdict};

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

    /// A message came in that nobody has seen, and whose body admission refuses: its request is ended, unless another
    /// message stands for it.
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

    /// A message came in that somebody may have seen, and whose body admission refuses: its model may have left the
    /// catalog, or a limit may be lower than it was. Who runs may finish, and everybody else is ended.
    pub fn handle_refused(&mut self, now: Moment, arrival: Arrival, error: RequestError) -> Admission {
        match self.note_message(arrival.sequence, &arrival.request) {
            Novelty::TurnedAway => return Admission::Full,
            Novelty::Known | Novelty::Duplicate => return Admission::Held,
            Novelty::First => {}
        }
        let asked = self.ask(now, &arrival);
        let mut job = Box::new(Job::new(now, arrival, asked));
        job.verdict = Some(Verdict::Refused(error));
        self.read_journal(job);
        self.settle(now);
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
            JournalState::Terminal => {
                // Of an attempt of this term the word may only be lost.
                self.stats.ended_unacked += u64::from(job.used == Attempt(0));
                self.acknowledge(request, job.sequences);
            }
            JournalState::Empty => match self.fleet.newest_run(request, job.over) {
                Some((worker, attempt)) => self.adopt(now, job, &worker, attempt),
                None => self.enqueue(now, job),
            },
            JournalState::Broken { reason } => self.end_broken(job, &reason),
            JournalState::Open {
                attempt,
                strikes,
                worker,
                incarnation,
                alone,
            } => {
                let begun = Begun {
                    worker,
                    incarnation,
                    attempt,
                    alone,
                };
                job.strikes = job.strikes.max(strikes);
                self.resume(now, job, begun);
            }
        }
        self.settle(now);
    }

    /// Requests whose workers had until now to report.
    pub(super) fn lose_awaited_workers(&mut self, now: Moment) {
        for (worker, requests) in std::mem::take(&mut self.awaiting) {
            for request in requests {
                let Some((job, begun)) = self.take_awaiting(&request) else {
                    continue;
                };
                self.blame(now, job, &begun, StrikeReason::WorkerLost(worker.clone()));
            }
        }
    }

    /// Takes out a request whose worker was awaited, with the attempt that it waited for.
    pub(super) fn take_awaiting(&mut self, request: &RequestId) -> Option<(Box<Job>, Begun)> {
        let Some(Held::Awaiting { begun, .. }) = self.held.get(request) else {
            return None;
        };
        let begun = begun.clone();
        Some((self.take(request)?, begun))
    }

    pub(super) fn read_journal(&mut self, job: Box<Job>) {
        self.stats.journal_reads += 1;
        let request = job.request.clone();
        self.put(request.clone(), Held::Reading(job));
        self.push(Action::ReadJournal { request });
    }

    /// Goes on with a request whose journal is open with this attempt.
    fn resume(&mut self, now: Moment, mut job: Box<Job>, begun: Begun) {
        job.used = job.used.max(begun.attempt);
        if begun.alone {
            job.suspected_in.get_or_insert_with(|| begun.death());
        }
        let (worker, attempt) = (&begun.worker, begun.attempt);
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
            self.end_unlisted(now, job, &begun);
        } else if now < self.settles {
            let request = job.request.clone();
            let awaiting = self.awaiting.entry(worker.clone()).or_default();
            awaiting.insert(request.clone());
            self.put(request, Held::Awaiting { job, begun });
        } else {
            let reason = StrikeReason::WorkerLost(worker.clone());
            self.blame(now, job, &begun, reason);
        }
    }

    /// An attempt that began on a worker which reports and does not list it: with the same process it ended there, with
    /// another it died with the one before.
    pub(super) fn end_unlisted(&mut self, now: Moment, job: Box<Job>, begun: &Begun) {
        let known = self.fleet.worker(&begun.worker);
        let incarnation = known.map(|known| known.report.incarnation);
        if begun.incarnation.is_some() && begun.incarnation != incarnation {
            let reason = StrikeReason::WorkerRestarted(begun.worker.clone());
            self.blame(now, job, begun, reason);
        } else {
            self.requeue_closed(now, job, begun.attempt);
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
