//! What a test asks of a fleet over a connection of its own.

use anyhow::{Context, Result};
use async_nats::Message;
use flotilla_client::{Answer, Connection, Events, submit_to};
use flotilla_config::{Config, LoadOptions};
use flotilla_protocol::WorkerId;
use flotilla_protocol::admin::FleetStatus;
use serde_json::{Value, json};

use super::Question;

/// Publishes a request that only one worker may have, and waits for the whole answer; its body must have a
/// `deadline_ms`.
///
/// # Errors
/// When it is not stored, or its events cannot be followed.
pub async fn ask_worker(connection: &Connection, question: &Question, worker: &WorkerId) -> Result<Answer> {
    let mut events = Events::subscribe(connection, question.request.clone()).await?;
    submit_to(connection, question.as_new(), worker).await?;
    collect(question, &mut events).await
}

pub(super) async fn collect(question: &Question, events: &mut Events) -> Result<Answer> {
    let answer = tokio::time::timeout(crate::PATIENCE * 2, Answer::collect(events));
    answer
        .await
        .with_context(|| format!("{} has no end", question.request))?
        .map_err(Into::into)
}

/// The dispatcher's view of the workers.
///
/// # Errors
/// When no dispatcher leads.
pub async fn status(connection: &Connection) -> Result<FleetStatus> {
    let message = admin(connection, "workers", &json!({})).await?;
    Ok(serde_json::from_slice(&message.payload)?)
}

/// Asks an endpoint for operators.
///
/// # Errors
/// When nobody answers.
pub async fn admin(connection: &Connection, verb: &str, body: &Value) -> Result<Message> {
    let subject = connection.subjects.admin(verb);
    connection
        .client
        .request(subject, body.to_string().into())
        .await
        .context("no leader answers")
}

/// A connection for a test's own requests.
///
/// # Errors
/// When there is no server.
pub async fn connect(url: &str) -> Result<Connection> {
    connect_as(url, Vec::new()).await
}

/// The same with settings, as `key=value`.
///
/// # Errors
/// When there is no server, or it refuses.
pub async fn connect_as(url: &str, settings: Vec<String>) -> Result<Connection> {
    let options = LoadOptions {
        flags: [settings, vec![format!("nats.url={url}")]].concat(),
        ..LoadOptions::default()
    };
    let config = Config::load(&options)?;
    Ok(Connection::open(&config.nats, "test").await?)
}
