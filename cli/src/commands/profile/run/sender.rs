//! Sends the requests of a point to one worker, and watches the clock.

use std::time::Duration;

use flotilla_client::{Connection, Events, NewRequest, new_request_id, submit_to};
use flotilla_profiling::{Measurement, Offered, Outcome, Point, RequestTimes};
use flotilla_protocol::event::{Event, FinishReason};
use flotilla_protocol::{Class, Encoding, ModelName, RequestId, WorkerId};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::place::{Place, PlaceError};
use crate::cancelling::cancel;
use crate::commands::Interrupted;
use crate::stop::Signals;

/// Sends requests to one worker.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) connection: Connection,
    pub(super) place: Place,
    pub(super) model: ModelName,
    /// Token ids of prompts are below.
    pub(super) vocabulary_size: u32,
}

/// What came of a point.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) measurement: Measurement,
    /// Why the first of those that failed did.
    pub(super) failure: Option<String>,
}

/// The requests of a point, each at its place.
#[derive(Debug)]
struct Batch {
    /// What all times are counted from.
    begin: Instant,
    ids: Vec<RequestId>,
    sent_at: Vec<Duration>,
    /// Whether it has a task.
    started: Vec<bool>,
    outcomes: Vec<Option<Result<RequestTimes, String>>>,
    tasks: JoinSet<(usize, Result<RequestTimes, String>)>,
}

/// One request and what it needs.
#[derive(Debug)]
struct Errand {
    connection: Connection,
    worker: WorkerId,
    new: NewRequest,
    /// What its times are counted from.
    begin: Instant,
}

/// The body of a request, of exactly known lengths.
#[derive(Debug, Serialize)]
struct Body {
    prompt: Vec<u32>,
    max_tokens: u32,
    ignore_eos: bool,
    temperature: f32,
    deadline_ms: u64,
}

impl Sender {
    /// Sends the requests of a point and waits for their ends.
    ///
    /// # Errors
    /// [`Interrupted`], or when the worker is gone; what was sent is cancelled.
    pub(super) async fn send(&self, point: &Point, signals: &mut Signals) -> anyhow::Result<Sent> {
        let mut batch = Batch::new(point);
        let told = tokio::select! {
            told = self.carry_out(point, &mut batch) => told,
            () = signals.next() => Err(Interrupted.into()),
            error = self.lost() => Err(error),
        };
        if let Err(error) = told {
            batch.tasks.shutdown().await;
            cancel(&self.connection, batch.under_way()).await?;
            return Err(error);
        }
        Ok(Sent::of(batch.outcomes, batch.begin.elapsed()))
    }

    /// Cancelled, it leaves what was sent under way.
    async fn carry_out(&self, point: &Point, batch: &mut Batch) -> anyhow::Result<()> {
        let at_once = match point.offered {
            Offered::Alone => 1,
            Offered::PerSecond(_) => point.requests,
        };
        for index in 0..at_once {
            let errand = self.errand(point, batch, index)?;
            batch.start(index, errand);
        }
        while let Some(done) = batch.tasks.join_next().await {
            let (index, outcome) = done?;
            batch.outcomes[index] = Some(outcome);
            let next = index + 1;
            if point.offered == Offered::Alone && next < point.requests {
                batch.sent_at[next] = batch.begin.elapsed();
                let errand = self.errand(point, batch, next)?;
                batch.start(next, errand);
            }
        }
        Ok(())
    }

    /// Ends when the worker is gone, or nobody has known of it for too long.
    async fn lost(&self) -> anyhow::Error {
        let mut watch = interval(WATCH_INTERVAL);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Instant::now();
        loop {
            watch.tick().await;
            match self.place.is_there(&self.connection).await {
                Ok(true) => seen = Instant::now(),
                Ok(false) => return self.gone(),
                Err(_) if seen.elapsed() < UNSEEN_MAX => {}
                Err(error) => return error,
            }
        }
    }

    fn gone(&self) -> anyhow::Error {
        let worker = self.place.worker.clone();
        PlaceError::Gone { worker }.into()
    }

    fn errand(&self, point: &Point, batch: &Batch, index: usize) -> anyhow::Result<Errand> {
        let request = batch.ids[index].clone();
        let body = Body {
            prompt: prompt(&request, point.signature.prompt_tokens, self.vocabulary_size),
            max_tokens: point.signature.output_tokens,
            ignore_eos: true,
            temperature: 0.0,
            deadline_ms: DEADLINE_MS,
        };
        Ok(Errand {
            connection: self.connection.clone(),
            worker: self.place.worker.clone(),
            new: NewRequest {
                request,
                class: Class::Interactive,
                model: self.model.clone(),
                encoding: Encoding::MessagePack,
                body: Encoding::MessagePack.encode(&body)?,
            },
            begin: batch.begin,
        })
    }
}

impl Batch {
    fn new(point: &Point) -> Self {
        let sent_at = match point.offered {
            // The others are sent when the one before them has ended.
            Offered::Alone => (0..point.requests).map(|_| Duration::ZERO).collect(),
            Offered::PerSecond(_) => point.arrivals(),
        };
        Self {
            begin: Instant::now(),
            ids: (0..point.requests).map(|_| new_request_id()).collect(),
            sent_at,
            started: vec![false; point.requests],
            outcomes: vec![None; point.requests],
            tasks: JoinSet::new(),
        }
    }

    fn start(&mut self, index: usize, errand: Errand) {
        let at = self.begin + self.sent_at[index];
        self.started[index] = true;
        self.tasks.spawn(async move {
            sleep_until(at).await;
            (index, errand.run().await)
        });
    }

    /// What was sent and has not ended.
    fn under_way(&self) -> impl Iterator<Item = RequestId> {
        let now = self.begin.elapsed();
        let is_sent = move |index: &usize| self.started[*index] && self.sent_at[*index] <= now;
        let open = (0..self.ids.len()).filter(|index| self.outcomes[*index].is_none());
        open.filter(is_sent).map(|index| self.ids[index].clone())
    }
}

impl Sent {
    fn of(outcomes: Vec<Option<Result<RequestTimes, String>>>, took: Duration) -> Self {
        let mut failure = None;
        let outcomes = outcomes.into_iter().map(|outcome| {
            match outcome.unwrap_or_else(|| Err("it was not sent".to_owned())) {
                Ok(times) => Outcome::Answered(times),
                Err(reason) => {
                    failure.get_or_insert(reason);
                    Outcome::Failed
                }
            }
        });
        let outcomes = outcomes.collect();
        Self {
            measurement: Measurement { outcomes, took },
            failure,
        }
    }
}

impl Errand {
    /// Sends the request and follows it to its end.
    async fn run(self) -> Result<RequestTimes, String> {
        let Self {
            connection,
            worker,
            new,
            begin,
        } = self;
        let mut events = Events::subscribe(&connection, new.request.clone())
            .await
            .map_err(|error| error.to_string())?;
        let sent = begin.elapsed();
        submit_to(&connection, new, &worker)
            .await
            .map_err(|error| error.to_string())?;
        let (mut started, mut first_token) = (None, None);
        while let Some(delivered) = events.next().await.map_err(|error| error.to_string())? {
            match delivered.event {
                Event::Accepted(_) => started = Some(begin.elapsed()),
                Event::Tokens(tokens) if !tokens.token_ids.is_empty() => {
                    first_token.get_or_insert_with(|| begin.elapsed());
                }
                Event::Progress(_) | Event::Tokens(_) => {}
                Event::Finished(finished) => {
                    let end = begin.elapsed();
                    let (Some(started), Some(first_token)) = (started, first_token) else {
                        return Err("it ended without a token".to_owned());
                    };
                    if finished.finish_reason == FinishReason::Cancelled {
                        return Err("somebody cancelled it".to_owned());
                    }
                    return Ok(RequestTimes {
                        sent,
                        // A second attempt starts after the first token of the first one.
                        started: started.min(first_token),
                        first_token,
                        end,
                        output_tokens: finished.usage.completion_tokens,
                    });
                }
                Event::Failed(failed) => return Err(failed.error.to_string()),
            }
        }
        Err("it has no end".to_owned())
    }
}

/// Token ids that no other request has, so that nothing that a worker kept of another prompt spares it work.
fn prompt(request: &RequestId, tokens: u32, vocabulary_size: u32) -> Vec<u32> {
    let mut state = request.seed();
    let ids = (0..tokens).map(|_| {
        // xorshift: spreads one id over a prompt, no more is asked of it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let id = (state >> 32) % u64::from(vocabulary_size.max(1));
        u32::try_from(id).expect("a remainder is below its 32-bit divisor")
    });
    ids.collect()
}

/// How often it is checked that the worker is still there.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// How long nobody need know of the worker: a change of leader takes less.
const UNSEEN_MAX: Duration = Duration::from_secs(60);
/// After half an hour a request failed: an overloaded device is offered no more than it ends within that.
const DEADLINE_MS: u64 = 1_800_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_their_length_and_differ_from_the_first_block_on() {
        let ids: Vec<RequestId> = (0..100).map(RequestId::from_random).collect();
        let prompts: Vec<Vec<u32>> = ids.iter().map(|id| prompt(id, 40, 16)).collect();
        for (index, one) in prompts.iter().enumerate() {
            assert_eq!(one.len(), 40);
            assert!(one.iter().all(|id| *id < 16));
            assert!(
                prompts[..index].iter().all(|other| other[..16] != one[..16]),
                "{index}"
            );
        }
    }
}
