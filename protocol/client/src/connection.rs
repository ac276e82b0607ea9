//! Connecting: credentials, TLS, and the checks that a server must pass.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::{Client, ConnectOptions, Event};
use flotilla_config::Nats;
use flotilla_protocol::Namespace;
use flotilla_protocol::subject::Subjects;
use thiserror::Error;
use tracing::{info, warn};

use crate::version::{ServerVersion, VERSION_MIN};

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// No server answers, or it refuses the credentials.
    #[error("cannot connect to NATS at {urls}; is nats-server running there, and are the credentials right?")]
    Unreachable {
        /// The configured addresses.
        urls: String,
        /// What the client says.
        #[source]
        source: async_nats::ConnectError,
    },
    /// A file of the configuration cannot be read.
    #[error("cannot read {setting} {path}", path = path.display())]
    File {
        /// Key of the configuration.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server says a version that cannot be read.
    #[error("the server at {urls} says it is version {version:?}")]
    Version {
        /// The configured addresses.
        urls: String,
        /// What it says.
        version: String,
        /// Why that is no version.
        #[source]
        source: crate::version::VersionError,
    },
    /// The server is known to lose work.
    #[error("nats-server {version} is known to lose messages of work queues; install {VERSION_MIN} or newer")]
    TooOld {
        /// Its version.
        version: ServerVersion,
    },
    /// The server runs without JetStream.
    #[error("the server at {urls} has no JetStream; start nats-server with -js or a jetstream block")]
    NoJetStream {
        /// The configured addresses.
        urls: String,
    },
    /// The namespace is not one; the configuration checks the same rule.
    #[error("nats.namespace")]
    Namespace(#[from] flotilla_protocol::IdError),
}

/// A connection with everything that hangs on it. Cheap to clone; all clones share one socket.
#[derive(Debug, Clone)]
pub struct Connection {
    // A clone of async-nats' client allocates, and every order, append and request has a clone of ours.
    parts: Arc<ConnectionParts>,
}

/// What hangs on a connection.
#[derive(Debug)]
pub struct ConnectionParts {
    /// The core client.
    pub client: Client,
    /// JetStream over it, with the configured time limit on every request.
    pub jetstream: jetstream::Context,
    /// Names in the configured namespace.
    pub subjects: Subjects,
    /// Version of the server that was connected first.
    pub server: ServerVersion,
    /// Time limit of one request.
    pub request_timeout: Duration,
}

impl Connection {
    /// Connects; `name` is shown by the server's monitoring. After the first connection the client
    /// reconnects by itself for ever.
    ///
    /// # Errors
    /// [`ConnectError`]: unreachable, too old, without JetStream, or unreadable credentials.
    pub async fn open(nats: &Nats, name: &str) -> Result<Self, ConnectError> {
        Self::open_with(nats, name, SUBSCRIPTION_MESSAGES_MAX).await
    }

    /// The same for weights alone, so that nothing waits behind them: its messages are large, and few of them wait
    /// in a subscription.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn open_for_weights(nats: &Nats, name: &str) -> Result<Self, ConnectError> {
        Self::open_with(nats, name, SUBSCRIPTION_CHUNKS_MAX).await
    }

    async fn open_with(nats: &Nats, name: &str, subscription_max: usize) -> Result<Self, ConnectError> {
        let subjects = Subjects::new(Namespace::new(&nats.namespace)?);
        let urls = nats.url.join(", ");
        let options = options(nats, name).await?;
        let options = options.subscription_capacity(subscription_max);
        let client = options
            .connect(nats.url.clone())
            .await
            .map_err(|source| ConnectError::Unreachable {
                urls: urls.clone(),
                source,
            })?;
        let server = check_server(&client, &urls)?;
        let jetstream = jetstream::context::ContextBuilder::new()
            .timeout(nats.request_timeout)
            .ack_timeout(nats.request_timeout)
            .build(client.clone());
        let parts = ConnectionParts {
            client,
            jetstream,
            subjects,
            server,
            request_timeout: nats.request_timeout,
        };
        Ok(Self {
            parts: Arc::new(parts),
        })
    }

    /// Whether the server is connected at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }
}

impl Deref for Connection {
    type Target = ConnectionParts;

    fn deref(&self) -> &ConnectionParts {
        &self.parts
    }
}

fn check_server(client: &Client, urls: &str) -> Result<ServerVersion, ConnectError> {
    let info = client.server_info();
    let version = info
        .version
        .parse::<ServerVersion>()
        .map_err(|source| ConnectError::Version {
            urls: urls.to_owned(),
            version: info.version.clone(),
            source,
        })?;
    if version < VERSION_MIN {
        return Err(ConnectError::TooOld { version });
    }
    if !info.jetstream {
        return Err(ConnectError::NoJetStream {
            urls: urls.to_owned(),
        });
    }
    Ok(version)
}

async fn options(nats: &Nats, name: &str) -> Result<ConnectOptions, ConnectError> {
    let mut options = ConnectOptions::new()
        .name(nats.name.as_deref().unwrap_or(name))
        .connection_timeout(nats.connect_timeout)
        .request_timeout(Some(nats.request_timeout))
        .event_callback(log_event);
    if let (Some(user), Some(password)) = (&nats.user, &nats.password) {
        options = options.user_and_password(user.clone(), password.expose().to_owned());
    }
    if let Some(token) = &nats.token {
        options = options.token(token.expose().to_owned());
    }
    if let Some(path) = &nats.nkey_seed_file {
        let seed = tokio::fs::read_to_string(path)
            .await
            .map_err(unreadable("nats.nkey_seed_file", path))?;
        options = options.nkey(seed.trim().to_owned());
    }
    if let Some(path) = &nats.creds_file {
        options = options
            .credentials_file(path)
            .await
            .map_err(unreadable("nats.creds_file", path))?;
    }
    if let Some(path) = &nats.tls.ca_file {
        options = options.add_root_certificates(path.clone());
    }
    if let (Some(cert), Some(key)) = (&nats.tls.cert_file, &nats.tls.key_file) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    Ok(options.require_tls(nats.tls.required))
}

fn unreadable(setting: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ConnectError {
    let path = path.to_owned();
    move |source| ConnectError::File {
        setting,
        path,
        source,
    }
}

async fn log_event(event: Event) {
    match event {
        Event::Connected => info!("connected to nats"),
        Event::Disconnected => warn!("disconnected from nats"),
        Event::SlowConsumer(subscription) => {
            warn!(subscription, "a subscription overflowed and lost messages")
        }
        Event::LameDuckMode => warn!("the nats server is shutting down"),
        Event::ServerError(error) => warn!(%error, "nats server error"),
        Event::ClientError(error) => warn!(%error, "nats client error"),
        Event::Draining | Event::Closed => info!(%event, "nats connection ends"),
    }
}

/// Messages that wait in one subscription before it overflows; assignments and events carry bodies of up to
/// megabytes, so that more would only move an overload into memory. Readers of events repair what is lost.
const SUBSCRIPTION_MESSAGES_MAX: usize = 8192;
/// The same for chunks of weights, which are of 1 MiB: as much as the server lets pend for a connection.
const SUBSCRIPTION_CHUNKS_MAX: usize = 64;
