//! What is counted of one attempt's answer.

use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_protocol::assignment::AttemptEnd;
use flotilla_protocol::event::{Event, FinishReason};
use flotilla_telemetry::{Counter, Histogram};
use tokio::time::Instant;

use super::{
    ATTEMPTS, VLLM_E2E_SECONDS, VLLM_FIRST_TOKEN_SECONDS, VLLM_GENERATION_TOKENS, VLLM_PROMPT_TOKENS,
    VLLM_QUEUE_SECONDS, VLLM_SUCCESS, VLLM_TOKEN_SECONDS,
};

/// Counts what an attempt makes, as it makes it.
pub(crate) struct AnswerTally {
    model: ModelName,
    /// Time from the publish to the assignment.
    queued: Duration,
    received: Instant,
    tokens: Counter,
    between_tokens: Histogram,
    last_token: Option<Instant>,
    finish: Option<Finish>,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finish {
    /// It is one, and this is why it ends.
    Answered(&'static str),
    /// It is none.
    Failed,
}

impl Finish {
    /// What a terminal event says.
    fn of(event: &Event) -> Self {
        match event {
            Event::Finished(finished) => Self::Answered(match finished.finish_reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::Cancelled => "abort",
            }),
            _ => Self::Failed,
        }
    }
}

impl AnswerTally {
    /// Counts for a request of a model that came at this moment, so long after its publish.
    pub(crate) fn new(model: &ModelName, queued: Duration, received: Instant) -> Self {
        let labels = [model.as_str()];
        Self {
            queued,
            received,
            tokens: VLLM_GENERATION_TOKENS.counter(&labels),
            between_tokens: VLLM_TOKEN_SECONDS.histogram(&labels),
            model: model.clone(),
            last_token: None,
            finish: None,
        }
    }

    /// The engine has it, with a prompt of so many tokens.
    pub(crate) fn joined(&self, prompt_tokens: usize) {
        let labels = [self.model.as_str()];
        VLLM_PROMPT_TOKENS.increment(&labels, prompt_tokens as u64);
        VLLM_QUEUE_SECONDS.record(&labels, self.since_publish().as_secs_f64());
    }

    /// So many tokens came together; `is_first_attempt` if nobody has made any before.
    #[expect(clippy::cast_precision_loss, reason = "a batch of tokens")]
    pub(crate) fn tokens(&mut self, count: usize, is_first_attempt: bool) {
        if count == 0 {
            return;
        }
        self.tokens.increment(count as u64);
        let now = Instant::now();
        match self.last_token.replace(now) {
            Some(last) => {
                let each = (now - last).as_secs_f64() / count as f64;
                self.between_tokens.record_many(each, count);
            }
            None if is_first_attempt => {
                let first = self.since_publish().as_secs_f64();
                VLLM_FIRST_TOKEN_SECONDS.record(&[self.model.as_str()], first);
            }
            None => {}
        }
    }

    /// This is to be the answer's last event.
    pub(crate) fn finish(&mut self, event: &Event) {
        self.finish = Some(Finish::of(event));
    }

    /// The attempt is over.
    pub(crate) fn end(&self, end: &AttemptEnd) {
        let model = self.model.as_str();
        ATTEMPTS.increment(&[model, outcome(end)], 1);
        if let (AttemptEnd::Terminal, Some(Finish::Answered(reason))) = (end, self.finish) {
            VLLM_SUCCESS.increment(&[model, reason], 1);
            VLLM_E2E_SECONDS.record(&[model], self.since_publish().as_secs_f64());
        }
    }

    fn since_publish(&self) -> Duration {
        self.queued + self.received.elapsed()
    }
}

fn outcome(end: &AttemptEnd) -> &'static str {
    match end {
        AttemptEnd::Terminal => "terminal",
        AttemptEnd::Fenced { .. } => "fenced",
        AttemptEnd::HandedBack { .. } => "handed_back",
        AttemptEnd::ModelUnloadable { .. } => "model_unloadable",
        AttemptEnd::Panicked { .. } => "panicked",
        AttemptEnd::JournalBroken { .. } => "journal_broken",
    }
}
