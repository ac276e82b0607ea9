//! What tests look at of copies of weights.

use anyhow::Result;
use flotilla_client::{Catalog, Connection};
use flotilla_protocol::codec::decode_internal;
use flotilla_protocol::weights::Claim;
use flotilla_protocol::{ModelName, WorkerId};
use futures_util::StreamExt;

use crate::eventually;

/// Waits until somebody has read all files of a model and others know whom to ask.
///
/// # Errors
/// When there is no catalog, or no bucket for holders.
///
/// # Panics
/// When that does not happen in time.
pub async fn wait_until_offered(connection: &Connection, model: &ModelName, holders: usize) -> Result<()> {
    let catalog = Catalog::open(connection).await?;
    let root = eventually("the model has a root", async || {
        catalog.entry(model).await.ok()??.root
    })
    .await;
    let bucket = connection.jetstream.get_key_value("flotilla_holders").await?;
    eventually(&format!("{holders} holders"), async || {
        let subject = format!("$KV.flotilla_holders.{root}.>");
        let mut subjects = bucket.stream.info_with_subjects(subject).await.ok()?;
        let mut count = 0;
        while let Some(Ok(_)) = subjects.next().await {
            count += 1;
        }
        (count >= holders).then_some(())
    })
    .await;
    Ok(())
}

/// Messages that ever went into the relay.
///
/// # Errors
/// When there is no relay.
pub async fn relayed_messages(connection: &Connection) -> Result<u64> {
    let mut stream = connection.jetstream.get_stream("OBJ_flotilla_relay").await?;
    Ok(stream.info().await?.state.last_sequence)
}

/// Who has the claim of the only copy.
pub async fn sender(connection: &Connection) -> Option<WorkerId> {
    let bucket = connection.jetstream.get_key_value("flotilla_claims").await.ok()?;
    let mut keys = bucket.keys().await.ok()?;
    while let Some(Ok(key)) = keys.next().await {
        if key != "sweep" {
            let body = bucket.get(&key).await.ok()??;
            let claim: Claim = decode_internal(&body).ok()?;
            return Some(claim.sender);
        }
    }
    None
}

/// Bytes that a worker's log says it has copied, the last time that it did.
#[must_use]
pub fn copied_bytes(log: &str) -> Option<u64> {
    let line = log
        .lines()
        .rev()
        .find(|line| line.contains("weights were copied"))?;
    let (_, rest) = line.split_once("copied_bytes=")?;
    rest.split_whitespace().next()?.parse().ok()
}
