//! What comes before the journal: the wait for the model, and the prompt.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flotilla_protocol::assignment::AttemptEnd;
use flotilla_protocol::event::{ErrorCode, Event, Phase, RequestError, Timings};
use flotilla_protocol::request::ResponseFormat;
use flotilla_weights::FetchProgress;
use tokio::time::{Instant, sleep};
use tracing::error;

use super::{Attempt, Clock, LeaseAnswer, ReadyModel, deadline_exceeded, millis};
use crate::model::ModelText;
use crate::prompt::Prepared;

/// What the attempt is to write.
#[derive(Debug)]
pub(super) enum Opening {
    /// What this makes.
    Make {
        /// The prompt, or the texts.
        prepared: Prepared,
        /// The model.
        model: ReadyModel,
    },
    /// This `failed` event.
    Fail(Event),
    /// A `finished` event: it was cancelled before it began.
    Cancel,
}

impl Attempt {
    /// Waits for the model and prepares the prompt.
    ///
    /// # Errors
    /// The attempt's end when it ends without a word in the journal.
    pub(super) async fn open(&mut self) -> Result<Opening, AttemptEnd> {
        if let Err(error) = &self.new.request {
            return Ok(Opening::Fail(Event::failed(error.clone())));
        }
        let (cancel, hand_back) = (self.new.cancel.clone(), self.new.hand_back.clone());
        let expire = self.new.expire.clone();
        let model = tokio::select! {
            lease = self.lease() => match lease {
                Some(LeaseAnswer::Granted(model)) => model,
                Some(LeaseAnswer::ModelFailed { reason, retry_in }) => {
                    let retry_in_ms = millis(retry_in);
                    return Err(AttemptEnd::ModelUnloadable { reason, retry_in_ms });
                }
                None => return Err(self.left_open()),
            },
            () = hand_back.cancelled() => return Err(self.left_open()),
            () = cancel.cancelled() => return Ok(Opening::Cancel),
            () = expire.cancelled() => return Ok(Opening::Fail(deadline_exceeded())),
        };
        self.clock.leased = Some(Instant::now());
        Ok(match self.prompt(&model.text).await {
            Ok(prepared) => {
                self.new.counts.set_prompt(prepared.prompt_tokens());
                Opening::Make { prepared, model }
            }
            Err(error) => Opening::Fail(Event::failed(error)),
        })
    }

    /// The model, and news for the client when it takes a while; `None` when the worker ends.
    async fn lease(&mut self) -> Option<LeaseAnswer> {
        tokio::select! {
            answer = &mut self.new.lease => return answer.ok(),
            () = sleep(NEWS_AFTER) => {}
        }
        let mut told = None;
        loop {
            let news = self.news();
            if told != Some(news) {
                let (phase, percent) = news;
                let fraction = percent.map(|percent| f64::from(percent) / 100.0);
                self.publish_progress(phase, fraction).await;
                told = Some(news);
            }
            tokio::select! {
                // The sender is gone only when the worker ends without having handed this request back.
                answer = &mut self.new.lease => return answer.ok(),
                () = sleep(NEWS_EVERY) => {}
            }
        }
    }

    /// What there is to tell of a model that is waited for: its files are on their way, so many of a hundred parts of
    /// them, or it is loaded.
    fn news(&self) -> (Phase, Option<u8>) {
        let fetches = self.context.fetches.borrow();
        let fetch = fetches.get(&self.new.assignment.model);
        match fetch.and_then(FetchProgress::percent) {
            Some(percent) => (Phase::Fetching, Some(percent)),
            None => (Phase::Loading, None),
        }
    }

    /// Renders, tokenises and compiles a schema; a long body, and any schema, away from the other tasks.
    async fn prompt(&self, text: &Arc<ModelText>) -> Result<Prepared, RequestError> {
        if self.new.assignment.body.len() <= INLINE_BYTES_MAX
            && let Ok(request) = &self.new.request
            && request.response_format == ResponseFormat::Text
        {
            return Prepared::new(self.request_id(), request, text, SystemTime::now());
        }
        let (id, text) = (self.request_id().clone(), Arc::clone(text));
        let request = self.new.request.clone()?;
        let prepared =
            tokio::task::spawn_blocking(move || Prepared::new(&id, &request, &text, SystemTime::now())).await;
        prepared.unwrap_or_else(|error| {
            error!(request_id = %self.request_id(), %error, "preparing a prompt panicked");
            Err(RequestError {
                code: ErrorCode::Internal,
                message: "the prompt could not be prepared".to_owned(),
                param: None,
            })
        })
    }

    pub(super) fn timings(&self) -> Timings {
        self.clock.timings(self.new.assignment.queued_ms)
    }
}

impl Clock {
    fn timings(&self, queued_ms: u64) -> Timings {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64() * 1e3,
            (Some(_) | None, _) => 0.0,
        };
        let now = Some(Instant::now());
        Timings {
            queued_ms: Duration::from_millis(queued_ms).as_secs_f64() * 1e3,
            load_ms: between(Some(self.received), self.leased.or(now)),
            prefill_ms: between(self.joined, self.first_token.or(now)),
            decode_ms: between(self.first_token, now),
        }
    }
}

/// A body that is prepared in less time than another thread takes to begin; tokenizers read megabytes a second.
const INLINE_BYTES_MAX: usize = 1024;
/// A wait that a person notices: only then is it worth a message.
const NEWS_AFTER: Duration = Duration::from_millis(50);
/// Quick enough for eyes.
const NEWS_EVERY: Duration = Duration::from_millis(500);
