//! A private nats-server for one test, and settings for it.

use flotilla_client::Connection;
use flotilla_config::{Config, LoadOptions};
use flotilla_tests::{Gate, NatsServer, Proxy, ServerOptions};

/// A running server with JetStream.
pub(crate) struct Server(NatsServer);

impl Server {
    pub(crate) fn start() -> Self {
        Self(NatsServer::start(&ServerOptions::default()).unwrap())
    }

    /// Settings for this server, with changes of the form `section.key=value`.
    pub(crate) fn config(&self, changes: &[&str]) -> Config {
        let mut flags = vec![
            format!("nats.url={}", self.0.url()),
            "nats.requests_max_bytes=64MiB".to_owned(),
            "nats.journal_max_bytes=64MiB".to_owned(),
        ];
        flags.extend(changes.iter().map(|&change| change.to_owned()));
        Config::load(&LoadOptions {
            flags,
            ..Default::default()
        })
        .unwrap()
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(&self.config(&[]).nats, "test").await.unwrap()
    }

    pub(crate) async fn proxy(&self) -> Proxy {
        Proxy::start(self.0.port()).await.unwrap()
    }

    /// A connection with a proxy between.
    pub(crate) async fn connect_through_proxy(&self) -> (Connection, Proxy) {
        let proxy = self.proxy().await;
        (self.connect_through(&proxy).await, proxy)
    }

    /// A connection whose messages pass a gate.
    pub(crate) async fn connect_through_gate(&self, gate: Gate) -> (Connection, Proxy) {
        let proxy = Proxy::start_gated(self.0.port(), gate).await.unwrap();
        (self.connect_through(&proxy).await, proxy)
    }

    async fn connect_through(&self, proxy: &Proxy) -> Connection {
        let config = self.config(&[&format!("nats.url={}", proxy.url())]);
        Connection::open(&config.nats, "test").await.unwrap()
    }
}
