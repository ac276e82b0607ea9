//! The journal of one request: appends are compared with its last sequence, as JetStream does it.

use flotilla_dispatcher_core::JournalState;
use flotilla_protocol::{Attempt, Strikes, WorkerId};

/// One stored event.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    Accepted {
        attempt: Attempt,
        strikes: Strikes,
        worker: WorkerId,
        incarnation: u64,
        alone: bool,
    },
    Tokens {
        attempt: Attempt,
    },
    Terminal,
}

#[derive(Debug, Default)]
pub struct Journal {
    entries: Vec<Entry>,
}

impl Journal {
    pub fn last(&self) -> usize {
        self.entries.len()
    }

    /// Stores an event unless another has come since `expected_last`; whether it was stored.
    pub fn append(&mut self, expected_last: usize, entry: Entry) -> bool {
        if expected_last != self.last() {
            return false;
        }
        assert!(
            !self.is_terminal(),
            "a writer went on after the terminal event it knew of"
        );
        if let (Entry::Accepted { attempt, .. }, JournalState::Open { attempt: newest, .. }) =
            (&entry, self.state())
        {
            assert!(*attempt >= newest, "attempts only grow");
        }
        self.entries.push(entry);
        true
    }

    pub fn is_terminal(&self) -> bool {
        self.entries.last() == Some(&Entry::Terminal)
    }

    pub fn terminal_count(&self) -> usize {
        self.entries
            .iter()
            .filter(|entry| **entry == Entry::Terminal)
            .count()
    }

    pub fn accepted_count(&self) -> usize {
        self.entries
            .iter()
            .filter(|entry| matches!(entry, Entry::Accepted { .. }))
            .count()
    }

    /// Tokens belong to the attempt that was accepted last, whoever made them.
    pub fn assert_attempts_do_not_interleave(&self) {
        let mut open = None;
        for entry in &self.entries {
            match entry {
                Entry::Accepted { attempt, .. } => open = Some(*attempt),
                Entry::Tokens { attempt } => assert_eq!(open, Some(*attempt), "{:?}", self.entries),
                Entry::Terminal => {}
            }
        }
    }

    pub fn state(&self) -> JournalState {
        if self.is_terminal() {
            return JournalState::Terminal;
        }
        let newest = self.entries.iter().rev().find_map(|entry| match entry {
            Entry::Accepted {
                attempt,
                strikes,
                worker,
                incarnation,
                alone,
            } => Some(JournalState::Open {
                attempt: *attempt,
                strikes: *strikes,
                worker: worker.clone(),
                incarnation: Some(*incarnation),
                alone: *alone,
            }),
            Entry::Tokens { .. } | Entry::Terminal => None,
        });
        newest.unwrap_or(JournalState::Empty)
    }
}
