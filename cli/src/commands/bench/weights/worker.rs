//! One worker's part in copies, as a worker has it.

use std::path::{Path, PathBuf};

use flotilla_client::Connection;
use flotilla_config::Nats;
use flotilla_protocol::WorkerId;
use flotilla_weights::{
    Buffers, Exports, Identity, Importer, RateCap, Receiver, Registry, Relay, RelayBytes, Sender, Store,
};
use flotilla_weights_core::{ReceivingSettings, SendingSettings};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::role::Role;

/// A worker with a thread, a connection, buffers and a store of its own.
pub(super) struct Worker {
    /// Where it runs.
    pub(super) role: Role,
    /// What it sends.
    pub(super) exports: Exports,
    /// What it receives.
    pub(super) importer: Importer,
    /// Ends both.
    pub(super) stop: CancellationToken,
    _exporting: AbortOnDropHandle<()>,
    _stop: DropGuard,
}

/// What a connection makes of it.
struct Connected {
    exports: Exports,
    exporting: AbortOnDropHandle<()>,
    importer: Importer,
}

impl Worker {
    /// Starts one, which believes to be on a machine of its own.
    ///
    /// # Errors
    /// When the server refuses or the store cannot be made.
    pub(super) async fn start(nats: &Nats, name: &str, store: &Path) -> anyhow::Result<Self> {
        let role = Role::start(name)?;
        let parts = Self::connect(nats.clone(), name.to_owned(), store.to_owned());
        let Connected {
            exports,
            exporting,
            importer,
        } = role.run(parts).await??;
        let stop = importer.receiver.stop.clone();
        Ok(Self {
            role,
            exports,
            importer,
            _exporting: exporting,
            _stop: stop.clone().drop_guard(),
            stop,
        })
    }

    async fn connect(nats: Nats, name: String, store: PathBuf) -> anyhow::Result<Connected> {
        let connection = Connection::open_for_weights(&nats, &name).await?;
        let ask_timeout = connection.request_timeout * 2;
        let relay = Relay::open(connection.clone()).await?;
        let registry = Registry::open(&connection).await?;
        let (stop, buffers) = (CancellationToken::new(), Buffers::new(SPARE_BUFFERS_MAX));
        let identity = Identity {
            worker: WorkerId::new(name.as_str())?,
            incarnation: 1,
            machine: name,
        };
        let sender = Sender {
            relay: relay.clone(),
            registry: registry.clone(),
            settings: SendingSettings::default(),
            rate: RateCap::new(None),
            buffers: buffers.clone(),
            stop: stop.clone(),
            in_relay: RelayBytes::default(),
        };
        let (exports, exporting) = Exports::start(identity.clone(), sender, 1).await?;
        let importer = Importer {
            identity,
            receiver: Receiver {
                relay,
                settings: ReceivingSettings::default(),
                buffers,
                stop: stop.clone(),
            },
            registry,
            store: Store::open(store, u64::MAX)?,
            ask_timeout,
        };
        Ok(Connected {
            exports,
            exporting,
            importer,
        })
    }
}

/// As many as a worker keeps.
const SPARE_BUFFERS_MAX: usize = 24;
