//! A batch, an engine whose blocks remember what was written to them, and the books about both.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use flotilla_protocol::Class;
use flotilla_worker_core::batch::{
    Batch, BatchSettings, EndReason, NewSequence, Outcome, PlanEntry, SequenceId,
};
use flotilla_worker_core::isolate::{StepPanic, Verdict, isolate};
use proptest::prelude::*;

pub const STOP: u32 = 9999;

#[derive(Debug, Clone)]
pub struct Shape {
    class: Class,
    /// Sequences of one family have their first `common_tokens` in common, whether prompt or answer.
    family: u32,
    common_tokens: usize,
    prompt_tokens: usize,
    resumed_tokens: usize,
    new_tokens_max: usize,
    /// The answer's length at which the model makes its end token.
    stop_at: usize,
    fate: Fate,
}

/// What the engine does with a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
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
    Run,
    RunAndFail,
    /// A sequence leaves while a step runs.
    RunAndRemove(prop::sample::Index),
}

pub fn settings() -> BatchSettings {
    BatchSettings {
        batch_tokens_max: 12,
        sequences_max: 5,
        block_tokens: BLOCK_TOKENS,
        blocks_total: 24,
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
    (class, lengths, (0..2_u32, 0..60_usize), fate).prop_map(|(class, lengths, common, fate)| Shape {
        class,
        family: common.0,
        common_tokens: common.1,
        prompt_tokens: lengths.0,
        resumed_tokens: lengths.1,
        new_tokens_max: lengths.2,
        stop_at: lengths.3,
        fate,
    })
}

pub fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => shape().prop_map(Step::Add),
        2 => index().prop_map(Step::Remove),
        2 => index().prop_map(Step::Pause),
        2 => index().prop_map(Step::Resume),
        24 => Just(Step::Run),
        2 => Just(Step::RunAndFail),
        1 => index().prop_map(Step::RunAndRemove),
    ]
}

/// What the test knows of a sequence that has not left.
struct Known {
    id: SequenceId,
    shape: Shape,
    /// Tokens that are in its blocks.
    read: usize,
    /// How many of them it has not read itself.
    reused: usize,
    answer: usize,
    is_paused: bool,
}

/// What a place in a block holds: all tokens up to it, which is what its keys and values depend on, or
/// something that nobody must read.
type Written = Option<Rc<[u32]>>;

/// The engine and the books about it.
pub struct World {
    pub batch: Batch,
    known: BTreeMap<SequenceId, Known>,
    device: BTreeMap<(u32, usize), Written>,
    reused_tokens: u64,
    next_id: u64,
}

/// An entry that outlives its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    sequence: SequenceId,
    start: usize,
    tokens: Vec<u32>,
    blocks: Vec<u32>,
    sample: Option<usize>,
}

impl Known {
    /// The token at a place of the sequence.
    fn token(&self, position: usize) -> u32 {
        let first = if position < self.shape.common_tokens {
            10_000 + self.shape.family * 100
        } else {
            20_000 + u32::try_from(self.id.0).unwrap() * 100
        };
        first + u32::try_from(position).unwrap()
    }

    fn tokens(&self, length: usize) -> Vec<u32> {
        (0..length).map(|position| self.token(position)).collect()
    }

    fn length(&self) -> usize {
        self.shape.prompt_tokens + self.answer
    }

    /// What the engine draws for an entry.
    fn draw(&self, index: usize) -> Option<u32> {
        match self.shape.fate {
            Fate::NotFinite => None,
            Fate::Sound | Fate::Panics if index >= self.shape.stop_at => Some(STOP),
            Fate::Sound | Fate::Panics => Some(self.token(self.shape.prompt_tokens + index)),
        }
    }

    /// How it ends, and with how many tokens.
    fn expected_end(&self) -> (EndReason, usize) {
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
    fn new(entry: PlanEntry<'_>) -> Self {
        Self {
            sequence: entry.sequence,
            start: entry.start,
            tokens: entry.tokens.to_vec(),
            blocks: entry.blocks.to_vec(),
            sample: entry.sample,
        }
    }

    fn end(&self) -> usize {
        self.start + self.tokens.len()
    }

    fn place(&self, position: usize) -> (u32, usize) {
        (self.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS)
    }

    fn written_blocks(&self) -> &[u32] {
        &self.blocks[self.start / BLOCK_TOKENS..self.end().div_ceil(BLOCK_TOKENS)]
    }
}

impl World {
    pub fn new() -> Self {
        Self {
            batch: Batch::new(settings()),
            known: BTreeMap::new(),
            device: BTreeMap::new(),
            reused_tokens: 0,
            next_id: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub fn apply(&mut self, step: Step) {
        match step {
            Step::Add(shape) => self.add(shape),
            Step::Remove(index) => {
                if let Some(id) = self.pick(index) {
                    self.batch.remove(id);
                    self.known.remove(&id);
                }
            }
            Step::Pause(index) => {
                if let Some(id) = self.pick(index) {
                    self.batch.pause(id);
                    self.known.get_mut(&id).unwrap().is_paused = true;
                }
            }
            Step::Resume(index) => {
                if let Some(id) = self.pick(index) {
                    self.resume(id);
                }
            }
            Step::Run => drop(self.run(None)),
            Step::RunAndFail => self.run_and_fail(),
            Step::RunAndRemove(index) => {
                let leaver = self.pick(index);
                self.run(leaver);
            }
        }
        self.batch.check_invariants();
    }

    /// Runs whoever is left until all have ended.
    pub fn run_to_the_end(&mut self) {
        let ids: Vec<_> = self.known.keys().copied().collect();
        ids.into_iter().for_each(|id| self.resume(id));
        while self.run(None) {
            self.batch.check_invariants();
        }
        assert_eq!(self.batch.stats().reused_tokens, self.reused_tokens);
    }

    fn resume(&mut self, id: SequenceId) {
        self.batch.resume(id);
        self.known.get_mut(&id).unwrap().is_paused = false;
    }

    fn pick(&self, index: prop::sample::Index) -> Option<SequenceId> {
        let ids: Vec<_> = self.known.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[index.index(ids.len())])
    }

    fn add(&mut self, shape: Shape) {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let known = Known {
            id,
            answer: shape.resumed_tokens,
            shape,
            read: 0,
            reused: 0,
            is_paused: false,
        };
        let new = NewSequence {
            id,
            class: known.shape.class,
            tokens: known.tokens(known.length()),
            prompt_tokens: known.shape.prompt_tokens,
            new_tokens_max: known.shape.new_tokens_max,
            stop_token_ids: [STOP].into(),
        };
        self.batch.add(new).unwrap();
        self.known.insert(id, known);
    }

    fn plan(&mut self) -> Option<Vec<Entry>> {
        let plan = self.batch.plan()?;
        Some(plan.entries().map(Entry::new).collect())
    }

    fn run_and_fail(&mut self) {
        let before = self.plan();
        self.batch.abandon();
        before.iter().flatten().for_each(|entry| self.spoil(entry));
        assert_eq!(before, self.plan(), "a failed step is planned again as it was");
        self.batch.abandon();
    }

    /// Runs one step, during which a sequence may leave; says whether there was one.
    fn run(&mut self, leaver: Option<SequenceId>) -> bool {
        let Some(entries) = self.plan() else {
            return false;
        };
        self.check_plan(&entries);
        let panics = |known: &Known| known.shape.fate == Fate::Panics;
        let broken = entries.iter().any(|entry| panics(&self.known[&entry.sequence]));
        if broken {
            entries.iter().for_each(|entry| self.spoil(entry));
        }
        let sound = entries
            .iter()
            .filter(|entry| !panics(&self.known[&entry.sequence]));
        for entry in sound.cloned().collect::<Vec<_>>() {
            self.write(&entry);
        }
        let outcomes = if broken {
            self.isolated()
        } else {
            self.drawn(&entries, leaver)
        };
        outcomes.into_iter().for_each(|outcome| self.book(outcome));
        true
    }

    fn isolated(&mut self) -> Vec<Outcome> {
        let boom = || StepPanic {
            message: "boom".into(),
        };
        let known = &self.known;
        let alone = |entry: PlanEntry<'_>| {
            let known = &known[&entry.sequence];
            match known.shape.fate {
                Fate::Panics => Err(boom()),
                Fate::Sound | Fate::NotFinite => Ok(entry.sample.and_then(|index| known.draw(index))),
            }
        };
        let plan = self.batch.plan().unwrap();
        let verdicts: Vec<Verdict> = isolate(&plan, boom(), alone);
        self.batch.complete_isolated(verdicts).to_vec()
    }

    fn drawn(&mut self, entries: &[Entry], leaver: Option<SequenceId>) -> Vec<Outcome> {
        let draw = |entry: &Entry| {
            entry
                .sample
                .and_then(|index| self.known[&entry.sequence].draw(index))
        };
        let results: Vec<_> = entries.iter().map(draw).collect();
        if let Some(leaver) = leaver {
            self.batch.remove(leaver);
            self.known.remove(&leaver);
        }
        self.batch.complete(&results).to_vec()
    }

    /// Writes what a step writes for an entry that runs to its end.
    fn write(&mut self, entry: &Entry) {
        let known = self.known.get_mut(&entry.sequence).unwrap();
        known.read = entry.end();
        for position in entry.start..entry.end() {
            let sound = known.shape.fate == Fate::Sound;
            let written = sound.then(|| known.tokens(position + 1).into());
            self.device.insert(entry.place(position), written);
        }
    }

    /// Leaves what a step leaves behind that broke midway.
    fn spoil(&mut self, entry: &Entry) {
        for position in entry.start..entry.end() {
            self.device.insert(entry.place(position), None);
        }
    }

    fn book(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Reused { sequence, tokens } => {
                let known = self.known.get_mut(&sequence).unwrap();
                assert!(tokens > 0, "only what is something is told");
                self.reused_tokens += u64::try_from(tokens).unwrap();
                assert_eq!(
                    tokens,
                    std::mem::take(&mut known.reused),
                    "told once, before any token"
                );
                assert_eq!(known.answer, known.shape.resumed_tokens);
            }
            Outcome::Token {
                sequence,
                token,
                index,
            } => {
                let known = self.known.get_mut(&sequence).unwrap();
                assert_eq!(known.reused, 0, "reused tokens are told before the first token");
                assert_eq!(index, known.answer, "tokens come in order");
                assert_eq!(token, known.token(known.length()));
                known.answer += 1;
            }
            Outcome::Finished {
                sequence,
                reason,
                answer_tokens,
            } => {
                let known = self.known.remove(&sequence).unwrap();
                assert_eq!(answer_tokens, known.answer);
                assert_eq!((reason, answer_tokens), known.expected_end());
            }
            Outcome::Panicked { sequence, .. } => {
                let known = self.known.remove(&sequence).unwrap();
                assert_eq!(known.shape.fate, Fate::Panics, "only the poison is blamed");
            }
        }
    }

    fn check_plan(&mut self, entries: &[Entry]) {
        let budget: usize = entries.iter().map(|entry| entry.tokens.len()).sum();
        assert!(
            budget <= settings().batch_tokens_max,
            "the budget of a step is kept"
        );
        let decodes = entries
            .iter()
            .map(|entry| entry.start + 1 == self.known[&entry.sequence].length());
        assert!(
            decodes.is_sorted_by(|one, next| one >= next),
            "decodes come first"
        );
        for entry in entries {
            self.check_entry(entry);
        }
        for (at, entry) in entries.iter().enumerate() {
            let written: BTreeSet<_> = entry.written_blocks().iter().collect();
            let others = entries.iter().enumerate().filter(|(other, _)| *other != at);
            assert!(
                others
                    .flat_map(|(_, other)| &other.blocks)
                    .all(|block| !written.contains(block)),
                "what a step writes to belongs to one sequence"
            );
        }
    }

    fn check_entry(&mut self, entry: &Entry) {
        let known = self.known.get_mut(&entry.sequence).unwrap();
        assert!(!known.is_paused, "who is paused is left out");
        assert_eq!(
            entry.tokens,
            known.tokens(entry.end())[entry.start..],
            "its own tokens"
        );
        let length = known.length();
        assert_eq!(entry.sample, (entry.end() == length).then_some(known.answer));
        assert!(
            entry.blocks.len() * BLOCK_TOKENS >= entry.end(),
            "blocks for what is read"
        );
        assert!(entry.start >= known.read, "no token is read twice");
        let reused = entry.start - known.read;
        if reused > 0 {
            assert_eq!(entry.start % BLOCK_TOKENS, 0, "blocks are reused whole");
            known.reused += reused;
            known.read = entry.start;
        }
        if known.shape.fate == Fate::Sound {
            for position in 0..entry.start {
                let expected = Some(known.tokens(position + 1).into());
                assert_eq!(self.device.get(&entry.place(position)), Some(&expected));
            }
        }
    }
}

const BLOCK_TOKENS: usize = 4;
