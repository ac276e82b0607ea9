//! One loaded encoder on the engine's thread: the texts that wait for it, and where their vectors go.

use std::collections::BTreeMap;

use flotilla_worker_core::texts::{PlannedText, TextsId};
use flotilla_worker_engine::{Backend, EncoderModel, StepError};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::load::LoadedEncoder;
use super::round::caught;
use super::{JoiningTexts, VectorsEnd, VectorsReply};

/// A model that makes vectors.
#[derive(Debug)]
pub(super) struct VectorsModel {
    loaded: LoadedEncoder,
    running: BTreeMap<TextsId, Running>,
}

#[derive(Debug)]
struct Running {
    texts: usize,
    /// Of the first texts.
    vectors: Vec<Vec<f32>>,
    reply: oneshot::Sender<VectorsReply>,
}

impl VectorsModel {
    pub(super) fn new(loaded: LoadedEncoder) -> Self {
        Self {
            loaded,
            running: BTreeMap::new(),
        }
    }

    /// Queues a request's texts, or tells it why not.
    pub(super) fn join(&mut self, new: JoiningTexts) {
        let texts = new.texts.len();
        match self.loaded.queue.add(new.id, new.class, new.texts) {
            Ok(()) => {
                let running = Running {
                    texts,
                    vectors: Vec::with_capacity(texts),
                    reply: new.reply,
                };
                self.running.insert(new.id, running);
            }
            Err(error) => answer(new.reply, Err(VectorsEnd::Refused(error))),
        }
    }

    /// Runs one step; tells whether there was one.
    pub(super) fn advance(&mut self) -> bool {
        self.take_out_those_that_left();
        let plan = self.loaded.queue.plan();
        if plan.is_empty() {
            return false;
        }
        match self.encode(&plan) {
            Ok(vectors) => plan
                .iter()
                .zip(vectors)
                .for_each(|(text, vector)| self.keep(*text, vector)),
            Err(fault) if plan.len() == 1 => self.end(plan[0].request, fault),
            Err(fault) => {
                warn!(texts = plan.len(), error = ?fault, "a step failed; each text is run alone");
                self.advance_alone(&plan);
            }
        }
        self.loaded.queue.complete();
        self.answer_those_that_are_complete();
        true
    }

    /// Puts out only those requests of which a text fails alone.
    fn advance_alone(&mut self, plan: &[PlannedText]) {
        for text in plan {
            if !self.running.contains_key(&text.request) {
                continue;
            }
            match self.encode(&[*text]) {
                Ok(vectors) => vectors.into_iter().for_each(|vector| self.keep(*text, vector)),
                Err(fault) => self.end(text.request, fault),
            }
        }
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
            let has_left = running.reply.is_closed();
            if has_left {
                queue.remove(*id);
            }
            !has_left
        });
    }

    fn answer_those_that_are_complete(&mut self) {
        let is_complete = |_: &TextsId, running: &mut Running| running.vectors.len() == running.texts;
        for (_, running) in self.running.extract_if(.., is_complete) {
            answer(running.reply, Ok(running.vectors));
        }
    }

    fn end(&mut self, request: TextsId, end: VectorsEnd) {
        self.loaded.queue.remove(request);
        if let Some(running) = self.running.remove(&request) {
            answer(running.reply, Err(end));
        }
    }
}

impl Drop for VectorsModel {
    fn drop(&mut self) {
        while let Some((_, running)) = self.running.pop_first() {
            answer(running.reply, Err(VectorsEnd::ModelGone));
        }
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
