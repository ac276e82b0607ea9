//! Asks a fleet with nothing but async-nats.
//!
//! ```console
//! $ client nats://127.0.0.1:4222 ask adder '123+456='
//! $ client nats://127.0.0.1:4222 follow REQUEST 0      # its events after sequence 0: all of them
//! $ client nats://127.0.0.1:4222 cancel REQUEST
//! $ client nats://127.0.0.1:4222 infer adder '2+2='
//! ```
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

use std::error::Error;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [url, command @ ..] = &words[..] else {
        bail!(USAGE);
    };
    let client = async_nats::connect(*url).await?;
    match command {
        ["ask", model, prompt] => {
            let mut bits = [0; 16];
            getrandom::fill(&mut bits)?;
            let request = format!("{:032x}", u128::from_ne_bytes(bits));
            eprintln!("request {request}");
            let body = json!({"prompt": prompt, "max_tokens": 16});
            publish(&client, &request, model, &body).await?;
            print_events(&client, &request, 0).await
        }
        ["follow", request, after] => print_events(&client, request, after.parse()?).await,
        ["cancel", request] => cancel(&client, request).await,
        ["infer", model, prompt] => {
            let answer = infer(&client, model, &json!({"prompt": prompt, "max_tokens": 16})).await?;
            println!("{}", answer["choices"][0]["text"].as_str().context("no text")?);
            Ok(())
        }
        _ => bail!(USAGE),
    }
}

/// A model's name as one token of a subject.
fn token(model: &str) -> String {
    let escaped = model.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
        _ => format!("={byte:02X}"),
    });
    escaped.collect()
}

/// Publishes a request until the server has stored it; the id makes a second publish harmless.
async fn publish(client: &Client, request: &str, model: &str, body: &Value) -> Result<()> {
    let jetstream = jetstream::new(client.clone());
    let subject = format!("flotilla.request.interactive.{}", token(model));
    let mut pause = Duration::from_millis(100);
    loop {
        let message = PublishMessage::build()
            .payload(body.to_string().into())
            .message_id(request)
            .header("Content-Type", "application/json");
        let stored = async { jetstream.send_publish(subject.clone(), message).await?.await };
        match stored.await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == PublishErrorKind::TimedOut => eprintln!("not confirmed, once more"),
            Err(error) if is_full(&error) => eprintln!("busy: {error}"),
            Err(error) => return Err(error.into()),
        }
        sleep(pause).await;
        pause = (2 * pause).min(Duration::from_secs(5));
    }
}

fn is_full(error: &PublishError) -> bool {
    let refusal = error
        .source()
        .and_then(|source| source.downcast_ref::<jetstream::Error>());
    refusal.is_some_and(|refusal| refusal.error_code() == ErrorCode::STREAM_STORE_FAILED)
}

/// The events of a request, each stored one once and in order, whatever the network does.
///
/// Live events are republished by the server and may be lost; each names the one before it, so that a gap is seen.
struct Events {
    client: Client,
    request: String,
    live: Subscriber,
    /// Sequence of the last stored event.
    after: u64,
    missed: bool,
}

impl Events {
    async fn follow(client: &Client, request: &str, after: u64) -> Result<Self> {
        Ok(Self {
            client: client.clone(),
            request: request.to_owned(),
            live: client.subscribe(format!("flotilla.events.{request}")).await?,
            after,
            missed: true,
        })
    }

    /// The next ones; some may be none.
    async fn next(&mut self) -> Result<Vec<Message>> {
        let events = if self.missed {
            let stored = self.replay().await?;
            self.missed = !stored.is_empty();
            stored
        } else {
            Vec::from_iter(self.hear().await?)
        };
        if let Some(last) = events.last() {
            self.after = self.after.max(number(last, "Nats-Sequence"));
        }
        Ok(events)
    }

    /// The next live event, unless something before it was missed.
    async fn hear(&mut self) -> Result<Option<Message>> {
        let Ok(event) = timeout(Duration::from_secs(3), self.live.next()).await else {
            self.missed = true;
            return Ok(None);
        };
        let event = event.context("the connection is closed")?;
        match number(&event, "Nats-Sequence") {
            // Progress is not stored.
            0 => Ok(Some(event)),
            sequence if sequence <= self.after => Ok(None),
            _ => {
                self.missed = number(&event, "Nats-Last-Sequence") != self.after;
                Ok((!self.missed).then_some(event))
            }
        }
    }

    /// Stored events after the last one; none if nobody can be asked at the moment.
    async fn replay(&self) -> Result<Vec<Message>> {
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await?;
        let subject = format!("flotilla.replay.{}", self.request);
        let question = json!({"after": self.after}).to_string();
        self.client
            .publish_with_reply(subject, inbox, question.into())
            .await?;
        let mut stored = Vec::new();
        while let Ok(Some(answer)) = timeout(Duration::from_secs(5), answers.next()).await {
            if let Some(error) = header(&answer, "Nats-Service-Error") {
                bail!("{error}");
            }
            if answer.status.is_some() {
                return Ok(stored);
            }
            stored.push(answer);
        }
        Ok(Vec::new())
    }
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    Some(message.headers.as_ref()?.get(name)?.as_str())
}

fn number(message: &Message, name: &str) -> u64 {
    header(message, name)
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

async fn print_events(client: &Client, request: &str, after: u64) -> Result<()> {
    let mut events = Events::follow(client, request, after).await?;
    loop {
        for event in events.next().await? {
            let kind = header(&event, "Flotilla-Event").context("an event")?;
            let body = String::from_utf8_lossy(&event.payload);
            println!("{} {kind} {body}", number(&event, "Nats-Sequence"));
            if kind == "finished" || kind == "failed" {
                return Ok(());
            }
        }
    }
}

/// Ends a request wherever it is; its journal gets a terminal event all the same.
async fn cancel(client: &Client, request: &str) -> Result<()> {
    let order = json!({"request": request}).to_string();
    client.publish("flotilla.cancel", order.into()).await?;
    // A flush only writes, and this program ends: an answer to what is asked later says that the server has read it.
    Events::follow(client, request, 0).await?.replay().await?;
    Ok(())
}

/// One whole answer, in OpenAI's shape.
async fn infer(client: &Client, model: &str, body: &Value) -> Result<Value> {
    let subject = format!("flotilla.infer.{}", token(model));
    let question = async_nats::Request::new()
        .payload(body.to_string().into())
        .timeout(Some(Duration::from_secs(300)));
    let answer = client.send_request(subject, question).await?;
    if let Some(error) = header(&answer, "Nats-Service-Error") {
        bail!("{error}");
    }
    Ok(serde_json::from_slice(&answer.payload)?)
}

const USAGE: &str =
    "client URL ask MODEL PROMPT | follow REQUEST AFTER | cancel REQUEST | infer MODEL PROMPT";
