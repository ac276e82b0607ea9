//! What can happen next, and what it costs.

use super::{Append, Assign, State, What};

/// What happens between two states.
#[derive(Debug, Clone, Copy)]
#[expect(dead_code, reason = "who and what is read in the steps of a counterexample")]
pub(in super::super) enum Step {
    LeaseExpires,
    TakesLease { dispatcher: u8 },
    NoticesLoss { dispatcher: u8 },
    ReadsJournal { dispatcher: u8 },
    GetsAgain { dispatcher: u8 },
    Assigns { dispatcher: u8, worker: u8, attempt: u8 },
    Adopts { dispatcher: u8, worker: u8, attempt: u8 },
    GivesUp { dispatcher: u8, worker: u8, attempt: u8 },
    DiesAndStartsAgain { worker: u8 },
    DiesBeforeItAppends { worker: u8, what: What },
    Opens { worker: u8, attempt: u8 },
    AppendsAgain { worker: u8, what: What },
    WaitsNoLonger { worker: u8, what: What },
    LooksUp { worker: u8, what: What },
    AssignArrives(Assign),
    AssignIsLost(Assign),
    AppendIsAnswered(Append),
    AppendArrivesUnanswered(Append),
    AppendIsLost(Append),
    AckArrives,
    AckIsLost,
}

/// What can follow a state.
pub(super) struct Steps<'a> {
    pub(super) of: &'a State,
    pub(super) next: Vec<(Step, State)>,
}

impl Steps<'_> {
    pub(super) fn free(&mut self, step: Step, change: impl FnOnce(&mut State)) {
        let mut next = self.of.clone();
        change(&mut next);
        self.next.push((step, next));
    }

    pub(super) fn fault(&mut self, step: Step, change: impl FnOnce(&mut State)) {
        if let Some(left) = self.of.faults_left.checked_sub(1) {
            self.free(step, |next| {
                change(next);
                next.faults_left = left;
            });
        }
    }
}
