//! Sending a root: a task around [`Sending`].

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use flotilla_protocol::Moment;
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::weights::{CopyEnd, CopyHave, CopyNews};
use flotilla_weights_core::{Manifest, Sending, SendingAction, SendingSettings};
use futures_util::StreamExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::background::in_background;
use crate::buffers::Buffers;
use crate::claims::{HeldClaim, Registry};
use crate::error::FilesError;
use crate::files::ModelFiles;
use crate::metrics::{RELAY_REFUSALS, RelayBytes, RelayShare, WEIGHTS_BYTES};
use crate::rate::RateCap;
use crate::relay::{CopyObject, Relay, RelayError};

/// Everything that sending needs.
#[derive(Debug, Clone)]
pub struct Sender {
    /// Where it goes.
    pub relay: Relay,
    /// Where the claim is renewed.
    pub registry: Registry,
    /// How much and for how long.
    pub settings: SendingSettings,
    /// How fast.
    pub rate: RateCap,
    /// Buffers for segments on their way.
    pub buffers: Buffers,
    /// Ends every copy.
    pub stop: CancellationToken,
    /// What all copies have in the relay.
    pub in_relay: RelayBytes,
}

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Why it ended.
    pub end: CopyEnd,
    /// Segments that went into the relay.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One copy that is being sent.
struct Copy {
    sender: Sender,
    files: Arc<ModelFiles>,
    held: HeldClaim,
    core: Sending,
    /// The core's time begins here.
    origin: Instant,
    renewed: Instant,
    tasks: JoinSet<Done>,
    /// Whether the manifest is on its way into the relay again.
    describes: bool,
    sent: (u64, u64),
    in_relay: RelayShare,
}

enum Done {
    Put {
        segment: usize,
        outcome: Result<(), PutFailed>,
    },
    Deleted {
        segment: usize,
    },
    Described(Result<(), RelayError>),
}

enum PutFailed {
    Source(FilesError),
    Relay(RelayError),
}

impl Sender {
    /// Puts the manifest into the relay and listens to receivers. From then on a receiver may be told of the copy;
    /// the future that is returned sends until nobody needs anything any more, and gives the claim back.
    ///
    /// # Errors
    /// [`RelayError`]; the claim was given back then.
    pub async fn start(
        self,
        files: Arc<ModelFiles>,
        held: HeldClaim,
    ) -> Result<impl Future<Output = Sent> + Send + use<>, RelayError> {
        let manifest = Arc::clone(files.manifest());
        let opened = self.open(&manifest, &held).await;
        let receivers = match opened {
            Ok(receivers) => receivers,
            Err(error) => {
                self.clear(held).await;
                return Err(error);
            }
        };
        let segment_bytes = manifest.segments().iter().map(|segment| segment.bytes).collect();
        let copy = Copy {
            core: Sending::new(self.settings, segment_bytes, Moment::default()),
            in_relay: self.in_relay.share(),
            sender: self,
            files,
            held,
            origin: Instant::now(),
            renewed: Instant::now(),
            tasks: JoinSet::new(),
            describes: false,
            sent: (0, 0),
        };
        Ok(copy.run(receivers))
    }

    async fn open(&self, manifest: &Manifest, held: &HeldClaim) -> Result<Subscriber, RelayError> {
        let name = held.copy();
        let connection = self.relay.connection();
        let subject = connection.subjects.copy_have(name.root, name.generation);
        let receivers = self.relay.subscribe(subject).await?;
        self.relay
            .put(name, CopyObject::Manifest, manifest.json().clone())
            .await?;
        Ok(receivers)
    }

    /// Leaves nothing of a copy behind. What cannot be removed is the sweeper's.
    async fn clear(&self, held: HeldClaim) {
        if let Err(error) = self.relay.delete(held.copy(), CopyObject::Manifest).await {
            warn!(%error, "the manifest stays in the relay until it is swept");
        }
        if let Err(error) = self.registry.release(held).await {
            debug!(%error, "the claim was not given back and expires");
        }
    }
}

impl Copy {
    async fn run(mut self, mut receivers: Subscriber) -> Sent {
        let root = self.held.copy().root;
        let mut news = ticks(NEWS_EVERY);
        let mut renewals = ticks(self.sender.registry.renew_every);
        let stop = self.sender.stop.clone();
        let end = loop {
            if let Some(end) = self.act().await {
                break end;
            }
            let timer = self
                .core
                .poll_timeout()
                .map(|at| self.origin + at.since(Moment::default()));
            tokio::select! {
                message = receivers.next() => match message {
                    Some(message) => self.heard(&message.payload),
                    None => self.core.handle_ending(CopyEnd::RelayUnavailable),
                },
                Some(done) = self.tasks.join_next() => {
                    self.done(done.expect("a task of a copy does not panic"));
                    self.tell(None).await;
                }
                () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                    self.core.handle_timeout(self.now());
                }
                _ = news.tick() => self.tell(None).await,
                _ = renewals.tick() => self.renew().await,
                () = stop.cancelled(), if !self.core.is_ending() => {
                    self.core.handle_ending(CopyEnd::Draining);
                }
            }
        };
        self.tell(Some(end)).await;
        // The manifest, which would come after it was taken out.
        while self.tasks.join_next().await.is_some() {}
        self.sender.clear(self.held).await;
        let (segments, bytes) = self.sent;
        info!(%root, ?end, segments, bytes, "weights were sent");
        Sent { end, segments, bytes }
    }

    fn now(&self) -> Moment {
        Moment::after_origin(self.origin.elapsed())
    }

    /// Does what the core says, up to its end.
    async fn act(&mut self) -> Option<CopyEnd> {
        while let Some(action) = self.core.poll_action() {
            let (sender, name) = (self.sender.clone(), self.held.copy());
            let object = |segment: usize| {
                let id = self.files.manifest().segments()[segment].id;
                CopyObject::Segment { segment, id }
            };
            match action {
                SendingAction::Put { segment } => {
                    let (files, object) = (Arc::clone(&self.files), object(segment));
                    self.tasks.spawn(async move {
                        let outcome = put(&sender, files, segment, async |bytes| {
                            sender.relay.put(name, object, bytes).await
                        });
                        let outcome = outcome.await;
                        if outcome.is_err() {
                            // A part of it may be there, and would take room from the next try.
                            delete(&sender.relay, name, object).await;
                        }
                        Done::Put { segment, outcome }
                    });
                }
                SendingAction::Delete { segment } => {
                    let object = object(segment);
                    self.tasks.spawn(async move {
                        delete(&sender.relay, name, object).await;
                        Done::Deleted { segment }
                    });
                }
                SendingAction::End { end } => return Some(end),
            }
        }
        None
    }

    fn done(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Deleted { segment } => {
                self.in_relay.take_out(self.bytes_of(segment));
                self.core.handle_deleted(segment);
            }
            Done::Described(described) => {
                self.describes = false;
                if let Err(error) = described {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "receivers that come now find no manifest"
                    );
                }
            }
            Done::Put {
                segment,
                outcome: Ok(()),
            } => {
                let bytes = self.bytes_of(segment);
                self.sent.0 += 1;
                self.sent.1 += bytes;
                self.in_relay.add(bytes);
                WEIGHTS_BYTES.increment(&["relay", "out"], bytes);
                self.core.handle_stored(now, segment);
            }
            Done::Put {
                segment,
                outcome: Err(failed),
            } => {
                match failed {
                    PutFailed::Relay(error) => {
                        RELAY_REFUSALS.increment(&[], 1);
                        warn!(
                            segment,
                            error = &error as &dyn std::error::Error,
                            "a segment was not taken by the relay"
                        );
                    }
                    PutFailed::Source(error) => {
                        warn!(
                            segment,
                            error = &error as &dyn std::error::Error,
                            "a segment cannot be sent"
                        );
                        self.core.handle_ending(CopyEnd::SourceLost);
                    }
                }
                self.core.handle_refused(now, segment);
            }
        }
    }

    fn bytes_of(&self, segment: usize) -> u64 {
        self.files.manifest().segments()[segment].bytes
    }

    fn heard(&mut self, payload: &[u8]) {
        match decode_internal::<CopyHave>(payload) {
            Ok(have) if have.stays => {
                let now = self.now();
                self.core.handle_have(now, have.receiver, &have.have);
                if self.core.handle_missing(now, &have.missing) {
                    self.describe();
                }
            }
            Ok(have) => self.core.handle_left(self.now(), have.receiver),
            Err(error) => warn!(%error, "a receiver cannot be understood"),
        }
    }

    /// Puts the manifest into the relay again, for those who come yet: a relay that has lost a segment has started again.
    fn describe(&mut self) {
        if self.describes {
            return;
        }
        self.describes = true;
        let (relay, name) = (self.sender.relay.clone(), self.held.copy());
        let json = self.files.manifest().json().clone();
        info!(root = %name.root, "the relay has forgotten what lay in it; it gets it again");
        self.tasks
            .spawn(async move { Done::Described(relay.put(name, CopyObject::Manifest, json).await) });
    }

    /// Tells the receivers what lies in the relay. A message that is lost is made good by the next one.
    async fn tell(&mut self, end: Option<CopyEnd>) {
        let name = self.held.copy();
        let news = CopyNews {
            generation: name.generation,
            stored: self.core.stored(),
            end,
        };
        let relay = &self.sender.relay;
        let subject = relay.connection().subjects.copy_news(name.root, name.generation);
        let body = encode_internal(&news).expect("news can be encoded");
        if let Err(error) = relay.tell(subject, body).await {
            debug!(%error, "news of a copy were not published");
        }
    }

    /// A sender that cannot renew its claim for as long as it lasts ends: somebody else may have it.
    async fn renew(&mut self) {
        let registry = &self.sender.registry;
        match timeout(registry.renew_every, registry.renew(&mut self.held)).await {
            Ok(Ok(true)) => self.renewed = Instant::now(),
            Ok(Ok(false)) => self.core.handle_ending(CopyEnd::Superseded),
            Ok(Err(_)) | Err(_) if self.renewed.elapsed() < registry.expires_after => {}
            Ok(Err(_)) | Err(_) => self.core.handle_ending(CopyEnd::Superseded),
        }
    }
}

async fn put(
    sender: &Sender,
    files: Arc<ModelFiles>,
    segment: usize,
    put: impl AsyncFnOnce(bytes::Bytes) -> Result<(), RelayError>,
) -> Result<(), PutFailed> {
    let listed = files.manifest().segments()[segment];
    sender.rate.take(listed.bytes).await;
    let mut buffer = sender.buffers.take(listed.buffer_bytes());
    let read = in_background(move || files.read(segment, &mut buffer).map(|()| buffer));
    let buffer = read.await.map_err(PutFailed::Source)?;
    put(buffer.into_bytes()).await.map_err(PutFailed::Relay)
}

async fn delete(relay: &Relay, name: crate::relay::CopyName, object: CopyObject) {
    if let Err(error) = relay.delete(name, object).await {
        warn!(
            error = &error as &dyn std::error::Error,
            "an object stays in the relay until it is swept"
        );
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Receivers wait some multiples of this before they think that a sender is gone.
const NEWS_EVERY: Duration = Duration::from_millis(250);
