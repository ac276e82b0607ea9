//! One project of docker compose, with ports and volumes of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flotilla_tests::{flotilla_binary, free_ports};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

/// How many servers a fleet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Servers {
    One,
    Three,
}

/// A fleet of containers; everything of it is removed when dropped.
pub struct Compose {
    project: String,
    servers: Servers,
    /// Where the servers are reached from outside, in the order of their names.
    nats_ports: Vec<u16>,
    pub prometheus_port: u16,
    /// Only one at a time: they share the image, and the machine.
    _turn: MutexGuard<'static, ()>,
}

impl Compose {
    /// Builds the image of the roles from the program that was built beside this test, and starts the fleet.
    pub async fn up(servers: Servers) -> Result<Self> {
        let turn = TURN.lock().await;
        succeed(
            Command::new(repository().join("deploy/image.sh"))
                .env("FLOTILLA_BINARY", flotilla_binary())
                .stdin(Stdio::null()),
        )?;
        let mut ports = free_ports(4);
        let compose = Self {
            project: format!("flotilla-test-{}", std::process::id()),
            servers,
            prometheus_port: ports.remove(0),
            nats_ports: ports,
            _turn: turn,
        };
        let services = compose.services()?;
        let services: Vec<&str> = services.iter().map(String::as_str).collect();
        compose.run(&[&["up", "-d"], &services[..]].concat())?;
        Ok(compose)
    }

    /// Every service, but Grafana where its image is not there: no package of Debian has it, so that `.ci/images.sh` cannot
    /// make it.
    #[expect(clippy::print_stdout, reason = "whoever reads what the test said should know")]
    fn services(&self) -> Result<Vec<String>> {
        let file = std::fs::read_to_string(repository().join("deploy/compose.yaml"))?;
        let image = file
            .lines()
            .find_map(|line| line.trim().strip_prefix("image: \"grafana/"));
        let image = format!(
            "grafana/{}",
            image.context("an image of Grafana")?.trim_end_matches('"')
        );
        let has_image = docker(&["image", "inspect", &image]).is_ok();
        if !has_image {
            println!("left out: Grafana, as there is no image {image}");
        }
        let services = self.run(&["config", "--services"])?;
        let services = services.lines().filter(|&it| has_image || it != "grafana");
        Ok(services.map(str::to_owned).collect())
    }

    /// `docker compose` with these words.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let mut command = tool();
        for file in self.servers.files() {
            command.arg("-f").arg(repository().join("deploy").join(file));
        }
        for (variable, port) in PORT_VARIABLES.iter().zip(&self.nats_ports) {
            command.env(variable, port.to_string());
        }
        command
            .args(["-p", &self.project])
            .args(words)
            .env("FLOTILLA_PROMETHEUS_PORT", self.prometheus_port.to_string())
            .stdin(Stdio::null());
        succeed(&mut command)
    }

    /// The container of a service that has one.
    pub fn container(&self, service: &str) -> Result<String> {
        self.containers(service)?.pop().context("a container")
    }

    /// Takes a container off its network: to everybody else it falls silent, and its ports with it.
    pub fn cut(&self, container: &str) -> Result<()> {
        docker(&["network", "disconnect", &self.network(), container]).map(drop)
    }

    /// Undoes [`Compose::cut`]. What compose called the container by is lost with the network.
    pub fn mend(&self, service: &str, container: &str) -> Result<()> {
        let network = self.network();
        docker(&["network", "connect", "--alias", service, &network, container]).map(drop)
    }

    fn network(&self) -> String {
        format!("{}_default", self.project)
    }

    /// The containers of a service, whether they run or not; Docker says so sooner than compose.
    pub fn containers(&self, service: &str) -> Result<Vec<String>> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let service = format!("label=com.docker.compose.service={service}");
        let ids = docker(&[
            "ps", "--all", "--quiet", "--filter", &project, "--filter", &service,
        ])?;
        Ok(ids.lines().map(str::to_owned).collect())
    }

    /// Waits until all containers of some services are healthy, and there are as many as are told.
    pub fn wait_until_healthy(&self, services: &[(&str, usize)]) -> Result<()> {
        let begun = Instant::now();
        loop {
            let mut missing = Vec::new();
            for &(service, count) in services {
                let containers = self.containers(service)?;
                let healthy = containers.iter().filter(|id| is_healthy(id)).count();
                if healthy != count {
                    missing.push(format!("{service}: {healthy} of {count} healthy"));
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("{}\n{}", missing.join(", "), self.logs());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What everything has written.
    pub fn logs(&self) -> String {
        self.run(&["logs", "--no-color", "--tail", "60"])
            .unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Addresses of the servers as seen from outside.
    pub fn url(&self) -> String {
        let ports = self.nats_ports.iter().take(self.servers.names().len());
        let urls = ports.map(|port| format!("nats://127.0.0.1:{port}"));
        urls.collect::<Vec<_>>().join(",")
    }
}

impl Servers {
    /// Their services, which are also what they call themselves.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::One => &["nats"],
            Self::Three => &["nats", "nats-2", "nats-3"],
        }
    }

    fn files(self) -> &'static [&'static str] {
        match self {
            Self::One => &["compose.yaml"],
            Self::Three => &["compose.yaml", "compose.cluster.yaml"],
        }
    }
}

impl Drop for Compose {
    #[expect(clippy::print_stderr, reason = "a failed test shows what its containers said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if let Err(error) = self.run(&["down", "--volumes", "--remove-orphans", "--timeout", "1"]) {
            eprintln!("{} stays: {error:#}", self.project);
        }
    }
}

/// A user's password out of `deploy/.env`.
pub fn password(user: &str) -> Result<String> {
    let text = std::fs::read_to_string(repository().join("deploy/.env"))?;
    let name = format!("FLOTILLA_{}_PASSWORD=", user.to_uppercase());
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line
        .with_context(|| format!("no {name} in deploy/.env"))?
        .to_owned())
}

/// `docker` with these words.
pub fn docker(words: &[&str]) -> Result<String> {
    succeed(Command::new("docker").args(words).stdin(Stdio::null()))
}

/// What a container has written to standard error: a role's log.
pub fn log(container: &str) -> Result<String> {
    let output = Command::new("docker").args(["logs", container]).output()?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What Docker knows of a container.
pub fn inspect(container: &str) -> Result<Value> {
    let told: Value = serde_json::from_str(&docker(&["inspect", container])?)?;
    told.get(0).cloned().context("one container")
}

fn is_healthy(container: &str) -> bool {
    let status = inspect(container).ok();
    status.is_some_and(|status| status.pointer("/State/Health/Status") == Some(&"healthy".into()))
}

/// The plugin, or the program that came before it.
fn tool() -> Command {
    let has_plugin = Command::new("docker")
        .args(["compose", "version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    match has_plugin {
        true => {
            let mut command = Command::new("docker");
            command.arg("compose");
            command
        }
        false => Command::new("docker-compose"),
    }
}

fn succeed(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

static TURN: Mutex<()> = Mutex::const_new(());
const PORT_VARIABLES: [&str; 3] = [
    "FLOTILLA_NATS_PORT",
    "FLOTILLA_NATS_PORT_2",
    "FLOTILLA_NATS_PORT_3",
];
/// Containers start slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(500);
