//! Copies between workers from the ask to the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use flotilla_client::Connection;
use flotilla_config::Nats;
use flotilla_protocol::codec::decode_internal;
use flotilla_protocol::weights::{CopyNews, Generation, SegmentSet};
use flotilla_weights::{Arrival, BUCKET, ImportError, Imported, ReceiveError, Registry};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::figures::{Count, Measure, Samples};
use super::model::Model;
use super::worker::Worker;

/// Where copies are measured.
pub(super) struct Copies<'a> {
    /// A connection that looks on.
    pub(super) connection: &'a Connection,
    /// How workers connect.
    pub(super) nats: &'a Nats,
    /// What is copied.
    pub(super) model: &'a Model,
    /// For stores on disk.
    pub(super) disk: &'a Path,
    /// For stores in memory, if there is such a place.
    pub(super) memory: Option<&'a Path>,
}

/// One copy to some receivers.
struct Copied {
    /// From the ask until the last receiver was done.
    total_s: f64,
    /// Until the first segment was verified.
    first_s: f64,
    /// From the sender's last put until the last segment was verified, ...
    verified_after_s: f64,
    /// ... and until the last receiver was done.
    done_after_s: f64,
    /// What went into the relay.
    messages: u64,
}

impl Copies<'_> {
    /// Measures each kind once.
    ///
    /// # Errors
    /// When a copy fails.
    pub(super) async fn measure(&self, samples: &mut Samples) -> anyhow::Result<()> {
        let alone = self.copy(self.disk, 1).await.context("copy 1 to 1")?;
        samples.add(Measure::CopyDisk, alone.total_s);
        samples.add(Measure::FirstSegment, alone.first_s);
        samples.add(Measure::VerifiedAfterSender, alone.verified_after_s);
        samples.add(Measure::DoneAfterSender, alone.done_after_s);
        if let Some(memory) = self.memory {
            let copied = self.copy(memory, 1).await.context("copy 1 to 1 in memory")?;
            samples.add(Measure::CopyMemory, copied.total_s);
            samples.add(Measure::DoneAfterSenderMemory, copied.done_after_s);
        }
        let four = self
            .copy(self.memory.unwrap_or(self.disk), RECEIVERS)
            .await
            .context("copy 1 to 4")?;
        samples.add(Measure::CopyFour, four.total_s);
        samples.count(Count::UploadsForFour, ratio(four.messages, alone.messages));
        samples.count(Count::Resumed, self.resume().await.context("resuming")?);
        Ok(())
    }

    async fn copy(&self, place: &Path, receivers: usize) -> anyhow::Result<Copied> {
        let scene = self.scene(place, receivers).await?;
        let before = self.messages().await?;
        let last_put = self.last_put().await?;
        let begun = Instant::now();
        let imports = scene.receivers.iter().map(|worker| import(worker, self.model));
        let imported = try_join_all(imports).await?;
        let done = Instant::now();
        let last_put = timeout(NEWS_MAX, last_put)
            .await
            .context("the sender did not say that it was done")??;
        let first = imported
            .iter()
            .map(|import| import.first)
            .max()
            .context("a receiver")?;
        let verified = imported
            .iter()
            .map(|import| import.last)
            .max()
            .context("a receiver")?;
        for import in &imported {
            anyhow::ensure!(
                import.imported.copied_bytes == self.model.files.manifest().bytes(),
                "all of it was copied"
            );
        }
        let copied = Copied {
            total_s: (done - begun).as_secs_f64(),
            first_s: (first - begun).as_secs_f64(),
            verified_after_s: verified.saturating_duration_since(last_put).as_secs_f64(),
            done_after_s: done.saturating_duration_since(last_put).as_secs_f64(),
            messages: self.messages().await? - before,
        };
        drop(imported);
        scene.clear(self.connection).await?;
        Ok(copied)
    }

    /// Stops a receiver in the middle, and says which part of the model comes to the next one.
    async fn resume(&self) -> anyhow::Result<f64> {
        let mut scene = self.scene(self.disk, 1).await?;
        let stopped = scene.receivers.pop().context("a receiver")?;
        let (importer, root) = (stopped.importer.clone(), self.model.files.manifest().root());
        let (arrival, announcer) = Arrival::begin(root);
        let importing = stopped
            .role
            .run(async move { importer.import_telling(root, &announcer).await });
        let half = async {
            let half_bytes = self.model.files.manifest().bytes() / 2;
            let followed = follow(&arrival, self.model, half_bytes).await;
            stopped.stop.cancel();
            followed
        };
        let (imported, followed) = tokio::join!(importing, half);
        followed?;
        match imported? {
            Err(ImportError::Receive(ReceiveError::Cancelled)) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => anyhow::bail!("the model is too small for a stop in the middle"),
        }
        drop(stopped);
        let next = Worker::start(self.nats, "bench-next", &store(&scene.folder, 0)).await?;
        let importer = next.importer.clone();
        let imported = next
            .role
            .run(async move { importer.import(root).await })
            .await??;
        let resumed = ratio(imported.copied_bytes, self.model.files.manifest().bytes());
        drop((imported, next));
        scene.clear(self.connection).await?;
        Ok(resumed)
    }

    /// A sender that offers the model, and receivers that have nothing.
    pub(super) async fn scene(&self, place: &Path, receivers: usize) -> anyhow::Result<Scene> {
        let folder = place.join("copies");
        // What earlier measures have left to write would be written now.
        tokio::task::spawn_blocking(rustix::fs::sync).await?;
        let sender = Worker::start(self.nats, "bench-sender", &folder.join("sender")).await?;
        let names = (0..receivers).map(|index| (format!("bench-{index}"), store(&folder, index)));
        let workers = names.map(async |(name, store)| Worker::start(self.nats, &name, &store).await);
        let receivers = try_join_all(workers).await?;
        let (exports, files) = (sender.exports.clone(), Arc::clone(&self.model.files));
        sender.role.run(async move { exports.hold(files).await }).await?;
        Ok(Scene {
            sender,
            receivers,
            folder,
        })
    }

    /// When all segments have been in the relay, by what the sender says.
    async fn last_put(&self) -> anyhow::Result<AbortOnDropHandle<Instant>> {
        let nobody = Generation(0);
        let subject = self
            .connection
            .subjects
            .copy_news(self.model.files.manifest().root(), nobody);
        let subject = subject.replace(&nobody.to_string(), "*");
        let mut news = self.connection.client.subscribe(subject).await?;
        self.connection.client.flush().await?;
        let mut seen = SegmentSet::none(self.model.segments());
        let watching: JoinHandle<Instant> = tokio::spawn(async move {
            while let Some(message) = news.next().await {
                if let Ok(news) = decode_internal::<CopyNews>(&message.payload) {
                    seen.insert_all(&news.stored);
                }
                if seen.is_all() {
                    break;
                }
            }
            Instant::now()
        });
        Ok(AbortOnDropHandle::new(watching))
    }

    /// Messages that ever went into the relay.
    async fn messages(&self) -> anyhow::Result<u64> {
        let stream = format!("OBJ_{}", self.connection.subjects.bucket(BUCKET));
        let stream = self.connection.jetstream.get_stream(stream).await?;
        Ok(stream.cached_info().state.last_sequence)
    }
}

/// Workers for one measurement.
pub(super) struct Scene {
    sender: Worker,
    pub(super) receivers: Vec<Worker>,
    folder: PathBuf,
}

impl Scene {
    /// Ends the workers, and waits until nothing of the copy is left.
    pub(super) async fn clear(self, connection: &Connection) -> anyhow::Result<()> {
        self.sender.stop.cancel();
        drop(self.receivers);
        let registry = Registry::open(connection).await?;
        let mut ticks = interval(POLL);
        let cleared = async {
            while !registry.copies().await?.is_empty() {
                ticks.tick().await;
            }
            anyhow::Ok(())
        };
        timeout(CLEAR_MAX, cleared)
            .await
            .context("a sender does not end")??;
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }
}

struct Import {
    imported: Imported,
    /// When the first segment was verified, and the last.
    first: Instant,
    last: Instant,
}

async fn import(worker: &Worker, model: &Model) -> anyhow::Result<Import> {
    let (importer, root) = (worker.importer.clone(), model.files.manifest().root());
    let (arrival, announcer) = Arrival::begin(root);
    // The announcer goes with the import: a failure ends those who look on.
    let importing = worker
        .role
        .run(async move { importer.import_telling(root, &announcer).await });
    let watching = follow(&arrival, model, u64::MAX);
    let (imported, times) = tokio::join!(importing, watching);
    // Why it failed counts before that nobody could look on any more.
    let imported = imported??;
    let (first, last) = times?;
    Ok(Import {
        imported,
        first,
        last,
    })
}

/// Looks on until so many bytes are there, or all; says when the first segment was, and the last of them.
async fn follow(arrival: &Arrival, model: &Model, bytes_max: u64) -> anyhow::Result<(Instant, Instant)> {
    let manifest = model.files.manifest();
    let (mut bytes, mut times) = (0, None);
    for segment in manifest.segments() {
        let file = Path::new(&manifest.files()[segment.file].path);
        arrival
            .there(file, segment.offset..segment.offset + segment.bytes)
            .await?;
        let now = Instant::now();
        times = Some((times.map_or(now, |(first, _)| first), now));
        bytes += segment.bytes;
        if bytes >= bytes_max {
            break;
        }
    }
    times.context("a model has segments")
}

fn store(folder: &Path, receiver: usize) -> PathBuf {
    folder.join(format!("receiver-{receiver}"))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "bytes and messages stay far below 2^52"
)]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

const RECEIVERS: usize = 4;
const NEWS_MAX: Duration = Duration::from_secs(5);
const CLEAR_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
