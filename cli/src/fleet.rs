//! A whole fleet on this machine, as child processes: nats-server, one dispatcher, workers.
//!
//! No child outlives this process: the roles drain when their standard input closes, and nats-server gets a
//! signal from the system (`commands/child.rs`). In an orderly stop the workers go first, since they need
//! the dispatcher, then the dispatcher, then the server. Nobody is started again: a death is reported.

mod child;
mod embedded;
mod server;
mod up_file;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use flotilla_client::Connection;
use flotilla_config::Config;
use flotilla_protocol::admin::FleetStatus;
use futures_util::future::{join_all, select_all};
use tokio::time::{Instant, interval};

use crate::admin::{self, Nothing};
use crate::commands::role::{DISPATCHER_DRAIN_MAX, WORKER_END_MAX};
use crate::http;
pub(crate) use child::{Child, Death};
pub(crate) use embedded::{DEMO_MODELS, INSTANT_MODEL, extract};
pub(crate) use server::{Port, PortError, PrivateServer, find_server};
pub(crate) use up_file::UpFile;

/// What a fleet is to be.
#[derive(Debug, Clone)]
pub(crate) struct FleetPlan {
    /// The nats-server to run.
    pub(crate) nats_server: PathBuf,
    /// Where it listens.
    pub(crate) port: Port,
    /// Folder of everything that the fleet writes; absolute.
    pub(crate) folder: PathBuf,
    /// How many workers.
    pub(crate) workers: usize,
    /// Folder whose subfolders are the workers' models.
    pub(crate) models_dir: PathBuf,
    /// Arguments of every role, with the settings of this process.
    pub(crate) arguments: Vec<String>,
}

/// A running fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    url: String,
    server: Child,
    dispatcher: Child,
    workers: Vec<Child>,
    http: HttpPlan,
    drain_max: Duration,
}

impl Fleet {
    /// Starts all processes and waits until every worker has reported to the dispatcher.
    ///
    /// # Errors
    /// When a part does not start; its last words are in the error. Nothing is left running.
    pub(crate) async fn start(plan: &FleetPlan, config: &Config) -> anyhow::Result<(Self, Connection)> {
        let (mut server, url) = server::start(plan, config)?;
        let mut nats = config.nats.clone();
        nats.url = vec![url.clone()];
        let connection = server::connect(&mut server, &nats).await?;
        let http = HttpPlan::new(plan, config)?;
        let settings: Vec<String> = http
            .dispatcher
            .iter()
            .map(|at| format!("dispatcher.http.listen={at}"))
            .collect();
        let dispatcher = Child::start(&role(plan, "dispatcher", &url, "dispatcher", &settings)?)?;
        let workers = (1..=plan.workers)
            .map(|number| start_worker(plan, config, &http, &url, number))
            .collect::<anyhow::Result<Vec<Child>>>()?;
        let mut fleet = Self {
            url,
            server,
            dispatcher,
            workers,
            http,
            drain_max: config.worker.drain_timeout + WORKER_END_MAX,
        };
        fleet.wait_until_ready(&connection).await?;
        Ok((fleet, connection))
    }

    /// Where its server listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What other commands need to find it.
    pub(crate) fn up_file(&self, namespace: &str) -> UpFile {
        UpFile {
            url: self.url.clone(),
            namespace: namespace.to_owned(),
            pid: std::process::id(),
            nats_server_pid: self.server.pid(),
            dispatcher_pid: self.dispatcher.pid(),
            worker_pids: self.workers.iter().map(Child::pid).collect(),
            dispatcher_http: self.http.dispatcher.map(url_of),
            worker_http: self.http.workers.iter().copied().map(url_of).collect(),
        }
    }

    /// The children, the server first.
    pub(crate) fn children(&self) -> impl Iterator<Item = &Child> {
        [&self.server, &self.dispatcher].into_iter().chain(&self.workers)
    }

    /// The next child that ends; for ever pending when all have.
    pub(crate) async fn next_death(&mut self) -> Death {
        let children = [&mut self.server, &mut self.dispatcher]
            .into_iter()
            .chain(&mut self.workers);
        let running: Vec<_> = children
            .filter(|child| child.is_running())
            .map(|child| Box::pin(child.wait()))
            .collect();
        match running.is_empty() {
            true => std::future::pending().await,
            false => select_all(running).await.0,
        }
    }

    /// Whether anything still runs without which the rest is of no use.
    pub(crate) fn is_useful(&self) -> bool {
        self.server.is_running()
            && (self.dispatcher.is_running() || self.workers.iter().any(Child::is_running))
    }

    /// Drains and ends all of it, each part within its time.
    pub(crate) async fn stop(&mut self) {
        join_all(self.workers.iter_mut().map(|worker| worker.drain(self.drain_max))).await;
        self.dispatcher.drain(DISPATCHER_DRAIN_MAX + WORKER_END_MAX).await;
        self.server.terminate(SERVER_END_MAX).await;
    }

    /// Ends all of it at once.
    pub(crate) async fn kill(&mut self) {
        let roles = self
            .workers
            .iter_mut()
            .chain([&mut self.dispatcher, &mut self.server]);
        join_all(roles.map(Child::kill)).await;
    }

    async fn wait_until_ready(&mut self, connection: &Connection) -> anyhow::Result<()> {
        let wanted = self.workers.len();
        let deadline = Instant::now() + READY_MAX;
        let mut ticks = interval(POLL);
        loop {
            tokio::select! {
                death = self.next_death() => anyhow::bail!("{death}"),
                _ = ticks.tick() => {}
            }
            let asked = admin::ask::<_, FleetStatus>(connection, "workers", &Nothing {}).await;
            match asked {
                Ok(status) if status.workers.len() >= wanted => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| self.not_ready());
                }
                Ok(_) if Instant::now() > deadline => anyhow::bail!(self.not_ready()),
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn not_ready(&self) -> String {
        let logs: Vec<String> = self
            .children()
            .map(|child| child.log().display().to_string())
            .collect();
        format!(
            "the fleet was not ready within {} s; see {}",
            READY_MAX.as_secs(),
            logs.join(", ")
        )
    }
}

/// Where the roles tell their metrics; each has a port of its own.
#[derive(Debug)]
struct HttpPlan {
    dispatcher: Option<SocketAddr>,
    /// Empty where the workers do not.
    workers: Vec<SocketAddr>,
}

impl HttpPlan {
    /// Ports that are free at this moment, from the usual ones on.
    fn new(plan: &FleetPlan, config: &Config) -> Result<Self, PortError> {
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut workers = Vec::new();
        let mut from = http::WORKER_PORT;
        let count = if config.worker.http.enabled {
            plan.workers
        } else {
            0
        };
        for _ in 0..count {
            let port = Port::From(from).choose()?;
            from = port.saturating_add(1);
            workers.push(at(port));
        }
        let dispatcher = config
            .dispatcher
            .http
            .enabled
            .then(|| Port::From(http::DISPATCHER_PORT).choose());
        Ok(Self {
            dispatcher: dispatcher.transpose()?.map(at),
            workers,
        })
    }
}

fn url_of(address: SocketAddr) -> String {
    format!("http://{address}")
}

fn start_worker(
    plan: &FleetPlan,
    config: &Config,
    http: &HttpPlan,
    url: &str,
    number: usize,
) -> anyhow::Result<Child> {
    let stem = config.worker.id.as_deref().unwrap_or("worker");
    let name = format!("{stem}-{number}");
    let mut settings = vec![
        format!("worker.id={name}"),
        format!("worker.models_dir={}", plan.models_dir.display()),
        format!("worker.data_dir={}", plan.folder.join(&name).display()),
    ];
    let listen = http.workers.get(number - 1);
    settings.extend(listen.map(|at| format!("worker.http.listen={at}")));
    if config.worker.cpu.memory_bytes.is_none() && plan.workers > 1 {
        // They share the machine's memory.
        #[expect(clippy::cast_precision_loss, reason = "a few workers at most")]
        let fraction = config.worker.cpu.memory_fraction / plan.workers as f64;
        settings.push(format!("worker.cpu.memory_fraction={fraction}"));
    }
    Child::start(&role(plan, "worker", url, &name, &settings)?)
}

/// How to start a role of this binary.
fn role(
    plan: &FleetPlan,
    command: &str,
    url: &str,
    name: &str,
    settings: &[String],
) -> anyhow::Result<child::Launch> {
    let mut arguments = vec![command.to_owned(), "--stop-with-stdin".to_owned()];
    arguments.extend(plan.arguments.iter().cloned());
    for setting in settings {
        arguments.extend(["--set".to_owned(), setting.clone()]);
    }
    arguments.extend(["--nats".to_owned(), url.to_owned()]);
    Ok(child::Launch {
        name: name.to_owned(),
        program: own_program()?,
        arguments,
        log: log_file(&plan.folder, name),
    })
}

fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find the path of this program")
}

/// Where a child writes its log.
fn log_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("logs").join(format!("{name}.log"))
}

/// Long enough for a slow disk and a leader's first lease.
const READY_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// nats-server syncs its stores and is gone in well under a second.
const SERVER_END_MAX: Duration = Duration::from_secs(10);
