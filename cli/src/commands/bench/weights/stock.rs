//! The peer: the client library's own object store, one object of stock chunks, put and then got.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use async_nats::jetstream::object_store::{Config, ObjectStore};
use async_nats::jetstream::stream::StorageType;
use flotilla_client::Connection;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::figures::{Measure, Samples};
use super::model::Model;

/// Measures put and get once between memories, and once from a file to another.
///
/// # Errors
/// When the store or a file fails.
pub(super) async fn measure(
    connection: &Connection,
    model: &Model,
    folder: &Path,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let config = Config {
        bucket: BUCKET.to_owned(),
        storage: StorageType::Memory,
        ..Config::default()
    };
    let store = connection.jetstream.create_object_store(config).await?;
    let put_s = put(&store, &mut model.bytes.as_ref()).await?;
    samples.add(Measure::StockPut, put_s);
    let begun = Instant::now();
    let mut object = store.get(OBJECT).await?;
    let mut buffer = vec![0; 1 << 20];
    while object.read(&mut buffer).await? > 0 {}
    let get_s = begun.elapsed().as_secs_f64();
    samples.add(Measure::StockGet, get_s);
    samples.add(Measure::StockPutGet, put_s + get_s);
    store.delete(OBJECT).await?;
    samples.add(
        Measure::StockFiles,
        between_files(&store, model, &folder.join("stock")).await?,
    );
    connection.jetstream.delete_object_store(BUCKET).await?;
    Ok(())
}

async fn put(store: &ObjectStore, source: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<f64> {
    let begun = Instant::now();
    store.put(OBJECT, source).await?;
    Ok(begun.elapsed().as_secs_f64())
}

async fn between_files(store: &ObjectStore, model: &Model, target: &Path) -> anyhow::Result<f64> {
    let source = model.files.folder().join("model.safetensors");
    let begun = Instant::now();
    let opened = File::open(&source).await;
    let mut source = opened.with_context(|| format!("cannot open {}", source.display()))?;
    put(store, &mut source).await?;
    let created = File::create(target).await;
    let mut file = created.with_context(|| format!("cannot make {}", target.display()))?;
    tokio::io::copy(&mut store.get(OBJECT).await?, &mut file).await?;
    file.sync_all().await?;
    let seconds = begun.elapsed().as_secs_f64();
    tokio::fs::remove_file(target).await?;
    Ok(seconds)
}

const BUCKET: &str = "stock";
const OBJECT: &str = "model";
