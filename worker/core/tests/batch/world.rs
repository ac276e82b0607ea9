//! A device of several batches, an engine whose blocks remember what was written to them, and the books about both.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use flotilla_protocol::Class;
use flotilla_worker_core::batch::{Batch, NewSequence, Outcome, PlanEntry, SequenceId, Supply};
use flotilla_worker_core::isolate::{StepPanic, Verdict, isolate};
use flotilla_worker_core::kv::{KvBudget, SlabChange, SlabIndex, relieve, shrink};
use proptest::prelude::*;

use crate::case::{BLOCK_TOKENS, Entry, Fate, Known, SLABS, STOP, Shape, Step, settings, settings_of};

/// What a place in a block holds: all tokens up to it, which is what its keys and values depend on, or
/// something that nobody must read.
type Written = Option<Rc<[u32]>>;

/// The engine and the books about it.
pub struct World {
    pub batches: Vec<Batch>,
    pub budget: KvBudget,
    known: BTreeMap<SequenceId, Known>,
    /// What is where in the memory of each model. Without memory there is nothing.
    device: BTreeMap<(usize, SlabIndex), BTreeMap<(u32, usize), Written>>,
    reused_tokens: u64,
    preemptions_told: u64,
    next_id: u64,
}

fn slab_of(model: usize, block: u32) -> SlabIndex {
    SlabIndex(block / SLABS[model].blocks)
}

impl World {
    pub fn new() -> Self {
        Self {
            batches: (0..SLABS.len())
                .map(|model| Batch::new(settings_of(model)))
                .collect(),
            budget: KvBudget::new(30),
            known: BTreeMap::new(),
            device: BTreeMap::new(),
            reused_tokens: 0,
            preemptions_told: 0,
            next_id: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && self.batches.iter().all(|batch| batch.sequence_count() == 0)
    }

    pub fn apply(&mut self, step: Step) {
        let used_before = self.budget.pages_used();
        match step {
            Step::Add(shape) => self.add(shape),
            Step::Remove(index) => {
                if let Some(id) = self.pick(index) {
                    let model = self.known[&id].shape.model;
                    self.batches[model].remove(id, &mut self.budget);
                    self.known.remove(&id);
                }
            }
            Step::Pause(index) => {
                if let Some(id) = self.pick(index) {
                    let known = self.known.get_mut(&id).unwrap();
                    known.is_paused = true;
                    self.batches[known.shape.model].pause(id, &mut self.budget);
                }
            }
            Step::Resume(index) => {
                if let Some(id) = self.pick(index) {
                    self.resume(id);
                }
            }
            Step::Run(model) => drop(self.run(model, None)),
            Step::RunAndFail(model) => self.run_and_fail(model),
            Step::RunAndRemove(model, index) => {
                let leaver = self.pick(index);
                self.run(model, leaver);
            }
            Step::Round => drop(self.round()),
            Step::Resize(pages) => {
                self.budget.resize(pages);
                let mut batches: Vec<&mut Batch> = self.batches.iter_mut().collect();
                shrink(&mut self.budget, &mut batches);
            }
        }
        let used_max = used_before.max(self.budget.pages_target());
        assert!(
            self.budget.pages_used() <= used_max,
            "no page is given out beyond the target"
        );
        self.check();
    }

    /// Runs whoever is left until all have ended.
    pub fn run_to_the_end(&mut self) {
        let ids: Vec<_> = self.known.keys().copied().collect();
        ids.into_iter().for_each(|id| self.resume(id));
        while self.round() {
            self.check();
        }
        let stats = self.batches.iter().map(Batch::stats);
        let (reused, preempted) = stats.fold((0, 0), |(reused, preempted), stats| {
            (reused + stats.reused_tokens, preempted + stats.preemptions)
        });
        assert_eq!(reused, self.reused_tokens);
        assert!(self.preemptions_told <= preempted);
    }

    /// Ends all batches; their pages go back.
    pub fn close(mut self) {
        for batch in self.batches.drain(..) {
            batch.close(&mut self.budget);
        }
        assert_eq!(self.budget.pages_used(), 0);
    }

    fn check(&mut self) {
        self.batches.iter().for_each(Batch::check_invariants);
        let used: u64 = self.batches.iter().map(Batch::pages_used).sum();
        assert_eq!(used, self.budget.pages_used(), "each page in use is one batch's");
        self.change_memory();
        let mapped = self.device.keys().map(|(model, _)| SLABS[*model].pages);
        assert_eq!(
            mapped.sum::<u64>(),
            used,
            "what is in use has memory, and nothing else"
        );
    }

    /// Does to the memory what the batches want.
    fn change_memory(&mut self) {
        for (model, batch) in self.batches.iter_mut().enumerate() {
            while let Some(change) = batch.poll_memory() {
                match change {
                    SlabChange::Map(slab) => {
                        let before = self.device.insert((model, slab), BTreeMap::new());
                        assert!(before.is_none(), "a slab gets memory once");
                    }
                    SlabChange::Unmap(slab) => {
                        let before = self.device.remove(&(model, slab));
                        assert!(before.is_some(), "only a slab that has memory loses it");
                    }
                }
            }
        }
    }

    fn write_place(&mut self, model: usize, place: (u32, usize), written: Written) {
        let slab = self.device.get_mut(&(model, slab_of(model, place.0)));
        slab.expect("a step writes to memory").insert(place, written);
    }

    fn resume(&mut self, id: SequenceId) {
        let known = self.known.get_mut(&id).unwrap();
        known.is_paused = false;
        self.batches[known.shape.model].resume(id);
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
            went_back: false,
            was_preempted: false,
        };
        let new = NewSequence {
            id,
            class: known.shape.class,
            tokens: known.tokens(known.length()),
            prompt_tokens: known.shape.prompt_tokens,
            new_tokens_max: known.shape.new_tokens_max,
            stop_token_ids: [STOP].into(),
        };
        self.batches[known.shape.model]
            .add(new, &mut self.budget)
            .unwrap();
        self.known.insert(id, known);
    }

    /// One step of each model; says whether there was one. Who ranks first on the device and is not paused takes
    /// part, whatever has to go for it.
    fn round(&mut self) -> bool {
        let running = self.known.values().filter(|known| !known.is_paused);
        let class = |known: &Known| Class::ALL.iter().position(|class| *class == known.shape.class);
        let first = running.min_by_key(|known| (class(known), known.id));
        let first = first.map(|known| (known.id, known.shape.model));
        let mut has_run = false;
        for model in 0..SLABS.len() {
            let planned: Vec<SequenceId> = self
                .plan(model)
                .iter()
                .flatten()
                .map(|entry| entry.sequence)
                .collect();
            if let Some((first, _)) = first.filter(|(_, of)| *of == model) {
                let is_full = self.batches[model].admitted_count() == settings().sequences_max;
                assert!(planned.contains(&first) || is_full, "{first:?} goes on");
            }
            has_run |= self.run(model, None);
        }
        has_run
    }

    fn plan(&mut self, model: usize) -> Option<Vec<Entry>> {
        while self.batches[model].provide(&mut self.budget) == Supply::Short {
            let mut batches: Vec<&mut Batch> = self.batches.iter_mut().collect();
            relieve(&mut self.budget, &mut batches);
            self.check();
        }
        self.change_memory();
        let plan = self.batches[model].plan()?;
        Some(plan.entries().map(Entry::new).collect())
    }

    fn run_and_fail(&mut self, model: usize) {
        let before = self.plan(model);
        self.batches[model].abandon();
        before.iter().flatten().for_each(|entry| self.spoil(entry));
        assert_eq!(
            before,
            self.plan(model),
            "a failed step is planned again as it was"
        );
        self.batches[model].abandon();
    }

    /// Runs one step, during which a sequence may leave; says whether there was one.
    fn run(&mut self, model: usize, leaver: Option<SequenceId>) -> bool {
        let Some(entries) = self.plan(model) else {
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
            self.isolated(model)
        } else {
            self.drawn(model, &entries, leaver)
        };
        outcomes.into_iter().for_each(|outcome| self.book(outcome));
        let mut planned = entries.iter().filter_map(|entry| self.known.get(&entry.sequence));
        assert!(
            planned.all(|known| known.was_preempted || !known.went_back),
            "only who was preempted is read again"
        );
        true
    }

    fn isolated(&mut self, model: usize) -> Vec<Outcome> {
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
        let plan = self.batches[model].plan().unwrap();
        let verdicts: Vec<Verdict> = isolate(&plan, boom(), alone);
        self.batches[model]
            .complete_isolated(verdicts, &mut self.budget)
            .to_vec()
    }

    fn drawn(&mut self, model: usize, entries: &[Entry], leaver: Option<SequenceId>) -> Vec<Outcome> {
        let draw = |entry: &Entry| {
            entry
                .sample
                .and_then(|index| self.known[&entry.sequence].draw(index))
        };
        let results: Vec<_> = entries.iter().map(draw).collect();
        if let Some(leaver) = leaver {
            let known = self.known.remove(&leaver).unwrap();
            self.batches[known.shape.model].remove(leaver, &mut self.budget);
        }
        self.batches[model].complete(&results, &mut self.budget).to_vec()
    }

    /// Writes what a step writes for an entry that runs to its end.
    fn write(&mut self, entry: &Entry) {
        let known = self.known.get_mut(&entry.sequence).unwrap();
        known.read = entry.end();
        let (model, sound) = (known.shape.model, known.shape.fate == Fate::Sound);
        let tokens = known.tokens(entry.end());
        for position in entry.start..entry.end() {
            let written = sound.then(|| tokens[..=position].into());
            self.write_place(model, entry.place(position), written);
        }
    }

    /// Leaves what a step leaves behind that broke midway.
    fn spoil(&mut self, entry: &Entry) {
        let model = self.known[&entry.sequence].shape.model;
        for position in entry.start..entry.end() {
            self.write_place(model, entry.place(position), None);
        }
    }

    fn book(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Reused { sequence, tokens } => {
                let known = self.known.get_mut(&sequence).unwrap();
                assert!(tokens > 0, "only what is something is told");
                self.reused_tokens += u64::try_from(tokens).unwrap();
                let reused = std::mem::take(&mut known.reused);
                assert!(
                    tokens == reused || known.was_preempted,
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
            Outcome::Preempted { sequence } => {
                self.known.get_mut(&sequence).unwrap().was_preempted = true;
                self.preemptions_told += 1;
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
        if entry.start < known.read {
            (known.went_back, known.read, known.reused) = (true, 0, 0);
        }
        let reused = entry.start - known.read;
        if reused > 0 {
            assert_eq!(entry.start % BLOCK_TOKENS, 0, "blocks are reused whole");
            known.read = entry.start;
            if known.answer == known.shape.resumed_tokens {
                known.reused += reused;
            }
        }
        if known.shape.fate == Fate::Sound {
            for position in 0..entry.start {
                let expected = Some(known.tokens(position + 1).into());
                let (block, place) = entry.place(position);
                let slab = &self.device[&(known.shape.model, slab_of(known.shape.model, block))];
                assert_eq!(slab.get(&(block, place)), Some(&expected));
            }
        }
    }
}
