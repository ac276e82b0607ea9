//! A model that comes from a neighbour, from the ask until it can run: placed while it is copied, and loaded when all of
//! it is here. Both in turn, so that what else happens on the machine falls on both.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use flotilla_protocol::weights::Root;
use flotilla_weights::{Arrival, ComingFiles};
use flotilla_worker_engine::{
    CpuBackend, CpuThreads, DecoderModel, Incoming, KvSpace, MemoryPlan, ModelFolder, ModelLoader, Precision,
    Sampling, SequenceStep, Step, StepLimits,
};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::copies::Copies;
use super::figures::{Measure, Samples};
use super::worker::Worker;

/// When weights go to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    AfterCopy,
    WhileCopied,
}

/// Seconds from the ask.
#[derive(Debug, Clone, Copy)]
struct Ready {
    ready_s: f64,
    first_token_s: f64,
}

impl Copies<'_> {
    /// Measures both ways once, with the store on disk.
    ///
    /// # Errors
    /// When a copy or a load fails.
    pub(super) async fn measure_loads(
        &self,
        threads: NonZeroUsize,
        samples: &mut Samples,
    ) -> anyhow::Result<()> {
        let after = self.load(Placed::AfterCopy, threads).await?;
        samples.add(Measure::ReadyAfterCopy, after.ready_s);
        samples.add(Measure::FirstTokenAfterCopy, after.first_token_s);
        let meanwhile = self.load(Placed::WhileCopied, threads).await?;
        samples.add(Measure::ReadyWhileCopied, meanwhile.ready_s);
        samples.add(Measure::FirstTokenWhileCopied, meanwhile.first_token_s);
        Ok(())
    }

    async fn load(&self, placed: Placed, threads: NonZeroUsize) -> anyhow::Result<Ready> {
        let scene = self.scene(self.disk, 1).await?;
        let receiver = scene.receivers.first().context("a receiver")?;
        let root = self.model.files.manifest().root();
        let ready = load(receiver, root, placed, threads)
            .await
            .with_context(|| format!("loading {placed:?}"))?;
        scene.clear(self.connection).await?;
        Ok(ready)
    }
}

async fn load(worker: &Worker, root: Root, placed: Placed, threads: NonZeroUsize) -> anyhow::Result<Ready> {
    let (importer, threads) = (worker.importer.clone(), Arc::new(CpuThreads::new(threads)));
    let (arrival, announcer) = Arrival::begin(root);
    let begun = Instant::now();
    let importing = worker.role.run(async move {
        let imported = importer.import_telling(root, &announcer).await;
        announcer.end(imported.map(|imported| imported.model));
    });
    let loading = async {
        match placed {
            Placed::AfterCopy => drop(arrival.whole().await?),
            Placed::WhileCopied => arrival.described().await?,
        }
        let files = ComingFiles::new(arrival.clone());
        spawn_blocking(move || place(&files, threads, begun)).await?
    };
    let (imported, ready) = tokio::join!(importing, loading);
    imported?;
    ready
}

/// Places the model as a worker does, and draws one token.
fn place(files: &ComingFiles, threads: Arc<CpuThreads>, begun: Instant) -> anyhow::Result<Ready> {
    let incoming = Comes(files);
    let path = files
        .arrival()
        .folder()
        .context("what is described has a folder")?;
    let folder = ModelFolder::open_incoming(&path, &incoming)?;
    let limits = StepLimits {
        batch_tokens_max: 1,
        sequences_max: 1,
    };
    let plan = MemoryPlan::new(folder.config(), folder.tensor_infos(), limits, Precision::Stored)?;
    let kv_space = KvSpace::of_one_slab(1, plan.kv_block_bytes());
    let mut model = folder.read_ahead_of(
        |_| true,
        &incoming,
        |pieces| {
            let mut loader = ModelLoader::new(CpuBackend::new(threads), plan, kv_space)?;
            for piece in pieces {
                let piece = piece?;
                loader.place(&piece.info.name, piece.offset_bytes, piece.bytes())?;
            }
            anyhow::Ok(loader.finish()?)
        },
    )?;
    files.wait_for_all(&CancellationToken::new())?;
    let ready_s = begun.elapsed().as_secs_f64();
    draw_token(&mut model)?;
    Ok(Ready {
        ready_s,
        first_token_s: begun.elapsed().as_secs_f64(),
    })
}

fn draw_token(model: &mut DecoderModel<CpuBackend>) -> anyhow::Result<()> {
    model.map_kv_slab(0)?;
    let sequence = SequenceStep {
        tokens: &[1],
        position: 0,
        block_table: &[0],
        sample: Some(Sampling::GREEDY),
        edits: None,
        mask: None,
    };
    let sequences = [sequence];
    model
        .submit(&Step {
            sequences: &sequences,
        })?
        .wait()?;
    Ok(())
}

/// Waits for what comes, which ends by itself.
#[derive(Debug)]
struct Comes<'a>(&'a ComingFiles);

impl Incoming for Comes<'_> {
    fn wait_for(&self, file: &Path, bytes: Range<u64>) -> io::Result<()> {
        let waited = self.0.wait_for(file, bytes, &CancellationToken::new());
        waited.map_err(io::Error::other)
    }

    fn turn(&self, file: &Path, bytes: Range<u64>) -> usize {
        self.0.arrival().turn(file, bytes)
    }
}
