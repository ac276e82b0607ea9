//! What happens to a device in a test, and what the test knows of each sequence.

use flotilla_protocol::Class;
use flotilla_worker_core::batch::{BatchSettings, EndReason, PlanEntry, SequenceId};
use flotilla_worker_core::kv::KvSlab;
use proptest::prelude::*;

pub const STOP: u32 = 9999;

#[derive(Debug, Clone)]
pub struct Shape {
    pub model: usize,
    pub class: Class,
    /// Sequences of one family have their first `common_tokens` in common, whether prompt or answer.
    pub family: u32,
    pub common_tokens: usize,
    pub prompt_tokens: usize,
    pub resumed_tokens: usize,
    pub new_tokens_max: usize,
    /// The answer's length at which the model makes its end token.
    pub stop_at: usize,
    pub fate: Fate,
}

/// What the engine does with a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Sound,
    /// Every step with it panics.
    Panics,
    /// Its keys and values are not finite, and so are its logits.
    NotFinite,
}

#[derive(Debug, Clone)]
pub enum Step {
    Add(Shape),
    Remove(prop::sample::Index),
    Pause(prop::sample::Index),
    Resume(prop::sample::Index),
    Run(usize),
    RunAndFail(usize),
    /// A sequence leaves while a step runs.
    RunAndRemove(usize, prop::sample::Index),
    /// One step of each model.
    Round,
    Resize(u64),
}

/// The slabs of each model: blocks smaller than a page, larger than one, and neither.
pub const SLABS: [KvSlab; 3] = [
    KvSlab { blocks: 3, pages: 1 },
    KvSlab { blocks: 2, pages: 3 },
    KvSlab { blocks: 1, pages: 1 },
];

/// Pages in which one full context of any of the models fits.
pub const PAGES_MIN: u64 = 24;

pub fn settings() -> BatchSettings {
    settings_of(2)
}

pub fn settings_of(model: usize) -> BatchSettings {
    BatchSettings {
        batch_tokens_max: 12,
        sequences_max: 5,
        block_tokens: BLOCK_TOKENS,
        slab: SLABS[model],
        context_tokens_max: 60,
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let class = prop_oneof![Just(Class::Interactive), Just(Class::Batch)];
    let lengths = (1..40_usize, 0..6_usize, 1..20_usize, 0..30_usize);
    let fate = prop_oneof![
        18 => Just(Fate::Sound),
        1 => Just(Fate::Panics),
        1 => Just(Fate::NotFinite),
    ];
    let model = 0..SLABS.len();
    (model, class, lengths, (0..2_u32, 0..60_usize), fate).prop_map(
        |(model, class, lengths, common, fate)| Shape {
            model,
            class,
            family: common.0,
            common_tokens: common.1,
            prompt_tokens: lengths.0,
            resumed_tokens: lengths.1,
            new_tokens_max: lengths.2,
            stop_at: lengths.3,
            fate,
        },
    )
}

pub fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let model = || 0..SLABS.len();
    prop_oneof![
        10 => shape().prop_map(Step::Add),
        2 => index().prop_map(Step::Remove),
        2 => index().prop_map(Step::Pause),
        2 => index().prop_map(Step::Resume),
        12 => model().prop_map(Step::Run),
        12 => Just(Step::Round),
        2 => model().prop_map(Step::RunAndFail),
        1 => (model(), index()).prop_map(|(model, index)| Step::RunAndRemove(model, index)),
        2 => (PAGES_MIN..70).prop_map(Step::Resize),
    ]
}

/// What the test knows of a sequence that has not left.
pub struct Known {
    pub id: SequenceId,
    pub shape: Shape,
    /// Tokens that are in its blocks.
    pub read: usize,
    /// How many of them it has not read itself.
    pub reused: usize,
    pub answer: usize,
    pub is_paused: bool,
    /// It was read again from an earlier place.
    pub went_back: bool,
    /// It was told to be preempted.
    pub was_preempted: bool,
}

/// An entry that outlives its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub sequence: SequenceId,
    pub start: usize,
    pub tokens: Vec<u32>,
    pub blocks: Vec<u32>,
    pub sample: Option<usize>,
}

impl Known {
    /// The token at a place of the sequence.
    pub fn token(&self, position: usize) -> u32 {
        let first = if position < self.shape.common_tokens {
            10_000 + self.shape.family * 100
        } else {
            20_000 + u32::try_from(self.id.0).unwrap() * 100
        };
        first + u32::try_from(position).unwrap()
    }

    pub fn tokens(&self, length: usize) -> Vec<u32> {
        (0..length).map(|position| self.token(position)).collect()
    }

    pub fn length(&self) -> usize {
        self.shape.prompt_tokens + self.answer
    }

    /// What the engine draws for an entry.
    pub fn draw(&self, index: usize) -> Option<u32> {
        match self.shape.fate {
            Fate::NotFinite => None,
            Fate::Sound | Fate::Panics if index >= self.shape.stop_at => Some(STOP),
            Fate::Sound | Fate::Panics => Some(self.token(self.shape.prompt_tokens + index)),
        }
    }

    /// How it ends, and with how many tokens.
    pub fn expected_end(&self) -> (EndReason, usize) {
        let shape = &self.shape;
        let room = settings().context_tokens_max - shape.prompt_tokens;
        let length_max = (shape.resumed_tokens + shape.new_tokens_max).min(room);
        let stop_at = shape.stop_at.max(shape.resumed_tokens);
        match shape.fate {
            Fate::NotFinite => (EndReason::NoToken, shape.resumed_tokens),
            Fate::Sound | Fate::Panics if stop_at < length_max => (EndReason::Stop, stop_at),
            Fate::Sound | Fate::Panics => (EndReason::Length, length_max),
        }
    }
}

impl Entry {
    pub fn new(entry: PlanEntry<'_>) -> Self {
        Self {
            sequence: entry.sequence,
            start: entry.start,
            tokens: entry.tokens.to_vec(),
            blocks: entry.blocks.to_vec(),
            sample: entry.sample,
        }
    }

    pub fn end(&self) -> usize {
        self.start + self.tokens.len()
    }

    pub fn place(&self, position: usize) -> (u32, usize) {
        (self.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS)
    }

    pub fn written_blocks(&self) -> &[u32] {
        &self.blocks[self.start / BLOCK_TOKENS..self.end().div_ceil(BLOCK_TOKENS)]
    }
}

pub const BLOCK_TOKENS: usize = 4;
