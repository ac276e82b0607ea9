//! How a term begins: listen first, then have everything unacknowledged delivered anew.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind, Stream};
use flotilla_client::{Catalog, Connection};
use flotilla_dispatcher_core::{Dispatcher, Reconciler, Settings, StreamSequence};
use flotilla_protocol::event::EVENT_BYTES_MAX;
use flotilla_protocol::{Class, Epoch, Moment, Strikes};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::Term;
use crate::admission::Desk;
use crate::backoff::Backoff;
use crate::courier::Courier;
use crate::deliveries::Deliveries;
use crate::error::TermError;
use crate::ground::Ground;
use crate::intake;
use crate::lanes::Lanes;
use crate::listen::Subscriptions;
use crate::listeners::Listeners;
use crate::metrics::{Counted, Observed};
use crate::models::Models;
use crate::policy::policy_settings;
use crate::scout::Scout;
use crate::services::{Ends, Services};
use crate::topology::class_consumer;

/// What a term is begun with, asked of NATS within one deadline.
struct Prepared {
    subscriptions: Subscriptions,
    catalog: Catalog,
    last_before_term: StreamSequence,
    services: Services,
}

impl Term {
    /// Begins a term. Its service runs in `services`, where it outlives the term until its answers are given.
    ///
    /// # Errors
    /// [`TermError`] when NATS does not do its part.
    pub(crate) async fn begin(
        ground: &Ground,
        epoch: Epoch,
        ends: &Ends,
        services: &mut JoinSet<()>,
    ) -> Result<Self, TermError> {
        let limit = ground.connection.request_timeout * PREPARE_REQUESTS;
        let prepared = timeout(limit, prepare(ground)).await;
        let prepared = prepared.map_err(|_| TermError::TimedOut { limit })??;
        let (owner_pulled, pulled) = mpsc::channel(PULLED_MAX);
        let (owner_heard, heard) = mpsc::channel(HEARD_MAX);
        let (owner_queries, queries) = mpsc::channel(QUERIES_MAX);
        let mut children = JoinSet::new();
        let Prepared {
            subscriptions,
            catalog,
            last_before_term,
            services: service,
        } = prepared;
        subscriptions.listen(ground, catalog.clone(), &owner_heard, &mut children);
        for class in Class::ALL {
            children.spawn(intake::pull(ground.clone(), class, owner_pulled.clone()));
        }
        services.spawn(service.serve(ground.clone(), owner_queries, ends.clone()));
        let settings = settings(ground, epoch);
        Ok(Self {
            origin: Instant::now(),
            held_max: settings.held_max,
            core: Dispatcher::new(Moment::default(), settings),
            last_before_term,
            deliveries: Deliveries::default(),
            models: Models::new(ground.config.dispatcher.models_max),
            registrations: HashMap::new(),
            courier: Courier::new(ground),
            desk: desk(ground, catalog),
            lanes: Lanes::new(),
            admissions: JoinSet::new(),
            traces: HashMap::new(),
            listeners: Listeners::new(ground.config.dispatcher.client_lost_after),
            probes: JoinSet::new(),
            extension: JoinSet::new(),
            errands: JoinSet::new(),
            reconciler: Reconciler::new(ground.config.dispatcher.ack_wait * STUCK_ACK_WAITS),
            scout: Some(Box::new(Scout::new(&ground.connection))),
            looks: JoinSet::new(),
            sweeps: JoinSet::new(),
            acked: Vec::new(),
            removed: VecDeque::new(),
            children,
            pulled,
            heard,
            queries,
            scrapes: ground.telemetry.source(),
            observed: Observed::new(),
            counted: Counted::default(),
            ground: ground.clone(),
        })
    }
}

async fn prepare(ground: &Ground) -> Result<Prepared, TermError> {
    let connection = &ground.connection;
    let subscriptions = Subscriptions::open(connection).await?;
    let catalog = Catalog::open(connection).await?;
    let last_before_term = recreate_consumers(ground).await?;
    let services = Services::start(ground).await?;
    ask_for_reports(connection).await?;
    Ok(Prepared {
        subscriptions,
        catalog,
        last_before_term,
        services,
    })
}

/// Makes the consumers anew, so that everything unacknowledged is delivered at once, whoever had it.
/// Returns the newest message of the stream: it and all before it may have been seen by another leader.
async fn recreate_consumers(ground: &Ground) -> Result<StreamSequence, TermError> {
    let connection = &ground.connection;
    let name = connection.subjects.requests_stream();
    let unreadable = |source: async_nats::Error| TermError::Stream {
        stream: name.clone(),
        source,
    };
    let stream = connection.jetstream.get_stream(&name).await;
    let mut stream = stream.map_err(|error| unreadable(error.into()))?;
    for class in Class::ALL {
        let failed = |source: async_nats::Error| TermError::Consumer {
            stream: name.clone(),
            consumer: class.as_str().to_owned(),
            source,
        };
        remove(&stream, class)
            .await
            .map_err(|error| failed(error.into()))?;
        create(ground, &stream, class)
            .await
            .map_err(|error| failed(error.into()))?;
    }
    let info = stream.info().await.map_err(|error| unreadable(error.into()))?;
    Ok(StreamSequence(info.state.last_sequence))
}

async fn remove(stream: &Stream, class: Class) -> Result<(), ConsumerError> {
    match stream.delete_consumer(class.as_str()).await {
        Ok(_) => Ok(()),
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a consumer; on several servers it may take longer than an answer may: they elect a leader of their own for it. Who
/// removed it again for that would have them begin again, and for ever when they are slow.
async fn create(ground: &Ground, stream: &Stream, class: Class) -> Result<(), ConsumerError> {
    let mut backoff = Backoff::new();
    loop {
        let wanted = class_consumer(&ground.connection.subjects, &ground.config, class);
        match stream.create_consumer(wanted).await {
            Ok(_) => return Ok(()),
            Err(error) if may_pass(&error) => {
                warn!(%class, %error, "the consumer is not made yet");
                backoff.pause().await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether servers elect a leader.
fn may_pass(error: &ConsumerError) -> bool {
    match error.kind() {
        ConsumerErrorKind::TimedOut => true,
        ConsumerErrorKind::JetStream(error) => error.error_code() == ErrorCode::CLUSTER_NOT_AVAILABLE,
        _ => false,
    }
}

fn is_missing(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

async fn ask_for_reports(connection: &Connection) -> Result<(), TermError> {
    let subject = connection.subjects.report_now();
    let asked = connection.client.publish(subject.clone(), "".into()).await;
    asked.map_err(|source| TermError::Publish { subject, source })
}

fn settings(ground: &Ground, epoch: Epoch) -> Settings {
    let dispatcher = &ground.config.dispatcher;
    Settings {
        epoch,
        worker_lost_after: dispatcher.worker_lost_after,
        strikes_max: Strikes(dispatcher.strikes_max),
        held_max: dispatcher.queue_max.saturating_mul(Class::ALL.len()),
        workers_max: dispatcher.workers_max,
        progress_interval: PROGRESS_INTERVAL,
        policy: policy_settings(&dispatcher.policy),
    }
}

fn desk(ground: &Ground, catalog: Catalog) -> Desk {
    let dispatcher = &ground.config.dispatcher;
    let payload_max = ground.connection.client.max_payload();
    Desk {
        catalog,
        request_timeout: ground.connection.request_timeout,
        body_bytes_max: dispatcher
            .request_bytes_max
            .min(payload_max.saturating_sub(ENVELOPE_BYTES_MAX)),
        prompt_bytes_max: dispatcher.prompt_bytes_max,
        event_bytes_max: payload_max
            .saturating_sub(ENVELOPE_BYTES_MAX)
            .min(EVENT_BYTES_MAX),
    }
}

/// A message whose delivery was lost is delivered again after one ack wait; after three it is stuck.
const STUCK_ACK_WAITS: u32 = 3;
/// Round trips of a preparation, with some to spare for servers that elect a leader.
const PREPARE_REQUESTS: u32 = 6;
/// Messages between the intakes and the owner; the rest waits in the pull's own buffer.
const PULLED_MAX: usize = 16;
/// Reports and ends between the listeners and the owner: some from each of a thousand workers.
const HEARD_MAX: usize = 1024;
/// Questions of operators; there are as many handlers at most.
const QUERIES_MAX: usize = 64;
/// How often a waiting request hears of its place, at most: a second is what people notice.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// What an assignment or a dead letter adds to a client's body, and headers to an event.
const ENVELOPE_BYTES_MAX: usize = 4 << 10;
