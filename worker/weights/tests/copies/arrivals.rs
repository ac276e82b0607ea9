//! What others see of a root while it comes.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use flotilla_protocol::weights::Root;
use flotilla_weights::{Arrival, ArrivalError, ImportError, Imported, Importer, ModelFiles};
use tokio::task::JoinHandle;

use crate::assert_is_copy;
use crate::world::{MIB, Traits, Worker, World, model, root};

/// Imports a root and tells its end, as a worker does.
fn begin(importer: &Importer, wanted: Root) -> (Arrival, JoinHandle<Option<Imported>>) {
    let (arrival, announcer) = Arrival::begin(wanted);
    let importer = importer.clone();
    let importing = tokio::spawn(async move {
        let imported = importer.import_telling(wanted, &announcer).await;
        let (kept, told) = match imported {
            Ok(imported) => {
                // The store's model goes to whoever looks on; what is left says where it came from.
                let again =
                    flotilla_weights::StoredModel::open(imported.model.files().folder().into(), wanted);
                (Some(imported), Ok(again.unwrap().unwrap()))
            }
            Err(error) => (None, Err(error)),
        };
        announcer.end(told);
        kept
    });
    (arrival, importing)
}

async fn slow_sender(world: &World) -> Worker {
    let slow = Traits {
        bytes_per_s: Some(20 * MIB),
        window_bytes: 8 * MIB,
        ..Traits::named("a")
    };
    world.worker_with(slow).await
}

/// The file of a segment, and where it lies in it.
fn place(files: &ModelFiles, segment: usize) -> (&Path, Range<u64>) {
    let listed = files.manifest().segments()[segment];
    let file = &files.manifest().files()[listed.file];
    (Path::new(&file.path), listed.offset..listed.offset + listed.bytes)
}

/// Files that come, opened once.
#[derive(Default)]
struct Opened(HashMap<String, File>);

impl Opened {
    /// Opens all files in the folder where they come.
    fn of(arrival: &Arrival, files: &ModelFiles) -> Self {
        let folder = arrival.folder().unwrap();
        let open = |path: &String| (path.clone(), File::open(folder.join(path)).unwrap());
        Self(
            files
                .manifest()
                .files()
                .iter()
                .map(|file| open(&file.path))
                .collect(),
        )
    }

    /// Reads a segment and compares it with its hash.
    fn has(&self, files: &ModelFiles, segment: usize) -> bool {
        let (path, bytes) = place(files, segment);
        let mut read = vec![0; files.manifest().segments()[segment].buffer_bytes()];
        let file = &self.0[path.to_str().unwrap()];
        file.read_exact_at(&mut read, bytes.start).unwrap();
        let id = files.manifest().segments()[segment].id;
        blake3::hash(&read).as_bytes() == id.as_bytes()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_are_told_when_their_bytes_are_there_and_long_before_the_last_is_sent() {
    let world = World::start().await;
    let (a, b) = (slow_sender(&world).await, world.worker("b").await);
    let (_folder, files) = model(0..40);
    a.exports.hold(Arc::clone(&files)).await;
    let (arrival, importing) = begin(&b.importer, root(&files));
    let (path, bytes) = place(&files, 0);
    arrival.there(path, bytes).await.unwrap();
    // Each segment of 1 MiB is two chunks and a description.
    let sent = world.relay_messages().await / 3;
    assert!(
        sent < 20,
        "{sent} of 41 segments were sent before the first one was told"
    );
    assert!(arrival.is_under_way());

    let opened = Opened::of(&arrival, &files);
    for segment in 0..files.manifest().segments().len() {
        let (path, bytes) = place(&files, segment);
        arrival.there(path, bytes).await.unwrap();
        assert!(
            opened.has(&files, segment),
            "segment {segment} was told and is not there"
        );
    }
    let stored = arrival.whole().await.unwrap();
    assert_eq!(arrival.folder().unwrap(), stored.files().folder());
    assert!(!arrival.is_under_way());
    assert_eq!(arrival.progress().percent(), Some(100));
    assert_is_copy(&importing.await.unwrap().unwrap(), &files);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arrival_ends_with_root_and_holder_when_the_rest_does_not_come_and_the_next_one_goes_on() {
    let world = World::start().await;
    let (a, b) = (slow_sender(&world).await, world.worker("b").await);
    let (_folder, files) = model(0..40);
    a.exports.hold(Arc::clone(&files)).await;
    let (arrival, importing) = begin(&b.importer, root(&files));
    let last = files.manifest().segments().len() - 1;
    let (path, bytes) = place(&files, 8);
    arrival.there(path, bytes).await.unwrap();
    let opened = Opened::of(&arrival, &files);
    a.stop.cancel();
    let (path, bytes) = place(&files, last);
    let failed = arrival.there(path, bytes).await.unwrap_err();
    let told = failed.to_string();
    assert!(
        told.contains(&root(&files).to_string()) && told.contains("last one: "),
        "{told}"
    );
    assert!(
        matches!(failed.import(), Some(ImportError::Holders { .. })),
        "{told}"
    );
    assert!(arrival.whole().await.is_err() && !arrival.is_under_way());
    assert!(importing.await.unwrap().is_none());
    // What was opened stays, and what was told is there.
    assert!(opened.has(&files, 8) && !opened.has(&files, last));

    let c = world.worker("c").await;
    c.exports.hold(Arc::clone(&files)).await;
    let (again, importing) = begin(&b.importer, root(&files));
    again.whole().await.unwrap();
    let imported = importing.await.unwrap().unwrap();
    assert_is_copy(&imported, &files);
    assert!(imported.copied_bytes < files.manifest().bytes());
    assert!(opened.has(&files, last), "it is the same file still");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arrival_whose_import_breaks_says_so_to_those_who_wait() {
    let (_folder, files) = model([1]);
    let (arrival, announcer) = Arrival::begin(root(&files));
    let waiting = tokio::spawn({
        let arrival = arrival.clone();
        async move { arrival.whole().await }
    });
    let broken = tokio::spawn(async move {
        let _announcer = announcer;
        panic!("a bug");
    });
    assert!(broken.await.unwrap_err().is_panic());
    let told = waiting.await.unwrap().unwrap_err();
    assert!(
        matches!(told, ArrivalError::Broke { root: broken } if broken == root(&files)),
        "{told}"
    );
    assert!(!arrival.is_under_way());
    assert!(arrival.described().await.is_err());
}
