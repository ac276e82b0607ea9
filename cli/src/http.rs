//! The metrics and health of a role over HTTP.

use std::net::SocketAddr;

use anyhow::Context as _;
use flotilla_telemetry::{Listen, Metric, PROCESS_METRICS, Server, Telemetry};

/// What a role tells of itself, and where.
pub(crate) struct Site {
    /// The role.
    pub(crate) role: &'static str,
    /// Everything that it counts.
    pub(crate) metrics: Vec<&'static Metric>,
    /// Whether it is served.
    pub(crate) enabled: bool,
    /// Where, if somebody said.
    pub(crate) listen: Option<SocketAddr>,
    /// The port that is tried first if nobody did.
    pub(crate) port: u16,
}

impl Site {
    /// Begins to count and to answer; ends when the server is dropped.
    ///
    /// # Errors
    /// When the address cannot be had; the setting is named.
    pub(crate) fn open(self) -> anyhow::Result<(Telemetry, Option<Server>)> {
        if !self.enabled {
            return Ok((Telemetry::off(), None));
        }
        let metrics: Vec<&'static Metric> = PROCESS_METRICS.iter().copied().chain(self.metrics).collect();
        let telemetry = Telemetry::install(self.role, env!("CARGO_PKG_VERSION"), &metrics)?;
        let listen = self.listen.map_or(Listen::Near(self.port), Listen::At);
        let server = Server::start(listen, telemetry.clone());
        let role = self.role;
        let server = server.with_context(|| {
            format!("choose another address with --set {role}.http.listen=ADDRESS:PORT, or --set {role}.http.enabled=false")
        })?;
        Ok((telemetry, Some(server)))
    }
}

/// Where a dispatcher's metrics are, if nobody said.
pub(crate) const DISPATCHER_PORT: u16 = 9470;
/// Where a worker's metrics are, if nobody said.
pub(crate) const WORKER_PORT: u16 = 9480;
