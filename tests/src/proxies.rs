//! What lies between one part and the servers: a proxy for each server.

use anyhow::Result;

use crate::gate::Gate;
use crate::proxy::{Flow, Proxy};

/// The proxies between one part and each of the servers. What is done to them is done to all.
#[derive(Debug)]
pub struct Proxies(Vec<Proxy>);

/// A proxy as one of the two sees it who talk through it.
#[derive(Debug, Clone, Copy)]
pub struct Wire<'a> {
    /// The proxy.
    pub proxy: &'a Proxy,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Connects,
    Listens,
}

impl Proxies {
    /// Starts a proxy to each of some ports of the loopback interface.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn start(server_ports: &[u16]) -> Result<Self> {
        let mut proxies = Vec::new();
        for port in server_ports {
            proxies.push(Proxy::start(*port).await?);
        }
        Ok(Self(proxies))
    }

    /// The same with a gate in each.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn start_gated(server_ports: &[u16], gate: &Gate) -> Result<Self> {
        let mut proxies = Vec::new();
        for port in server_ports {
            proxies.push(Proxy::start_gated(*port, gate.clone()).await?);
        }
        Ok(Self(proxies))
    }

    /// Where the part connects, as the setting `nats.url`.
    #[must_use]
    pub fn url(&self) -> String {
        let urls: Vec<String> = self.0.iter().map(Proxy::url).collect();
        urls.join(",")
    }

    /// Sets what happens to what the part says, and to what it hears.
    pub fn set_flows(&self, says: Flow, hears: Flow) {
        self.0.iter().for_each(|proxy| proxy.set_flows(says, hears));
    }

    /// [`Proxy::cut`].
    pub fn cut(&self) {
        self.0.iter().for_each(Proxy::cut);
    }

    /// [`Proxy::reset`].
    pub fn reset(&self) {
        self.0.iter().for_each(Proxy::reset);
    }

    /// [`Proxy::forget`].
    pub fn forget(&self) {
        self.0.iter().for_each(Proxy::forget);
    }

    /// [`Proxy::heal`].
    pub fn heal(&self) {
        self.0.iter().for_each(Proxy::heal);
    }

    /// The proxies as the part sees them.
    #[must_use]
    pub fn wires(&self) -> Vec<Wire<'_>> {
        self.0.iter().map(Wire::of_who_connects).collect()
    }
}

impl<'a> Wire<'a> {
    pub(crate) fn of_who_connects(proxy: &'a Proxy) -> Self {
        let end = End::Connects;
        Self { proxy, end }
    }

    pub(crate) fn of_who_listens(proxy: &'a Proxy) -> Self {
        let end = End::Listens;
        Self { proxy, end }
    }

    /// As the other one sees it.
    pub(crate) fn turned(self) -> Self {
        let end = match self.end {
            End::Connects => End::Listens,
            End::Listens => End::Connects,
        };
        Self { end, ..self }
    }

    /// Sets what happens to what is said here, and to what is heard here.
    pub fn set_flows(&self, says: Flow, hears: Flow) {
        match self.end {
            End::Connects => self.proxy.set_flows(says, hears),
            End::Listens => self.proxy.set_flows(hears, says),
        }
    }
}
