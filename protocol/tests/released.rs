//! What the release before wrote is read, and what we write is what it reads: parts are updated one after the other.
//!
//! `tests/released/<n>` holds the golden files of a wire version as they were; they never change. A part ignores fields
//! that it does not know, needs those that it knows, and cannot read a variant that it does not know. So a newer message
//! has every field of an older one, and a new variant is named here, with what an older reader does about it.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use flotilla_protocol::Encoding;
use flotilla_protocol::admin::*;
use flotilla_protocol::assignment::*;
use flotilla_protocol::catalog::*;
use flotilla_protocol::event::*;
use flotilla_protocol::fleet::*;
use flotilla_protocol::profile::Profile;
use flotilla_protocol::weights::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Messages of today that a reader of the release before does not know, and what it does about them.
const NEW: [(&str, &str); 8] = [
    (
        "admin-drain",
        "a dispatcher has no such endpoint, and `flotilla drain` says that nobody answers",
    ),
    ("admin-drain-reply", "nobody asks for it"),
    (
        "admin-reconciliation",
        "nobody asks it: there is no such endpoint",
    ),
    (
        "standing",
        "a dispatcher has no such endpoint, and `flotilla results` asks again until one has",
    ),
    ("standing-reply-queued", "nobody asks for it"),
    ("standing-reply-gone", "nobody asks for it"),
    (
        "control-report",
        "it logs an order that cannot be read, and reports when it would have",
    ),
    (
        "done-journal-broken",
        "it takes the message for lost: the next report does not list the request, and it reads the journal",
    ),
];

#[test]
fn what_the_release_before_wrote_means_the_same_today() {
    for (name, old) in messages(&released(), "json") {
        let today = fs::read_to_string(golden().join(format!("{name}.json")))
            .unwrap_or_else(|error| panic!("{name} was removed, and the release before writes it: {error}"));
        let meaning = read(&name, Encoding::Json, old.as_bytes());
        assert_eq!(meaning, read(&name, Encoding::Json, today.as_bytes()), "{name}");
    }
    for (name, old) in messages(&released(), "msgpack.hex") {
        let today = fs::read_to_string(golden().join(format!("{name}.msgpack.hex"))).unwrap();
        let meaning = read(&name, Encoding::MessagePack, &from_hex(&old));
        assert_eq!(
            meaning,
            read(&name, Encoding::MessagePack, &from_hex(&today)),
            "{name}"
        );
    }
}

#[test]
fn what_we_write_has_every_field_that_the_release_before_reads() {
    let old: BTreeMap<String, Value> = values(&released());
    for (name, today) in values(&golden()) {
        // A variant of a message, such as `done-terminal`, is read where its like is: the longest name that begins it.
        let alike = old
            .iter()
            .filter(|(known, _)| name == **known || name.starts_with(&format!("{known}-")));
        let known = alike.max_by_key(|(known, _)| known.len());
        match (known, NEW.iter().find(|(new, _)| *new == name)) {
            (Some((_, known)), None) => assert_eq!(missing(known, &today, &name), None),
            (None, Some(_)) => {}
            (None, None) => {
                panic!("{name} is unknown to the release before: say in NEW what it does about it")
            }
            (Some((known, _)), Some(_)) => panic!("{name} is read as {known}: take it out of NEW"),
        }
    }
}

/// Where a newer message lacks what an older one has, or has it in another form.
fn missing(old: &Value, new: &Value, path: &str) -> Option<String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => old.iter().find_map(|(name, old)| {
            let path = format!("{path}.{name}");
            match new.get(name) {
                Some(new) => missing(old, new, &path),
                None => Some(path),
            }
        }),
        (Value::Array(old), Value::Array(new)) => {
            let pairs = old.iter().zip(new);
            pairs
                .enumerate()
                .find_map(|(index, (old, new))| missing(old, new, &format!("{path}[{index}]")))
        }
        // What may be null may be anything.
        (Value::Null, _) | (_, Value::Null) => None,
        _ if std::mem::discriminant(old) == std::mem::discriminant(new) => None,
        _ => Some(format!("{path}: {old} became {new}")),
    }
}

/// A message as the type that it is read as, shown whole.
fn read(name: &str, encoding: Encoding, body: &[u8]) -> String {
    let read = READERS.iter().find(|(stem, _)| {
        let rest = name.strip_prefix(stem);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    });
    let (_, read) = read.unwrap_or_else(|| panic!("no reader for {name}"));
    read(name, encoding, body)
}

fn as_type<T: Serialize + DeserializeOwned>(name: &str, encoding: Encoding, body: &[u8]) -> String {
    let read: T = encoding
        .decode(body, 1 << 20)
        .unwrap_or_else(|error| panic!("{name} cannot be read: {error}"));
    serde_json::to_string(&read).unwrap()
}

type Reader = fn(&str, Encoding, &[u8]) -> String;

/// The first whose name begins a message's name.
const READERS: [(&str, Reader); 34] = [
    ("admin-cancel-reply", as_type::<CancelReply>),
    ("admin-cancel", as_type::<CancelRequest>),
    ("admin-queue", as_type::<QueueStatus>),
    ("admin-reconciliation", as_type::<Reconciliation>),
    ("admin-residency-reply", as_type::<ResidencyReply>),
    ("admin-residency", as_type::<ResidencyRequest>),
    ("admin-workers", as_type::<FleetStatus>),
    ("assign-reply", as_type::<AssignReply>),
    ("assignment", as_type::<Assignment>),
    ("cancel", as_type::<Cancel>),
    ("catalog-entry", as_type::<CatalogEntry>),
    ("claim", as_type::<Claim>),
    ("control-reply", as_type::<ControlReply>),
    ("control", as_type::<Control>),
    ("copy-ask", as_type::<CopyAsk>),
    ("copy-have", as_type::<CopyHave>),
    ("copy-news", as_type::<CopyNews>),
    ("copy-reply", as_type::<CopyReply>),
    ("device-description", as_type::<DeviceDescription>),
    ("device-report", as_type::<DeviceReport>),
    ("done", as_type::<Done>),
    ("event-accepted", as_type::<Accepted>),
    ("event-failed", as_type::<Failed>),
    ("event-finished", as_type::<Finished>),
    ("event-progress", as_type::<Progress>),
    ("event-tokens", as_type::<Tokens>),
    ("holding", as_type::<Holding>),
    ("model-facts", as_type::<ModelFacts>),
    ("model-report", as_type::<ModelReport>),
    ("model-source", as_type::<ModelSource>),
    ("policy", as_type::<Vec<Policy>>),
    ("profile", as_type::<Profile>),
    ("registration", as_type::<Registration>),
    ("report", as_type::<Report>),
];

/// The newest release's files; those of older ones are kept until nobody has them any more.
fn released() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/released/1")
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn messages(folder: &Path, ending: &str) -> BTreeMap<String, String> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = files.filter_map(|path| {
        let name = path
            .file_name()?
            .to_str()?
            .strip_suffix(ending)?
            .strip_suffix('.')?
            .to_owned();
        Some((name, fs::read_to_string(&path).unwrap()))
    });
    let messages: BTreeMap<String, String> = named.collect();
    assert!(!messages.is_empty(), "there are files in {}", folder.display());
    messages
}

fn values(folder: &Path) -> BTreeMap<String, Value> {
    let messages = messages(folder, "json").into_iter();
    messages
        .map(|(name, text)| (name, serde_json::from_str(&text).unwrap()))
        .collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let pairs = (0..digits.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}
