//! One loaded encoder on the engine's thread: the texts that wait for it, and where their vectors go.

use std::collections::BTreeMap;
use std::time::Instant;

use flotilla_protocol::ModelName;
use flotilla_worker_core::texts::{PlannedText, TextsId};
use flotilla_worker_engine::{Backend, CpuBackend, EncoderModel, StepError};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::health::Round;
use super::load::LoadedEncoder;
use super::round::caught;
use super::{JoiningTexts, VectorsEnd, VectorsReply};
use crate::metrics::{StepSize, StepTally};

/// A model that makes vectors.
#[derive(Debug)]
pub(super) struct VectorsModel {
    loaded: LoadedEncoder,
    running: BTreeMap<TextsId, Running>,
    tally: StepTally,
}

#[derive(Debug)]
struct Running {
    texts: usize,
    /// Of the first texts.
    vectors: Vec<Vec<f32>>,
    /// Taken when it is told.
    reply: Option<oneshot::Sender<VectorsReply>>,
}

impl VectorsModel {
    pub(super) fn new(name: &ModelName, loaded: LoadedEncoder) -> Self {
        Self {
            tally: StepTally::new(name),
            loaded,
            running: BTreeMap::new(),
        }
    }

    /// The encoder without its requests, which end.
    pub(super) fn into_encoder(self) -> EncoderModel<CpuBackend> {
        self.loaded.encoder
    }

    /// Queues a request's texts, or tells it why not.
    pub(super) fn join(&mut self, new: JoiningTexts) {
        let texts = new.texts.len();
        match self.loaded.queue.add(new.id, new.class, new.texts) {
            Ok(()) => {
                let running = Running {
                    texts,
                    vectors: Vec::with_capacity(texts),
                    reply: Some(new.reply),
                };
                self.running.insert(new.id, running);
            }
            Err(error) => answer(new.reply, Err(VectorsEnd::Refused(error))),
        }
    }

    /// Runs one step.
    pub(super) fn advance(&mut self) -> Round {
        self.take_out_those_that_left();
        let plan = self.loaded.queue.plan();
        if plan.is_empty() {
            return Round::Idle;
        }
        let begun = Instant::now();
        let round = match self.encode(&plan) {
            Ok(vectors) => {
                let tokens = plan
                    .iter()
                    .map(|text| self.loaded.queue.tokens(*text).len())
                    .sum();
                self.tally
                    .count(StepSize::of_texts(plan.len(), tokens), begun.elapsed());
                let made = plan.iter().zip(vectors);
                made.for_each(|(text, vector)| self.keep(*text, vector));
                Round::Worked
            }
            Err(fault) if plan.len() == 1 => {
                self.end(plan[0].request, fault);
                Round::Failed
            }
            Err(fault) => {
                warn!(texts = plan.len(), error = ?fault, "a step failed; each text is run alone");
                self.advance_alone(&plan)
            }
        };
        self.loaded.queue.complete();
        self.answer_those_that_are_complete();
        round
    }

    /// Puts out only those requests of which a text fails alone.
    fn advance_alone(&mut self, plan: &[PlannedText]) -> Round {
        let mut round = Round::Failed;
        for text in plan {
            if !self.running.contains_key(&text.request) {
                continue;
            }
            match self.encode(&[*text]) {
                Ok(vectors) => {
                    round = Round::Worked;
                    vectors.into_iter().for_each(|vector| self.keep(*text, vector));
                }
                Err(fault) => self.end(text.request, fault),
            }
        }
        round
    }

    fn encode(&mut self, plan: &[PlannedText]) -> Result<Vec<Vec<f32>>, VectorsEnd> {
        let LoadedEncoder { encoder, queue } = &mut self.loaded;
        let texts: Vec<&[u32]> = plan.iter().map(|text| queue.tokens(*text)).collect();
        caught(|| encode(encoder, &texts)).map_err(|panic| VectorsEnd::Panicked {
            message: panic.message,
        })
    }

    fn keep(&mut self, text: PlannedText, vector: Vec<f32>) {
        let Some(running) = self.running.get_mut(&text.request) else {
            return;
        };
        if vector.iter().all(|number| number.is_finite()) {
            assert_eq!(running.vectors.len(), text.index, "texts run in their order");
            running.vectors.push(vector);
        } else {
            self.end(text.request, VectorsEnd::NotFinite);
        }
    }

    fn take_out_those_that_left(&mut self) {
        let queue = &mut self.loaded.queue;
        self.running.retain(|id, running| {
            let has_left = running.reply.as_ref().is_none_or(oneshot::Sender::is_closed);
            if has_left {
                queue.remove(*id);
            }
            !has_left
        });
    }

    fn answer_those_that_are_complete(&mut self) {
        let is_complete = |_: &TextsId, running: &mut Running| running.vectors.len() == running.texts;
        for (_, mut running) in self.running.extract_if(.., is_complete) {
            let vectors = std::mem::take(&mut running.vectors);
            running.tell(Ok(vectors));
        }
    }

    fn end(&mut self, request: TextsId, end: VectorsEnd) {
        self.loaded.queue.remove(request);
        if let Some(mut running) = self.running.remove(&request) {
            running.tell(Err(end));
        }
    }
}

impl Running {
    fn tell(&mut self, result: VectorsReply) {
        if let Some(reply) = self.reply.take() {
            answer(reply, result);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tell(Err(VectorsEnd::ModelGone));
    }
}

fn encode<B: Backend>(encoder: &mut EncoderModel<B>, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError> {
    let hidden = encoder.plan().config().hidden;
    let vectors = encoder.encode(texts)?;
    Ok(vectors.chunks_exact(hidden).map(<[f32]>::to_vec).collect())
}

/// Tells a request's task what became of its texts.
pub(super) fn answer(reply: oneshot::Sender<VectorsReply>, result: VectorsReply) {
    if reply.send(result).is_err() {
        debug!("a request left before its vectors were made");
    }
}
