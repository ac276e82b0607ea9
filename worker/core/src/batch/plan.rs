//! Who takes part in a step: every sequence that decodes, then chunks of prompts within the token budget.

use std::collections::BTreeMap;

use super::{Admitted, BatchSettings, Flow, Sequence, SequenceId, Stage};

/// One sequence's part of a step, by place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    pub(super) sequence: SequenceId,
    pub(super) start: usize,
    pub(super) end: usize,
    /// Whether the step reaches the last token, so that the next one is to be sampled.
    pub(super) samples: bool,
}

/// A step to run. It stays open until the batch is told how it went.
#[derive(Debug, Clone, Copy)]
pub struct StepPlan<'a> {
    planned: &'a [Planned],
    sequences: &'a BTreeMap<SequenceId, Sequence>,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanEntry<'a> {
    /// The sequence.
    pub sequence: SequenceId,
    /// Position of the first token to read; those before it are in the blocks.
    pub start: usize,
    /// The tokens to read, at least one.
    pub tokens: &'a [u32],
    /// The sequence's blocks from position 0 on, at least those of all its tokens. Those that `tokens` are
    /// written to are its alone; those before may be other sequences' too.
    pub blocks: &'a [u32],
    /// When the next token is to be sampled: its index in the answer, from 0, earlier attempts included.
    pub sample: Option<usize>,
}

impl<'a> StepPlan<'a> {
    /// `None` when the plan has no entry.
    pub(super) fn new(planned: &'a [Planned], sequences: &'a BTreeMap<SequenceId, Sequence>) -> Option<Self> {
        (!planned.is_empty()).then_some(Self { planned, sequences })
    }

    /// How many sequences take part.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a plan is never empty")]
    pub fn len(&self) -> usize {
        self.planned.len()
    }

    /// Tokens that are read by those who read several: by prompts, in whole or in chunks.
    #[must_use]
    pub fn prefill_tokens(&self) -> usize {
        let lengths = self.planned.iter().map(|planned| planned.end - planned.start);
        lengths.filter(|&tokens| tokens > 1).sum()
    }

    /// How many read one token, as everyone who decodes does.
    #[must_use]
    pub fn decoding_count(&self) -> usize {
        let lengths = self.planned.iter().map(|planned| planned.end - planned.start);
        lengths.filter(|&tokens| tokens == 1).count()
    }

    /// The parts, those that decode first.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = PlanEntry<'a>> + use<'a> {
        let sequences = self.sequences;
        self.planned.iter().map(move |planned| entry(sequences, planned))
    }
}

/// Writes the next step into `planned`.
pub(super) fn plan_step(
    settings: &BatchSettings,
    sequences: &BTreeMap<SequenceId, Sequence>,
    admitted: &[SequenceId],
    planned: &mut Vec<Planned>,
) {
    planned.clear();
    let runnable = || {
        let admitted = admitted.iter().map(|id| (*id, &sequences[id]));
        admitted.filter_map(|(id, sequence)| Some((id, sequence, tokens_read(settings, sequence)?)))
    };
    let mut budget = settings.batch_tokens_max;
    for (id, sequence, read) in runnable() {
        if sequence.tokens.len() - read == 1 {
            planned.push(take(id, sequence, read, &mut budget));
        }
    }
    for (id, sequence, read) in runnable() {
        if budget > 0 && sequence.tokens.len() - read > 1 {
            planned.push(take(id, sequence, read, &mut budget));
        }
    }
}

/// Tokens that are in the blocks already; `None` when the sequence is left out of steps: it is paused, or has no
/// block for its last token.
fn tokens_read(settings: &BatchSettings, sequence: &Sequence) -> Option<usize> {
    match (sequence.flow, &sequence.stage) {
        (Flow::Running, Stage::Admitted(Admitted { read, table, .. })) => {
            let room = table.blocks().len() * settings.block_tokens;
            (sequence.tokens.len() <= room).then_some(*read)
        }
        (Flow::Paused, _) | (_, Stage::Waiting) => None,
    }
}

/// As much of a sequence as the budget allows.
fn take(id: SequenceId, sequence: &Sequence, start: usize, budget: &mut usize) -> Planned {
    let end = sequence.tokens.len().min(start + *budget);
    *budget -= end - start;
    Planned {
        sequence: id,
        start,
        end,
        samples: end == sequence.tokens.len(),
    }
}

fn entry<'a>(sequences: &'a BTreeMap<SequenceId, Sequence>, planned: &Planned) -> PlanEntry<'a> {
    let sequence = &sequences[&planned.sequence];
    let blocks: &[u32] = match &sequence.stage {
        Stage::Admitted(admitted) => admitted.table.blocks(),
        Stage::Waiting => unreachable!("only admitted sequences are planned"),
    };
    PlanEntry {
        sequence: planned.sequence,
        start: planned.start,
        tokens: &sequence.tokens[planned.start..planned.end],
        blocks,
        sample: planned
            .samples
            .then(|| sequence.tokens.len() - sequence.prompt_tokens),
    }
}
