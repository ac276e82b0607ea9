//! One nats-server, or several that are a cluster, with proxies between them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::PATIENCE;
use crate::proxies::Wire;
use crate::proxy::Proxy;
use crate::scrape::get;
use crate::server::{Membership, NatsServer, ServerOptions, free_ports};

/// One server, or several that are a cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The servers, by number; server n of several is called `s<n>`.
    pub servers: Vec<NatsServer>,
    /// What lies between two servers, by their numbers, the smaller one first.
    links: BTreeMap<(usize, usize), Link>,
    /// What lies between a server of several and everybody who is not one.
    fronts: Vec<Proxy>,
    monitor_ports: Vec<u16>,
}

/// What lies between two servers. Both connect to the other one, and keep one of the two connections.
#[derive(Debug)]
struct Link {
    /// For connections of the first one to the second one.
    forth: Proxy,
    back: Proxy,
}

impl Link {
    /// As the first one sees it.
    fn wires(&self) -> [Wire<'_>; 2] {
        [
            Wire::of_who_connects(&self.forth),
            Wire::of_who_listens(&self.back),
        ]
    }
}

impl Cluster {
    /// Starts servers and waits until each accepts connections; they need not have found each other by then.
    ///
    /// # Errors
    /// When there is no nats-server, or one ends at once.
    pub async fn start(options: &ServerOptions, count: usize) -> Result<Self> {
        if count == 1 {
            return Ok(Self {
                servers: vec![NatsServer::start(options)?],
                links: BTreeMap::new(),
                fronts: Vec::new(),
                monitor_ports: Vec::new(),
            });
        }
        let mut cluster = Self::prepare(options, count).await?;
        for server in &mut cluster.servers {
            server.wait_until_up()?;
        }
        Ok(cluster)
    }

    async fn prepare(options: &ServerOptions, count: usize) -> Result<Self> {
        let mut free = free_ports(count * 3);
        let (ports, monitor_ports) = (free.split_off(count * 2), free.split_off(count));
        let mut links = BTreeMap::new();
        for second in 0..count {
            for first in 0..second {
                let (forth, back) = (
                    Proxy::start(ports[second]).await?,
                    Proxy::start(ports[first]).await?,
                );
                links.insert((first, second), Link { forth, back });
            }
        }
        let (mut servers, mut fronts) = (Vec::new(), Vec::new());
        for (number, port) in ports.iter().enumerate() {
            let others = links.iter().filter_map(|(ends, link)| match *ends {
                (first, _) if first == number => Some(link.forth.url()),
                (_, second) if second == number => Some(link.back.url()),
                _ => None,
            });
            // Its own address is in the list, too: that is how a server knows how many there are to be.
            let itself = format!("nats://127.0.0.1:{port}");
            let membership = Membership {
                name: server_name(number),
                port: *port,
                routes: others.chain([itself]).collect(),
            };
            let options = ServerOptions {
                membership: Some(membership),
                monitoring_port: Some(monitor_ports[number]),
                ..options.clone()
            };
            let server = NatsServer::spawn(&options, free[number])?;
            fronts.push(Proxy::start(server.port()).await?);
            servers.push(server);
        }
        Ok(Self {
            servers,
            links,
            fronts,
            monitor_ports,
        })
    }

    /// Where everybody connects who is not a server.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        match self.fronts.is_empty() {
            true => self.servers.iter().map(NatsServer::port).collect(),
            false => self.fronts.iter().map(Proxy::port).collect(),
        }
    }

    /// The same as the setting `nats.url`.
    #[must_use]
    pub fn url(&self) -> String {
        let urls = self
            .ports()
            .into_iter()
            .map(|port| format!("nats://127.0.0.1:{port}"));
        urls.collect::<Vec<String>>().join(",")
    }

    /// What lies between two servers, as the first one sees it.
    ///
    /// # Panics
    /// When it is not two of them, the smaller number first.
    #[must_use]
    pub fn between(&self, first: usize, second: usize) -> Vec<Wire<'_>> {
        self.links[&(first, second)].wires().to_vec()
    }

    /// What lies between one server and the others, as that one sees it.
    #[must_use]
    pub fn routes_of(&self, server: usize) -> Vec<Wire<'_>> {
        let links = self.links.iter();
        let wires = links.filter_map(|((first, second), link)| match server {
            _ if server == *first => Some(link.wires()),
            _ if server == *second => Some(link.wires().map(Wire::turned)),
            _ => None,
        });
        wires.flatten().collect()
    }

    /// What lies between one server of several and everybody, as that server sees it.
    ///
    /// # Panics
    /// When the server is on its own.
    #[must_use]
    pub fn wires_of(&self, server: usize) -> Vec<Wire<'_>> {
        let mut wires = self.routes_of(server);
        wires.push(Wire::of_who_listens(&self.fronts[server]));
        wires
    }

    /// Whether every server says that all it keeps is as new as what the others have.
    pub async fn is_current(&self) -> bool {
        for port in &self.monitor_ports {
            let asked = timeout(HEALTH_MAX, is_healthy(*port)).await;
            if !matches!(asked, Ok(Ok(true))) {
                return false;
            }
        }
        true
    }

    /// The number of the server of several that a connection of this name is at; none while it is at no one.
    pub async fn server_of(&self, connection: &str) -> Option<usize> {
        let name = format!("\"name\": \"{connection}\"");
        for (number, port) in self.monitor_ports.iter().enumerate() {
            let told = get(SocketAddr::from(([127, 0, 0, 1], *port)), "/connz").await;
            if told.is_ok_and(|(_, connections)| connections.contains(&name)) {
                return Some(number);
            }
        }
        None
    }

    /// Waits until [`Cluster::is_current`].
    ///
    /// # Errors
    /// When that does not come in time.
    pub async fn wait_until_current(&self) -> Result<()> {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let even = async {
            while !self.is_current().await {
                looks.tick().await;
            }
        };
        timeout(PATIENCE, even)
            .await
            .context("the servers do not get even")
    }
}

/// The name of a server of several.
#[must_use]
pub fn server_name(number: usize) -> String {
    format!("s{number}")
}

async fn is_healthy(monitor_port: u16) -> Result<bool> {
    let (status, _) = get(SocketAddr::from(([127, 0, 0, 1], monitor_port)), "/healthz").await?;
    Ok(status == 200)
}

/// A server of this machine answers within milliseconds; one that is stopped does not.
const HEALTH_MAX: Duration = Duration::from_secs(2);
/// Between two questions after that.
const LOOK_EVERY: Duration = Duration::from_millis(200);
