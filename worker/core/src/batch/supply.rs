//! Who gets blocks, and who gives them up.

use super::blocks::Missing;
use super::{Admitted, Batch, Flow, Sequence, SequenceId, Stage};
use crate::kv::{KvBudget, KvSlab, Rank};

/// Whether everybody has what the next step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "who is short needs kv::relieve"]
pub enum Supply {
    /// Everybody has, or nothing can be done about it at present.
    Sufficient,
    /// Somebody has not: let [`crate::kv::relieve`] make room, and ask again.
    Short,
}

/// A sequence that could not be given what it needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shortage {
    sequence: SequenceId,
    pub(crate) rank: Rank,
    /// Blocks that it needs and does not hold, those included that it would find cached.
    blocks: usize,
    /// How many of them were not cached.
    private: usize,
}

/// What batches could give up for one that is short, and what it could use.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Prospect {
    /// Blocks that it would have without more pages.
    pub(crate) blocks: usize,
    /// Blocks that it needs.
    pub(crate) blocks_needed: usize,
    /// Pages that would be given back.
    pub(crate) pages: u64,
}

impl Batch {
    /// Gives blocks to those who need some for the next step, in the order of their ranks: to those who have grown,
    /// and to those who wait. Who waits and does not fit holds up everyone behind, so that a long request is never
    /// starved by short ones; who is paused is passed by.
    pub fn provide(&mut self, budget: &mut KvBudget) -> Supply {
        let mut at = 0;
        let mut is_line_open = true;
        loop {
            let next = self.next_in_line().filter(|_| is_line_open);
            while let Some(id) = self.admitted.get(at).copied() {
                if next.is_some_and(|(_, rank)| rank < self.sequences[&id].rank) {
                    break;
                }
                if self.grow(id, budget) == Got::Short {
                    return Supply::Short;
                }
                at += 1;
            }
            let Some((place, _)) = next else {
                return Supply::Sufficient;
            };
            match self.admit(place, at, budget) {
                Got::Enough => at += 1,
                Got::Nothing => is_line_open = false,
                Got::Short => return Supply::Short,
            }
        }
    }

    /// Puts a sequence in line, at the place of its rank.
    pub(super) fn line_up(&mut self, id: SequenceId) {
        let rank = self.sequences[&id].rank;
        let place = self
            .waiting
            .partition_point(|waiting| self.sequences[waiting].rank < rank);
        self.waiting.insert(place, id);
    }

    /// Gives slabs that nobody uses back while more pages are in use than there should be.
    pub(super) fn give_back_excess(&mut self, budget: &mut KvBudget) {
        while budget.is_exceeded() && self.pool.unused_since().is_some() {
            self.pool.give_back_slab(budget);
        }
    }

    /// The slabs of the model's memory.
    pub(crate) fn slab(&self) -> KvSlab {
        self.settings.slab
    }

    /// Who is short, if that is not settled.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        self.short
    }

    /// The shortage is settled. Without relief nobody is asked again for the sequence until something changes.
    pub(crate) fn settle_shortage(&mut self, unrelieved_at: Option<u64>) {
        let short = self.short.take();
        if let (Some(short), Some(at)) = (short, unrelieved_at)
            && let Some(sequence) = self.sequences.get_mut(&short.sequence)
        {
            sequence.unrelieved_at = at;
        }
    }

    /// What the batch could give up for somebody of this rank who is short, in this batch if `shortage` is told.
    pub(crate) fn prospect(&self, rank: Rank, shortage: Option<&Shortage>) -> Prospect {
        let kept = self.sequences.values().filter_map(|sequence| {
            let Stage::Admitted(admitted) = &sequence.stage else {
                return None;
            };
            let is_kept = sequence.rank == rank || !sequence.yields_to(rank);
            is_kept.then_some(&admitted.table)
        });
        let census = self.pool.census(kept);
        let pages = census.pages;
        let Some(shortage) = shortage else {
            return Prospect {
                pages,
                ..Prospect::default()
            };
        };
        let sequence = &self.sequences[&shortage.sequence];
        let found = match sequence.stage {
            Stage::Waiting => self.pool.kept_of(reusable(&sequence.tokens), &census),
            Stage::Admitted(_) => 0,
        };
        Prospect {
            blocks: census.blocks,
            blocks_needed: shortage.blocks - found,
            pages,
        }
    }

    /// Whether a shortage is one no more, as far as can be told without looking for cached blocks again.
    pub(crate) fn is_relieved(&self, shortage: &Shortage, budget: &KvBudget) -> bool {
        self.pool.can_give(shortage.private, budget)
    }

    /// Whether so many pages are enough against a shortage, whatever else there is.
    pub(crate) fn is_relieved_by(&self, shortage: &Shortage, budget: &KvBudget, pages: u64) -> bool {
        shortage.private <= self.pool.blocks_after(budget, pages)
    }

    /// Pages of its slabs of which no sequence holds a block: they go to whoever needs them.
    #[must_use]
    pub fn unused_pages(&self) -> u64 {
        self.pool.unused_pages()
    }

    /// Since when a slab could have been given back that could be for longest.
    pub(crate) fn unused_since(&self) -> Option<u64> {
        self.pool.unused_since()
    }

    /// Gives that slab back.
    pub(crate) fn give_back_slab(&mut self, budget: &mut KvBudget) {
        self.pool.give_back_slab(budget);
    }

    /// Frees the cached block that has been unused for longest; `false` when there is none.
    pub(crate) fn evict_oldest(&mut self, budget: &mut KvBudget) -> bool {
        self.pool.evict_oldest(budget)
    }

    /// Of those who yield to a rank, the one to be preempted first: who ranks last of those after it, or else of
    /// those who are paused.
    pub(crate) fn victim(&self, rank: Rank) -> Option<Rank> {
        let by_rank = || self.admitted.iter().rev().map(|id| &self.sequences[id]);
        let after = by_rank().find(|sequence| sequence.rank > rank);
        let victim = after.or_else(|| by_rank().find(|sequence| sequence.yields_to(rank)));
        victim.map(|sequence| sequence.rank)
    }

    /// Takes the blocks of an admitted sequence, which lines up again.
    ///
    /// # Panics
    /// When there is none of this rank, or a step is planned.
    pub(crate) fn preempt(&mut self, rank: Rank, budget: &mut KvBudget) {
        assert!(self.planned.is_empty(), "nobody is preempted during a step");
        let is_victim = |id: &SequenceId| self.sequences[id].rank == rank;
        let place = self.admitted.iter().position(is_victim);
        let id = self.admitted.remove(place.expect("a victim is admitted"));
        let sequence = self
            .sequences
            .get_mut(&id)
            .expect("who is admitted is a sequence");
        let stage = std::mem::replace(&mut sequence.stage, Stage::Waiting);
        let Stage::Admitted(admitted) = stage else {
            unreachable!("who is admitted has blocks")
        };
        self.pool.release(admitted.table, budget);
        self.preempted.push(id);
        self.preemptions += 1;
        self.line_up(id);
        budget.note_relief();
    }

    /// The first one in line that is not paused: its place and its rank.
    fn next_in_line(&self) -> Option<(usize, Rank)> {
        if self.admitted.len() == self.settings.sequences_max {
            return None;
        }
        let mut line = self.waiting.iter().map(|id| &self.sequences[id]).enumerate();
        let next = line.find(|(_, sequence)| sequence.flow == Flow::Running);
        next.map(|(place, sequence)| (place, sequence.rank))
    }

    /// Gives an admitted sequence the blocks that its tokens need.
    fn grow(&mut self, id: SequenceId, budget: &mut KvBudget) -> Got {
        let block_tokens = self.settings.block_tokens;
        let sequence = self
            .sequences
            .get_mut(&id)
            .expect("who is admitted is a sequence");
        let Stage::Admitted(admitted) = &mut sequence.stage else {
            unreachable!("who is admitted has blocks")
        };
        let (held, needed) = (
            admitted.table.blocks().len(),
            sequence.tokens.len().div_ceil(block_tokens),
        );
        if needed <= held || sequence.flow == Flow::Paused {
            return Got::Enough;
        }
        match self.pool.grow(&mut admitted.table, needed, budget) {
            Ok(()) => Got::Enough,
            Err(missing) => self.note_shortage(id, needed - held, missing, budget),
        }
    }

    /// Gives the sequence at a place of the line the blocks that its tokens and one more need. It becomes the one
    /// `at` this place of those admitted.
    fn admit(&mut self, place: usize, at: usize, budget: &mut KvBudget) -> Got {
        let id = self.waiting[place];
        let sequence = &self.sequences[&id];
        let needed = self.blocks_for(sequence.tokens.len() + 1);
        if sequence.unrelieved_at == budget.reliefs() {
            return Got::Nothing;
        }
        let table = match self.pool.reserve(reusable(&sequence.tokens), needed, budget) {
            Ok(table) => table,
            Err(missing) => return self.note_shortage(id, needed, missing, budget),
        };
        self.waiting.remove(place);
        self.admitted.insert(at, id);
        let mut admitted = Admitted {
            table,
            read: 0,
            reused: 0,
        };
        admitted.skip_cached(self.settings.block_tokens);
        let sequence = self.sequences.get_mut(&id).expect("who waits is a sequence");
        sequence.stage = Stage::Admitted(admitted);
        Got::Enough
    }

    fn note_shortage(&mut self, id: SequenceId, blocks: usize, missing: Missing, budget: &KvBudget) -> Got {
        let sequence = &self.sequences[&id];
        if sequence.unrelieved_at == budget.reliefs() {
            return Got::Nothing;
        }
        let Missing(private) = missing;
        self.short = Some(Shortage {
            sequence: id,
            rank: sequence.rank,
            blocks,
            private,
        });
        Got::Short
    }
}

impl Sequence {
    /// Whether it gives its blocks up for somebody of this rank: who is paused stands behind everyone who is not.
    fn yields_to(&self, rank: Rank) -> bool {
        self.rank > rank || (self.rank != rank && self.flow == Flow::Paused)
    }
}

/// The tokens that may be found in blocks: all but the last, which is read to draw the next.
pub(super) fn reusable(tokens: &[u32]) -> &[u32] {
    &tokens[..tokens.len() - 1]
}

/// What somebody got who needs blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Got {
    Enough,
    /// None, and that was found out before.
    Nothing,
    Short,
}
