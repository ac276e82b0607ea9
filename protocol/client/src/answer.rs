//! A whole answer, put together from its events.

use flotilla_protocol::Attempt;
use flotilla_protocol::event::{Event, Finished, RequestError, TokenLogprobs};

use crate::events::{Delivered, Events, EventsError};

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Every token, in order.
    pub token_ids: Vec<u32>,
    /// One for each token when the request asked for log-probabilities, otherwise none.
    pub logprobs: Vec<TokenLogprobs>,
    /// The text.
    pub text: String,
    /// The largest attempt that wrote to the journal.
    pub attempts: Attempt,
    /// How it ended.
    pub end: Result<Finished, RequestError>,
}

/// Collects an answer event by event.
#[derive(Debug, Default)]
pub struct AnswerBuilder {
    token_ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    text: String,
    attempts: Attempt,
}

impl AnswerBuilder {
    /// Takes the next event, in the order that [`Events`] gives; the answer is whole when this returns it.
    pub fn push(&mut self, delivered: Delivered) -> Option<Answer> {
        self.attempts = self.attempts.max(delivered.attempt);
        let end = match delivered.event {
            Event::Accepted(_) | Event::Progress(_) => return None,
            Event::Tokens(tokens) => {
                self.token_ids.extend(tokens.token_ids);
                self.logprobs.extend(tokens.logprobs);
                self.text.push_str(&tokens.text);
                return None;
            }
            Event::Finished(finished) => Ok(finished),
            Event::Failed(failed) => Err(failed.error),
        };
        let Self {
            token_ids,
            logprobs,
            text,
            attempts,
        } = std::mem::take(self);
        Some(Answer {
            token_ids,
            logprobs,
            text,
            attempts,
            end,
        })
    }
}

impl Answer {
    /// Follows a request to its end.
    ///
    /// # Errors
    /// [`EventsError`].
    pub async fn collect(events: &mut Events) -> Result<Self, EventsError> {
        let mut builder = AnswerBuilder::default();
        while let Some(delivered) = events.next().await? {
            if let Some(answer) = builder.push(delivered) {
                return Ok(answer);
            }
        }
        unreachable!("events end with a terminal one, which completes the answer")
    }
}
