//! A private nats-server for one test.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flotilla_client::Connection;
use flotilla_config::{Config, LoadOptions};
use tempfile::TempDir;

/// A running server with JetStream; both end with this.
pub(crate) struct Server {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let program = std::env::var_os("NATS_SERVER").map_or_else(|| "nats-server".into(), PathBuf::from);
        let mut child = Command::new(program)
            .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "-js", "-sd"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is at $NATS_SERVER or on PATH");
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert_eq!(child.try_wait().unwrap(), None, "nats-server ended");
            assert!(start.elapsed() < PATIENCE, "nats-server does not listen");
            std::thread::yield_now();
        }
        Self {
            child,
            port,
            _folder: folder,
        }
    }

    /// Settings for this server, with changes of the form `section.key=value`.
    pub(crate) fn config(&self, changes: &[&str]) -> Config {
        let mut flags = vec![
            format!("nats.url=nats://127.0.0.1:{}", self.port),
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
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that is gone already is what we want.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
