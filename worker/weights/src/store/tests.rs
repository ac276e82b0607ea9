use std::path::Path;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::make_manifest;

/// A model of a few segments: a configuration and files without a format.
fn model(seed: u8, texts: usize, bytes: usize) -> (TempDir, ModelFiles) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), [seed]).unwrap();
    for text in 0..texts {
        let content: Vec<u8> = (0..bytes)
            .map(|at| u8::try_from((at + text) % 251).unwrap())
            .collect();
        fs::write(folder.path().join(format!("t{text}.txt")), content).unwrap();
    }
    let manifest = make_manifest(folder.path(), 1, &AtomicBool::new(false)).unwrap();
    let files = ModelFiles::new(Arc::new(manifest), folder.path().to_owned());
    (folder, files)
}

fn copy(from: &ModelFiles, to: &mut PartialModel, segments: impl IntoIterator<Item = usize>) {
    let mut buffer = Vec::new();
    for segment in segments {
        buffer.resize(from.manifest().segments()[segment].buffer_bytes(), 0);
        from.read(segment, &mut buffer).unwrap();
        assert!(to.write(segment, &buffer).unwrap());
    }
}

fn put(store: &Store, model: &ModelFiles) -> StoredModel {
    let mut partial = store.receive(Arc::clone(model.manifest())).unwrap();
    let missing: Vec<usize> = partial.have().complement().iter().collect();
    copy(model, &mut partial, missing);
    partial.finish().unwrap()
}

fn roots(store: &Store) -> Vec<Root> {
    store
        .models()
        .unwrap()
        .into_iter()
        .map(|state| state.root)
        .collect()
}

#[test]
fn received_model_has_the_files_of_the_original_and_is_found() {
    let (original, files) = model(1, 2, 100);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store"), 1 << 20).unwrap();
    let root = files.manifest().root();
    assert!(store.find(root).unwrap().is_none());
    drop(put(&store, &files));
    let found = store.find(root).unwrap().expect("it was put there");
    for file in files.manifest().files() {
        let bytes = |folder: &Path| fs::read(folder.join(&file.path)).unwrap();
        assert_eq!(bytes(found.files().folder()), bytes(original.path()));
    }
    let again = make_manifest(found.files().folder(), 1, &AtomicBool::new(false)).unwrap();
    assert_eq!(
        again.root(),
        root,
        "what the store keeps beside the files is not of the model"
    );
}

#[test]
fn wrong_bytes_are_not_kept() {
    let (_original, files) = model(1, 1, 100);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_owned(), 1 << 20).unwrap();
    let mut partial = store.receive(Arc::clone(files.manifest())).unwrap();
    let mut bytes = vec![0; files.manifest().segments()[0].buffer_bytes()];
    files.read(0, &mut bytes).unwrap();
    bytes[0] ^= 1;
    assert!(!partial.write(0, &bytes).unwrap());
    assert!(!partial.write(0, &bytes[1..]).unwrap());
    assert_eq!(partial.have().count(), 0);
}

#[test]
fn next_attempt_goes_on_where_the_last_one_ended_and_compares_again() {
    let (_original, files) = model(1, 3, 100);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_owned(), 1 << 20).unwrap();
    let mut partial = store.receive(Arc::clone(files.manifest())).unwrap();
    copy(&files, &mut partial, [0, 2, 3]);
    let spoiled = partial.path_of(2);
    assert!(matches!(
        store.receive(Arc::clone(files.manifest())),
        Err(StoreError::Busy { .. })
    ));
    drop(partial);
    // As after a crash of the machine: the log was written and the bytes were not.
    fs::write(&spoiled, vec![0; 100]).unwrap();
    let partial = store.receive(Arc::clone(files.manifest())).unwrap();
    let expected: Vec<usize> = [0, 2, 3]
        .into_iter()
        .filter(|segment| partial.path_of(*segment) != spoiled)
        .collect();
    assert_eq!(partial.have().iter().collect::<Vec<_>>(), expected);
}

#[test]
fn model_that_was_not_on_disk_when_the_machine_stopped_is_compared_again() {
    let (_original, files) = model(1, 3, 100);
    let folder = tempfile::tempdir().unwrap();
    let (path, root) = (folder.path().join("store"), files.manifest().root());
    let store = Store::open(path.clone(), 1 << 20).unwrap();
    let mut partial = store.receive(Arc::clone(files.manifest())).unwrap();
    copy(&files, &mut partial, 0..4);
    let (whole, unsynced) = partial.finish_before_sync().unwrap();
    // As after a crash of the process: the system still has all bytes.
    drop(unsynced);
    assert!(
        Store::open(path.clone(), 1 << 20)
            .unwrap()
            .find(root)
            .unwrap()
            .is_some()
    );

    let lost = whole.files().folder().join("t1.txt");
    drop(whole);
    fs::write(&lost, vec![0; 100]).unwrap();
    fs::write(store.folder_of(root).join(unsynced::MARK), "another boot").unwrap();
    assert!(store.find(root).unwrap().is_none(), "nobody believes it");
    let store = Store::open(path.clone(), 1 << 20).unwrap();
    let mut partial = store.resume(root).unwrap().expect("its segments are still there");
    assert_eq!(partial.have().count(), 3, "one of them has lost its bytes");
    let missing: Vec<usize> = partial.have().complement().iter().collect();
    copy(&files, &mut partial, missing);

    let (whole, unsynced) = partial.finish_before_sync().unwrap();
    drop(whole);
    assert!(
        store.remove(root).unwrap(),
        "it may be removed before it is synced"
    );
    let mut partial = store.receive(Arc::clone(files.manifest())).unwrap();
    copy(&files, &mut partial, 0..4);
    let (whole, next) = partial.finish_before_sync().unwrap();
    unsynced.sync().unwrap();
    assert!(
        whole.files().folder().join(unsynced::MARK).exists(),
        "that was another folder"
    );
    next.sync().unwrap();
    let beside: Vec<_> = fs::read_dir(whole.files().folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        !beside
            .iter()
            .any(|name| name == unsynced::MARK || name == partial::LOG),
        "{beside:?}"
    );
    assert!(Store::open(path, 1 << 20).unwrap().find(root).unwrap().is_some());
}

#[test]
fn longest_unused_models_make_room_and_used_ones_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_owned(), 320).unwrap();
    let models: Vec<_> = (1..=4).map(|seed| model(seed, 1, 99)).collect();
    let root = |index: usize| models[index].1.manifest().root();
    for (_, files) in &models[..3] {
        drop(put(&store, files));
    }
    let used = store.find(root(0)).unwrap().expect("there is room for three");
    drop(put(&store, &models[3].1));
    assert_eq!(roots(&store).len(), 3);
    assert!(store.find(root(0)).unwrap().is_some(), "it is in use");
    assert!(
        store.find(root(1)).unwrap().is_none(),
        "it was unused for longest"
    );

    let (_larger, larger) = model(9, 3, 99);
    let refused = store.receive(Arc::clone(larger.manifest())).unwrap_err();
    assert!(
        matches!(
            refused,
            StoreError::Full {
                bytes_in_use: 100,
                ..
            }
        ),
        "{refused}"
    );
    let (_huge, huge) = model(10, 4, 99);
    drop(used);
    drop(put(&store, &models[1].1));
    let before = roots(&store);
    assert!(matches!(
        store.receive(Arc::clone(huge.manifest())),
        Err(StoreError::Full { bytes_in_use: 0, .. })
    ));
    assert_eq!(roots(&store), before, "nothing goes for one that fits nowhere");
}

#[test]
fn segments_of_other_models_are_taken_from_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_owned(), 1 << 20).unwrap();
    let ((_a, base), (_b, tuned)) = (model(1, 3, 100), model(2, 3, 100));
    drop(put(&store, &base));
    let mut partial = store.receive(Arc::clone(tuned.manifest())).unwrap();
    assert_eq!(partial.reuse(&store, &|| true).unwrap(), 0);
    assert_eq!(partial.reuse(&store, &|| false).unwrap(), 300);
    let missing: Vec<usize> = partial.have().complement().iter().collect();
    assert_eq!(missing.len(), 1, "the configuration is another one");
    copy(&tuned, &mut partial, missing);
    partial.finish().unwrap();
}

#[test]
fn what_was_being_removed_is_gone_when_the_store_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_owned(), 1 << 20).unwrap();
    let (_original, files) = model(1, 1, 100);
    let root = files.manifest().root();
    drop(put(&store, &files));
    fs::rename(
        store.folder_of(root),
        store.folder_of(root).with_extension(REMOVED),
    )
    .unwrap();
    let store = Store::open(folder.path().to_owned(), 1 << 20).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(!store.remove(root).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn model_received_in_any_order_and_any_number_of_attempts_is_the_original(
        texts in 1_usize..5,
        bytes in 1_usize..500,
        order in prop::collection::vec((0_usize..6, prop::bool::weighted(0.3)), 0..20),
    ) {
        let (_original, files) = model(1, texts, bytes);
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_owned(), 1 << 20).unwrap();
        let mut partial = store.receive(Arc::clone(files.manifest())).unwrap();
        for (segment, dies) in order {
            if segment < files.manifest().segments().len() {
                copy(&files, &mut partial, [segment]);
            }
            if dies {
                let had = partial.have().clone();
                drop(partial);
                partial = store.receive(Arc::clone(files.manifest())).unwrap();
                prop_assert_eq!(partial.have(), &had);
            }
        }
        let missing: Vec<usize> = partial.have().complement().iter().collect();
        copy(&files, &mut partial, missing);
        let whole = partial.finish().unwrap();
        let again = make_manifest(whole.files().folder(), 1, &AtomicBool::new(false)).unwrap();
        prop_assert_eq!(again.root(), files.manifest().root());
    }
}

/// Puts a model's files where those of an origin belong.
fn fill(files: &ModelFiles, coming: &ComingModel) {
    for file in files.manifest().files() {
        fs::copy(files.folder().join(&file.path), coming.folder().join(&file.path)).unwrap();
    }
}

#[test]
fn model_from_an_origin_is_found_by_its_root_and_by_its_origin() {
    let (_original, files) = model(1, 2, 100);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_owned(), 1 << 20).unwrap();
    let root = files.manifest().root();
    let coming = store.begin("hf:a/b@c", 201).unwrap();
    assert!(
        matches!(store.begin("hf:a/b@c", 201), Err(StoreError::Busy { .. })),
        "somebody fills it"
    );
    fill(&files, &coming);
    // As when a worker dies: the next one goes on with what is there.
    drop(coming);
    let coming = store.begin("hf:a/b@c", 201).unwrap();
    assert!(coming.folder().join("t1.txt").exists());
    assert!(
        store.find_origin("hf:a/b@c").unwrap().is_none(),
        "it is not whole"
    );
    drop(coming.finish(Arc::clone(files.manifest())).unwrap());
    assert_eq!(roots(&store), [root]);
    let found = store.find_origin("hf:a/b@c").unwrap().expect("it is whole");
    assert_eq!(found.files().manifest().root(), root);
    assert!(store.find_origin("hf:a/b@d").unwrap().is_none());

    // The same files from elsewhere are kept once.
    let again = store.begin("hf:a/other@c", 201).unwrap();
    fill(&files, &again);
    let doomed = again.folder().to_owned();
    drop(again.finish(Arc::clone(files.manifest())).unwrap());
    assert!(!doomed.exists());
    assert_eq!(roots(&store), [root]);
}

#[test]
fn what_comes_from_an_origin_counts_and_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_owned(), 320).unwrap();
    let (_original, files) = model(1, 1, 99);
    drop(put(&store, &files));
    let coming = store.begin("hf:a/b@c", 300).unwrap();
    assert_eq!(roots(&store), [], "it had to go");
    let error = store.begin("hf:a/c@c", 100).unwrap_err();
    assert!(
        matches!(
            &error,
            StoreError::Full {
                bytes_in_use: 300,
                ..
            }
        ),
        "{error}"
    );
    let left = coming.folder().to_owned();
    drop(coming);
    drop(put(&store, &files));
    assert!(!left.exists(), "nobody fills it any more");
    assert!(matches!(
        store.begin("hf:a/b@c", 321),
        Err(StoreError::Full { bytes_in_use: 0, .. })
    ));
}
