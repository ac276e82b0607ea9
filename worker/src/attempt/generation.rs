//! The tokens of one attempt: where they come from and what text they are.

use std::sync::Arc;

use flotilla_prompt::refused;
use flotilla_protocol::assignment::AttemptEnd;
use flotilla_protocol::event::{
    ErrorCode, Event, FinishReason, Finished, Phase, RequestError, Timings, TokenLogprobs, Usage,
};
use flotilla_protocol::request::ResponseFormat;
use flotilla_text::{AnswerError, AnswerText};
use flotilla_worker_core::answer::Start;
use flotilla_worker_engine::Logprobs;
use tokio::time::Instant;
use tracing::error;

use super::{Attempt, ReadyModel, count};
use crate::engine::{Made, NewRun, Run, RunEnd};
use crate::error::chain;
use crate::prompt::{EndTokens, Prompt};

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Generation {
    prompt: Prompt,
    model: ReadyModel,
    stage: Stage,
    output_tokens: usize,
    /// Tokens that the engine did not have to read, from the prompt's first on.
    reused_tokens: usize,
}

#[derive(Debug)]
enum Stage {
    /// The journal does not say yet where to start.
    Waiting,
    /// The engine makes tokens.
    Running { run: Run, text: AnswerText },
    /// No more tokens come; the text may hold some back.
    Over(Option<AnswerText>),
}

/// What was taken from the engine at once.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// New tokens.
    pub(super) token_ids: Vec<u32>,
    /// How likely each of them was, if that was asked for.
    pub(super) logprobs: Vec<TokenLogprobs>,
    /// Text that became certain with them.
    pub(super) text: String,
    /// Whether that was all.
    pub(super) end: Option<End>,
}

/// How a generation ended.
#[derive(Debug)]
pub(super) enum End {
    /// The answer is complete.
    Finished(FinishReason),
    /// There is no answer; a `failed` event.
    Failed(Event),
    /// Somebody else may go on, or not.
    LeftOpen(AttemptEnd),
}

impl Generation {
    pub(super) fn new(prompt: Prompt, model: ReadyModel) -> Self {
        Self {
            prompt,
            model,
            stage: Stage::Waiting,
            output_tokens: 0,
            reused_tokens: 0,
        }
    }

    /// Continues what the journal holds: the engine gets the prompt and all tokens that were made before.
    pub(super) async fn start(&mut self, start: Start, attempt: &mut Attempt) -> Taken {
        self.output_tokens = start.token_ids.len();
        let tokenizer = self.model.text.prompts.tokenizer().clone();
        let stops = self.prompt.stops.clone();
        let text = match AnswerText::resume(tokenizer, stops, &start.token_ids, start.text.len()) {
            Ok(text) => text,
            Err(error) => return Taken::end(text_failed(attempt, &error)),
        };
        let new_tokens_max = self.prompt.answer_tokens_max.saturating_sub(self.output_tokens);
        if text.stopped() || new_tokens_max == 0 {
            let reason = if text.stopped() {
                FinishReason::Stop
            } else {
                FinishReason::Length
            };
            self.stage = Stage::Over(Some(text));
            return Taken::end(End::Finished(reason));
        }
        if self.prompt.tokens.len() > attempt.context.step_tokens_max {
            attempt.publish_progress(Phase::Prefill, None).await;
        }
        let run = self.new_run(&start.token_ids, new_tokens_max, attempt);
        match self.model.engine.join(run).await {
            Ok(run) => {
                attempt.clock.joined = Some(Instant::now());
                attempt.tally.joined(self.prompt.tokens.len());
                self.stage = Stage::Running { run, text };
                Taken::default()
            }
            Err(ended) => Taken::end(gone(&ended.to_string())),
        }
    }

    fn new_run(&mut self, made_before: &[u32], new_tokens_max: usize, attempt: &Attempt) -> NewRun {
        NewRun {
            model: attempt.new.assignment.model.clone(),
            class: attempt.new.assignment.class,
            tokens: [&self.prompt.tokens, made_before].concat(),
            prompt_tokens: self.prompt.tokens.len(),
            new_tokens_max,
            stop_token_ids: match self.prompt.end_tokens {
                EndTokens::End => Arc::clone(&self.model.text.stop_token_ids),
                EndTokens::Ignored => Arc::default(),
            },
            sampling: self.prompt.sampling,
            edits: self.prompt.edits.clone(),
            grammar: self.prompt.grammar.take(),
            ahead_tokens_max: attempt.context.ahead_tokens_max,
        }
    }

    /// Waits for tokens and takes all that are there. Cancelling loses nothing.
    pub(super) async fn take(&mut self) -> Taken {
        let Stage::Running { run, text } = &mut self.stage else {
            return std::future::pending().await;
        };
        let mut made = Vec::new();
        run.take(&mut made).await;
        if let Some(tokens) = run.take_reused_tokens() {
            self.reused_tokens = tokens;
        }
        let mut taken = Taken::default();
        if made.is_empty() {
            taken.end = Some(gone("the engine has ended"));
        }
        for made in made {
            match made {
                Made::Token { id, logprobs } => taken.push(text, id, logprobs.as_deref()),
                Made::Ended(end) => taken.end = Some(End::from_run(end, &self.prompt.format)),
            }
            if taken.end.is_some() {
                break;
            }
        }
        self.output_tokens += taken.token_ids.len();
        if taken.end.is_some() {
            self.stop();
        }
        taken
    }

    /// Takes the request out of the engine.
    fn stop(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Over(None)) {
            Stage::Running { text, .. } => Stage::Over(Some(text)),
            Stage::Waiting => Stage::Over(None),
            over @ Stage::Over(_) => over,
        };
    }

    /// Ends the text: what was held back because more might have changed it.
    pub(super) fn held_back_text(&mut self) -> String {
        self.stop();
        match &mut self.stage {
            Stage::Over(text) => text.take().map(AnswerText::finish).unwrap_or_default(),
            Stage::Waiting | Stage::Running { .. } => String::new(),
        }
    }

    /// Whether the journal is open for tokens.
    pub(super) fn has_started(&self) -> bool {
        !matches!(self.stage, Stage::Waiting)
    }

    pub(super) fn output_tokens(&self) -> usize {
        self.output_tokens
    }

    /// Tokens of the prompt and of the answer.
    pub(super) fn usage(&self) -> Usage {
        let prompt_tokens = self.prompt.tokens.len();
        Usage::new(count(prompt_tokens), count(self.output_tokens))
            .with_cached_tokens(count(self.reused_tokens.min(prompt_tokens)))
    }

    pub(super) fn finished(&self, reason: FinishReason, timings: Timings) -> Event {
        finished(reason, self.usage(), timings)
    }
}

impl Taken {
    pub(super) fn end(end: End) -> Self {
        Self {
            end: Some(end),
            ..Self::default()
        }
    }

    fn push(&mut self, text: &mut AnswerText, token: u32, logprobs: Option<&Logprobs>) {
        match text.push(token) {
            Ok(emitted) => {
                self.token_ids.push(token);
                self.logprobs.extend(logprobs.map(told));
                self.text.push_str(&emitted.text);
                if emitted.stopped {
                    self.end = Some(End::Finished(FinishReason::Stop));
                }
            }
            Err(error) => {
                error!(error = chain(&error), "a token has no text");
                self.end = Some(internal(
                    "the model made a token that its tokenizer cannot decode",
                ));
            }
        }
    }
}

/// Log-probabilities as they travel.
fn told(logprobs: &Logprobs) -> TokenLogprobs {
    let top = logprobs.top().iter().map(|top| (top.token, top.logprob));
    TokenLogprobs::new(logprobs.drawn(), top)
}

impl End {
    fn from_run(end: RunEnd, format: &ResponseFormat) -> Self {
        match end {
            RunEnd::Stop => Self::Finished(FinishReason::Stop),
            RunEnd::Length => Self::Finished(FinishReason::Length),
            RunEnd::NoToken => internal("the model's numbers are not finite for this prompt"),
            RunEnd::Shapeless(error) => Self::Failed(Event::failed(refused(format, &error))),
            RunEnd::Refused(error) => internal(&error.to_string()),
            RunEnd::ModelGone => gone("the model had to go"),
            RunEnd::Panicked { message } => Self::LeftOpen(AttemptEnd::Panicked { message }),
        }
    }
}

/// A `finished` event.
pub(super) fn finished(finish_reason: FinishReason, usage: Usage, timings: Timings) -> Event {
    Event::Finished(Finished {
        finish_reason,
        usage,
        timings,
        data: None,
    })
}

fn text_failed(attempt: &Attempt, error: &AnswerError) -> End {
    let request_id = attempt.request_id();
    error!(%request_id, error = chain(error), "a journalled answer cannot be continued");
    internal("the answer that was begun elsewhere cannot be continued")
}

pub(super) fn internal(message: &str) -> End {
    End::Failed(Event::failed(RequestError {
        code: ErrorCode::Internal,
        message: message.to_owned(),
        param: None,
    }))
}

pub(super) fn gone(reason: &str) -> End {
    End::LeftOpen(AttemptEnd::HandedBack {
        reason: reason.to_owned(),
    })
}
