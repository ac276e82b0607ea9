//! Copies between workers over a real nats-server.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod arrivals;
mod exchanges;
mod faults;
mod stock;
mod world;

use std::fs;
use std::sync::Arc;

use flotilla_tests::eventually;
use flotilla_weights::{ImportError, Imported, ReceiveError};
use futures_util::future::join_all;
use world::{MIB, Traits, World, manifest_of, model, root};

/// Nothing of any copy is left, and nobody claims to send one.
async fn relay_is_clear(world: &World) {
    eventually("nothing is left in the relay", async || {
        let left = world.relay_subjects("C").await.len() + world.relay_subjects("M").await.len();
        (left == 0 && world.claims().await == 0).then_some(())
    })
    .await;
}

fn assert_is_copy(imported: &Imported, original: &flotilla_weights::ModelFiles) {
    let copy = manifest_of(imported.model.files().folder());
    assert_eq!(copy.root(), root(original));
    for file in original.manifest().files() {
        let bytes = |folder: &std::path::Path| fs::read(folder.join(&file.path)).unwrap();
        assert!(
            bytes(imported.model.files().folder()) == bytes(original.folder()),
            "{}",
            file.path
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_is_copied_byte_for_byte_through_a_window_smaller_than_itself() {
    let world = World::start().await;
    let (a, b) = (world.worker("a").await, world.worker("b").await);
    let (_folder, files) = model(0..40);
    a.exports.hold(Arc::clone(&files)).await;
    let imported = b.importer.import(root(&files)).await.unwrap();
    assert_is_copy(&imported, &files);
    assert_eq!(imported.copied_bytes, files.manifest().bytes());
    assert_eq!(imported.from.unwrap().as_str(), "a");
    relay_is_clear(&world).await;
    let again = b.importer.import(root(&files)).await.unwrap();
    assert_eq!((again.copied_bytes, again.from), (0, None), "it is here already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_that_come_together_cost_one_upload_of_each_segment() {
    let world = World::start().await;
    let a = world
        .worker_with(Traits {
            bytes_per_s: Some(40 * MIB),
            ..Traits::named("a")
        })
        .await;
    let receivers = join_all(["b", "c", "d", "e"].map(|name| world.worker(name))).await;
    let (_folder, files) = model(0..24);
    a.exports.hold(Arc::clone(&files)).await;
    let before = world.relay_messages().await;
    let imported = join_all(
        receivers
            .iter()
            .map(|worker| worker.importer.import(root(&files))),
    )
    .await;
    for imported in imported {
        assert_is_copy(&imported.unwrap(), &files);
    }
    relay_is_clear(&world).await;
    // Each segment of 1 MiB is at most two chunks and a description; the manifest comes once a copy.
    let messages = world.relay_messages().await - before;
    let segments = files.manifest().segments().len() as u64;
    assert!(
        messages <= 3 * (segments + 2) + 12,
        "{messages} messages for {segments} segments"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_goes_on_from_another_holder_where_the_first_one_ended() {
    let world = World::start().await;
    let slow = Traits {
        bytes_per_s: Some(20 * MIB),
        window_bytes: 4 * MIB,
        ..Traits::named("a")
    };
    let (a, b, c) = (
        world.worker_with(slow).await,
        world.worker("b").await,
        world.worker("c").await,
    );
    let (_folder, files) = model(0..32);
    a.exports.hold(Arc::clone(&files)).await;
    let importer = c.importer.clone();
    let wanted = root(&files);
    let importing = tokio::spawn(async move { importer.import(wanted).await });
    eventually("some segments have gone through", async || {
        (world.relay_messages().await > 16).then_some(())
    })
    .await;
    b.exports.hold(Arc::clone(&files)).await;
    a.stop.cancel();
    let imported = importing.await.unwrap().unwrap();
    assert_is_copy(&imported, &files);
    assert_eq!(imported.from.unwrap().as_str(), "b");
    assert_eq!(
        imported.copied_bytes,
        files.manifest().bytes(),
        "nothing was kept twice"
    );
    relay_is_clear(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receiver_that_starts_again_receives_only_the_rest() {
    let world = World::start().await;
    let a = world
        .worker_with(Traits {
            bytes_per_s: Some(20 * MIB),
            ..Traits::named("a")
        })
        .await;
    let b = world.worker("b").await;
    let (_folder, files) = model(0..32);
    a.exports.hold(Arc::clone(&files)).await;
    let (importer, wanted) = (b.importer.clone(), root(&files));
    let importing = tokio::spawn(async move { importer.import(wanted).await });
    eventually("half of it has gone through", async || {
        (world.relay_messages().await > 48).then_some(())
    })
    .await;
    b.stop.cancel();
    let cancelled = importing.await.unwrap().unwrap_err();
    assert!(
        matches!(cancelled, ImportError::Receive(ReceiveError::Cancelled)),
        "{cancelled}"
    );
    a.rate.set(None);
    let mut again = b.importer.clone();
    again.receiver.stop = tokio_util::sync::CancellationToken::new();
    let imported = again.import(root(&files)).await.unwrap();
    assert_is_copy(&imported, &files);
    let copied = imported.copied_bytes;
    assert!(
        copied < files.manifest().bytes() * 3 / 4,
        "{copied} bytes came again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_on_the_same_machine_costs_no_bytes() {
    let world = World::start().await;
    let (a, b) = (world.worker("a").await, world.worker("b").await);
    let c = world
        .worker_with(Traits {
            machine: "b",
            ..Traits::named("c")
        })
        .await;
    let (_folder, files) = model(0..4);
    a.exports.hold(Arc::clone(&files)).await;
    let copied = b.importer.import(root(&files)).await.unwrap();
    b.exports.hold(Arc::clone(copied.model.files())).await;
    let before = world.relay_messages().await;
    let shared = c.importer.import(root(&files)).await.unwrap();
    assert_eq!(shared.copied_bytes, 0);
    assert_eq!(shared.model.files().folder(), copied.model.files().folder());
    assert_eq!(world.relay_messages().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variant_costs_the_bytes_in_which_it_differs() {
    let world = World::start().await;
    let (a, b) = (world.worker("a").await, world.worker("b").await);
    let ((_base, base), (_tuned, tuned)) = (model(0..10), model((0..7).chain(20..23)));
    for files in [&base, &tuned] {
        a.exports.hold(Arc::clone(files)).await;
    }
    drop(b.importer.import(root(&base)).await.unwrap());
    let imported = b.importer.import(root(&tuned)).await.unwrap();
    assert_is_copy(&imported, &tuned);
    assert_eq!(imported.reused_bytes, 7 * MIB);
    assert_eq!(imported.copied_bytes, tuned.manifest().bytes() - 7 * MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receiver_that_comes_late_joins_the_copy_under_way() {
    let world = World::start().await;
    let slow = Traits {
        bytes_per_s: Some(20 * MIB),
        window_bytes: 4 * MIB,
        ..Traits::named("a")
    };
    let (a, b, c) = (
        world.worker_with(slow).await,
        world.worker("b").await,
        world.worker("c").await,
    );
    let (_folder, files) = model(0..32);
    a.exports.hold(Arc::clone(&files)).await;
    let (importer, wanted) = (b.importer.clone(), root(&files));
    let first = tokio::spawn(async move { importer.import(wanted).await });
    eventually("half of it has gone through", async || {
        (world.relay_messages().await > 48).then_some(())
    })
    .await;
    let late = c.importer.import(root(&files)).await.unwrap();
    assert_is_copy(&first.await.unwrap().unwrap(), &files);
    assert_is_copy(&late, &files);
    // Two copies one after the other would be 64 segments of at most two chunks and a description each.
    let messages = world.relay_messages().await;
    assert!(
        messages < 64 * 3 - 24,
        "{messages} messages: what came after it joined was sent once for both"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_copies_leave_no_files_open_and_nothing_in_the_relay() {
    let world = World::start().await;
    let (a, b) = (world.worker("a").await, world.worker("b").await);
    let (_folder, files) = model(0..2);
    a.exports.hold(Arc::clone(&files)).await;
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = None;
    for copy in 0..30 {
        drop(b.importer.import(root(&files)).await.unwrap());
        // It stays until it is on disk.
        eventually("it can be removed", async || {
            b.importer.store.remove(root(&files)).unwrap().then_some(())
        })
        .await;
        if copy == 4 {
            before = Some(open());
        }
    }
    assert!(
        open() <= before.unwrap() + 2,
        "{} open files, {before:?} before",
        open()
    );
    relay_is_clear(&world).await;
}
