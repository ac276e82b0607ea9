//! Clients that are not ours: what lies in the relay are ordinary objects to the stock clients of NATS.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::{env, fs};

use flotilla_protocol::weights::Generation;
use flotilla_tests::eventually;
use flotilla_weights::{CopyName, CopyObject, Relay};
use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;

use crate::world::{MIB, Traits, World, model, root};
use crate::{assert_is_copy, relay_is_clear};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_client_reads_a_segment() {
    let world = World::start().await;
    let relay = Relay::open(world.connection.clone()).await.unwrap();
    let (_folder, files) = model([5]);
    let name = CopyName {
        root: root(&files),
        generation: Generation(1),
    };
    let segment = files
        .manifest()
        .segments()
        .iter()
        .position(|segment| segment.bytes == MIB)
        .unwrap();
    let id = files.manifest().segments()[segment].id;
    let mut bytes = vec![0; 1 << 20];
    files.read(segment, &mut bytes).unwrap();
    relay
        .put(name, CopyObject::Segment { segment, id }, bytes.clone().into())
        .await
        .unwrap();
    let store = world
        .connection
        .jetstream
        .get_object_store("flotilla_relay")
        .await
        .unwrap();
    let mut object = store.get(format!("s-{id}")).await.unwrap();
    let mut found = Vec::new();
    object.read_to_end(&mut found).await.unwrap();
    assert!(found == bytes);
}

/// A copy that takes some seconds, in a window that holds all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_python_client_reads_the_segments_and_the_manifest_of_a_copy_under_way() {
    let world = World::start().await;
    let slow = Traits {
        bytes_per_s: Some(2 * MIB),
        window_bytes: 64 * MIB,
        ..Traits::named("a")
    };
    let (a, b) = (world.worker_with(slow).await, world.worker("b").await);
    let (_folder, files) = model(0..24);
    a.exports.hold(Arc::clone(&files)).await;
    let (importer, wanted) = (b.importer.clone(), root(&files));
    let importing = tokio::spawn(async move { importer.import(wanted).await });
    eventually("a segment and the manifest lie in the relay", async || {
        (world.relay_subjects("M").await.len() >= 3).then_some(())
    })
    .await;
    let fetched = tempfile::tempdir().unwrap();
    let (url, folder) = (world.url(), fetched.path().to_owned());
    spawn_blocking(move || fetch_all(&url, &folder)).await.unwrap();
    assert!(!importing.is_finished(), "the copy was under way");

    let read = |name: String| fs::read(fetched.path().join(name));
    let manifest = read(format!("m-{}", root(&files))).unwrap();
    assert!(manifest == **files.manifest().json());
    let mut segments = 0;
    for segment in files.manifest().segments() {
        // Those that were not there yet.
        let Ok(found) = read(format!("s-{}", segment.id)) else {
            continue;
        };
        let path = &files.manifest().files()[segment.file].path;
        let original = fs::read(files.folder().join(path)).unwrap();
        let begin = usize::try_from(segment.offset).unwrap();
        assert!(found == original[begin..begin + segment.buffer_bytes()], "{path}");
        segments += 1;
    }
    assert!(segments >= 2, "{segments} segments");

    a.rate.set(None);
    assert_is_copy(&importing.await.unwrap().unwrap(), &files);
    relay_is_clear(&world).await;
}

/// Runs nats-py's client; `make test` names a Python that has it.
fn fetch_all(url: &str, folder: &Path) {
    let python = env::var("FLOTILLA_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/copies/stock_client.py"
        ))
        .args([url, "flotilla_relay"])
        .arg(folder)
        .output()
        .expect("there is a Python; `make test` sets one up");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
