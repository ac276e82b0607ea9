//! The events of an answer: bodies, and the messages of a journal with their headers.

use async_nats::{HeaderMap, Message};
use flotilla_client::Entry;
use flotilla_protocol::event::{Event, EventKind};
use flotilla_protocol::{Encoding, RequestId};

use super::messages::{CLAIMED, CLAIMED_BYTES};
use crate::corpus::Corpus;
use crate::probe::Verdict;
use crate::target::{Format, Target};

pub(super) fn targets() -> Vec<Target> {
    let kinds = [
        (
            EventKind::Accepted,
            ["event-accepted-json", "event-accepted-msgpack"],
        ),
        (
            EventKind::Progress,
            ["event-progress-json", "event-progress-msgpack"],
        ),
        (EventKind::Tokens, ["event-tokens-json", "event-tokens-msgpack"]),
        (
            EventKind::Finished,
            ["event-finished-json", "event-finished-msgpack"],
        ),
        (EventKind::Failed, ["event-failed-json", "event-failed-msgpack"]),
    ];
    let mut targets = vec![entry()];
    for (kind, [json, message_pack]) in kinds {
        targets.push(event(json, kind, Encoding::Json));
        targets.push(event(message_pack, kind, Encoding::MessagePack).within(16, CLAIMED_BYTES, CLAIMED));
    }
    targets
}

fn event(name: &'static str, kind: EventKind, encoding: Encoding) -> Target {
    let format = match encoding {
        Encoding::Json => Format::Json,
        Encoding::MessagePack => Format::MessagePack,
    };
    let corpus = Corpus::golden(format, &[&format!("event-{kind}")]);
    Target::new(name, corpus, move |probe, input| {
        let read = probe.measure(|| Event::decode(kind, encoding, input));
        if let Ok(event) = &read {
            let written = event.encode(encoding).expect("what was read can be written");
            let again = Event::decode(kind, encoding, &written);
            let again = again.unwrap_or_else(|error| panic!("what was written cannot be read: {error}"));
            assert_eq!(again.encode(encoding).expect("it was written before"), written);
        }
        Verdict::from(&read)
    })
}

/// A message of the journal: a line for each header, an empty line, and the body.
fn entry() -> Target {
    let body = String::from_utf8(crate::corpus::file("protocol/tests/golden/event-accepted.json"));
    let body = body.expect("JSON is text");
    let head = "Flotilla-Event: accepted\nFlotilla-Attempt: 2\nFlotilla-Worker: w-1\nFlotilla-Strikes: 1\n\
                Flotilla-Incarnation: 77\nFlotilla-Alone: true\nNats-Sequence: 12\nContent-Type: application/json\n\n";
    let samples = [
        format!("{head}{body}"),
        "Flotilla-Event: tokens\n\n{\"offset\":0,\"token_ids\":[1],\"text\":\"a\"}".to_owned(),
    ];
    let request = RequestId::new("r").expect("it is an id");
    Target::new(
        "journal-entry",
        Corpus::new(Format::Text, samples),
        move |probe, input| {
            let message = message(input);
            Verdict::from(&probe.measure(|| Entry::from_message(&request, &message)))
        },
    )
}

fn message(input: &[u8]) -> Message {
    let end = input
        .windows(2)
        .position(|pair| pair == b"\n\n")
        .unwrap_or(input.len());
    let head = String::from_utf8_lossy(&input[..end]);
    let mut headers = HeaderMap::new();
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        // The client library lets no others pass.
        if let (Ok(name), Ok(value)) = (
            name.parse::<async_nats::HeaderName>(),
            value.parse::<async_nats::HeaderValue>(),
        ) {
            headers.append(name, value);
        }
    }
    Message {
        subject: "flotilla.journal.r".into(),
        reply: None,
        payload: bytes::Bytes::copy_from_slice(input.get(end + 2..).unwrap_or_default()),
        headers: Some(headers),
        status: None,
        description: None,
        length: input.len(),
    }
}
