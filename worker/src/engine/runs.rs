//! The requests of a batch: where their tokens go, and which of them have to wait.

use std::collections::HashMap;

use flotilla_worker_core::batch::{Batch, EndReason, Outcome, SequenceId};
use flotilla_worker_core::kv::KvBudget;
use flotilla_worker_engine::Logprobs;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::{Made, RunEnd, end};

/// What an engine keeps of a request.
pub(super) trait Kept {
    /// Whether a step may count on all that it needs to draw a token.
    fn is_ready(&self) -> bool;

    /// Takes note of a token that was drawn, and says how likely it was, if that was asked for.
    fn push(&mut self, token: u32) -> Option<Box<Logprobs>>;

    /// Why no token could be drawn.
    fn no_token(&self) -> RunEnd;
}

/// Every request that is in a batch, each with what its engine keeps of it. Those that are left when it is
/// dropped learn that their model is gone.
#[derive(Debug)]
pub(super) struct Runs<T> {
    running: HashMap<SequenceId, Running<T>>,
}

#[derive(Debug)]
struct Running<T> {
    kept: T,
    made: mpsc::Sender<Made>,
    /// Where to tell what was reused; nothing once it is told.
    reused: Option<oneshot::Sender<usize>>,
}

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self {
            running: HashMap::new(),
        }
    }
}

impl<T: Kept> Runs<T> {
    /// A request is in the batch.
    pub(super) fn insert(
        &mut self,
        id: SequenceId,
        kept: T,
        made: mpsc::Sender<Made>,
        reused: oneshot::Sender<usize>,
    ) {
        let reused = Some(reused);
        self.running.insert(id, Running { kept, made, reused });
    }

    /// A request has left; one that ended by itself is no fault.
    pub(super) fn remove(&mut self, id: SequenceId) {
        self.running.remove(&id);
    }

    /// What is kept of a request that is planned.
    ///
    /// # Panics
    /// It is not there.
    pub(super) fn kept(&self, id: SequenceId) -> &T {
        &self.running[&id].kept
    }

    /// The same, to be changed.
    ///
    /// # Panics
    /// It is not there.
    pub(super) fn kept_mut(&mut self, id: SequenceId) -> &mut T {
        let running = self.running.get_mut(&id);
        &mut running.expect("who is planned runs").kept
    }

    /// Leaves out those whose channel is full or who are not ready, and takes out those whose task is gone.
    pub(super) fn regulate(&mut self, batch: &mut Batch, budget: &mut KvBudget) {
        self.running.retain(|id, running| {
            if running.made.is_closed() {
                batch.remove(*id, budget);
                return false;
            }
            if running.made.capacity() < STEP_MESSAGES_MAX || !running.kept.is_ready() {
                batch.pause(*id, budget);
            } else {
                batch.resume(*id);
            }
            true
        });
    }

    /// Tells a request's task what a step led to.
    pub(super) fn tell(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Reused { sequence, tokens } => {
                let running = self.running.get_mut(sequence);
                let reused = running.and_then(|running| running.reused.take());
                // Who left does not want to know.
                let _ = reused.map(|reused| reused.send(*tokens));
            }
            Outcome::Token { sequence, token, .. } => {
                let running = self.running.get_mut(sequence).expect("who makes a token runs");
                let made = Made::Token {
                    id: *token,
                    logprobs: running.kept.push(*token),
                };
                if let Err(error) = running.made.try_send(made) {
                    let is_closed = matches!(error, mpsc::error::TrySendError::Closed(_));
                    assert!(is_closed, "a request without room is paused before the step");
                }
            }
            Outcome::Finished { sequence, reason, .. } => self.conclude(
                *sequence,
                match reason {
                    EndReason::Stop => RunEnd::Stop,
                    EndReason::Length => RunEnd::Length,
                    EndReason::NoToken => {
                        let running = self.running.get(sequence);
                        running.map_or(RunEnd::NoToken, |running| running.kept.no_token())
                    }
                },
            ),
            Outcome::Preempted { sequence } => {
                debug!(sequence = sequence.0, "preempted: its memory went to others");
            }
            Outcome::Panicked { sequence, message } => {
                let message = message.clone();
                self.conclude(*sequence, RunEnd::Panicked { message });
            }
        }
    }

    fn conclude(&mut self, sequence: SequenceId, reason: RunEnd) {
        if let Some(running) = self.running.remove(&sequence) {
            end(&running.made, reason);
        }
    }
}

impl<T> Drop for Runs<T> {
    fn drop(&mut self) {
        for running in self.running.values() {
            end(&running.made, RunEnd::ModelGone);
        }
    }
}

/// What one step may send to a request: a token, and that it was the last.
const STEP_MESSAGES_MAX: usize = 2;
