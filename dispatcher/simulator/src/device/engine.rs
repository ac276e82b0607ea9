//! The engine's thread: rounds of one step for each model, commands in between.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use flotilla_protocol::{Class, ModelName, Moment, RequestId};
use flotilla_worker_core::batch::{Batch, NewSequence, Outcome, SequenceId};
use flotilla_worker_core::worker::Progress;

use super::Work;
use crate::fleet::Timing;

/// Every loaded model of a device, and the step that runs.
#[derive(Debug)]
pub(super) struct Engine {
    models: BTreeMap<ModelName, Loaded>,
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
    Join { sequence: SequenceId },
    Leave { model: ModelName, sequence: SequenceId },
}

/// What the engine tells.
#[derive(Debug)]
pub(super) enum News {
    Installed { model: ModelName },
    Unloaded { model: ModelName },
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
            models: BTreeMap::new(),
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
        for loaded in self.models.values() {
            loaded.batch.check_invariants();
        }
    }

    /// Begins the step of the next model that has one.
    fn begin(&mut self, now: Moment, after: Option<ModelName>) -> Option<Stage> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (model, Loaded { batch, timing }) in self.models.range_mut((from, Bound::Unbounded)) {
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
                model: model.clone(),
                ends: now + duration,
            });
        }
        None
    }

    fn complete(&mut self, model: &ModelName) {
        let loaded = self.models.get_mut(model);
        let Loaded { batch, .. } = loaded.expect("a model stays while its step runs");
        self.news.push_back(News::Stepped);
        for outcome in batch.complete(&self.drawn) {
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
            batch.remove(sequence);
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
                    self.models.insert(model.clone(), *loaded);
                    self.news.push_back(News::Installed { model });
                }
                Command::Unload { model } => {
                    self.models.remove(&model);
                    self.news.push_back(News::Unloaded { model });
                }
                Command::Join { sequence } => self.add(sequence),
                Command::Leave { model, sequence } => {
                    if let Some(loaded) = self.models.get_mut(&model) {
                        loaded.batch.remove(sequence);
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
        let loaded = self.models.get_mut(&run.model);
        let Loaded { batch, .. } = loaded.expect("a lease keeps its model");
        // Another token for each request: what one has read is never found by another.
        let token = u32::try_from(id.0).unwrap_or(u32::MAX);
        let prompt_tokens = run.work.prompt_tokens as usize;
        let added = batch.add(NewSequence {
            id,
            class: run.class,
            tokens: vec![token; prompt_tokens],
            prompt_tokens,
            new_tokens_max: run.work.output_tokens_max as usize,
            stop_token_ids: Arc::default(),
        });
        if let Err(error) = added
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
