//! A dispatcher's life: stand by, lead, stand by again.

use std::ops::ControlFlow;
use std::time::Duration;

use flotilla_client::Connection;
use flotilla_config::Config;
use flotilla_protocol::Epoch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use crate::backoff::Backoff;
use crate::error::{DispatcherError, chain};
use crate::ground::Ground;
use crate::lease::{Candidate, Kept, Lease};
use crate::services::Ends;
use crate::term::{Term, TermEnd};
use crate::topology::{TopologyError, ensure_relay, ensure_topology};

/// Runs a dispatcher until `shutdown` is cancelled. Makes the streams and buckets first. A leader that is
/// asked to stop gives its lease back, so that a standby leads at once; requests and running work stay where
/// they are. Cancelling the future loses nothing either, but the lease then has to expire.
///
/// # Errors
/// [`DispatcherError`]: streams that are not as wanted, a client that was closed, or a bug of ours.
pub async fn run(
    config: &Config,
    connection: Connection,
    shutdown: CancellationToken,
) -> Result<(), DispatcherError> {
    let ground = Ground::new(config, connection);
    let candidate = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        candidate = prepare(&ground) => candidate?,
    };
    let mut office = Office {
        process: shutdown.child_token(),
        ground,
        services: JoinSet::new(),
        epoch_min: Epoch(0),
    };
    let ended = office.lead_whenever_possible(&candidate, &shutdown).await;
    office.close().await;
    ended
}

/// Makes the streams and buckets, and opens the lease. A server that goes away meanwhile is waited for, for a while:
/// whoever starts everything at once starts some things too early.
async fn prepare(ground: &Ground) -> Result<Candidate, DispatcherError> {
    let mut backoff = Backoff::new();
    let begun = Instant::now();
    loop {
        match try_prepare(ground).await {
            Err(DispatcherError::Topology(error))
                if is_unanswered(&error) && begun.elapsed() < PREPARE_MAX =>
            {
                warn!(error = chain(&*error), "the server does not answer yet");
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

fn is_unanswered(error: &TopologyError) -> bool {
    matches!(error, TopologyError::Unanswered { .. })
}

/// What outlives a term.
struct Office {
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
            let lease = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                lease = candidate.wait() => lease,
            };
            match self.lead(lease, shutdown).await? {
                ControlFlow::Break(()) => return Ok(()),
                ControlFlow::Continue(TermEnd::LeaseLost) => backoff.reset(),
                ControlFlow::Continue(TermEnd::Deposed { seen }) => {
                    self.epoch_min = seen.next();
                    backoff.pause().await;
                }
                ControlFlow::Continue(TermEnd::NotBegun) => backoff.pause().await,
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
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(ControlFlow::Break(())),
            kept = &mut keeper => {
                warn!(epoch = epoch.0, "the term ends: the lease is lost");
                return lost(kept).map(ControlFlow::Continue);
            }
            ended = serve_term(&self.ground, epoch, &ends, &mut self.services) => ended.map(ControlFlow::Continue),
        };
        give_back.cancel();
        lost(keeper.await)?;
        match &ended {
            Ok(ControlFlow::Break(())) => info!(epoch = epoch.0, "the term ends: asked to stop"),
            Ok(ControlFlow::Continue(end)) => warn!(epoch = epoch.0, end = ?end, "the term ends"),
            Err(error) => error!(epoch = epoch.0, error = chain(error), "the term ends"),
        }
        ended
    }

    /// Lets the services tell their askers that nothing more comes.
    async fn close(mut self) {
        self.process.cancel();
        let farewell = async { while self.services.join_next().await.is_some() {} };
        if timeout(self.ground.connection.request_timeout, farewell)
            .await
            .is_err()
        {
            warn!("some answers were not given before the end");
        }
    }
}

/// Looks after the relay for as long as it is left running.
async fn keep_relay(ground: Ground) {
    let mut looks = interval(RELAY_LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if let Err(error) = ensure_relay(&ground.connection, &ground.config).await {
            debug!(
                error = chain(&error),
                "the relay for weights cannot be looked after now"
            );
        }
    }
}

/// A copy that loses its relay waits about as long before it tries again.
const RELAY_LOOK_EVERY: Duration = Duration::from_secs(2);

/// A term from its preparation on. The caller drops it when the lease is gone: whatever is under way stops.
async fn serve_term(
    ground: &Ground,
    epoch: Epoch,
    ends: &Ends,
    services: &mut JoinSet<()>,
) -> Result<TermEnd, DispatcherError> {
    match Term::begin(ground, epoch, ends, services).await {
        Ok(term) => term.run().await,
        Err(error) => {
            warn!(epoch = epoch.0, error = chain(&error), "the term could not begin");
            Ok(TermEnd::NotBegun)
        }
    }
}

/// How long a dispatcher that starts waits for a server that does not answer: as long as one needs to read a large store.
/// Then it ends, and whoever supervises it hears of it.
const PREPARE_MAX: Duration = Duration::from_secs(30);

fn lost(kept: Result<Kept, tokio::task::JoinError>) -> Result<TermEnd, DispatcherError> {
    match kept {
        Ok(Kept::Lost | Kept::Released) => Ok(TermEnd::LeaseLost),
        Err(source) => Err(DispatcherError::Panicked {
            doing: "kept the lease",
            source,
        }),
    }
}
