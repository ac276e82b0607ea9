//! Rows that one request each runs into.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flotilla_client::{Answer, Connection, Events, Journal, NewRequest, SubmitError, submit};
use flotilla_protocol::assignment::Cancel;
use flotilla_protocol::event::{ErrorCode, Event, FinishReason};
use flotilla_protocol::{Class, Encoding};
use flotilla_tests::{Disturbance, Fleet, PATIENCE, Question, Rule, eventually};
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::table::{Course, First, Row, rows};
use super::{MODEL, assert_at_rest, collect, connect, start};

/// What every row needs.
struct World {
    fleet: Fleet,
    /// Through the proxy that rows disturb.
    client: Connection,
    /// Past all proxies.
    beside: Connection,
    /// The undisturbed answer.
    known: Vec<u32>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_exchange_of_a_request_hangs_or_doubles_it_whatever_the_other_side_does() -> Result<()> {
    let (fleet, _folder) = start(3).await?;
    let world = World {
        client: connect(&fleet.exchanges["client"].url()).await?,
        beside: fleet.connect_directly().await?,
        known: fleet.ask(&question(Course::Answered, MODEL)).await?.token_ids,
        fleet,
    };
    let rows = rows();
    let run = futures_util::stream::iter(&rows).map(async |row| {
        let outcome = timeout(PATIENCE * 2, world.run(row)).await;
        let outcome = outcome.context("it hangs").and_then(|outcome| outcome);
        outcome
            .with_context(|| format!("{}, {}", row.exchange, row.fault))
            .err()
    });
    let faults: Vec<String> = run
        .buffer_unordered(ROWS_AT_ONCE)
        .filter_map(async |fault| fault.map(|fault| format!("{fault:#}")))
        .collect()
        .await;
    ensure!(
        faults.is_empty(),
        "of {} rows:\n{}",
        rows.len(),
        faults.join("\n")
    );
    let mut fleet = world.fleet;
    assert_at_rest(&mut fleet).await
}

fn question(course: Course, model: &str) -> Question {
    let tokens = match course {
        Course::Answered | Course::UnknownModel => 24,
        Course::Long => 120,
        Course::Cancelled => 900,
    };
    let body = json!({"prompt": [3, 1, 4, 1, 5], "max_tokens": tokens, "seed": 9});
    Question::new(model, body)
}

impl World {
    async fn run(&self, row: &Row) -> Result<()> {
        let model = match row.course {
            Course::UnknownModel => format!("none-{}", flotilla_client::new_request_id()),
            Course::Answered | Course::Long | Course::Cancelled => MODEL.to_owned(),
        };
        let question = question(row.course, &model);
        let mut disturbed: Vec<Disturbance> = Vec::new();
        for (part, rule) in &row.rules {
            let named = |text: &str| {
                text.replace("{id}", question.request.as_str())
                    .replace("{model}", &model)
            };
            let rule = Rule {
                subject: named(&rule.subject),
                containing: named(&rule.containing),
                ..rule.clone()
            };
            disturbed.push(self.fleet.exchanges[*part].disturb(rule));
        }
        let mut events = Events::subscribe(&self.client, question.request.clone()).await?;
        self.publish(row, &question).await?;
        if row.course == Course::Cancelled {
            self.cancel(&question).await?;
        }
        let answer = collect(&mut events).await?;
        self.check(row, &question, &answer).await?;
        for disturbance in &mut disturbed {
            disturbance.wait_until_met(1).await?;
        }
        // What was late may come yet, and must change nothing.
        self.check_journal(row, &question).await
    }

    /// Publishes until it is stored: an id that is there already changes nothing.
    async fn publish(&self, row: &Row, question: &Question) -> Result<()> {
        let new = || NewRequest {
            request: question.request.clone(),
            class: Class::Interactive,
            model: question.model.clone(),
            encoding: Encoding::Json,
            body: question.body.to_string().into(),
        };
        let mut told = submit(&self.client, new()).await;
        let first = match &told {
            Ok(_) => First::Stored,
            Err(SubmitError::Busy { .. }) => First::Busy,
            Err(SubmitError::NoQueue { .. }) => First::NoQueue,
            Err(SubmitError::Unconfirmed { .. }) => First::Unconfirmed,
            Err(error @ SubmitError::TooLarge { .. }) => anyhow::bail!("{error}"),
        };
        // A busy machine may be slower than the client waits, which is no fault of anybody.
        let is_slow = (first, row.first) == (First::Unconfirmed, First::Stored);
        ensure!(first == row.first || is_slow, "the client heard {told:?}");
        while told.is_err() {
            sleep(Duration::from_millis(50)).await;
            told = submit(&self.client, new()).await;
        }
        Ok(())
    }

    /// Cancels again and again once it runs, as a client does that hears nothing.
    async fn cancel(&self, question: &Question) -> Result<()> {
        let journal = Journal::new(&self.beside);
        eventually("the first token", async || {
            let entries = journal.read(&question.request, 0).await.ok()?;
            let mut events = entries.iter().map(|entry| &entry.event);
            events
                .any(|event| matches!(event, Event::Tokens(_)))
                .then_some(())
        })
        .await;
        let body = Encoding::Json.encode(&Cancel {
            request: question.request.clone(),
        })?;
        eventually("its end", async || {
            let subject = self.client.subjects.cancel();
            self.client.client.publish(subject, body.clone()).await.ok()?;
            let entries = journal.read(&question.request, 0).await.ok()?;
            entries.last()?.event.kind().is_terminal().then_some(())
        })
        .await;
        Ok(())
    }

    async fn check(&self, row: &Row, question: &Question, answer: &Answer) -> Result<()> {
        match (row.course, &answer.end) {
            (Course::Answered, Ok(_)) => ensure!(answer.token_ids == self.known, "{answer:?}"),
            (Course::Long, Ok(finished)) => {
                ensure!(finished.usage.completion_tokens == 120, "{answer:?}");
            }
            (Course::Cancelled, Ok(finished)) => {
                ensure!(finished.finish_reason == FinishReason::Cancelled, "{answer:?}");
            }
            (Course::UnknownModel, Err(error)) => ensure!(error.code == ErrorCode::UnknownModel, "{error}"),
            (_, end) => anyhow::bail!("{end:?}"),
        }
        let entries = Journal::new(&self.beside).read(&question.request, 0).await?;
        let last = entries.last().context("the journal is empty")?;
        ensure!(last.event.kind().is_terminal(), "the journal goes on: {last:?}");
        Ok(())
    }

    /// Each token once and in order, and one end behind them.
    async fn check_journal(&self, row: &Row, question: &Question) -> Result<()> {
        let entries = Journal::new(&self.beside).read(&question.request, 0).await?;
        let mut stored = Vec::new();
        for entry in &entries {
            if let Event::Tokens(tokens) = &entry.event {
                ensure!(tokens.offset as usize == stored.len(), "{entries:?}");
                stored.extend_from_slice(&tokens.token_ids);
            }
        }
        if row.course == Course::Answered {
            ensure!(stored == self.known, "{entries:?}");
        }
        let ends = entries.iter().filter(|entry| entry.event.kind().is_terminal());
        ensure!(ends.count() == 1, "{entries:?}");
        Ok(())
    }
}

/// As many as run on the workers at once.
const ROWS_AT_ONCE: usize = 48;
