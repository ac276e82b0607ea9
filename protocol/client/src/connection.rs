//! Connecting: credentials, TLS, and the checks that a server must pass.

use std::future::Future;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::{Client, ConnectOptions, Event};
use flotilla_config::Nats;
use flotilla_protocol::subject::Subjects;
use flotilla_protocol::{IdError, Namespace, Owner};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
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
    #[error(
        "nats-server {version} is not trusted with work: {reason}; install {VERSION_MIN}, or 2.14.0 or newer"
    )]
    KnownBad {
        /// Its version.
        version: ServerVersion,
        /// What it does.
        reason: &'static str,
    },
    /// The server runs without JetStream.
    #[error("the server at {urls} has no JetStream; start nats-server with -js or a jetstream block")]
    NoJetStream {
        /// The configured addresses.
        urls: String,
    },
    /// The namespace is not one; the configuration checks the same rule.
    #[error("nats.namespace")]
    Namespace(#[source] IdError),
    /// The owner is not one; the configuration checks the same rule.
    #[error("nats.owner")]
    Owner(#[source] IdError),
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
    /// Whose requests are made over it; journals are then read through the dispatcher.
    pub owner: Option<Owner>,
    link: watch::Receiver<Link>,
}

/// The connection broke and came back while an answer was waited for: the question or the answer is lost.
#[derive(Debug, Error)]
#[error("the connection broke before the answer")]
pub struct Disconnected;

/// No answer came in time. Whether what was asked is carried out, now or when the connection is back, is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no answer within {} ms", limit.as_millis())]
pub struct Unanswered {
    /// How long it was waited for.
    pub limit: Duration,
}

/// How often the connection came back.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Link {
    reconnects: u64,
    is_down: bool,
}

impl Link {
    fn note(&mut self, event: &Event) {
        match event {
            Event::Disconnected => self.is_down = true,
            Event::Connected if self.is_down => {
                self.is_down = false;
                self.reconnects += 1;
            }
            _ => {}
        }
    }
}

impl Connection {
    /// Connects; `name` is shown by the server's monitoring. After the first connection the client
    /// reconnects by itself for ever.
    ///
    /// # Errors
    /// [`ConnectError`]: unreachable, too old, without JetStream, or unreadable credentials.
    pub async fn open(nats: &Nats, name: &str) -> Result<Self, ConnectError> {
        Self::open_with(nats, name, REQUESTS).await
    }

    /// The same for weights alone, so that nothing waits behind them: its messages are large, and few of them wait
    /// in a subscription.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn open_for_weights(nats: &Nats, name: &str) -> Result<Self, ConnectError> {
        Self::open_with(nats, name, WEIGHTS).await
    }

    async fn open_with(nats: &Nats, name: &str, purpose: Purpose) -> Result<Self, ConnectError> {
        let subjects = Subjects::new(Namespace::new(&nats.namespace).map_err(ConnectError::Namespace)?);
        let owner = nats.owner.as_ref().map(Owner::new).transpose();
        let owner = owner.map_err(ConnectError::Owner)?;
        let urls = nats.url.join(", ");
        let (told, link) = watch::channel(Link::default());
        let options = options(nats, name, told).await?;
        let options = options
            .subscription_capacity(purpose.subscription_max)
            .ping_interval(purpose.ping_interval);
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
            owner,
            link,
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

    /// Waits for an answer of the server for as long as it can come: what was sent on a connection that broke is
    /// answered by nobody, and who waited for the time limit would stand still long after the connection is back.
    ///
    /// # Errors
    /// [`Disconnected`]; whether the server has carried out what was asked is unknown, as after a time limit.
    pub async fn answered<T>(&self, answer: impl Future<Output = T>) -> Result<T, Disconnected> {
        let mut reconnects = self.reconnects();
        let lost = async {
            reconnects.next().await;
            // What waited in the client meanwhile was sent just now.
            sleep(ANSWER_AFTER_RECONNECT).await;
        };
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            () = lost => Err(Disconnected),
        }
    }

    /// Waits for what the server does within one time limit, but not for ever. The limits of the client itself begin when a
    /// question has left its queue, and that is full when the server has been away for long.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn within<T>(&self, answer: impl Future<Output = T>) -> Result<T, Unanswered> {
        // One limit for the queue, one for the answer.
        let limit = self.request_timeout * 2;
        timeout(limit, answer).await.map_err(|_| Unanswered { limit })
    }

    /// Publishes to a stream and waits until it is stored.
    ///
    /// # Errors
    /// [`PublishError`]; after `TimedOut` and `BrokenPipe` it may be stored all the same, now or when the connection is back.
    pub async fn store(&self, subject: String, message: PublishMessage) -> Result<PublishAck, PublishError> {
        let stored = self.answered(async {
            let sent = self.jetstream.send_publish(subject, message).await;
            sent?.await
        });
        match self.within(stored).await {
            Ok(Ok(stored)) => stored,
            Ok(Err(disconnected)) => {
                let kind = PublishErrorKind::BrokenPipe;
                Err(PublishError::with_source(kind, disconnected))
            }
            Err(late) => Err(PublishError::with_source(PublishErrorKind::TimedOut, late)),
        }
    }

    /// Tells when the connection comes back, from this moment on.
    pub(crate) fn reconnects(&self) -> Reconnects {
        let mut link = self.link.clone();
        let seen = link.borrow_and_update().reconnects;
        Reconnects { link, seen }
    }
}

/// The times at which a connection comes back.
#[derive(Debug)]
pub(crate) struct Reconnects {
    link: watch::Receiver<Link>,
    seen: u64,
}

impl Reconnects {
    /// Waits until the connection has come back once more; for ever when the client was closed, which whoever waits
    /// for something else finds out there. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) {
        let seen = self.seen;
        let changed = self.link.wait_for(|link| link.reconnects != seen).await;
        match changed.map(|link| link.reconnects) {
            Ok(reconnects) => self.seen = reconnects,
            Err(_) => std::future::pending().await,
        }
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
    if let Some(reason) = version.distrust() {
        return Err(ConnectError::KnownBad { version, reason });
    }
    if !info.jetstream {
        return Err(ConnectError::NoJetStream {
            urls: urls.to_owned(),
        });
    }
    Ok(version)
}

async fn options(nats: &Nats, name: &str, link: watch::Sender<Link>) -> Result<ConnectOptions, ConnectError> {
    let (link, overflows) = (Arc::new(link), Arc::new(Overflows::new()));
    let mut options = ConnectOptions::new()
        .name(nats.name.as_deref().unwrap_or(name))
        .connection_timeout(nats.connect_timeout)
        .request_timeout(Some(nats.request_timeout))
        .custom_inbox_prefix(nats.inbox_prefix.clone())
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            link.send_modify(|link| link.note(&event));
            log_event(event, Arc::clone(&overflows))
        });
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

/// The pause before a try to connect again: none at first, then doubling from 2 ms to [`RECONNECT_PAUSE_MAX`].
fn reconnect_delay(tries: usize) -> Duration {
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(u32::MAX);
    match doublings {
        0 => Duration::ZERO,
        _ => Duration::from_millis(2_u64.saturating_pow(doublings)).min(RECONNECT_PAUSE_MAX),
    }
}

/// Messages that overflowing subscriptions have lost. Each of them is an event, and thousands may be lost at once.
#[derive(Debug)]
struct Overflows {
    begun: Instant,
    lost: AtomicU64,
    /// In which period of time they were told of last; 0 for none.
    told_in: AtomicU64,
}

impl Overflows {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            lost: AtomicU64::new(0),
            told_in: AtomicU64::new(0),
        }
    }

    /// Counts one; how many there were, if it is time to tell.
    fn count(&self) -> Option<u64> {
        let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
        let period = 1 + self.begun.elapsed().as_secs() / OVERFLOWS_TOLD_EVERY_S;
        let told_in = self.told_in.swap(period, Ordering::Relaxed);
        (told_in != period).then_some(lost)
    }
}

async fn log_event(event: Event, overflows: Arc<Overflows>) {
    match event {
        Event::Connected => info!("connected to nats"),
        Event::Disconnected => warn!("disconnected from nats"),
        Event::SlowConsumer(subscription) => {
            if let Some(lost) = overflows.count() {
                warn!(subscription, lost, "a subscription overflowed and lost messages");
            }
        }
        Event::LameDuckMode => warn!("the nats server is shutting down"),
        Event::ServerError(error) => warn!(%error, "nats server error"),
        Event::ClientError(error) => warn!(%error, "nats client error"),
        Event::Draining | Event::Closed => info!(%event, "nats connection ends"),
    }
}

/// What differs between connections for different things.
#[derive(Debug, Clone, Copy)]
struct Purpose {
    /// Messages that wait in one subscription before it overflows.
    subscription_max: usize,
    /// How often a silent server is asked for a sign of life; a third question without an answer to the first two ends the
    /// connection.
    ping_interval: Duration,
}

/// Assignments and events carry bodies of up to megabytes, so that more of them would only move an overload into
/// memory; readers of events repair what is lost. A network that loses packets without a word is noticed within 6 s, where
/// the client's own minute would leave a part deaf for three; a server's pause of some seconds still breaks nothing.
const REQUESTS: Purpose = Purpose {
    subscription_max: 8192,
    ping_interval: Duration::from_secs(2),
};
/// Chunks are of 1 MiB: as many wait as the server lets pend for a connection. A question waits behind what is on its
/// way, 32 MiB on a slow link or from a worker that has no time for weights, and that is no broken connection.
const WEIGHTS: Purpose = Purpose {
    subscription_max: 64,
    ping_interval: Duration::from_secs(20),
};
/// Often enough to be seen in a log, and no flood.
const OVERFLOWS_TOLD_EVERY_S: u64 = 5;
/// Short against what clients notice, and a thousand parts make two thousand tries a second at most.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long an answer may take on a connection that has just come back.
const ANSWER_AFTER_RECONNECT: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_to_connect_again_come_at_once_at_first_and_twice_a_second_later() {
        let pauses = [0, 1, 2, 3, 9, 10, 40, usize::MAX].map(|tries| reconnect_delay(tries).as_millis());
        assert_eq!(pauses, [0, 0, 2, 4, 256, 500, 500, 500]);
    }

    #[tokio::test(start_paused = true)]
    async fn lost_messages_are_counted_one_by_one_and_told_now_and_then() {
        let overflows = Overflows::new();
        assert_eq!(overflows.count(), Some(1));
        assert_eq!((overflows.count(), overflows.count()), (None, None));
        sleep(Duration::from_secs(OVERFLOWS_TOLD_EVERY_S)).await;
        assert_eq!(overflows.count(), Some(4));
    }

    #[test]
    fn first_connection_is_no_reconnection() {
        let mut link = Link::default();
        for (event, reconnects) in [
            (Event::Connected, 0),
            (Event::Disconnected, 0),
            (Event::Connected, 1),
            (Event::Connected, 1),
        ] {
            link.note(&event);
            assert_eq!(link.reconnects, reconnects);
        }
    }
}
