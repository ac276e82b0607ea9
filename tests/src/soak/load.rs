//! Requests that arrive at random times, and their clients.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_nats::Request;
use flotilla_client::{Answer, AnswerBuilder, Connection, Events, submit};
use flotilla_protocol::RequestId;
use flotilla_protocol::event::{ErrorCode, Event, FinishReason};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::mix::{Manner, Mix};
use crate::known::Known;
use crate::random::Random;
use crate::{Fleet, Question, admin};

/// What became of the requests; all were as they should be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Answered, and followed to the end.
    pub followed: u64,
    /// Answered by request and reply.
    pub inferred: u64,
    /// Cancelled in their middle, or finished before that.
    pub cancelled: u64,
    /// Left by their clients.
    pub left: u64,
    /// Refused, as was right.
    pub refused: u64,
    /// Not asked, because too many were under way.
    pub skipped: u64,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Load {
    connection: Connection,
    mix: Arc<Mix>,
    seed: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            followed,
            inferred,
            cancelled,
            left,
            refused,
            skipped,
        } = self;
        write!(
            f,
            "{followed} answers followed, {inferred} by request and reply, {cancelled} cancelled, {left} left, \
             {refused} refused, {skipped} not asked"
        )
    }
}

impl Load {
    pub(super) fn new(fleet: &Fleet, mix: Mix, seed: u64) -> Self {
        Self {
            connection: fleet.connection.clone(),
            mix: Arc::new(mix),
            seed,
        }
    }

    /// Requests a second, when there are always some waiting.
    pub(super) async fn capacity(&self, requests: usize) -> Result<f64> {
        let mut random = Random::new(self.seed, CAPACITY);
        let begun = Instant::now();
        let asked = stream::iter(0..requests).map(|_| {
            let (known, manner) = self.mix.pick(&mut random);
            self.clone().ask(known.clone(), manner)
        });
        let done: Vec<Manner> = asked.buffer_unordered(AT_ONCE).try_collect().await?;
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let count = done.len() as f64;
        Ok(count / begun.elapsed().as_secs_f64())
    }

    /// Lets requests arrive, so many a second on average, for so long.
    pub(super) async fn run(&self, rate: f64, duration: Duration) -> Result<Tally> {
        let mut random = Random::new(self.seed, TIMES);
        let mut under_way = JoinSet::new();
        let mut tally = Tally::default();
        let end = Instant::now() + duration;
        let mut next = Instant::now();
        while next < end {
            tokio::select! {
                () = sleep_until(next) => {
                    next += random.gap(rate);
                    if under_way.len() >= UNDER_WAY_MAX {
                        tally.skipped += 1;
                        continue;
                    }
                    let (known, manner) = self.mix.pick(&mut random);
                    under_way.spawn(self.clone().ask(known.clone(), manner));
                }
                Some(done) = under_way.join_next() => tally.count(done??),
            }
        }
        while let Some(done) = under_way.join_next().await {
            tally.count(done??);
        }
        Ok(tally)
    }

    async fn ask(self, known: Known, manner: Manner) -> Result<Manner> {
        let question = known.again();
        let request = question.request.clone();
        let asked = async {
            match manner {
                Manner::Follow => self.follow(&question, &known).await,
                Manner::Infer => self.infer(&question, &known).await,
                Manner::Cancel => self.cancel(&question).await,
                Manner::Leave => self.leave(question).await,
                Manner::Wrong => self.ask_wrong(question).await,
            }
        };
        timeout(PATIENCE_WITH_ONE, asked)
            .await
            .with_context(|| format!("{request} ({manner:?}) has no end"))?
            .with_context(|| format!("{request} ({manner:?})"))?;
        Ok(manner)
    }

    async fn submit(&self, question: &Question) -> Result<Events> {
        let events = Events::subscribe(&self.connection, question.request.clone()).await?;
        submit(&self.connection, question.as_new()).await?;
        Ok(events)
    }

    async fn follow(&self, question: &Question, known: &Known) -> Result<()> {
        let answer = Answer::collect(&mut self.submit(question).await?).await?;
        ensure!(answer.end.is_ok(), "fails: {:?}", answer.end);
        ensure!(
            answer.token_ids == known.token_ids && answer.text == known.text,
            "is {:?}, undisturbed it is {:?}",
            answer.text,
            known.text
        );
        Ok(())
    }

    async fn infer(&self, question: &Question, known: &Known) -> Result<()> {
        let subject = self.connection.subjects.infer(&question.model);
        let body = question.body.to_string();
        let asked = Request::new()
            .payload(body.into())
            .timeout(Some(PATIENCE_WITH_ONE));
        let reply = self.connection.client.send_request(subject, asked).await?;
        let answer: Value = serde_json::from_slice(&reply.payload)?;
        let text = answer.pointer("/choices/0/text").and_then(Value::as_str);
        ensure!(
            text == Some(&known.text),
            "is {answer}, undisturbed it is {:?}",
            known.text
        );
        Ok(())
    }

    async fn cancel(&self, question: &Question) -> Result<()> {
        let mut events = self.submit(question).await?;
        let mut answer = AnswerBuilder::default();
        let mut is_told = false;
        while let Some(delivered) = events.next().await? {
            let has_begun = matches!(delivered.event, Event::Tokens(_));
            if let Some(answer) = answer.push(delivered) {
                let end = answer.end.map(|finished| finished.finish_reason);
                let is_right = matches!(
                    end,
                    Ok(FinishReason::Cancelled | FinishReason::Stop | FinishReason::Length)
                );
                ensure!(is_right, "a cancelled request ends with {end:?}");
                return Ok(());
            }
            if has_begun && !is_told {
                is_told = true;
                tell_cancelled(&self.connection, &question.request).await;
            }
        }
        bail!("its events end without an end")
    }

    async fn leave(&self, mut question: Question) -> Result<()> {
        question.body["cancel_on_disconnect"] = json!(true);
        let mut events = self.submit(&question).await?;
        while let Some(delivered) = events.next().await? {
            if matches!(delivered.event, Event::Tokens(_) | Event::Finished(_)) {
                return Ok(());
            }
        }
        bail!("its events end without a token")
    }

    async fn ask_wrong(&self, mut question: Question) -> Result<()> {
        question.body["max_tokens"] = json!("many");
        let answer = Answer::collect(&mut self.submit(&question).await?).await?;
        let code = answer.end.map_err(|error| error.code);
        ensure!(code == Err(ErrorCode::InvalidRequest), "ends with {code:?}");
        Ok(())
    }
}

/// Cancelling twice is harmless, so it is repeated while no leader answers.
async fn tell_cancelled(connection: &Connection, request: &RequestId) {
    let body = json!({"request": request});
    while admin(connection, "cancel", &body).await.is_err() {
        sleep(AGAIN_AFTER).await;
    }
}

impl Tally {
    fn count(&mut self, manner: Manner) {
        let counter = match manner {
            Manner::Follow => &mut self.followed,
            Manner::Infer => &mut self.inferred,
            Manner::Cancel => &mut self.cancelled,
            Manner::Leave => &mut self.left,
            Manner::Wrong => &mut self.refused,
        };
        *counter += 1;
    }
}

/// At 80 % of capacity far fewer are under way; with more, it is not the capacity any more.
const UNDER_WAY_MAX: usize = 512;
/// Enough to keep two workers busy.
const AT_ONCE: usize = 32;
/// Far beyond any wait below capacity.
const PATIENCE_WITH_ONE: Duration = Duration::from_secs(90);
/// How soon a client asks again what nobody answered.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Keeps the times of requests apart from the questions, and those of capacity from both.
const TIMES: u64 = 0x7469_6d65_736f_6674;
const CAPACITY: u64 = 0x6361_7061_6369_7479;
