//! Continuous batching for one loaded model: who runs in the next step, on which blocks, and what follows.
//!
//! Owned by the engine's thread. A round is: [`Batch::provide`], with [`crate::kv::relieve`] as long as memory is
//! short, [`Batch::plan`], run the step, [`Batch::complete`]. Between rounds sequences join, leave, pause and
//! resume. A plan changes nothing until it is completed, and a step writes the same keys and values each time, so a
//! step that failed is planned and run again after [`Batch::abandon`].
//!
//! A sequence is admitted when the blocks for its tokens and one more can be had, and takes more as it grows, out of
//! the pages that the device's batches share ([`KvBudget`]). When there are none, those that rank last give theirs
//! up and wait to be read again, at the place in line that their rank gives them: logits do not depend on how tokens
//! are read, so their answers go on as if nothing had been. A sequence that gets no block and finds nobody to take
//! one from is left out of the steps, and keeps what it has, until something changes. What the tokens mean and when
//! a stop text ends an answer is decided outside.
//!
//! Full blocks outlive their sequence and are found by later ones that begin with the same tokens, so that
//! these are not read again. Blocks become known when a token is drawn after them: their steps were complete
//! then, and finite logits show that what they hold is sound. A sequence always reads at least its last
//! token itself, because the engine needs one to draw from.

mod blocks;
mod invariants;
mod joining;
mod plan;
mod supply;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::isolate::Verdict;
use crate::kv::{KvBudget, KvSlab, Rank, SlabChange};
use blocks::{BlockPool, BlockTable};
pub use joining::{AddError, NewSequence};
pub use plan::{PlanEntry, StepPlan};
use plan::{Planned, plan_step};
use supply::Shortage;
pub use supply::Supply;

/// Limits of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchSettings {
    /// Most tokens of one step; at least `sequences_max`, so that every running sequence can advance.
    pub batch_tokens_max: usize,
    /// Most sequences that are admitted at once; at least 1.
    pub sequences_max: usize,
    /// Tokens of one block; at least 1.
    pub block_tokens: usize,
    /// The slabs of the model's KV memory. Blocks of the first one have indices from 0, and so on.
    pub slab: KvSlab,
    /// Longest prompt and answer together.
    pub context_tokens_max: usize,
}

/// Names one sequence of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// Why a sequence ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The model made an end token, which is no part of the answer.
    Stop,
    /// All allowed tokens are made, or the context is full.
    Length,
    /// The step gave no token where one was due: a logit was not finite.
    NoToken,
}

/// What a step led to. A sequence that ended has left the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A sequence has found the first of its tokens in cached blocks. Told at most once, before its first
    /// token or its end.
    Reused {
        /// The sequence.
        sequence: SequenceId,
        /// How many of its tokens were not read; at least 1.
        tokens: usize,
    },
    /// A sequence has a new token.
    Token {
        /// The sequence.
        sequence: SequenceId,
        /// The token.
        token: u32,
        /// Its index in the answer, from 0.
        index: usize,
    },
    /// A sequence ended.
    Finished {
        /// The sequence.
        sequence: SequenceId,
        /// Why.
        reason: EndReason,
        /// Tokens of its answer, those of earlier attempts included.
        answer_tokens: usize,
    },
    /// A sequence gave its blocks up for one that ranks before it, and waits to be read again. Told with the
    /// outcomes of the next step.
    Preempted {
        /// The sequence.
        sequence: SequenceId,
    },
    /// A sequence makes the engine panic and is out.
    Panicked {
        /// The sequence.
        sequence: SequenceId,
        /// The panic's message.
        message: String,
    },
}

/// What a batch has counted since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchStats {
    /// Tokens of [`Outcome::Reused`].
    pub reused_tokens: u64,
    /// Cached blocks whose memory was needed for other tokens, here or in another batch.
    pub evicted_blocks: u64,
    /// Sequences that gave their blocks up, each time that one did.
    pub preemptions: u64,
}

/// The sequences of one loaded model.
#[derive(Debug)]
pub struct Batch {
    settings: BatchSettings,
    pool: BlockPool,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Admitted sequences, by rank.
    admitted: Vec<SequenceId>,
    /// Sequences that wait for blocks, by rank.
    waiting: VecDeque<SequenceId>,
    /// The open plan; kept between rounds so that planning does not allocate.
    planned: Vec<Planned>,
    outcomes: Vec<Outcome>,
    /// Who was preempted since the last step.
    preempted: Vec<SequenceId>,
    /// Who could not be given blocks, until [`crate::kv::relieve`] has looked at it.
    short: Option<Shortage>,
    /// Since blocks were last looked for, some became cached.
    has_new_blocks: bool,
    reused_tokens: u64,
    preemptions: u64,
}

#[derive(Debug)]
struct Sequence {
    rank: Rank,
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Tokens at which it ends.
    tokens_max: usize,
    stop_token_ids: Arc<[u32]>,
    flow: Flow,
    stage: Stage,
    /// It made a token here: what it finds in cached blocks from now on, it has read itself before.
    has_drawn: bool,
    /// [`KvBudget::reliefs`] when nobody could make room for it; 0 when that was not asked yet.
    unrelieved_at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Running,
    Paused,
}

#[derive(Debug)]
enum Stage {
    Waiting,
    Admitted(Admitted),
}

#[derive(Debug)]
struct Admitted {
    table: BlockTable,
    /// Tokens that are in its blocks; always fewer than there are.
    read: usize,
    /// How many of them it has not read itself and has not told yet.
    reused: usize,
}

impl Batch {
    /// Opens an empty batch.
    ///
    /// # Panics
    /// When a limit is 0 or a step could not advance every sequence.
    #[must_use]
    pub fn new(settings: BatchSettings) -> Self {
        assert!(settings.sequences_max > 0, "a batch takes at least one sequence");
        assert!(settings.block_tokens > 0, "a block holds at least one token");
        assert!(
            settings.batch_tokens_max >= settings.sequences_max,
            "every running sequence can advance in each step"
        );
        Self {
            pool: BlockPool::new(settings.slab, settings.block_tokens),
            settings,
            sequences: BTreeMap::new(),
            admitted: Vec::new(),
            waiting: VecDeque::new(),
            planned: Vec::new(),
            outcomes: Vec::new(),
            preempted: Vec::new(),
            short: None,
            has_new_blocks: false,
            reused_tokens: 0,
            preemptions: 0,
        }
    }

    /// Takes a sequence; it runs as soon as it can have blocks, interactive ones first.
    ///
    /// # Errors
    /// [`AddError`] when it could never run; the batch is as before then.
    pub fn add(&mut self, new: NewSequence, budget: &mut KvBudget) -> Result<(), AddError> {
        let tokens_max = self.check(&new)?;
        let sequence = Sequence {
            rank: budget.next_rank(new.class),
            tokens: new.tokens,
            prompt_tokens: new.prompt_tokens,
            tokens_max,
            stop_token_ids: new.stop_token_ids,
            flow: Flow::Running,
            stage: Stage::Waiting,
            has_drawn: false,
            unrelieved_at: 0,
        };
        self.sequences.insert(new.id, sequence);
        self.line_up(new.id);
        Ok(())
    }

    /// Takes a sequence out, wherever it stands; one that has left already is no fault.
    pub fn remove(&mut self, id: SequenceId, budget: &mut KvBudget) {
        self.take_out(id, budget);
        self.give_back_excess(budget);
    }

    /// Leaves a sequence out of the steps until it is resumed; it keeps its blocks, unless others need them.
    pub fn pause(&mut self, id: SequenceId, budget: &mut KvBudget) {
        if let Some(sequence) = self.sequences.get_mut(&id)
            && sequence.flow == Flow::Running
        {
            sequence.flow = Flow::Paused;
            budget.note_relief();
        }
    }

    /// Lets a paused sequence run again.
    pub fn resume(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id)
            && sequence.flow == Flow::Paused
        {
            sequence.flow = Flow::Running;
            sequence.unrelieved_at = 0;
        }
    }

    /// Ends the batch: its sequences are gone, and all its pages go back.
    pub fn close(mut self, budget: &mut KvBudget) {
        for (_, sequence) in std::mem::take(&mut self.sequences) {
            if let Stage::Admitted(admitted) = sequence.stage {
                self.pool.release(admitted.table, budget);
            }
        }
        self.pool.clear(budget);
    }

    /// What is to be done to the model's memory, in order; to be asked after everything else that is done with the
    /// batches of the device, until `None`, and before anything is mapped for another one.
    #[must_use]
    pub fn poll_memory(&mut self) -> Option<SlabChange> {
        self.pool.poll_change()
    }

    /// Plans the next step of those who were provided for; `None` when nobody can run. Without a completion in
    /// between, and without other changes, the plan is the same again.
    #[must_use]
    pub fn plan(&mut self) -> Option<StepPlan<'_>> {
        plan_step(&self.settings, &self.sequences, &self.admitted, &mut self.planned);
        StepPlan::new(&self.planned, &self.sequences)
    }

    /// Takes what the step gave for each entry of the open plan, in its order: the token where one was to
    /// be sampled. An entry whose sequence was removed meanwhile is passed over.
    ///
    /// # Panics
    /// When there are not as many results as entries.
    pub fn complete(&mut self, results: &[Option<u32>], budget: &mut KvBudget) -> &[Outcome] {
        assert_eq!(results.len(), self.planned.len(), "a step answers every entry");
        self.tell_preempted();
        for (at, result) in results.iter().enumerate() {
            self.advance(self.planned[at], *result, budget);
        }
        self.end_step(budget)
    }

    /// Takes what [`crate::isolate::isolate`] found about the open plan.
    ///
    /// # Panics
    /// When the verdicts are not those of the open plan's entries.
    pub fn complete_isolated(&mut self, verdicts: Vec<Verdict>, budget: &mut KvBudget) -> &[Outcome] {
        assert_eq!(
            verdicts.len(),
            self.planned.len(),
            "there is a verdict on every entry"
        );
        self.tell_preempted();
        for (at, verdict) in verdicts.into_iter().enumerate() {
            let planned = self.planned[at];
            assert_eq!(
                verdict.sequence, planned.sequence,
                "verdicts come in the plan's order"
            );
            match verdict.result {
                Ok(token) => self.advance(planned, token, budget),
                Err(panic) => {
                    self.take_out(planned.sequence, budget);
                    let sequence = planned.sequence;
                    self.outcomes.push(Outcome::Panicked {
                        sequence,
                        message: panic.message,
                    });
                }
            }
        }
        self.end_step(budget)
    }

    /// Drops the open plan: its step did not happen.
    pub fn abandon(&mut self) {
        self.planned.clear();
    }

    /// Sequences, whether admitted or waiting.
    #[must_use]
    pub fn sequence_count(&self) -> usize {
        self.sequences.len()
    }

    /// Sequences that hold blocks.
    #[must_use]
    pub fn admitted_count(&self) -> usize {
        self.admitted.len()
    }

    /// Blocks that sequences hold.
    #[must_use]
    pub fn blocks_held(&self) -> usize {
        self.pool.held_count()
    }

    /// Pages of its slabs that have memory.
    #[must_use]
    pub fn pages_used(&self) -> u64 {
        self.pool.mapped_slabs() as u64 * self.settings.slab.pages
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> BatchStats {
        BatchStats {
            reused_tokens: self.reused_tokens,
            evicted_blocks: self.pool.evicted_blocks(),
            preemptions: self.preemptions,
        }
    }

    /// Lets those whose prompt is not read yet find blocks that others have read meanwhile.
    fn adopt(&mut self, budget: &mut KvBudget) {
        for id in &self.admitted {
            let sequence = self.sequences.get_mut(id).expect("who is admitted is a sequence");
            let Stage::Admitted(admitted) = &mut sequence.stage else {
                unreachable!("who is admitted has blocks")
            };
            let reusable = reusable(&sequence.tokens);
            if admitted.read < reusable.len() {
                self.pool.adopt(&mut admitted.table, reusable, budget);
                admitted.skip_cached(self.settings.block_tokens);
            }
        }
    }

    /// Books one entry's result.
    fn advance(&mut self, planned: Planned, result: Option<u32>, budget: &mut KvBudget) {
        let id = planned.sequence;
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        let Stage::Admitted(admitted) = &mut sequence.stage else {
            return;
        };
        admitted.read = planned.end;
        if !planned.samples {
            assert!(result.is_none(), "only what was to be sampled gives a token");
            return;
        }
        let tokens = std::mem::take(&mut admitted.reused);
        if tokens > 0 && !sequence.has_drawn {
            self.reused_tokens += tokens as u64;
            self.outcomes.push(Outcome::Reused { sequence: id, tokens });
        }
        let index = sequence.tokens.len() - sequence.prompt_tokens;
        let Some(token) = result else {
            return self.finish(id, EndReason::NoToken, index, budget);
        };
        sequence.has_drawn = true;
        if planned.end / self.settings.block_tokens > admitted.table.cached_count() {
            let written = &sequence.tokens[..planned.end];
            self.pool.share(&mut admitted.table, written, budget);
            self.has_new_blocks = true;
        }
        if sequence.stop_token_ids.contains(&token) {
            return self.finish(id, EndReason::Stop, index, budget);
        }
        sequence.tokens.push(token);
        let is_full = sequence.tokens.len() == sequence.tokens_max;
        self.outcomes.push(Outcome::Token {
            sequence: id,
            token,
            index,
        });
        if is_full {
            self.finish(id, EndReason::Length, index + 1, budget);
        }
    }

    fn finish(
        &mut self,
        sequence: SequenceId,
        reason: EndReason,
        answer_tokens: usize,
        budget: &mut KvBudget,
    ) {
        self.take_out(sequence, budget);
        self.outcomes.push(Outcome::Finished {
            sequence,
            reason,
            answer_tokens,
        });
    }

    fn take_out(&mut self, id: SequenceId, budget: &mut KvBudget) {
        let Some(sequence) = self.sequences.remove(&id) else {
            return;
        };
        self.preempted.retain(|preempted| *preempted != id);
        match sequence.stage {
            Stage::Waiting => self.waiting.retain(|waiting| *waiting != id),
            Stage::Admitted(admitted) => {
                self.admitted.retain(|admitted| *admitted != id);
                self.pool.release(admitted.table, budget);
                budget.note_relief();
            }
        }
    }

    fn tell_preempted(&mut self) {
        self.outcomes.clear();
        let preempted = self.preempted.drain(..);
        let outcomes = preempted.map(|sequence| Outcome::Preempted { sequence });
        self.outcomes.extend(outcomes);
    }

    fn end_step(&mut self, budget: &mut KvBudget) -> &[Outcome] {
        self.planned.clear();
        if std::mem::take(&mut self.has_new_blocks) {
            self.adopt(budget);
            budget.note_relief();
        }
        self.give_back_excess(budget);
        &self.outcomes
    }

    fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.settings.block_tokens)
    }
}

impl Admitted {
    /// Passes over the tokens that its cached blocks hold.
    fn skip_cached(&mut self, block_tokens: usize) {
        let skipped = (self.table.cached_count() * block_tokens).saturating_sub(self.read);
        self.read += skipped;
        self.reused += skipped;
    }
}

/// The tokens that may be found in blocks: all but the last, which is read to draw the next.
fn reusable(tokens: &[u32]) -> &[u32] {
    &tokens[..tokens.len() - 1]
}
