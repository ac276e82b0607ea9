//! Receiving a root: a task around [`Receiving`], and a thread that compares and keeps what arrives.

use std::sync::Arc;

use async_nats::Subscriber;
use flotilla_protocol::Moment;
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::weights::{CopyHave, CopyNews, ReceiverId, SegmentSet};
use flotilla_weights_core::{Manifest, Receiving, ReceivingAction, ReceivingEnd, ReceivingSettings};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::buffers::{Buffer, Buffers};
use crate::error::FilesError;
use crate::metrics::{VERIFY_FAILURES, WEIGHTS_BYTES};
use crate::relay::{CopyName, CopyObject, LiveChunks, Part, Relay, RelayError};
use crate::store::PartialModel;

/// Everything that receiving needs.
#[derive(Debug, Clone)]
pub struct Receiver {
    /// Where it comes from.
    pub relay: Relay,
    /// How long it waits for what.
    pub settings: ReceivingSettings,
    /// Buffers for segments on their way.
    pub buffers: Buffers,
    /// Ends it.
    pub stop: CancellationToken,
}

/// What became of a copy.
#[derive(Debug)]
pub struct Received {
    /// What is there now.
    pub partial: PartialModel,
    /// Why it ended.
    pub end: Result<ReceivingEnd, ReceiveError>,
    /// Bytes that arrived and were kept.
    pub bytes: u64,
    /// Segments that live delivery lost and that were read from the relay.
    pub repairs: u64,
    /// Segments that came with wrong bytes.
    pub bad: u32,
}

/// Why receiving ended for a reason of this side.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It was told to stop.
    #[error("receiving was cancelled")]
    Cancelled,
    /// The segments cannot be kept.
    #[error("what arrives cannot be kept")]
    Keep(#[source] FilesError),
    /// The relay cannot be listened to.
    #[error(transparent)]
    Relay(#[from] RelayError),
}

/// One copy that is being received.
struct Copy {
    receiver: Receiver,
    id: ReceiverId,
    name: CopyName,
    manifest: Arc<Manifest>,
    core: Receiving,
    origin: Instant,
    keeper: mpsc::Sender<(usize, Buffer)>,
    fetches: JoinSet<(usize, Result<Option<Buffer>, RelayError>)>,
}

/// What the keeper says of a segment: whether its bytes were its own.
type Kept = Result<(usize, bool), FilesError>;

impl Receiver {
    /// Listens to a copy, which must be done before its sender is told what is missing here.
    ///
    /// # Errors
    /// [`RelayError`].
    pub async fn listen(&self, name: CopyName) -> Result<Listening, RelayError> {
        let live = self.relay.live(name, self.buffers.clone()).await?;
        let subjects = &self.relay.connection().subjects;
        let news = subjects.copy_news(name.root, name.generation);
        let news = self.relay.subscribe(news).await?;
        Ok(Listening { name, live, news })
    }

    /// Receives until everything is there or no more comes.
    pub async fn receive(self, listening: Listening, id: ReceiverId, partial: PartialModel) -> Received {
        let manifest = Arc::clone(partial.manifest());
        let Listening { name, live, news } = listening;
        let core = Receiving::new(
            self.settings,
            name.generation,
            partial.have().clone(),
            Moment::default(),
        );
        let had_bytes = manifest.bytes_of(partial.have());
        let (keeper, segments) = mpsc::channel(KEEP_QUEUE_MAX);
        let (kept_in, kept) = mpsc::channel(KEEP_QUEUE_MAX);
        let keeping = spawn_blocking(move || keep(partial, segments, &kept_in));
        let mut copy = Copy {
            receiver: self,
            id,
            name,
            manifest,
            core,
            origin: Instant::now(),
            keeper,
            fetches: JoinSet::new(),
        };
        let end = copy.run(live, news, kept).await;
        copy.report(SegmentSet::default(), false).await;
        copy.finish(keeping, end, had_bytes).await
    }
}

/// Subscriptions to a copy.
#[derive(Debug)]
pub struct Listening {
    name: CopyName,
    live: LiveChunks,
    news: Subscriber,
}

impl Copy {
    async fn run(
        &mut self,
        mut live: LiveChunks,
        mut news: Subscriber,
        mut kept: mpsc::Receiver<Kept>,
    ) -> Result<ReceivingEnd, ReceiveError> {
        let stop = self.receiver.stop.clone();
        self.report(SegmentSet::default(), true).await;
        loop {
            if let Some(end) = self.act().await {
                return Ok(end);
            }
            let timer = self
                .core
                .poll_timeout()
                .map(|at| self.origin + at.since(Moment::default()));
            let (have, manifest) = (self.core.have(), &self.manifest);
            let wanted = |segment: usize| {
                let listed = manifest.segments().get(segment)?;
                (!have.contains(segment)).then_some(listed.bytes)
            };
            tokio::select! {
                // What was kept comes first: it is what everybody waits for.
                biased;
                () = stop.cancelled() => return Err(ReceiveError::Cancelled),
                Some(kept) = kept.recv() => self.kept(kept)?,
                message = news.next() => match message.map(|message| decode_internal::<CopyNews>(&message.payload)) {
                    Some(Ok(news)) => self.core.handle_news(self.now(), &news),
                    Some(Err(error)) => warn!(%error, "a sender cannot be understood"),
                    None => return Ok(ReceivingEnd::SenderLost),
                },
                Some(fetched) = self.fetches.join_next() => {
                    let (segment, outcome) = fetched.expect("a fetch does not panic");
                    match outcome {
                        Ok(Some(buffer)) => self.arrived(segment, buffer).await,
                        Ok(None) => self.core.handle_not_there(self.now(), segment),
                        Err(error) => {
                            debug!(segment, error = &error as &dyn std::error::Error, "a segment cannot be read");
                            self.core.handle_unreadable(self.now(), segment);
                        }
                    }
                }
                () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                    self.core.handle_timeout(self.now());
                }
                part = live.next(&wanted) => match part {
                    Some(Part::Some { segment }) => {
                        // Whether the rest is wanted is asked again with the next part.
                        let _wanted = self.core.handle_part(self.now(), segment);
                    }
                    Some(Part::Last { segment, bytes }) => self.arrived(segment, bytes).await,
                    None => return Ok(ReceivingEnd::SenderLost),
                },
            }
        }
    }

    fn now(&self) -> Moment {
        Moment::after_origin(self.origin.elapsed())
    }

    async fn act(&mut self) -> Option<ReceivingEnd> {
        while let Some(action) = self.core.poll_action(self.now()) {
            match action {
                ReceivingAction::Repair { segment } => self.fetch(segment),
                ReceivingAction::Report { missing } => self.report(missing, true).await,
                ReceivingAction::End { end } => return Some(end),
            }
        }
        None
    }

    fn fetch(&mut self, segment: usize) {
        let listed = self.manifest.segments()[segment];
        let (relay, name) = (self.receiver.relay.clone(), self.name);
        let mut buffer = self.receiver.buffers.take(listed.buffer_bytes());
        self.fetches.spawn(async move {
            let object = CopyObject::Segment {
                segment,
                id: listed.id,
            };
            let found = relay.fetch(name, object, &mut buffer).await;
            (segment, found.map(|found| found.then_some(buffer)))
        });
    }

    /// Hands a segment to the keeper. A keeper that is behind holds up the copy here, and its sender by that. It is not
    /// held up by us meanwhile: all that it said before was taken, so it can say more than the one thing after which it
    /// takes the next segment.
    async fn arrived(&mut self, segment: usize, buffer: Buffer) {
        if self.core.handle_arrived(self.now(), segment) && self.keeper.send((segment, buffer)).await.is_err()
        {
            debug!(segment, "the keeper has ended; it says why");
        }
    }

    fn kept(&mut self, kept: Kept) -> Result<(), ReceiveError> {
        let (segment, good) = kept.map_err(ReceiveError::Keep)?;
        if good {
            let bytes = self.manifest.segments()[segment].bytes;
            WEIGHTS_BYTES.increment(&["relay", "in"], bytes);
            self.core.handle_verified(self.now(), segment);
        } else {
            VERIFY_FAILURES.increment(&[], 1);
            warn!(segment, root = %self.name.root, "a segment came with wrong bytes");
            self.core.handle_bad(self.now(), segment);
        }
        Ok(())
    }

    /// Tells the sender what is there. A message that is lost is made good by the next one.
    async fn report(&self, missing: SegmentSet, stays: bool) {
        let have = CopyHave {
            receiver: self.id,
            have: self.core.have().clone(),
            missing,
            stays,
        };
        let relay = &self.receiver.relay;
        let subjects = &relay.connection().subjects;
        let subject = subjects.copy_have(self.name.root, self.name.generation);
        let body = encode_internal(&have).expect("a set can be encoded");
        if let Err(error) = relay.tell(subject, body).await {
            debug!(%error, "a sender was not told what is here");
        }
    }

    async fn finish(
        self,
        keeping: JoinHandle<PartialModel>,
        end: Result<ReceivingEnd, ReceiveError>,
        had_bytes: u64,
    ) -> Received {
        let (repairs, bad) = self.core.repaired_and_bad();
        // Without senders the keeper ends after what it has, which nobody waited for and counts all the same.
        drop(self);
        let partial = keeping.await.expect("keeping does not panic");
        let bytes = partial.manifest().bytes_of(partial.have()) - had_bytes;
        Received {
            partial,
            end,
            bytes,
            repairs,
            bad,
        }
    }
}

/// Compares segments with their hashes and writes them, one after the other, until nobody sends any more or the disk
/// fails.
fn keep(
    mut partial: PartialModel,
    mut segments: mpsc::Receiver<(usize, Buffer)>,
    kept: &mpsc::Sender<Kept>,
) -> PartialModel {
    while let Some((segment, bytes)) = segments.blocking_recv() {
        let written = partial.write(segment, &bytes);
        let failed = written.is_err();
        if kept.blocking_send(written.map(|good| (segment, good))).is_err() || failed {
            break;
        }
    }
    partial
}

/// Segments that wait to be compared; more would only take memory.
const KEEP_QUEUE_MAX: usize = 8;
