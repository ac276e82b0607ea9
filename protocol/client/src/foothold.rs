//! Leaving a server that is connected and of no use.
//!
//! A server that is cut off from the others of its cluster keeps its clients and answers their pings, but stores nothing.
//! Whoever writes at regular times finds out, and goes to another server. Nothing is lost with the connection that has not been
//! lost already: of what was sent since, nothing is known to be stored.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::connection::Connection;

/// Whether what a part writes at regular times is stored over the server that it is connected to.
#[derive(Debug)]
pub struct Foothold {
    connection: Connection,
    slips_since: Option<Instant>,
}

impl Foothold {
    /// For a connection that has just been of use.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        Self {
            connection: connection.clone(),
            slips_since: None,
        }
    }

    /// Notes that something was stored.
    pub fn holds(&mut self) {
        self.slips_since = None;
    }

    /// Notes that something was not, after its time limit or by an error. When nothing has been for ten seconds and the
    /// cluster has other servers, the connection is broken, and the client comes to one of the servers, chosen at random.
    pub async fn slips(&mut self) {
        let since = *self.slips_since.get_or_insert_with(Instant::now);
        if since.elapsed() < PATIENCE || !self.connection.is_connected() {
            return;
        }
        self.slips_since = None;
        if !self.knows_others().await {
            return;
        }
        let server = self.connection.client.server_info().server_name;
        warn!(
            server,
            "nothing has been stored over this server; another is looked for"
        );
        let asked = self.connection.client.force_reconnect();
        match timeout(self.connection.request_timeout, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the client was closed"),
            Err(_) => debug!("the client takes no orders"),
        }
    }

    async fn knows_others(&self) -> bool {
        let asked = self.connection.client.server_pool();
        matches!(timeout(self.connection.request_timeout, asked).await, Ok(Ok(pool)) if pool.len() > 1)
    }
}

/// Servers that elect a leader are through with it by then.
const PATIENCE: Duration = Duration::from_secs(10);
