//! Names, subjects and headers: the envelope of a message.

use flotilla_protocol::event::EventKind;
use flotilla_protocol::hub::HubModel;
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::subject::{Subjects, decode_token, encode_token};
use flotilla_protocol::weights::{Generation, Root, SegmentId};
use flotilla_protocol::{
    Class, Encoding, ModelName, Namespace, Owner, RequestId, Tenant, TraceParent, WorkerId,
};

use crate::corpus::Corpus;
use crate::probe::Verdict;
use crate::target::{Format, Target};

pub(super) fn targets() -> Vec<Target> {
    vec![
        text("service-subject", &SUBJECTS, |text| {
            subjects().parse_infer(text).is_ok() | subjects().parse_replay(text).is_ok()
        }),
        Target::new(
            "request-subject",
            Corpus::new(Format::Text, SUBJECTS),
            |probe, input| {
                let text = String::from_utf8_lossy(input);
                let read = probe.measure(|| subjects().parse_request(&text));
                if let Ok((class, model)) = &read {
                    let written = subjects().request(*class, model);
                    assert_eq!(subjects().parse_request(&written), Ok((*class, model.clone())));
                }
                Verdict::from(&read)
            },
        ),
        Target::new(
            "model-token",
            Corpus::new(Format::Text, TOKENS),
            |probe, input| {
                let token = String::from_utf8_lossy(input);
                let read = probe.measure(|| decode_token(&token));
                if let Ok(text) = &read {
                    assert_eq!(decode_token(&encode_token(text)).as_ref(), Ok(text));
                }
                Verdict::from(&read)
            },
        ),
        text("ids", &IDS, |text| {
            RequestId::new(text).is_ok()
                | Owner::new(text).is_ok()
                | WorkerId::new(text).is_ok()
                | ModelName::new(text).is_ok()
                | Tenant::new(text).is_ok()
        }),
        text("words", &WORDS, |text| {
            text.parse::<Class>().is_ok()
                | text.parse::<EventKind>().is_ok()
                | text.parse::<KeepAlive>().is_ok()
                | text.parse::<Generation>().is_ok()
                | text.parse::<Root>().is_ok()
                | text.parse::<SegmentId>().is_ok()
                | text.parse::<flotilla_client::ServerVersion>().is_ok()
                | flotilla_config::parse_bytes(text).is_some()
        }),
        Target::new("hub-name", Corpus::new(Format::Text, HUB), |probe, input| {
            let text = String::from_utf8_lossy(input);
            let read = probe.measure(|| text.parse::<HubModel>());
            if let Ok(model) = &read {
                assert_eq!(model.to_string().parse().as_ref(), Ok(model));
            }
            Verdict::from(&read)
        }),
        Target::new(
            "traceparent",
            Corpus::new(Format::Text, TRACES),
            |probe, input| {
                let text = String::from_utf8_lossy(input);
                let read = probe.measure(|| TraceParent::parse(&text));
                if let Some(trace) = &read {
                    assert_eq!(TraceParent::parse(trace.as_str()).as_ref(), Some(trace));
                }
                Verdict::from(read.is_some())
            },
        ),
        text("content-type", &CONTENT_TYPES, |text| {
            Encoding::from_content_type(Some(text)).is_ok()
        }),
    ]
}

/// A decoder of text; the bytes of the network became text before.
fn text(name: &'static str, samples: &[&str], read: impl Fn(&str) -> bool + Send + Sync + 'static) -> Target {
    Target::new(name, Corpus::new(Format::Text, samples), move |probe, input| {
        let text = String::from_utf8_lossy(input);
        Verdict::from(probe.measure(|| read(&text)))
    })
}

fn subjects() -> Subjects {
    Subjects::new(Namespace::new("flotilla").expect("it is a name"))
}

const TOKENS: [&str; 3] = ["org=2Fllama3=2E1=3A8b", "a-b_c", "=C3=A4"];
const HUB: [&str; 2] = ["hf:org/name@0123456789abcdef0123456789abcdef01234567", "hf:gpt2"];
const CONTENT_TYPES: [&str; 2] = ["application/json; charset=utf-8", "application/x-msgpack"];
const SUBJECTS: [&str; 4] = [
    "flotilla.request.batch.org=2Fllama3=2E1=3A8b",
    "flotilla.request.interactive.m",
    "flotilla.infer.org=2Fm",
    "flotilla.replay.team-a.00112233445566778899aabbccddeeff",
];
const IDS: [&str; 4] = [
    "00112233445566778899aabbccddeeff",
    "team-a.0011",
    "org/llama3.1:8b",
    "w-1",
];
const WORDS: [&str; 9] = [
    "interactive",
    "finished",
    "10m",
    "-1",
    "500ms",
    "00000000000000ff",
    "a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7",
    "2.12.12-beta.1",
    "14.5GiB",
];
const TRACES: [&str; 2] = [
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later",
];
