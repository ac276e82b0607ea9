//! Clients that stand outside, and wait for as long as servers are away.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flotilla_client::{
    Answer, AnswerBuilder, Connection, Events, EventsError, NewRequest, new_request_id_of, submit,
};
use flotilla_protocol::{Class, Encoding, RequestId};
use flotilla_tests::connect_as;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::compose::{Compose, password};

/// Connects as one of the users of `deploy/nats/users.conf`.
pub async fn connect(compose: &Compose, user: &str) -> Result<Connection> {
    let mut settings = vec![
        format!("nats.user={user}"),
        format!("nats.password={}", password(user)?),
        format!("nats.inbox_prefix=_INBOX_{user}"),
    ];
    if user == "client" {
        settings.push("nats.owner=client".to_owned());
    }
    connect_as(&compose.url(), settings).await
}

/// Asks one of the demonstration models, and waits for a whole answer.
pub async fn ask(client: &Connection, model: &str, prompt: &str) -> Result<(RequestId, Answer)> {
    let asked = timeout(PATIENCE, ask_on(client, model, prompt)).await;
    asked.with_context(|| format!("{prompt} has no end"))?
}

async fn ask_on(client: &Connection, model: &str, prompt: &str) -> Result<(RequestId, Answer)> {
    let request = new_request_id_of(client);
    let mut events = Events::subscribe(client, request.clone()).await?;
    let new = NewRequest {
        request: request.clone(),
        class: Class::Interactive,
        model: model.parse()?,
        encoding: Encoding::Json,
        body: json!({ "prompt": prompt }).to_string().into(),
    };
    // A server that is away does not confirm; the id makes a second publish harmless.
    while submit(client, new.clone()).await.is_err() {
        sleep(AGAIN_AFTER).await;
    }
    let answer = collect(&mut events).await?;
    ensure!(answer.end.is_ok(), "{request}: {:?}", answer.end);
    Ok((request, answer))
}

/// The whole answer; reading the journal is tried again, as it may meet a server that is away.
async fn collect(events: &mut Events) -> Result<Answer> {
    let mut answer = AnswerBuilder::default();
    loop {
        match events.next().await {
            Ok(Some(delivered)) => {
                if let Some(answer) = answer.push(delivered) {
                    return Ok(answer);
                }
            }
            Ok(None) => bail!("its events end without an end"),
            Err(EventsError::Read(_)) => sleep(AGAIN_AFTER).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Far beyond the time for which any part is away.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// How soon a client tries again what failed.
pub const AGAIN_AFTER: Duration = Duration::from_millis(100);
