//! Models whose files come while they are loaded.

use std::fs;
use std::sync::atomic::AtomicBool;

use flotilla_protocol::weights::Root;
use flotilla_tests::eventually;
use flotilla_weights::{Announcer, Arrival, ComingFiles, ImportError, PartialModel, Store, make_manifest};
use tokio::task::{JoinHandle, spawn_blocking};

use super::*;
use crate::incoming::Waits;

/// A model of which segments are written when a test says so.
struct Coming {
    root: Root,
    partial: PartialModel,
    arrival: Arrival,
    announcer: Announcer,
    _store: tempfile::TempDir,
}

/// A load beside the test.
type Load = JoinHandle<Result<LoadedModel, LoadFault>>;

impl Coming {
    /// Nothing is there but what describes the model, its weights' header too.
    fn begin(folder: &Path) -> Self {
        let manifest = Arc::new(make_manifest(folder, 1, &AtomicBool::new(false)).unwrap());
        let store_folder = tempfile::tempdir().unwrap();
        let store = Store::open(store_folder.path().to_owned(), u64::MAX).unwrap();
        let (arrival, announcer) = Arrival::begin(manifest.root());
        let mut partial = store.receive(Arc::clone(&manifest)).unwrap();
        partial.tell(&announcer);
        let mut coming = Self {
            root: manifest.root(),
            partial,
            arrival,
            announcer,
            _store: store_folder,
        };
        for place in 0..manifest.segments().len() {
            let segment = manifest.segments()[place];
            let is_weights = manifest.files()[segment.file].path.ends_with(".safetensors");
            if !is_weights || segment.offset == 0 {
                coming.write(folder, place);
            }
        }
        coming
    }

    fn write(&mut self, folder: &Path, place: usize) {
        let manifest = Arc::clone(self.partial.manifest());
        let segment = manifest.segments()[place];
        let file = fs::read(folder.join(&manifest.files()[segment.file].path)).unwrap();
        let start = usize::try_from(segment.offset).unwrap();
        let bytes = &file[start..start + segment.buffer_bytes()];
        assert!(self.partial.write(place, bytes).unwrap());
    }

    /// What is missing, in the order in which it comes.
    fn missing(&self) -> Vec<usize> {
        self.partial.have().complement().iter().collect()
    }

    /// Opens the model and begins to load it.
    async fn load(&self) -> (Arc<OpenedModel>, LoadWatch, Load) {
        let files = ComingFiles::new(self.arrival.clone());
        self.arrival.described().await.unwrap();
        let (folder, waits_for) = (self.arrival.folder().unwrap(), files.clone());
        let opened = spawn_blocking(move || {
            let end = CancellationToken::new();
            OpenedModel::open(
                &folder,
                &Waits::new(Some(&waits_for), &end),
                demo_limits(),
                None,
                None,
            )
        });
        let opened = Arc::new(opened.await.unwrap().unwrap());
        let watch = LoadWatch::child_of(&CancellationToken::new(), Some(files));
        let (of_load, its_watch) = (Arc::clone(&opened), watch.clone());
        let load = spawn_blocking(move || {
            let threads = Arc::new(CpuThreads::for_this_machine());
            load(&of_load, DEVICE_PAGES, None, &its_watch, &threads)
        });
        (opened, watch, load)
    }
}

/// Waits until a load has placed more than so many bytes.
async fn placed_more(watch: &LoadWatch, than: u64) -> u64 {
    eventually("more is placed", async || {
        let placed_bytes = watch.placed_bytes();
        (placed_bytes > than).then_some(placed_bytes)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_are_placed_as_they_come_and_the_model_is_ready_with_the_last_of_its_root() {
    let folder = demo_folder("adder");
    let mut coming = Coming::begin(&folder);
    let missing = coming.missing();
    assert!(missing.len() >= 3, "embeddings, layers, head: {missing:?}");
    let (opened, watch, load) = coming.load().await;
    let mut placed_bytes = 0;
    for place in missing {
        assert!(!load.is_finished());
        assert_eq!(
            watch.placed_bytes(),
            placed_bytes,
            "nothing is placed that has not come"
        );
        coming.write(&folder, place);
        let segment_bytes = coming.partial.manifest().segments()[place].bytes;
        placed_bytes = eventually("what has come is placed", async || {
            let now = watch.placed_bytes();
            (now == placed_bytes + segment_bytes).then_some(now)
        })
        .await;
    }
    assert_eq!(placed_bytes, opened.weights_bytes() as u64);
    assert!(!load.is_finished(), "the store has to have it");
    let Coming {
        partial, announcer, ..
    } = coming;
    announcer.end(Ok(partial.finish().unwrap()));
    assert!(matches!(load.await.unwrap().unwrap(), LoadedModel::Text(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_whose_files_stop_coming_fails_and_names_their_root() {
    let folder = demo_folder("adder");
    let mut coming = Coming::begin(&folder);
    let (_, watch, load) = coming.load().await;
    coming.write(&folder, coming.missing()[0]);
    placed_more(&watch, 0).await;
    let root = coming.root;
    coming.announcer.clone().end(Err(ImportError::NoHolder { root }));
    let fault = load.await.unwrap().unwrap_err();
    let told = crate::error::chain(&fault);
    assert!(
        told.contains(&format!("no worker holds {root}")) && told.contains("model.safetensors"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_that_lacks_only_what_it_does_not_read_fails_with_the_copy() {
    let folder = demo_folder("adder");
    let mut coming = Coming::begin(&folder);
    let (opened, watch, load) = coming.load().await;
    for place in coming.missing() {
        coming.write(&folder, place);
    }
    placed_more(&watch, opened.weights_bytes() as u64 - 1).await;
    let root = coming.root;
    coming.announcer.clone().end(Err(ImportError::NoHolder { root }));
    let fault = load.await.unwrap().unwrap_err();
    assert!(matches!(fault, LoadFault::Copy(_)), "{fault}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_that_waits_for_files_ends_when_it_is_cancelled() {
    let folder = demo_folder("adder");
    let mut coming = Coming::begin(&folder);
    let (_, watch, load) = coming.load().await;
    coming.write(&folder, coming.missing()[0]);
    placed_more(&watch, 0).await;
    watch.cancel.cancel();
    let ended = timeout(Duration::from_secs(60), load).await.unwrap();
    let fault = ended.unwrap().unwrap_err();
    assert!(matches!(fault, LoadFault::Cancelled), "{fault}");
    assert!(coming.arrival.is_under_way(), "the copy goes on without it");
}
