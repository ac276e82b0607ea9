//! What holds for a batch between two calls.

use super::{Admitted, Batch, Sequence, SequenceId, Stage};

impl Batch {
    /// Checks that sequences stand where they say, and that every block is free, cached or held by those whose
    /// tokens it is for.
    ///
    /// # Panics
    /// When they do not.
    pub fn check_invariants(&self) {
        let mut held = Vec::new();
        for (id, sequence) in &self.sequences {
            let is_waiting = self.waiting.contains(id);
            match &sequence.stage {
                Stage::Waiting => assert!(is_waiting, "{id:?} waits in line"),
                Stage::Admitted(admitted) => {
                    assert!(!is_waiting && self.admitted.contains(id), "{id:?} is admitted");
                    self.check_admitted(*id, sequence, admitted);
                    held.push((&admitted.table, &sequence.tokens[..admitted.read]));
                }
            }
        }
        assert_eq!(
            self.admitted.len() + self.waiting.len(),
            self.sequences.len(),
            "each stands in one place"
        );
        let rank = |id: &SequenceId| self.sequences[id].rank;
        assert!(
            self.admitted.is_sorted_by_key(rank),
            "those admitted stand by rank"
        );
        assert!(
            self.waiting.iter().is_sorted_by_key(rank),
            "those who wait stand by rank"
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
        assert!(
            admitted.table.blocks().len() >= self.blocks_for(admitted.read),
            "{id:?} has blocks for what it has read"
        );
        assert!(
            admitted.table.cached_count() * self.settings.block_tokens <= admitted.read,
            "{id:?} writes to no block that others may hold"
        );
    }
}
