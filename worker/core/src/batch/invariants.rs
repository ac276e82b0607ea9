//! What holds for a batch between two calls.

use std::collections::VecDeque;

use super::{Admitted, Batch, Sequence, SequenceId, Stage, class_index};

impl Batch {
    /// Checks that sequences stand where they say, and that every block is free, cached or held by those whose
    /// tokens it is for.
    ///
    /// # Panics
    /// When they do not.
    pub fn check_invariants(&self) {
        let mut held = Vec::new();
        for (id, sequence) in &self.sequences {
            let is_waiting = self.waiting[class_index(sequence.class)].contains(id);
            match &sequence.stage {
                Stage::Waiting => assert!(is_waiting, "{id:?} waits in the queue of its class"),
                Stage::Admitted(admitted) => {
                    assert!(!is_waiting && self.admitted.contains(id), "{id:?} is admitted");
                    self.check_admitted(*id, sequence, admitted);
                    held.push((&admitted.table, &sequence.tokens[..admitted.read]));
                }
            }
        }
        let queued: usize = self.waiting.iter().map(VecDeque::len).sum();
        assert_eq!(
            self.admitted.len() + queued,
            self.sequences.len(),
            "each stands in one place"
        );
        assert!(
            self.admitted.len() <= self.settings.sequences_max,
            "no more than allowed"
        );
        self.pool.check_invariants(held.into_iter());
    }

    fn check_admitted(&self, id: SequenceId, sequence: &Sequence, admitted: &Admitted) {
        assert!(
            admitted.read < sequence.tokens.len(),
            "{id:?} has a token to read"
        );
        assert!(
            sequence.tokens.len() < sequence.tokens_max,
            "{id:?} may make a token"
        );
        assert_eq!(
            admitted.table.blocks().len(),
            self.blocks_for(sequence.tokens_max),
            "blocks for all of it"
        );
        assert!(
            admitted.table.cached_count() * self.settings.block_tokens <= admitted.read,
            "{id:?} writes to no block that others may hold"
        );
    }
}
