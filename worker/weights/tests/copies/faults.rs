//! What goes wrong on the way, and what is left of it.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use flotilla_protocol::WorkerId;
use flotilla_protocol::weights::{Claim, CopyRefusal, Generation};
use flotilla_tests::eventually;
use flotilla_weights::{CopyName, CopyObject, HolderFailure, ImportError, Relay, RelayError};

use crate::world::{MIB, Traits, World, model, root};
use crate::{assert_is_copy, relay_is_clear};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spoiled_segments_are_noticed_and_come_again() {
    let world = World::start().await;
    let a = world
        .worker_with(Traits {
            bytes_per_s: Some(20 * MIB),
            window_bytes: 4 * MIB,
            ..Traits::named("a")
        })
        .await;
    let b = world.worker("b").await;
    let (_folder, files) = model(0..16);
    a.exports.hold(Arc::clone(&files)).await;
    let (importer, wanted) = (b.importer.clone(), root(&files));
    let importing = tokio::spawn(async move { importer.import(wanted).await });
    let relay = Relay::open(world.connection.clone()).await.unwrap();
    let name = eventually("the copy has begun", async || copy_under_way(&world).await).await;
    // Somebody else writes where the sender will: the bytes are the wrong ones until the sender's own come.
    for segment in 10..14 {
        let id = files.manifest().segments()[segment].id;
        let bytes = vec![7_u8; 1 << 20];
        relay
            .put(name, CopyObject::Segment { segment, id }, bytes.into())
            .await
            .unwrap();
    }
    let imported = importing.await.unwrap().unwrap();
    assert_is_copy(&imported, &files);
}

async fn copy_under_way(world: &World) -> Option<CopyName> {
    let chunks = world.relay_subjects("C").await;
    let subject = chunks.iter().find(|subject| !subject.ends_with(".m"))?;
    let tokens: Vec<&str> = subject.split('.').collect();
    Some(CopyName {
        root: tokens[3].parse().unwrap(),
        generation: tokens[4].parse().unwrap(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_relay_is_told_live_delivery_goes_on_and_nothing_is_left_behind() {
    let world = World::start_with(&["nats.relay_max_bytes=64MiB"]).await;
    let (a, b) = (world.worker("a").await, world.worker("b").await);
    let (_folder, files) = model(0..8);
    a.exports.hold(Arc::clone(&files)).await;
    let relay = Relay::open(world.connection.clone()).await.unwrap();
    let other = CopyName {
        root: root(&model([99]).1),
        generation: Generation(1),
    };
    let junk = |segment| CopyObject::Segment {
        segment,
        id: files.manifest().segments()[0].id,
    };
    let mut segment = 0;
    let full = loop {
        if let Err(error) = relay.put(other, junk(segment), vec![1; 1 << 20].into()).await {
            break error;
        }
        segment += 1;
    };
    assert!(matches!(full, RelayError::Full { .. }), "{full}");
    let before = world.relay_subjects("C").await;
    // What the relay refuses reaches those who listen all the same.
    let imported = b.importer.import(root(&files)).await.unwrap();
    assert_is_copy(&imported, &files);
    eventually("only the junk is left", async || {
        (world.relay_subjects("C").await == before).then_some(())
    })
    .await;

    // The sweeper removes what has no claim, and then there is room.
    let swept = relay.sweep(async || Ok(BTreeSet::new())).await.unwrap();
    assert_eq!(swept.copies, 1);
    relay.put(other, junk(0), vec![1; 1 << 20].into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_takes_what_nobody_claims_and_leaves_what_somebody_does() {
    let world = World::start().await;
    let relay = Relay::open(world.connection.clone()).await.unwrap();
    let (_folder, files) = model([1]);
    let name = |generation| CopyName {
        root: root(&files),
        generation: Generation(generation),
    };
    let object = CopyObject::Segment {
        segment: 0,
        id: files.manifest().segments()[0].id,
    };
    for generation in [1, 2] {
        relay
            .put(name(generation), object, vec![1; 3 << 20].into())
            .await
            .unwrap();
        relay
            .put(
                name(generation),
                CopyObject::Manifest,
                files.manifest().json().clone(),
            )
            .await
            .unwrap();
    }
    let swept = relay.sweep(async || Ok(BTreeSet::from([name(2)]))).await.unwrap();
    assert_eq!(swept.copies, 1);
    let generations: BTreeSet<String> = world
        .relay_subjects("C")
        .await
        .iter()
        .map(|subject| subject.split('.').nth(4).unwrap().to_owned())
        .collect();
    assert_eq!(generations, BTreeSet::from([Generation(2).to_string()]));
    relay.sweep(async || Ok(BTreeSet::new())).await.unwrap();
    relay_is_clear(&world).await;
    let idle = relay
        .sweep(async || panic!("nothing is there that could be claimed"))
        .await
        .unwrap();
    assert_eq!(idle.messages, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_name_the_root_and_the_holder() {
    let world = World::start().await;
    let (a, b) = (world.worker("a").await, world.worker("b").await);
    let (folder, files) = model(0..3);
    let nobody = b.importer.import(root(&files)).await.unwrap_err();
    assert_eq!(nobody.to_string(), format!("no worker holds {}", root(&files)));

    // A holder that started again says that it is another one than was asked.
    a.exports.hold(Arc::clone(&files)).await;
    let stale = flotilla_protocol::weights::Holding {
        worker: a.importer.identity.worker.clone(),
        incarnation: 6,
        machine: "a".into(),
        folder: folder.path().into(),
        sends: 0,
    };
    b.importer.registry.hold(root(&files), &stale).await.unwrap();
    let refused = b.importer.import(root(&files)).await.unwrap_err();
    let ImportError::Holders {
        last: HolderFailure::Refused { reason, .. },
        ..
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!(reason, CopyRefusal::OtherIncarnation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_whose_files_were_changed_ends_the_copy_with_that_reason() {
    let world = World::start().await;
    let (a, b) = (world.worker("a").await, world.worker("b").await);
    let (folder, files) = model(0..3);
    fs::write(folder.path().join("part-001.txt"), vec![0; 1 << 20]).unwrap();
    a.exports.hold(Arc::clone(&files)).await;
    let failed = b.importer.import(root(&files)).await.unwrap_err();
    assert!(failed.to_string().contains("SourceLost"), "{failed}");
    relay_is_clear(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_relay_is_an_error_and_is_not_made() {
    let world = World::start().await;
    world
        .connection
        .jetstream
        .delete_stream("OBJ_flotilla_relay")
        .await
        .unwrap();
    let missing = Relay::open(world.connection.clone()).await.unwrap_err();
    assert!(missing.to_string().contains("flotilla_relay"), "{missing}");
    assert!(
        world
            .connection
            .jetstream
            .get_stream("OBJ_flotilla_relay")
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segment_whose_chunks_are_gone_is_not_there_and_nobody_waits_for_it() {
    let world = World::start().await;
    let relay = Relay::open(world.connection.clone()).await.unwrap();
    let (_folder, files) = model([5]);
    let name = CopyName {
        root: root(&files),
        generation: Generation(1),
    };
    let object = CopyObject::Segment {
        segment: 0,
        id: files.manifest().segments()[0].id,
    };
    let mut bytes = vec![0; 3 << 20];
    assert!(
        !relay.fetch(name, object, &mut bytes).await.unwrap(),
        "it never was there"
    );
    relay.put(name, object, vec![3; 3 << 20].into()).await.unwrap();
    assert!(relay.fetch(name, object, &mut bytes).await.unwrap());
    assert!(bytes == vec![3; 3 << 20]);
    let stream = world
        .connection
        .jetstream
        .get_stream("OBJ_flotilla_relay")
        .await
        .unwrap();
    let chunk = world.relay_subjects("C").await.pop_first().unwrap();
    // One chunk less, and then none, while the description stays.
    stream.purge().filter(&chunk).keep(1).await.unwrap();
    assert!(!relay.fetch(name, object, &mut bytes).await.unwrap());
    stream.purge().filter(&chunk).await.unwrap();
    assert!(!relay.fetch(name, object, &mut bytes).await.unwrap());
    assert_eq!(world.relay_subjects("M").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_has_one_sender_and_a_claim_that_was_lost_is_noticed() {
    let world = World::start().await;
    let registry = world.worker("a").await.importer.registry;
    let wanted = root(&model([1]).1);
    let claim = |sender: &str| Claim {
        sender: WorkerId::new(sender).unwrap(),
        incarnation: 1,
        generation: Generation(sender.len() as u64),
    };
    let mut held = registry.take(wanted, claim("a")).await.unwrap().unwrap();
    assert_eq!(
        registry.take(wanted, claim("bb")).await.unwrap().unwrap_err(),
        claim("a")
    );
    assert!(registry.renew(&mut held).await.unwrap());
    assert_eq!(registry.claim_of(wanted).await.unwrap(), Some(claim("a")));
    // It expires while its sender is away, and somebody else takes it.
    let bucket = world
        .connection
        .jetstream
        .get_key_value("flotilla_claims")
        .await
        .unwrap();
    bucket.purge(wanted.to_string()).await.unwrap();
    let other = registry.take(wanted, claim("bb")).await.unwrap().unwrap();
    assert!(!registry.renew(&mut held).await.unwrap());
    assert!(registry.release(held).await.is_err(), "it is somebody else's");
    assert_eq!(registry.claim_of(wanted).await.unwrap(), Some(claim("bb")));
    registry.release(other).await.unwrap();
    assert_eq!(registry.claim_of(wanted).await.unwrap(), None);

    // A download is claimed by its origin, beside copies, and no copy is looked for under its claim.
    let origin = "hf:org/name@main";
    let mut held = registry.take_download(origin, claim("a")).await.unwrap().unwrap();
    let refused = registry.take_download(origin, claim("bb")).await.unwrap();
    assert_eq!(refused.unwrap_err(), claim("a"));
    assert!(registry.renew_download(&mut held).await.unwrap());
    assert_eq!(registry.downloader_of(origin).await.unwrap(), Some(claim("a")));
    assert!(registry.copies().await.unwrap().is_empty());
    registry.release_download(held).await.unwrap();
    assert_eq!(registry.downloader_of(origin).await.unwrap(), None);
}
