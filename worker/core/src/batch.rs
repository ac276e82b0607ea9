//! Continuous batching for one loaded model: who runs in the next step, on which blocks, and what follows.
//!
//! Owned by the engine's thread. A round is: [`Batch::plan`], run the step, [`Batch::complete`]. Between
//! rounds sequences join, leave, pause and resume. A plan changes nothing until it is completed, and a step
//! writes the same keys and values each time, so a step that failed is planned and run again after
//! [`Batch::abandon`].
//!
//! A sequence is admitted when the blocks for its whole possible length can be had, so it never runs out
//! midway. What the tokens mean and when a stop text ends an answer is decided outside.
//!
//! Full blocks outlive their sequence and are found by later ones that begin with the same tokens, so that
//! these are not read again. Blocks become known when a token is drawn after them: their steps were complete
//! then, and finite logits show that what they hold is sound. A sequence always reads at least its last
//! token itself, because the engine needs one to draw from.

mod blocks;
mod invariants;
mod joining;
mod plan;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use flotilla_protocol::Class;

use crate::isolate::Verdict;
use blocks::{BlockPool, BlockTable};
pub use joining::{AddError, NewSequence};
pub use plan::{PlanEntry, StepPlan};
use plan::{Planned, plan_step};

/// Limits of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchSettings {
    /// Most tokens of one step; at least `sequences_max`, so that every running sequence can advance.
    pub batch_tokens_max: usize,
    /// Most sequences that are admitted at once; at least 1.
    pub sequences_max: usize,
    /// Tokens of one block; at least 1.
    pub block_tokens: usize,
    /// Blocks of the model's KV memory; their indices are `0..blocks_total`.
    pub blocks_total: u32,
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
    /// Cached blocks whose memory was needed for other tokens.
    pub evicted_blocks: u64,
}

/// The sequences of one loaded model.
#[derive(Debug)]
pub struct Batch {
    settings: BatchSettings,
    pool: BlockPool,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Admitted sequences in the order of their admission.
    admitted: Vec<SequenceId>,
    /// Sequences that wait for blocks, by class, each in the order of arrival.
    waiting: [VecDeque<SequenceId>; Class::ALL.len()],
    /// The open plan; kept between rounds so that planning does not allocate.
    planned: Vec<Planned>,
    outcomes: Vec<Outcome>,
    /// Since blocks were last looked for, some became cached or were given back.
    has_new_blocks: bool,
    reused_tokens: u64,
}

#[derive(Debug)]
struct Sequence {
    class: Class,
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Tokens at which it ends.
    tokens_max: usize,
    stop_token_ids: Arc<[u32]>,
    flow: Flow,
    stage: Stage,
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
            pool: BlockPool::new(settings.blocks_total, settings.block_tokens),
            settings,
            sequences: BTreeMap::new(),
            admitted: Vec::new(),
            waiting: [VecDeque::new(), VecDeque::new()],
            planned: Vec::new(),
            outcomes: Vec::new(),
            has_new_blocks: false,
            reused_tokens: 0,
        }
    }

    /// Takes a sequence; it runs as soon as its blocks are free, interactive ones first.
    ///
    /// # Errors
    /// [`AddError`] when it could never run; the batch is as before then.
    pub fn add(&mut self, new: NewSequence) -> Result<(), AddError> {
        let tokens_max = self.check(&new)?;
        self.waiting[class_index(new.class)].push_back(new.id);
        let sequence = Sequence {
            class: new.class,
            tokens: new.tokens,
            prompt_tokens: new.prompt_tokens,
            tokens_max,
            stop_token_ids: new.stop_token_ids,
            flow: Flow::Running,
            stage: Stage::Waiting,
        };
        self.sequences.insert(new.id, sequence);
        self.admit();
        Ok(())
    }

    /// Takes a sequence out, wherever it stands; one that has left already is no fault.
    pub fn remove(&mut self, id: SequenceId) {
        self.take_out(id);
        self.admit();
    }

    /// Leaves a sequence out of the steps until it is resumed; it keeps its blocks.
    pub fn pause(&mut self, id: SequenceId) {
        self.set_flow(id, Flow::Paused);
    }

    /// Lets a paused sequence run again.
    pub fn resume(&mut self, id: SequenceId) {
        self.set_flow(id, Flow::Running);
    }

    /// Plans the next step; `None` when nobody can run. Without a completion in between, and without other
    /// changes, the plan is the same again.
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
    pub fn complete(&mut self, results: &[Option<u32>]) -> &[Outcome] {
        assert_eq!(results.len(), self.planned.len(), "a step answers every entry");
        self.outcomes.clear();
        for (at, result) in results.iter().enumerate() {
            self.advance(self.planned[at], *result);
        }
        self.close()
    }

    /// Takes what [`crate::isolate::isolate`] found about the open plan.
    ///
    /// # Panics
    /// When the verdicts are not those of the open plan's entries.
    pub fn complete_isolated(&mut self, verdicts: Vec<Verdict>) -> &[Outcome] {
        assert_eq!(
            verdicts.len(),
            self.planned.len(),
            "there is a verdict on every entry"
        );
        self.outcomes.clear();
        for (at, verdict) in verdicts.into_iter().enumerate() {
            let planned = self.planned[at];
            assert_eq!(
                verdict.sequence, planned.sequence,
                "verdicts come in the plan's order"
            );
            match verdict.result {
                Ok(token) => self.advance(planned, token),
                Err(panic) => {
                    self.take_out(planned.sequence);
                    let sequence = planned.sequence;
                    self.outcomes.push(Outcome::Panicked {
                        sequence,
                        message: panic.message,
                    });
                }
            }
        }
        self.close()
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

    /// Blocks that no sequence holds, those included that are kept for later ones.
    #[must_use]
    pub fn blocks_free(&self) -> usize {
        self.pool.unheld_count()
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> BatchStats {
        BatchStats {
            reused_tokens: self.reused_tokens,
            evicted_blocks: self.pool.evicted_blocks(),
        }
    }

    fn set_flow(&mut self, id: SequenceId, flow: Flow) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.flow = flow;
        }
    }

    /// Gives blocks to those that wait, in order; who does not fit holds up everyone behind, so that a long
    /// request is never starved by short ones.
    fn admit(&mut self) {
        while self.admitted.len() < self.settings.sequences_max {
            let Some(queue) = self.waiting.iter().position(|queue| !queue.is_empty()) else {
                return;
            };
            let id = self.waiting[queue][0];
            let sequence = &self.sequences[&id];
            let blocks_needed = self.blocks_for(sequence.tokens_max);
            let Some(table) = self.pool.reserve(reusable(&sequence.tokens), blocks_needed) else {
                return;
            };
            self.waiting[queue].pop_front();
            self.admitted.push(id);
            let mut admitted = Admitted {
                table,
                read: 0,
                reused: 0,
            };
            admitted.skip_cached(self.settings.block_tokens);
            let sequence = self.sequences.get_mut(&id).expect("who waits is a sequence");
            sequence.stage = Stage::Admitted(admitted);
        }
    }

    /// Lets those whose prompt is not read yet find blocks that others have read meanwhile.
    fn adopt(&mut self) {
        for id in &self.admitted {
            let sequence = self.sequences.get_mut(id).expect("who is admitted is a sequence");
            let Stage::Admitted(admitted) = &mut sequence.stage else {
                unreachable!("who is admitted has blocks")
            };
            let reusable = reusable(&sequence.tokens);
            if admitted.read < reusable.len() {
                self.pool.adopt(&mut admitted.table, reusable);
                admitted.skip_cached(self.settings.block_tokens);
            }
        }
    }

    /// Books one entry's result.
    fn advance(&mut self, planned: Planned, result: Option<u32>) {
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
        if tokens > 0 {
            self.reused_tokens += tokens as u64;
            self.outcomes.push(Outcome::Reused { sequence: id, tokens });
        }
        let index = sequence.tokens.len() - sequence.prompt_tokens;
        let Some(token) = result else {
            return self.finish(id, EndReason::NoToken, index);
        };
        if planned.end / self.settings.block_tokens > admitted.table.cached_count() {
            self.pool
                .share(&mut admitted.table, &sequence.tokens[..planned.end]);
            self.has_new_blocks = true;
        }
        if sequence.stop_token_ids.contains(&token) {
            return self.finish(id, EndReason::Stop, index);
        }
        sequence.tokens.push(token);
        let is_full = sequence.tokens.len() == sequence.tokens_max;
        self.outcomes.push(Outcome::Token {
            sequence: id,
            token,
            index,
        });
        if is_full {
            self.finish(id, EndReason::Length, index + 1);
        }
    }

    fn finish(&mut self, sequence: SequenceId, reason: EndReason, answer_tokens: usize) {
        self.take_out(sequence);
        self.outcomes.push(Outcome::Finished {
            sequence,
            reason,
            answer_tokens,
        });
    }

    /// Takes a sequence out; what its blocks may lead to is looked for later.
    fn take_out(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.remove(&id) else {
            return;
        };
        match sequence.stage {
            Stage::Waiting => self.waiting[class_index(sequence.class)].retain(|waiting| *waiting != id),
            Stage::Admitted(admitted) => {
                self.admitted.retain(|admitted| *admitted != id);
                self.pool.release(admitted.table);
            }
        }
        self.has_new_blocks = true;
    }

    fn close(&mut self) -> &[Outcome] {
        self.planned.clear();
        if std::mem::take(&mut self.has_new_blocks) {
            self.adopt();
            self.admit();
        }
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

/// Where a class's queue is.
fn class_index(class: Class) -> usize {
    match class {
        Class::Interactive => 0,
        Class::Batch => 1,
    }
}

const _: () = assert!(
    matches!(Class::ALL[0], Class::Interactive),
    "the first queue is the most urgent class's"
);
