//! A private nats-server.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::process::{Signal, send_signal};

/// What a test wants of its server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Whether JetStream is on.
    pub jetstream: bool,
    /// Largest message, in bytes.
    pub max_payload_bytes: usize,
    /// Most bytes that JetStream may store; `None` leaves it to the disk.
    pub store_bytes_max: Option<u64>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            jetstream: true,
            max_payload_bytes: 8 << 20,
            store_bytes_max: None,
        }
    }
}

/// A running nats-server of our own, with its store in a folder that goes away with it.
#[derive(Debug)]
pub struct NatsServer {
    child: Child,
    port: u16,
    folder: TempDir,
}

/// A port that nobody listened on a moment ago.
///
/// # Panics
/// When the loopback interface has no free port.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener
        .local_addr()
        .expect("a bound socket has an address")
        .port()
}

/// The server's program: `$NATS_SERVER`, which `make test` sets, or the one on `PATH`.
#[must_use]
pub fn nats_server_binary() -> PathBuf {
    std::env::var_os("NATS_SERVER").map_or_else(|| "nats-server".into(), PathBuf::from)
}

impl NatsServer {
    /// Starts a server and waits until it accepts connections.
    ///
    /// # Errors
    /// When there is no nats-server, or it ends at once.
    pub fn start(options: &ServerOptions) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = free_port();
        let (listen, store) = (format!("127.0.0.1:{port}"), folder.path().join("store"));
        fs::write(
            folder.path().join("nats.conf"),
            nats_server_configuration(options, &listen, &store),
        )?;
        let child = spawn(folder.path())?;
        let mut server = Self { child, port, folder };
        server.wait_until_up()?;
        Ok(server)
    }

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port of [`NatsServer::url`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it has written so far; times are in UTC.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send_signal(self.child.id(), signal)
    }

    /// Kills the server without warning.
    ///
    /// # Errors
    /// When the process cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts the server again on the same port and store.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(self.folder.path())?;
        self.wait_until_up()
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                bail!("nats-server ended with {status}:\n{log}");
            }
            if start.elapsed() > PATIENCE {
                bail!("nats-server does not listen on port {}", self.port);
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // A server that a test has killed already is what we want.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(folder: &Path) -> Result<Child> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("log"))?;
    Command::new(nats_server_binary())
        .arg("--config")
        .arg(folder.join("nats.conf"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| {
            format!(
                "cannot start {}; run `make test`, which installs it",
                nats_server_binary().display()
            )
        })
}

/// What a server's file of settings says: where it listens (`host:port`) and where its store is.
#[must_use]
pub fn nats_server_configuration(options: &ServerOptions, listen: &str, store: &Path) -> String {
    let mut text = format!(
        "listen: \"{listen}\"\nlogtime_utc: true\nmax_payload: {}\n",
        options.max_payload_bytes
    );
    if options.jetstream {
        let limit = options
            .store_bytes_max
            .map(|bytes| format!("max_file_store: {bytes}"))
            .unwrap_or_default();
        text.push_str(&format!(
            "jetstream {{ store_dir: \"{}\" {limit} }}\n",
            store.display()
        ));
    }
    text
}

/// How long a stopped process may take to go.
pub(crate) const EXIT_PATIENCE: Duration = Duration::from_secs(40);
