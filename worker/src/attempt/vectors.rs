//! The vectors of one attempt at an embedding request.
//!
//! They travel in the `finished` event, all at once: what an earlier attempt had made died with it, and is made
//! again.

use flotilla_protocol::assignment::AttemptEnd;
use flotilla_protocol::event::{Embedding, Event, FinishReason, Finished, Timings, Usage};
use tokio::time::Instant;

use super::generation::{End, Taken, gone, internal};
use super::{Attempt, count};
use crate::engine::{Engine, NewTexts, TextsRun, VectorsEnd};

/// Vectors in the making.
#[derive(Debug)]
pub(super) struct Vectors {
    stage: Stage,
    prompt_tokens: usize,
    engine: Engine,
}

#[derive(Debug)]
enum Stage {
    /// The journal is not open yet.
    Waiting { texts: Vec<Vec<u32>> },
    /// The engine reads texts.
    Running(TextsRun),
    /// Nothing more comes.
    Over { made: Vec<Vec<f32>> },
}

impl Vectors {
    pub(super) fn new(texts: Vec<Vec<u32>>, engine: Engine) -> Self {
        Self {
            prompt_tokens: texts.iter().map(Vec::len).sum(),
            stage: Stage::Waiting { texts },
            engine,
        }
    }

    /// Hands the texts to the engine.
    pub(super) async fn start(&mut self, attempt: &mut Attempt) -> Taken {
        let texts = match &mut self.stage {
            Stage::Waiting { texts } => std::mem::take(texts),
            Stage::Running(_) | Stage::Over { .. } => unreachable!("an attempt starts once"),
        };
        let new = NewTexts {
            model: attempt.new.assignment.model.clone(),
            class: attempt.new.assignment.class,
            texts,
        };
        match self.engine.embed(new).await {
            Ok(run) => {
                attempt.clock.joined = Some(Instant::now());
                attempt.tally.joined(self.prompt_tokens);
                self.stage = Stage::Running(run);
                Taken::default()
            }
            Err(ended) => {
                self.stop();
                Taken::end(gone(&ended.to_string()))
            }
        }
    }

    /// Waits for the vectors. Cancelling loses nothing.
    pub(super) async fn take(&mut self) -> Taken {
        let Stage::Running(run) = &mut self.stage else {
            return std::future::pending().await;
        };
        let (made, end) = match run.vectors().await {
            Ok(made) => (made, End::Finished(FinishReason::Stop)),
            Err(end) => (Vec::new(), broken(end)),
        };
        self.stage = Stage::Over { made };
        Taken::end(end)
    }

    /// Takes the texts out of the engine.
    pub(super) fn stop(&mut self) {
        self.stage = Stage::Over { made: Vec::new() };
    }

    /// Whether the journal is open.
    pub(super) fn has_started(&self) -> bool {
        !matches!(self.stage, Stage::Waiting { .. })
    }

    /// Tokens of all texts.
    pub(super) fn usage(&self) -> Usage {
        Usage::new(count(self.prompt_tokens), 0)
    }

    /// The event that carries the vectors.
    pub(super) fn finished(&mut self, finish_reason: FinishReason, timings: Timings) -> Event {
        let made = match &mut self.stage {
            Stage::Over { made } => std::mem::take(made),
            Stage::Waiting { .. } | Stage::Running(_) => Vec::new(),
        };
        let data = (0..).zip(made);
        let data = data.map(|(index, embedding)| Embedding { index, embedding });
        Event::Finished(Finished {
            finish_reason,
            usage: self.usage(),
            timings,
            data: Some(data.collect()),
        })
    }
}

fn broken(end: VectorsEnd) -> End {
    match end {
        VectorsEnd::NotFinite => internal("the model's numbers are not finite for this input"),
        VectorsEnd::Refused(error) => internal(&error.to_string()),
        VectorsEnd::ModelGone => gone("the model had to go"),
        VectorsEnd::EngineEnded => gone("the engine has ended"),
        VectorsEnd::Panicked { message } => End::LeftOpen(AttemptEnd::Panicked { message }),
    }
}
