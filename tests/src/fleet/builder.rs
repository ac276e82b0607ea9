//! What a test wants of its fleet, and how that is started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{CLIENT, Fleet, OPERATOR, connect_as, dispatcher_name, url, worker_name};
use crate::cluster::Cluster;
use crate::demo_models_dir;
use crate::exchanges::Exchanges;
use crate::gate::Gate;
use crate::proxies::Proxies;
use crate::server::{ServerOptions, deployed_nats_file, settings_of_user};

/// What a test wants of its fleet.
#[derive(Debug)]
pub struct FleetBuilder {
    server: ServerOptions,
    servers: usize,
    dispatchers: usize,
    workers: usize,
    /// Workers of each process.
    workers_each: usize,
    models_dir: PathBuf,
    settings: Vec<String>,
    network: Network,
    users: Users,
    gates: Vec<(String, Gate)>,
}

/// Whom the parts say they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Users {
    /// Nobody: the server lets everybody do everything.
    Nobody,
    /// Each role the user that `deploy/nats/users.conf` has for it; the test is an operator.
    Deployed,
}

/// How the parts reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Direct,
    /// Each through a proxy of its own, for faults of a network.
    Proxied,
    /// Each through a proxy of its own, for faults of single exchanges.
    Exchanges,
}

impl Default for FleetBuilder {
    fn default() -> Self {
        Self {
            server: ServerOptions::default(),
            servers: 1,
            dispatchers: 1,
            workers: 1,
            workers_each: 1,
            models_dir: demo_models_dir(),
            settings: Vec::new(),
            network: Network::Direct,
            users: Users::Nobody,
            gates: Vec::new(),
        }
    }
}

impl FleetBuilder {
    /// The server's options.
    #[must_use]
    pub fn server(mut self, options: ServerOptions) -> Self {
        self.server = options;
        self
    }

    /// How many servers; several are a cluster, on which everything is kept three times.
    #[must_use]
    pub fn servers(mut self, count: usize) -> Self {
        self.servers = count;
        self
    }

    /// How many dispatchers.
    #[must_use]
    pub fn dispatchers(mut self, count: usize) -> Self {
        self.dispatchers = count;
        self
    }

    /// How many workers.
    #[must_use]
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = count;
        self
    }

    /// Simulated devices with this profile, so many in each of the workers' processes.
    #[must_use]
    pub fn simulated(mut self, profile: &Path, workers_each: usize) -> Self {
        self.workers_each = workers_each;
        self.set("worker.engine=simulated")
            .set(&format!("worker.simulated.profile={}", profile.display()))
            .set(&format!("worker.simulated.count={workers_each}"))
    }

    /// The folder whose subfolders are the models; the demonstration models by default.
    #[must_use]
    pub fn models_dir(mut self, folder: &Path) -> Self {
        self.models_dir = folder.to_owned();
        self
    }

    /// A setting for every process, as `key=value`.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// Every part that is started with the fleet, and the test's own connection, reaches the server through a
    /// [`Proxies`] of its own.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.network = Network::Proxied;
        self
    }

    /// The same through an [`Exchanges`] of its own, which reaches one server.
    #[must_use]
    pub fn with_exchanges(mut self) -> Self {
        self.network = Network::Exchanges;
        self
    }

    /// The server has the users of `deploy/nats`, and every role is the one that is meant for it.
    #[must_use]
    pub fn with_users(mut self) -> Self {
        self.server.file = Some(deployed_nats_file("nats.conf"));
        self.users = Users::Deployed;
        self
    }

    /// A part reaches the server through a proxy with a gate, whether it is started with the fleet or later: `d<n>`
    /// is a dispatcher, `w<n>` a worker.
    #[must_use]
    pub fn gate(mut self, part: &str, gate: &Gate) -> Self {
        self.gates.push((part.to_owned(), gate.clone()));
        self
    }

    /// Starts everything and waits until every worker has reported.
    ///
    /// # Errors
    /// When a part does not start.
    pub async fn start(mut self) -> Result<Fleet> {
        let cluster = Cluster::start(&self.server, self.servers).await?;
        if self.servers > 1 {
            self.settings.extend(OF_CLUSTERS.map(str::to_owned));
            cluster.wait_until_current().await?;
        }
        let ports = cluster.ports();
        let (mut proxies, mut exchanges) = (BTreeMap::new(), BTreeMap::new());
        for name in self.names() {
            match self.network {
                Network::Direct => {}
                Network::Proxied => drop(proxies.insert(name, Proxies::start(&ports).await?)),
                Network::Exchanges => drop(exchanges.insert(name, Exchanges::start(ports[0]).await?)),
            }
        }
        for (name, gate) in &self.gates {
            proxies.insert(name.clone(), Proxies::start_gated(&ports, gate).await?);
        }
        let url = url(&cluster, &proxies, &exchanges, CLIENT);
        let connection = connect_as(&url, self.users.settings(OPERATOR)).await?;
        let mut fleet = Fleet {
            dispatchers: Vec::new(),
            workers: Vec::new(),
            connection,
            cluster,
            proxies,
            exchanges,
            folder: tempfile::tempdir()?,
            models_dir: self.models_dir,
            settings: self.settings,
            users: self.users,
        };
        for _ in 0..self.dispatchers {
            fleet.add_dispatcher()?;
        }
        for _ in 0..self.workers {
            fleet.add_worker()?;
        }
        fleet.wait_until_up(self.workers * self.workers_each).await?;
        Ok(fleet)
    }

    /// Every part that reaches the server.
    fn names(&self) -> impl Iterator<Item = String> {
        let dispatchers = (0..self.dispatchers).map(dispatcher_name);
        let workers = (0..self.workers).map(worker_name);
        dispatchers.chain(workers).chain([CLIENT.to_owned()])
    }
}

impl Users {
    pub(super) fn settings(self, user: &str) -> Vec<String> {
        match self {
            Self::Nobody => Vec::new(),
            Self::Deployed => settings_of_user(user).into(),
        }
    }
}

/// Settings of a fleet on several servers. Each of them has a part of this machine's disk and memory only.
const OF_CLUSTERS: [&str; 4] = [
    "nats.replicas=3",
    "nats.requests_max_bytes=256MiB",
    "nats.journal_max_bytes=1GiB",
    "nats.relay_max_bytes=64MiB",
];
