//! Segments in and out of the relay, without receivers.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use flotilla_client::Connection;
use flotilla_config::Nats;
use flotilla_protocol::weights::{Generation, SegmentId};
use flotilla_weights::{Buffers, CopyName, CopyObject, ModelFiles, Relay};
use flotilla_weights_core::{ReceivingSettings, SendingSettings};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::task::spawn_blocking;

use super::figures::{Measure, Samples};
use super::model::Model;
use super::role::Role;

/// All segments, from files into the relay and from there into memory, with as many under way as a sender and a
/// receiver have.
#[derive(Clone)]
pub(super) struct Segments {
    relay: Relay,
    files: Arc<ModelFiles>,
    name: CopyName,
    buffers: Buffers,
    role: Arc<Role>,
}

impl Segments {
    /// Of a copy that nobody else knows.
    ///
    /// # Errors
    /// When the server refuses.
    pub(super) async fn open(nats: &Nats, model: &Model) -> anyhow::Result<Self> {
        let role = Role::start("bench-segments")?;
        let nats = nats.clone();
        let open = async move {
            anyhow::Ok(Relay::open(Connection::open_for_weights(&nats, "bench-segments").await?).await?)
        };
        Ok(Self {
            relay: role.run(open).await??,
            files: Arc::clone(&model.files),
            name: CopyName {
                root: model.files.manifest().root(),
                generation: Generation(0),
            },
            buffers: Buffers::new(16),
            role: Arc::new(role),
        })
    }

    /// Measures both; nothing is left in the relay.
    ///
    /// # Errors
    /// When the relay fails, or gives wrong bytes.
    pub(super) async fn measure(&self, samples: &mut Samples) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.each(SendingSettings::default().puts_max, Self::put).await?;
        samples.add(Measure::Put, begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        self.each(ReceivingSettings::default().repairs_max, Self::get)
            .await?;
        samples.add(Measure::Get, begun.elapsed().as_secs_f64());
        self.each(DELETES_MAX, Self::delete).await
    }

    /// Does something with every segment, each in a task of its own.
    async fn each<F>(&self, at_once: usize, work: impl Fn(Self, usize) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let tasks = (0..self.files.manifest().segments().len())
            .map(|segment| work(self.clone(), segment))
            .map(async |work| self.role.run(work).await?);
        stream::iter(tasks).buffer_unordered(at_once).try_collect().await
    }

    async fn put(self, segment: usize) -> anyhow::Result<()> {
        let mut buffer = self
            .buffers
            .take(self.files.manifest().segments()[segment].buffer_bytes());
        let files = Arc::clone(&self.files);
        let buffer = spawn_blocking(move || files.read(segment, &mut buffer).map(|()| buffer)).await??;
        Ok(self
            .relay
            .put(self.name, self.object(segment), buffer.into_bytes())
            .await?)
    }

    async fn get(self, segment: usize) -> anyhow::Result<()> {
        let listed = self.files.manifest().segments()[segment];
        let mut buffer = self.buffers.take(listed.buffer_bytes());
        let found = self
            .relay
            .fetch(self.name, self.object(segment), &mut buffer)
            .await?;
        anyhow::ensure!(found, "segment {segment} is not in the relay");
        let id = spawn_blocking(move || SegmentId::new(*blake3::hash(&buffer).as_bytes())).await;
        anyhow::ensure!(
            id.context("hashing broke")? == listed.id,
            "segment {segment} came with wrong bytes"
        );
        Ok(())
    }

    async fn delete(self, segment: usize) -> anyhow::Result<()> {
        Ok(self.relay.delete(self.name, self.object(segment)).await?)
    }

    fn object(&self, segment: usize) -> CopyObject {
        let id = self.files.manifest().segments()[segment].id;
        CopyObject::Segment { segment, id }
    }
}

const DELETES_MAX: usize = 8;
