//! Weights on their way: manifests, indexes, what the hub and the relay say.

use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use flotilla_hub::Repository;
use flotilla_protocol::hub::HubModel;
use flotilla_protocol::weights::Root;
use flotilla_weights::{CopyName, chosen_files, make_manifest};
use flotilla_weights_core::Manifest;
use serde_json::{Value, json};

use super::models::header;
use crate::corpus::Corpus;
use crate::probe::{Verdict, write};
use crate::target::{Format, Target};

pub(super) fn targets() -> Vec<Target> {
    vec![manifest(), index(), cut(), hub(), description()]
}

/// Under the root that its bytes have: whoever makes a manifest makes its root.
fn manifest() -> Target {
    Target::new(
        "manifest",
        Corpus::of_values(Format::Json, [manifest_value()]),
        |probe, input| {
            let root = Root::new(*blake3::hash(input).as_bytes());
            let json = Bytes::copy_from_slice(input);
            let read = probe.measure(|| Manifest::from_json(root, json));
            if let Ok(manifest) = &read {
                let again = Manifest::new(manifest.files().to_vec(), manifest.segments().to_vec());
                let again = again.expect("it was checked before");
                assert_eq!(
                    (again.files(), again.segments()),
                    (manifest.files(), manifest.segments())
                );
                // The sum of files that are each as long as they say is theirs to bear.
                let _ = manifest.bytes();
            }
            Verdict::from(&read)
        },
    )
}

fn manifest_value() -> Value {
    let id = "0a".repeat(32);
    json!({"flotilla_manifest": 1,
        "files": [{"path": "config.json", "bytes": 4}, {"path": "1_Pooling/config.json", "bytes": 9_000_000}, {"path": "e.txt", "bytes": 0}],
        "segments": [{"id": id, "file": 0, "offset": 0, "bytes": 4},
                     {"id": id, "file": 1, "offset": 0, "bytes": 8_388_608},
                     {"id": id, "file": 1, "offset": 8_388_608, "bytes": 611_392}]})
}

/// `model.safetensors.index.json`, as a hub's repository is chosen by.
fn index() -> Target {
    let sample = crate::corpus::file("worker/engine/tests/golden/sharded-bf16/model.safetensors.index.json");
    let paths = [
        "config.json",
        "model-00001-of-00004.safetensors",
        "tokenizer.json",
        "a/b.json",
        ".hidden.json",
    ];
    Target::new(
        "weights-index",
        Corpus::new(Format::Json, [sample]),
        move |probe, input| {
            let paths = paths.map(str::to_owned).to_vec();
            Verdict::from(&probe.measure(|| chosen_files(paths, Some(input))))
        },
    )
}

/// A folder with weights is cut into segments, by the header of its file.
fn cut() -> Target {
    Target::new("weights-cut", header::corpus(), |probe, input| {
        let folder = probe
            .folder(|folder| write(&folder.join("config.json"), b"{}"))
            .to_owned();
        write(&folder.join("model.safetensors"), input);
        Verdict::from(&probe.measure(|| make_manifest(&folder, 1, &AtomicBool::new(false))))
    })
    .weighing(4)
}

fn hub() -> Target {
    let sample = json!({"sha": "0123456789abcdef0123456789abcdef01234567", "id": "org/name", "tags": ["x"], "siblings": [
        {"rfilename": "config.json", "size": 4, "blobId": "b"},
        {"rfilename": "model.safetensors", "size": 1, "lfs": {"sha256": "0a".repeat(32), "size": 100, "pointerSize": 9}}]});
    let asked: HubModel = "hf:org/name".parse().expect("it is a name");
    Target::new(
        "hub-answer",
        Corpus::of_values(Format::Json, [sample]),
        move |probe, input| Verdict::from(&probe.measure(|| Repository::from_json(&asked, input))),
    )
}

/// Of an object in the relay.
fn description() -> Target {
    let sample = json!({"name": "x", "bucket": "flotilla_relay", "nuid": format!("{}.00000000000000ff.3", "a7".repeat(32)), "size": 9,
        "chunks": 1, "digest": "SHA-256=x", "options": {"max_chunk_size": 1}});
    Target::new(
        "relay-description",
        Corpus::of_values(Format::Json, [sample]),
        |probe, input| Verdict::from(probe.measure(|| CopyName::from_description(input)).is_some()),
    )
}
