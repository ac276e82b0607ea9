//! What the targets of messages have in common: reading, and reading again what was written.

use std::fmt::Debug;

use flotilla_protocol::Encoding;
use flotilla_protocol::codec::{INTERNAL_BYTES_MAX, decode_internal};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::corpus::Corpus;
use crate::probe::Verdict;
use crate::target::{Format, Target};

/// A message between our own processes.
pub(super) fn internal<T: Serialize + DeserializeOwned>(name: &'static str, golden: &[&str]) -> Target {
    let corpus = Corpus::golden(Format::MessagePack, golden);
    Target::new(name, corpus, |probe, input| {
        let read = probe.measure(|| decode_internal::<T>(input));
        round_trip(Encoding::MessagePack, &read);
        Verdict::from(&read)
    })
    .within(16, CLAIMED_BYTES, CLAIMED)
}

/// A message of people and clients, in JSON, of at most so many bytes.
pub(super) fn json<T: Serialize + DeserializeOwned>(
    name: &'static str,
    corpus: Corpus,
    bytes_max: usize,
) -> Target {
    Target::new(name, corpus, move |probe, input| {
        let read = probe.measure(|| Encoding::Json.decode::<T>(input, bytes_max));
        round_trip(Encoding::Json, &read);
        Verdict::from(&read)
    })
}

/// As [`json`], of an answer that we write ourselves.
pub(super) fn answer<T: Serialize + DeserializeOwned>(name: &'static str, golden: &[&str]) -> Target {
    json::<T>(name, Corpus::golden(Format::Json, golden), INTERNAL_BYTES_MAX)
}

/// Writes what was read, reads that, and compares the bytes: values may hold NaNs, which equal nothing.
pub(super) fn round_trip<T: Serialize + DeserializeOwned, E: Debug>(encoding: Encoding, read: &Result<T, E>) {
    let Ok(value) = read else {
        return;
    };
    let written = encoding.encode(value).expect("what was read can be written");
    let again: T = encoding
        .decode(&written, usize::MAX)
        .unwrap_or_else(|error| panic!("what was written cannot be read: {error}"));
    let twice = encoding.encode(&again).expect("it was written before");
    assert!(
        written == twice,
        "what was read changes when it is written and read"
    );
}

/// What serde reserves for a list whose length is claimed, in each of two lists around each other, and some.
pub(super) const CLAIMED_BYTES: usize = 2 * (1 << 20) + (64 << 10);
pub(super) const CLAIMED: &str =
    "a list of MessagePack claims its length; serde reserves up to 1 MiB before its elements come";
