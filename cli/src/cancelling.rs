//! Ending requests that nobody waits for any more.

use std::time::Duration;

use anyhow::Context as _;
use flotilla_client::Connection;
use flotilla_protocol::assignment::Cancel;
use flotilla_protocol::codec::encode_internal;
use flotilla_protocol::{Encoding, RequestId, headers};
use tokio::time::timeout;

/// Tells the fleet that these requests are to end, and waits until the server has taken that. A request that has ended
/// already stays as it is.
///
/// # Errors
/// When the server does not take it.
pub(crate) async fn cancel(
    connection: &Connection,
    requests: impl IntoIterator<Item = RequestId>,
) -> anyhow::Result<()> {
    let client = &connection.client;
    for request in requests {
        let body = encode_internal(&Cancel { request })?;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(headers::CONTENT_TYPE, Encoding::MessagePack.content_type());
        let told = client.publish_with_headers(connection.subjects.cancel(), headers, body);
        let told = async { Ok::<(), anyhow::Error>(connection.within(told).await??) };
        told.await.context("cannot cancel the request")?;
    }
    timeout(FLUSH_MAX, client.flush())
        .await
        .context("the server did not take the cancellation in time")??;
    Ok(())
}

/// How long the cancellation may take to leave this machine.
const FLUSH_MAX: Duration = Duration::from_secs(2);
