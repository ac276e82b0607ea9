//! The answer on its way into the journal: one wait at a time, for whatever concerns the attempt next.

use std::time::Duration;

use flotilla_protocol::assignment::AttemptEnd;
use flotilla_protocol::event::{Event, Usage};
use flotilla_worker_core::answer::{Action, Answer, Ended};
use tokio::time::{Instant, sleep_until};

use super::generation::{End, Taken};
use super::journal::{FIRST_ATTEMPT, Io, JournalFault, JournalHand, Settled};
use super::opening::Opening;
use super::work::Work;
use super::{Attempt, count, deadline_exceeded};
use crate::metrics::AnswerTally;

/// An attempt that may write.
pub(super) struct Writing {
    attempt: Attempt,
    answer: Answer,
    hand: JournalHand,
    /// `None` once no more is wanted.
    work: Option<Work>,
    /// The append or read under way.
    io: Option<Io>,
    /// When an attempt that is handed back stops waiting for its journal.
    grace: Option<Instant>,
}

/// What the attempt learned while it waited.
enum Happened {
    Settled(Result<Settled, JournalFault>),
    Made(Taken),
    /// With the tokens of the prompt and of the answer so far.
    Cancelled(Usage),
    Expired,
    HandBack,
    GraceOver,
}

impl Writing {
    pub(super) fn new(mut attempt: Attempt, mut answer: Answer, opening: Opening, hand: JournalHand) -> Self {
        let work = match opening {
            Opening::Make { prepared, model } => Some(Work::new(prepared, model)),
            Opening::Fail(event) => {
                attempt.tally.finish(&event);
                answer.handle_end(event);
                None
            }
            Opening::Cancel => {
                let end = attempt.cancelled(Usage::new(0, count(answer.stored_tokens())));
                attempt.tally.finish(&end);
                answer.handle_end(end);
                None
            }
        };
        Self {
            attempt,
            answer,
            hand,
            work,
            io: None,
            grace: None,
        }
    }

    /// Writes until nothing more may or need be written.
    pub(super) async fn run(mut self) -> (AttemptEnd, AnswerTally) {
        loop {
            if let Some(end) = self.carry_out().await {
                return (end, self.attempt.tally);
            }
            let happened = self.wait().await;
            if let Some(end) = self.handle(happened) {
                return (end, self.attempt.tally);
            }
        }
    }

    /// Does what the answer wants done; tells when that was all.
    async fn carry_out(&mut self) -> Option<AttemptEnd> {
        while let Some(action) = self.answer.poll_action() {
            match action {
                Action::Append(append) => self.io = Some(self.hand.append(append)),
                Action::ReadJournal { after_sequence } => self.io = Some(self.hand.read(after_sequence)),
                Action::Started(start) => {
                    if let Some(mut waiting) = self.work.take() {
                        let taken = waiting.start(start, &mut self.attempt).await;
                        self.absorb(waiting, taken);
                    }
                }
                Action::Ended(ended) => return Some(self.ended(&ended)),
            }
        }
        None
    }

    /// Waits for the next thing that concerns this attempt. Cancelling loses nothing.
    async fn wait(&mut self) -> Happened {
        let switches = &self.attempt.new;
        let is_open = self.work.is_some();
        // Before the start it is not known how many tokens the answer has that is to be cancelled.
        let started = self.work.as_ref().filter(|work| work.has_started());
        let usage = started.map(Work::usage);
        let (may_take, grace) = (self.io.is_none(), self.grace);
        let settled = async {
            match &mut self.io {
                Some(io) => io.await,
                None => std::future::pending().await,
            }
        };
        let made = async {
            match &mut self.work {
                Some(work) if may_take => work.take().await,
                Some(_) | None => std::future::pending().await,
            }
        };
        let cancelled = async {
            switches.cancel.cancelled().await;
            match usage {
                Some(usage) => usage,
                None => std::future::pending().await,
            }
        };
        // A word from outside counts before what was made meanwhile; each comes once.
        tokio::select! {
            biased;
            () = switches.hand_back.cancelled(), if grace.is_none() => Happened::HandBack,
            usage = cancelled => Happened::Cancelled(usage),
            () = switches.expire.cancelled(), if is_open => Happened::Expired,
            settled = settled => Happened::Settled(settled),
            made = made => Happened::Made(made),
            () = at(grace) => Happened::GraceOver,
        }
    }

    /// Takes what happened; tells when that was all.
    fn handle(&mut self, happened: Happened) -> Option<AttemptEnd> {
        match happened {
            Happened::Settled(Ok(settled)) => {
                self.io = None;
                self.hand.settle(&mut self.answer, settled);
            }
            Happened::Settled(Err(fault)) => return Some(self.attempt.faulty(&fault)),
            Happened::Made(taken) => {
                let making = self.work.take();
                self.absorb(making.expect("what was made was made by some work"), taken);
            }
            Happened::Cancelled(usage) => self.conclude(self.attempt.cancelled(usage)),
            Happened::Expired => self.conclude(deadline_exceeded()),
            Happened::HandBack => {
                self.work = None;
                self.answer.handle_stop();
                self.grace = Some(Instant::now() + HAND_BACK_GRACE);
            }
            Happened::GraceOver => return Some(self.attempt.left_open()),
        }
        None
    }

    /// Hands what was made to the answer; the work goes on unless it ended.
    fn absorb(&mut self, mut making: Work, taken: Taken) {
        self.answer
            .handle_tokens(&taken.token_ids, &taken.logprobs, &taken.text);
        let is_first = self.attempt.new.assignment.attempt == FIRST_ATTEMPT;
        self.attempt.tally.tokens(taken.token_ids.len(), is_first);
        if !taken.token_ids.is_empty() {
            self.attempt.clock.first_token.get_or_insert_with(Instant::now);
        }
        self.attempt.new.counts.set_output(making.output_tokens());
        match taken.end {
            None => self.work = Some(making),
            Some(End::Finished(reason)) => {
                self.answer.handle_tokens(&[], &[], &making.held_back_text());
                self.end_with(making.finished(reason, self.attempt.timings()));
            }
            Some(End::Failed(event)) => self.end_with(event),
            Some(End::LeftOpen(end)) => {
                self.attempt.left_open = Some(end);
                self.answer.handle_stop();
            }
        }
    }

    /// Ends the answer before its work did.
    fn conclude(&mut self, event: Event) {
        if let Some(mut making) = self.work.take()
            && making.has_started()
        {
            self.answer.handle_tokens(&[], &[], &making.held_back_text());
        }
        self.end_with(event);
    }

    fn end_with(&mut self, event: Event) {
        self.attempt.tally.finish(&event);
        self.answer.handle_end(event);
    }

    fn ended(&self, ended: &Ended) -> AttemptEnd {
        match ended {
            Ended::Terminal | Ended::AlreadyTerminal => AttemptEnd::Terminal,
            Ended::Fenced { attempt, strikes } => AttemptEnd::Fenced {
                attempt: *attempt,
                strikes: *strikes,
            },
            Ended::LeftOpen => self.attempt.left_open(),
            Ended::Corrupt(broken) => self.attempt.broken(broken),
        }
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// How long an attempt that is handed back may take to store what it has: the next one makes the rest again.
const HAND_BACK_GRACE: Duration = Duration::from_secs(1);
