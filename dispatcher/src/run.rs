//! A dispatcher's life: stand by, lead, stand by again.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use flotilla_client::Connection;
use flotilla_config::Config;
use flotilla_protocol::Epoch;
use flotilla_telemetry::{Part, Telemetry};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use crate::backoff::Backoff;
use crate::error::{DispatcherError, chain};
use crate::ground::Ground;
use crate::journal_room;
use crate::lease::{Candidate, Kept, Lease};
use crate::metrics::{self, Standing, tell_server_state, tell_standing};
use crate::services::Ends;
use crate::term::{Term, TermEnd};
use crate::topology::{ensure_relay, ensure_topology, replace_relay};

/// Runs a dispatcher until `shutdown` is cancelled. Makes the streams and buckets first. A leader that is
/// asked to stop gives its lease back, so that a standby leads at once; requests and running work stay where
/// they are. Cancelling the future loses nothing either, but the lease then has to expire. What it does and how it is
/// goes to `telemetry`: it is ready while it leads or stands by, with a connection.
///
/// # Errors
/// [`DispatcherError`]: streams that are not as wanted, a client that was closed, or a bug of ours.
pub async fn run(
    config: &Config,
    connection: Connection,
    telemetry: Telemetry,
    shutdown: CancellationToken,
) -> Result<(), DispatcherError> {
    metrics::register();
    let health = telemetry.part("dispatcher", needs(connection.clone()));
    let standing = Arc::new(Standing::default());
    let told = tell_standing(telemetry.source(), connection.clone(), Arc::clone(&standing));
    let _told = AbortOnDropHandle::new(tokio::spawn(told));
    let ground = Ground::new(config, connection, telemetry);
    let candidate = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        candidate = health.while_waiting(prepare(&ground)) => candidate?,
    };
    let mut office = Office {
        health,
        standing,
        process: shutdown.child_token(),
        ground,
        services: JoinSet::new(),
        epoch_min: Epoch(0),
    };
    let ended = office.lead_whenever_possible(&candidate, &shutdown).await;
    office.close().await;
    ended
}

/// What has to be there, beside our own word, for us to be ready.
fn needs(connection: Connection) -> impl Fn() -> Result<(), &'static str> + Send + Sync {
    move || match connection.client.connection_state() {
        State::Connected => Ok(()),
        State::Pending | State::Disconnected => Err("not connected to NATS"),
    }
}

/// Makes the streams and buckets, and opens the lease. Servers that are away or elect a leader meanwhile are waited for, for
/// a while: whoever starts everything at once starts some things too early.
async fn prepare(ground: &Ground) -> Result<Candidate, DispatcherError> {
    let mut backoff = Backoff::new();
    let begun = Instant::now();
    loop {
        match try_prepare(ground).await {
            Err(error) if may_pass(&error) && begun.elapsed() < PREPARE_MAX => {
                warn!(error = chain(&error), "the servers are not ready yet");
                backoff.pause().await;
            }
            prepared => return prepared,
        }
    }
}

async fn try_prepare(ground: &Ground) -> Result<Candidate, DispatcherError> {
    let config = &ground.config;
    ensure_topology(&ground.connection, config)
        .await
        .map_err(Box::new)?;
    let ttl = config.dispatcher.lease_ttl;
    Ok(Candidate::open(&ground.connection, &ground.id, &ground.host, ttl).await?)
}

fn may_pass(error: &DispatcherError) -> bool {
    match error {
        DispatcherError::Topology(error) => error.may_pass(),
        // Its bucket was there a moment ago.
        DispatcherError::Lease(_) => true,
        DispatcherError::Closed | DispatcherError::Panicked { .. } => false,
    }
}

/// What outlives a term.
struct Office {
    health: Part,
    standing: Arc<Standing>,
    ground: Ground,
    /// Ends with the process.
    process: CancellationToken,
    /// Services of this and of former terms; those of former ones only finish their answers.
    services: JoinSet<()>,
    /// Workers have seen every smaller epoch. Revisions of the lease begin anew when the server's store was
    /// lost, while the workers remember.
    epoch_min: Epoch,
}

impl Office {
    async fn lead_whenever_possible(
        &mut self,
        candidate: &Candidate,
        shutdown: &CancellationToken,
    ) -> Result<(), DispatcherError> {
        let mut backoff = Backoff::new();
        let (server, replicas) = (self.ground.connection.server, self.ground.config.nats.replicas);
        info!(dispatcher = %self.ground.id, %server, replicas, "stands by");
        loop {
            self.health.set_ready("stands by");
            let lease = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                lease = self.health.while_waiting(candidate.wait()) => lease,
            };
            match self.lead(lease, shutdown).await? {
                ControlFlow::Break(()) => return Ok(()),
                ControlFlow::Continue(TermEnd::LeaseLost) => backoff.reset(),
                ControlFlow::Continue(TermEnd::Deposed { seen }) => {
                    self.epoch_min = seen.next();
                    self.health.while_waiting(backoff.pause()).await;
                }
                ControlFlow::Continue(TermEnd::NotBegun) => self.health.while_waiting(backoff.pause()).await,
            }
        }
    }

    /// One term, from the lease to its end. Breaks when the process is to end.
    async fn lead(
        &mut self,
        lease: Lease,
        shutdown: &CancellationToken,
    ) -> Result<ControlFlow<(), TermEnd>, DispatcherError> {
        let epoch = lease.epoch().max(self.epoch_min);
        info!(dispatcher = %self.ground.id, epoch = epoch.0, "leads");
        let give_back = CancellationToken::new();
        let mut keeper = AbortOnDropHandle::new(tokio::spawn(lease.keep(give_back.clone())));
        let ends = Ends {
            term: self.process.child_token(),
            process: self.process.clone(),
        };
        let _term_ends = ends.term.clone().drop_guard();
        let _relay = AbortOnDropHandle::new(tokio::spawn(keep_relay(self.ground.clone())));
        let _room = AbortOnDropHandle::new(tokio::spawn(journal_room::watch(self.ground.clone())));
        let told = tell_server_state(self.ground.telemetry.source(), self.ground.clone());
        let _told = AbortOnDropHandle::new(tokio::spawn(told));
        let _leads = self.standing.lead(epoch);
        self.health.set_not_ready("begins to lead");
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(ControlFlow::Break(())),
            kept = &mut keeper => {
                warn!(epoch = epoch.0, "the term ends: the lease is lost");
                return lost(kept).map(ControlFlow::Continue);
            }
            ended = serve_term(&self.ground, &self.health, epoch, &ends, &mut self.services) => {
                ended.map(ControlFlow::Continue)
            }
        };
        self.health.set_not_ready("ends its term");
        give_back.cancel();
        lost(self.health.while_waiting(keeper).await)?;
        match &ended {
            Ok(ControlFlow::Break(())) => info!(epoch = epoch.0, "the term ends: asked to stop"),
            Ok(ControlFlow::Continue(end)) => warn!(epoch = epoch.0, end = ?end, "the term ends"),
            Err(error) => error!(epoch = epoch.0, error = chain(error), "the term ends"),
        }
        ended
    }

    /// Lets the services tell their askers that nothing more comes.
    async fn close(mut self) {
        self.health.set_not_ready("ends");
        self.process.cancel();
        let farewell = async { while self.services.join_next().await.is_some() {} };
        let farewell = timeout(self.ground.connection.request_timeout, farewell);
        if self.health.while_waiting(farewell).await.is_err() {
            warn!("some answers were not given before the end");
        }
    }
}

/// Looks after the relay for as long as it is left running.
async fn keep_relay(ground: Ground) {
    let mut looks = interval(RELAY_LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut away_since = None;
    loop {
        looks.tick().await;
        let asked = Instant::now();
        let mut kept = ensure_relay(&ground.connection, &ground.config).await;
        away_since = match &kept {
            Err(error) if error.may_pass() => away_since.or(Some(asked)),
            Err(_) | Ok(()) => None,
        };
        if away_since.is_some_and(|since| since.elapsed() >= RELAY_AWAY_MAX)
            && are_others_there(&ground).await
        {
            warn!("the server that keeps the relay for weights is away; the relay is made anew");
            kept = replace_relay(&ground.connection, &ground.config).await;
            // It may have come to the same server, as long as the others do not know that that one is away.
            away_since = None;
        }
        if let Err(error) = kept {
            debug!(
                error = chain(&error),
                "the relay for weights cannot be looked after now"
            );
        }
    }
}

/// Whether servers answer for what has a copy on each of them.
async fn are_others_there(ground: &Ground) -> bool {
    let journal = ground.connection.subjects.journal_stream();
    let asked = ground.connection.jetstream.get_stream(journal);
    matches!(ground.connection.within(asked).await, Ok(Ok(_)))
}

/// A server that is started again is back by then; without the relay no worker can start.
const RELAY_AWAY_MAX: Duration = Duration::from_secs(10);
/// A copy that loses its relay waits about as long before it tries again.
const RELAY_LOOK_EVERY: Duration = Duration::from_secs(2);

/// A term from its preparation on. The caller drops it when the lease is gone: whatever is under way stops.
async fn serve_term(
    ground: &Ground,
    health: &Part,
    epoch: Epoch,
    ends: &Ends,
    services: &mut JoinSet<()>,
) -> Result<TermEnd, DispatcherError> {
    match health
        .while_waiting(Term::begin(ground, epoch, ends, services))
        .await
    {
        Ok(term) => {
            health.set_ready("leads");
            term.run(health).await
        }
        Err(error) => {
            warn!(epoch = epoch.0, error = chain(&error), "the term could not begin");
            Ok(TermEnd::NotBegun)
        }
    }
}

/// How long a dispatcher that starts waits for servers that are not ready: as long as one needs to read a large store, and
/// the servers of a cluster to find each other and elect. Then it ends, and whoever supervises it hears of it.
const PREPARE_MAX: Duration = Duration::from_secs(60);

fn lost(kept: Result<Kept, tokio::task::JoinError>) -> Result<TermEnd, DispatcherError> {
    match kept {
        Ok(Kept::Lost | Kept::Released) => Ok(TermEnd::LeaseLost),
        Err(source) => Err(DispatcherError::Panicked {
            doing: "kept the lease",
            source,
        }),
    }
}
