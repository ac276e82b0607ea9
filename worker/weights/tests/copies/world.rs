//! A real nats-server with the streams of a dispatcher, and workers that hold and want models.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use flotilla_client::Connection;
use flotilla_config::{Config, LoadOptions, Nats};
use flotilla_dispatcher::ensure_topology;
use flotilla_protocol::WorkerId;
use flotilla_protocol::weights::Root;
use flotilla_tests::{NatsServer, ServerOptions};
use flotilla_weights::{
    Buffers, Exports, Identity, Importer, ModelFiles, RateCap, Receiver, Registry, Relay, RelayBytes, Sender,
    Store, make_manifest,
};
use flotilla_weights_core::{Manifest, ReceivingSettings, SendingSettings};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub const MIB: u64 = 1 << 20;

/// The server and what a dispatcher makes on it.
pub struct World {
    server: NatsServer,
    pub connection: Connection,
    pub config: Config,
}

/// One worker's part in copies.
pub struct Worker {
    pub exports: Exports,
    pub importer: Importer,
    pub rate: RateCap,
    pub stop: CancellationToken,
    _exporting: AbortOnDropHandle<()>,
    _folder: TempDir,
}

/// What a test changes of a worker.
#[derive(Clone)]
pub struct Traits {
    pub name: &'static str,
    pub machine: &'static str,
    pub window_bytes: u64,
    pub bytes_per_s: Option<u64>,
    pub store_bytes_max: u64,
}

impl Traits {
    /// A worker on a machine of its own.
    pub fn named(name: &'static str) -> Self {
        Self {
            name,
            machine: name,
            window_bytes: 16 * MIB,
            bytes_per_s: None,
            store_bytes_max: 1 << 30,
        }
    }
}

impl World {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(settings: &[&str]) -> Self {
        let server = NatsServer::start(&ServerOptions::default()).unwrap();
        let mut flags = vec![
            format!("nats.url={}", server.url()),
            "nats.requests_max_bytes=64MiB".to_owned(),
            "nats.journal_max_bytes=64MiB".to_owned(),
            "nats.relay_max_bytes=256MiB".to_owned(),
        ];
        flags.extend(settings.iter().map(|&setting| setting.to_owned()));
        let config = Config::load(&LoadOptions {
            flags,
            ..Default::default()
        })
        .unwrap();
        let connection = Connection::open(&config.nats, "test").await.unwrap();
        ensure_topology(&connection, &config).await.unwrap();
        Self {
            server,
            connection,
            config,
        }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        self.server.url()
    }

    pub async fn worker(&self, name: &'static str) -> Worker {
        self.worker_with(Traits::named(name)).await
    }

    pub async fn worker_with(&self, traits: Traits) -> Worker {
        self.worker_at(self.server.url(), traits).await
    }

    /// One that reaches the server by another way.
    pub async fn worker_at(&self, url: String, traits: Traits) -> Worker {
        let nats = Nats {
            url: vec![url],
            ..self.config.nats.clone()
        };
        let connection = Connection::open_for_weights(&nats, traits.name).await.unwrap();
        let relay = Relay::open(connection.clone()).await.unwrap();
        let registry = Registry::open(&connection).await.unwrap();
        let (stop, rate, buffers) = (
            CancellationToken::new(),
            RateCap::new(traits.bytes_per_s),
            Buffers::new(16),
        );
        let identity = Identity {
            worker: WorkerId::new(traits.name).unwrap(),
            incarnation: 7,
            machine: traits.machine.to_owned(),
        };
        let sender = Sender {
            relay: relay.clone(),
            registry: registry.clone(),
            settings: SendingSettings {
                window_bytes: traits.window_bytes,
                linger: Duration::from_secs(1),
                backoff: Duration::from_millis(20),
                refusals_max: 5,
                ..SendingSettings::default()
            },
            rate: rate.clone(),
            buffers: buffers.clone(),
            stop: stop.clone(),
            in_relay: RelayBytes::default(),
        };
        let (exports, exporting) = Exports::start(identity.clone(), sender, 4).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let importer = Importer {
            identity,
            receiver: Receiver {
                relay,
                settings: ReceivingSettings::default(),
                buffers,
                stop: stop.clone(),
            },
            registry,
            store: Store::open(folder.path().join("store"), traits.store_bytes_max).unwrap(),
            ask_timeout: Duration::from_secs(10),
        };
        Worker {
            exports,
            importer,
            rate,
            stop,
            _exporting: exporting,
            _folder: folder,
        }
    }

    /// Subjects of the relay that begin with this, e.g. `C` for chunks.
    pub async fn relay_subjects(&self, kind: &str) -> BTreeSet<String> {
        use futures_util::TryStreamExt;
        let stream = self
            .connection
            .jetstream
            .get_stream("OBJ_flotilla_relay")
            .await
            .unwrap();
        let subjects = stream
            .info_with_subjects(format!("$O.flotilla_relay.{kind}.>"))
            .await
            .unwrap();
        subjects
            .map_ok(|(subject, _)| subject)
            .try_collect()
            .await
            .unwrap()
    }

    /// Messages that ever went into the relay.
    pub async fn relay_messages(&self) -> u64 {
        let mut stream = self
            .connection
            .jetstream
            .get_stream("OBJ_flotilla_relay")
            .await
            .unwrap();
        stream.info().await.unwrap().state.last_sequence
    }

    /// The copies that somebody claims.
    pub async fn claims(&self) -> usize {
        Registry::open(&self.connection)
            .await
            .unwrap()
            .copies()
            .await
            .unwrap()
            .len()
    }
}

/// A model of so many segments of 1 MiB, all of them different, and in part those of models with the same seeds.
pub fn model(seeds: impl IntoIterator<Item = u64>) -> (TempDir, Arc<ModelFiles>) {
    let folder = tempfile::tempdir().unwrap();
    let mut name = String::new();
    for (index, seed) in seeds.into_iter().enumerate() {
        fs::write(folder.path().join(format!("part-{index:03}.txt")), bytes(seed)).unwrap();
        name.push_str(&format!("{seed} "));
    }
    fs::write(folder.path().join("config.json"), name).unwrap();
    let files = ModelFiles::new(Arc::new(manifest_of(folder.path())), folder.path().to_owned());
    (folder, Arc::new(files))
}

pub fn manifest_of(folder: &Path) -> Manifest {
    make_manifest(folder, 2, &AtomicBool::new(false)).unwrap()
}

pub fn root(files: &ModelFiles) -> Root {
    files.manifest().root()
}

/// 1 MiB that no other seed gives.
fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..MIB / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}
