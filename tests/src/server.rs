//! A private nats-server.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::process::{Signal, limit_files, send_signal};

/// What a test wants of its server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Whether JetStream is on.
    pub jetstream: bool,
    /// Largest message, in bytes.
    pub max_payload_bytes: usize,
    /// Most bytes that JetStream may store; `None` leaves it to the disk.
    pub store_bytes_max: Option<u64>,
    /// Most bytes that it may keep in memory; `None` leaves it to the machine.
    pub memory_bytes_max: Option<u64>,
    /// Most bytes that wait for a client before it is cut off; `None` for the server's own 64 MiB.
    pub pending_bytes_max: Option<u64>,
    /// A file of settings, instead of those above: one of `deploy/nats`.
    pub file: Option<PathBuf>,
    /// Where on loopback it tells its state over HTTP.
    pub monitoring_port: Option<u16>,
    /// Its place in a cluster; `None` for a server on its own.
    pub membership: Option<Membership>,
}

/// The users of `deploy/nats/users.conf`; in tests the password of each is its name.
pub const USERS: [&str; 4] = ["dispatcher", "worker", "operator", "client"];

/// The settings of `nats.user`, `nats.password` and `nats.inbox_prefix` of a user, as `key=value`.
#[must_use]
pub fn settings_of_user(user: &str) -> [String; 3] {
    [
        format!("nats.user={user}"),
        format!("nats.password={user}"),
        format!("nats.inbox_prefix=_INBOX_{user}"),
    ]
}

/// A file of settings of the server that operators are given.
#[must_use]
pub fn deployed_nats_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/nats")
        .join(name)
}

/// A server's place in a cluster.
#[derive(Debug, Clone)]
pub struct Membership {
    /// Its name, under which the others know it again.
    pub name: String,
    /// Where it listens for the others.
    pub port: u16,
    /// Where it reaches the others, and where it is itself.
    pub routes: Vec<String>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            jetstream: true,
            max_payload_bytes: 8 << 20,
            store_bytes_max: None,
            memory_bytes_max: None,
            pending_bytes_max: None,
            file: None,
            monitoring_port: None,
            membership: None,
        }
    }
}

/// A running nats-server of our own, with its store in a folder that goes away with it.
#[derive(Debug)]
pub struct NatsServer {
    child: Child,
    port: u16,
    folder: TempDir,
    file: Option<PathBuf>,
}

/// A port that nobody listened on a moment ago.
///
/// # Panics
/// When the loopback interface has no free port.
#[must_use]
pub fn free_port() -> u16 {
    free_ports(1)[0]
}

/// Different ports that nobody listened on a moment ago.
///
/// # Panics
/// When the loopback interface has too few.
#[must_use]
pub fn free_ports(count: usize) -> Vec<u16> {
    let listen = || TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    // All are held until the last one is there: one that is let go may be given out again.
    let listeners: Vec<TcpListener> = (0..count).map(|_| listen()).collect();
    let address = |listener: &TcpListener| listener.local_addr().expect("a bound socket has an address");
    listeners
        .iter()
        .map(|listener| address(listener).port())
        .collect()
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
        let mut server = Self::spawn(options, free_port())?;
        server.wait_until_up()?;
        Ok(server)
    }

    /// Starts a server on a port and does not wait for it: one of a cluster waits for the others.
    pub(crate) fn spawn(options: &ServerOptions, port: u16) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (listen, store) = (format!("127.0.0.1:{port}"), folder.path().join(STORE));
        fs::write(
            folder.path().join("nats.conf"),
            nats_server_configuration(options, &listen, &store),
        )?;
        let file = options.file.clone();
        let child = spawn(folder.path(), port, file.as_deref())?;
        Ok(Self {
            child,
            port,
            folder,
            file,
        })
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

    /// Lets it write no further than so many bytes into any file, as a disk does that is full: what it writes beyond fails.
    /// `None` for no limit any more.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        limit_files(self.child.id(), bytes)
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

    /// Asks the server to end, and waits until it has.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::Term)?;
        self.child.wait()?;
        Ok(())
    }

    /// Removes the store of a server that was killed.
    ///
    /// # Errors
    /// When the system does not.
    pub fn wipe(&self) -> Result<()> {
        let store = self.folder.path().join(STORE);
        fs::remove_dir_all(&store).with_context(|| format!("cannot remove {}", store.display()))
    }

    /// Starts the server again on the same port and store.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(self.folder.path(), self.port, self.file.as_deref())?;
        self.wait_until_up()
    }

    /// Waits until it accepts connections.
    pub(crate) fn wait_until_up(&mut self) -> Result<()> {
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
    #[expect(clippy::print_stderr, reason = "a failed test shows what its servers said")]
    fn drop(&mut self) {
        // A server that a test has killed already is what we want.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("--- nats-server at port {} ---\n{}", self.port, tail.join("\n"));
        }
    }
}

fn spawn(folder: &Path, port: u16, file: Option<&Path>) -> Result<Child> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("log"))?;
    let mut command = Command::new(nats_server_binary());
    match file {
        None => command.arg("--config").arg(folder.join("nats.conf")),
        // Another server may run on this machine with the same file.
        Some(file) => command
            .arg("--config")
            .arg(file)
            .args(["--addr", "127.0.0.1", "--port", &port.to_string()])
            .args(["--http_port", &free_port().to_string(), "--store_dir"])
            .arg(folder.join("store"))
            .envs(USERS.map(|user| (format!("FLOTILLA_{}_PASSWORD", user.to_uppercase()), user))),
    };
    command
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
    if let Some(port) = options.monitoring_port {
        text.push_str(&format!("http: \"127.0.0.1:{port}\"\n"));
    }
    let limit =
        |name: &str, bytes: Option<u64>| bytes.map_or_else(String::new, |bytes| format!("{name}: {bytes}\n"));
    text.push_str(&limit("max_pending", options.pending_bytes_max));
    if options.jetstream {
        let file = limit("max_file_store", options.store_bytes_max);
        let memory = limit("max_memory_store", options.memory_bytes_max);
        text.push_str(&format!(
            "jetstream {{\nstore_dir: \"{}\"\n{file}{memory}}}\n",
            store.display()
        ));
    }
    if let Some(membership) = &options.membership {
        text.push_str(&cluster_configuration(membership));
    }
    text
}

fn cluster_configuration(membership: &Membership) -> String {
    let Membership { name, port, routes } = membership;
    let routes: Vec<String> = routes.iter().map(|route| format!("\"{route}\"")).collect();
    let routes = routes.join(", ");
    // What servers and clients tell each other of the others' addresses would lead them round the proxies.
    format!(
        "server_name: \"{name}\"\ncluster {{\n  name: \"flotilla\"\n  \
         listen: \"127.0.0.1:{port}\"\n  advertise: \"{NOWHERE}\"\n  no_advertise: true\n  \
         ping_interval: \"2s\"\n  \
         routes: [{routes}]\n}}\n"
    )
}

/// An address at which nobody listens.
const NOWHERE: &str = "127.0.0.1:1";
/// Folder of the server's store in its own.
const STORE: &str = "store";

/// Lines of a server's log that a failed test shows: its last elections.
const LOG_LINES_SHOWN: usize = 200;
/// How long a stopped process may take to go.
pub(crate) const EXIT_PATIENCE: Duration = Duration::from_secs(40);
