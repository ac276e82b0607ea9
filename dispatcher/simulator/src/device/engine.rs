//! The engine's thread: rounds of one step for each model, commands in between.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use flotilla_protocol::{Class, ModelName, Moment, RequestId};
use flotilla_worker_core::batch::{Batch, NewSequence, Outcome, SequenceId};
use flotilla_worker_core::kv::{self, KvBudget, KvReport};
use flotilla_worker_core::worker::Progress;

use super::Work;
use crate::fleet::Timing;

/// Every loaded model of a device, and the step that runs.
#[derive(Debug)]
pub(super) struct Engine {
    /// By name.
    models: Vec<Resident>,
    budget: KvBudget,
    /// How the pool stood when that was told last.
    kv_told: KvReport,
    runs: BTreeMap<SequenceId, Run>,
    commands: VecDeque<Command>,
    stage: Stage,
    news: VecDeque<News>,
    next_sequence: u64,
    /// What the step under way draws for each entry of its plan.
    drawn: Vec<Option<u32>>,
    finished: Vec<SequenceId>,
}

/// A model that can run.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) batch: Batch,
    pub(super) timing: Arc<Timing>,
}

#[derive(Debug)]
struct Resident {
    name: ModelName,
    loaded: Loaded,
}

impl Resident {
    fn batch(&mut self) -> Option<&mut Batch> {
        Some(&mut self.loaded.batch)
    }
}

/// A request that joins the batch of its model.
#[derive(Debug)]
pub(super) struct NewRun {
    pub(super) request: RequestId,
    pub(super) class: Class,
    pub(super) model: ModelName,
    pub(super) work: Work,
}

/// What is done between two rounds.
#[derive(Debug)]
pub(super) enum Command {
    Install { model: ModelName, loaded: Box<Loaded> },
    Unload { model: ModelName },
    ResizeKv { pages: u64 },
    Join { sequence: SequenceId },
    Leave { model: ModelName, sequence: SequenceId },
}

/// What the engine tells.
#[derive(Debug)]
pub(super) enum News {
    Installed { model: ModelName },
    Unloaded { model: ModelName },
    KvChanged { report: KvReport },
    Stepped,
    FirstToken { request: RequestId },
    Finished { request: RequestId, progress: Progress },
    Impossible { request: RequestId, reason: String },
}

#[derive(Debug)]
struct Run {
    request: RequestId,
    class: Class,
    model: ModelName,
    work: Work,
    made: u32,
}

/// Where the thread is.
#[derive(Debug, Default)]
enum Stage {
    /// In its command channel.
    #[default]
    Idle,
    /// In a round, after the model that had the last step.
    Round {
        after: Option<ModelName>,
        had_work: bool,
    },
    /// In a step.
    Step { model: ModelName, ends: Moment },
}

impl Engine {
    pub(super) fn new() -> Self {
        Self {
            models: Vec::new(),
            budget: KvBudget::default(),
            kv_told: KvReport::default(),
            runs: BTreeMap::new(),
            commands: VecDeque::new(),
            stage: Stage::Idle,
            news: VecDeque::new(),
            next_sequence: 0,
            drawn: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// When the step under way ends.
    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        match &self.stage {
            Stage::Step { ends, .. } => Some(*ends),
            Stage::Idle | Stage::Round { .. } => None,
        }
    }

    pub(super) fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    pub(super) fn command(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    /// Lets a request join; tells its number here.
    pub(super) fn join(&mut self, new: NewRun) -> u64 {
        let sequence = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        let run = Run {
            request: new.request,
            class: new.class,
            model: new.model,
            work: new.work,
            made: 0,
        };
        self.runs.insert(sequence, run);
        self.commands.push_back(Command::Join { sequence });
        sequence.0
    }

    /// Lets a request leave; tells how many tokens it has made.
    pub(super) fn leave(&mut self, run: u64) -> u32 {
        let sequence = SequenceId(run);
        let Some(run) = self.runs.remove(&sequence) else {
            return 0;
        };
        let model = run.model;
        self.commands.push_back(Command::Leave { model, sequence });
        run.made
    }

    /// How far each request is.
    pub(super) fn progress(&self) -> impl Iterator<Item = (&RequestId, Progress)> {
        self.runs.values().map(|run| (&run.request, run.progress()))
    }

    /// Goes on as far as it can without time passing.
    pub(super) fn advance(&mut self, now: Moment) {
        self.go_on(now);
        self.tell_kv();
    }

    fn go_on(&mut self, now: Moment) {
        loop {
            self.stage = match std::mem::take(&mut self.stage) {
                Stage::Step { model, ends } if ends > now => {
                    self.stage = Stage::Step { model, ends };
                    return;
                }
                Stage::Step { model, .. } => {
                    self.complete(&model);
                    let (after, had_work) = (Some(model), true);
                    Stage::Round { after, had_work }
                }
                Stage::Round { after, had_work } => match self.begin(now, after) {
                    Some(step) => step,
                    None if had_work || !self.commands.is_empty() => self.obey(),
                    None => Stage::Idle,
                },
                Stage::Idle if self.commands.is_empty() => return,
                Stage::Idle => self.obey(),
            };
        }
    }

    /// # Panics
    /// When a batch is not sound.
    pub(super) fn check_invariants(&self) {
        for resident in &self.models {
            resident.loaded.batch.check_invariants();
        }
        let used = self
            .models
            .iter()
            .map(|resident| resident.loaded.batch.pages_used());
        assert_eq!(
            used.sum::<u64>(),
            self.budget.pages_used(),
            "batches have all that is in use"
        );
    }

    /// Begins the step of the next model that has one.
    fn begin(&mut self, now: Moment, after: Option<ModelName>) -> Option<Stage> {
        let first = self
            .models
            .partition_point(|model| after.as_ref().is_some_and(|after| model.name <= *after));
        for at in first..self.models.len() {
            kv::provide(&mut self.budget, &mut self.models, at, Resident::batch);
            let Resident { name, loaded } = &mut self.models[at];
            let Loaded { batch, timing } = loaded;
            // There is no memory to map.
            while batch.poll_memory().is_some() {}
            let Some(plan) = batch.plan() else { continue };
            let (mut prefill_tokens, mut decoding_sequences) = (0_usize, 0);
            self.drawn.clear();
            for entry in plan.entries() {
                match entry.tokens.len() {
                    1 => decoding_sequences += 1,
                    tokens => prefill_tokens += tokens,
                }
                self.drawn.push(entry.sample.map(|_| ANY_TOKEN));
            }
            let prefill_tokens = u32::try_from(prefill_tokens).unwrap_or(u32::MAX);
            let duration = timing.step(prefill_tokens, decoding_sequences);
            return Some(Stage::Step {
                model: name.clone(),
                ends: now + duration,
            });
        }
        None
    }

    fn place_of(&self, model: &ModelName) -> Option<usize> {
        self.models
            .binary_search_by(|resident| resident.name.cmp(model))
            .ok()
    }

    /// Tells how the pool stands, if that has changed.
    fn tell_kv(&mut self) {
        let unused = self
            .models
            .iter()
            .map(|resident| resident.loaded.batch.unused_pages());
        let report = self.budget.report(unused.sum());
        if report != self.kv_told {
            self.kv_told = report;
            self.news.push_back(News::KvChanged { report });
        }
    }

    fn complete(&mut self, model: &ModelName) {
        let at = self.place_of(model).expect("a model stays while its step runs");
        let Loaded { batch, .. } = &mut self.models[at].loaded;
        self.news.push_back(News::Stepped);
        for outcome in batch.complete(&self.drawn, &mut self.budget) {
            let Outcome::Token { sequence, .. } = outcome else {
                continue;
            };
            // Who left meanwhile is taken out before the next round.
            let Some(run) = self.runs.get_mut(sequence) else {
                continue;
            };
            run.made += 1;
            if run.made == 1 {
                let request = run.request.clone();
                self.news.push_back(News::FirstToken { request });
            }
            if run.made == run.work.output_tokens {
                self.finished.push(*sequence);
            }
        }
        for sequence in self.finished.drain(..) {
            batch.remove(sequence, &mut self.budget);
            let run = self.runs.remove(&sequence).expect("who finished ran");
            let progress = run.progress();
            let request = run.request;
            self.news.push_back(News::Finished { request, progress });
        }
    }

    /// Carries out the commands that are there; a round follows.
    fn obey(&mut self) -> Stage {
        while let Some(command) = self.commands.pop_front() {
            match command {
                Command::Install { model, loaded } => {
                    let at = self.models.partition_point(|resident| resident.name < model);
                    let name = model.clone();
                    self.models.insert(
                        at,
                        Resident {
                            name,
                            loaded: *loaded,
                        },
                    );
                    self.news.push_back(News::Installed { model });
                }
                Command::Unload { model } => {
                    if let Some(at) = self.place_of(&model) {
                        self.models.remove(at).loaded.batch.close(&mut self.budget);
                    }
                    self.news.push_back(News::Unloaded { model });
                }
                Command::ResizeKv { pages } => {
                    self.budget.resize(pages);
                    let mut batches: Vec<_> = self.models.iter_mut().filter_map(Resident::batch).collect();
                    kv::shrink(&mut self.budget, &mut batches);
                }
                Command::Join { sequence } => self.add(sequence),
                Command::Leave { model, sequence } => {
                    if let Some(at) = self.place_of(&model) {
                        self.models[at].loaded.batch.remove(sequence, &mut self.budget);
                    }
                }
            }
        }
        Stage::Round {
            after: None,
            had_work: false,
        }
    }

    fn add(&mut self, id: SequenceId) {
        // Who left before it joined is not there any more.
        let Some(run) = self.runs.get(&id) else { return };
        let at = self.place_of(&run.model).expect("a lease keeps its model");
        let Loaded { batch, .. } = &mut self.models[at].loaded;
        // Another token for each request: what one has read is never found by another.
        let token = u32::try_from(id.0).unwrap_or(u32::MAX);
        let prompt_tokens = run.work.prompt_tokens as usize;
        let new = NewSequence {
            id,
            class: run.class,
            tokens: vec![token; prompt_tokens],
            prompt_tokens,
            new_tokens_max: run.work.output_tokens_max as usize,
            stop_token_ids: Arc::default(),
        };
        if let Err(error) = batch.add(new, &mut self.budget)
            && let Some(run) = self.runs.remove(&id)
        {
            let (request, reason) = (run.request, error.to_string());
            self.news.push_back(News::Impossible { request, reason });
        }
    }
}

impl Run {
    fn progress(&self) -> Progress {
        Progress {
            prompt_tokens: self.work.prompt_tokens,
            output_tokens: self.made,
        }
    }
}

/// Tokens mean nothing here: no request names one that ends its answer.
const ANY_TOKEN: u32 = 0;
