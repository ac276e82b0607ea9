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
        text("subject", &SUBJECTS, |text| {
            let subjects = Subjects::new(Namespace::new("flotilla").expect("it is a name"));
            let request = subjects.parse_request(text);
            if let Ok((class, model)) = &request {
                let written = subjects.request(*class, model);
                assert_eq!(
                    subjects.parse_request(&written).as_ref(),
                    Ok(&(*class, model.clone()))
                );
            }
            request.is_ok() | subjects.parse_infer(text).is_ok() | subjects.parse_replay(text).is_ok()
        }),
        text(
            "model-token",
            &["org=2Fllama3=2E1=3A8b", "a-b_c", "=C3=A4"],
            |token| {
                let text = decode_token(token);
                if let Ok(text) = &text {
                    assert_eq!(decode_token(&encode_token(text)).as_ref(), Ok(text));
                }
                text.is_ok()
            },
        ),
        text("ids", &IDS, |text| {
            let request = RequestId::new(text);
            if let Ok(request) = &request {
                assert_eq!(request.as_str(), text);
            }
            request.is_ok()
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
        text(
            "hub-name",
            &["hf:org/name@0123456789abcdef0123456789abcdef01234567", "hf:gpt2"],
            |text| {
                let model = text.parse::<HubModel>();
                if let Ok(model) = &model {
                    assert_eq!(model.to_string().parse().as_ref(), Ok(model));
                }
                model.is_ok()
            },
        ),
        text("traceparent", &TRACES, |text| {
            let trace = TraceParent::parse(text);
            if let Some(trace) = &trace {
                assert_eq!(TraceParent::parse(trace.as_str()).as_ref(), Some(trace));
            }
            trace.is_some()
        }),
        text(
            "content-type",
            &["application/json; charset=utf-8", "application/x-msgpack"],
            |text| Encoding::from_content_type(Some(text)).is_ok(),
        ),
    ]
}

/// A decoder of text; the bytes of the network became text before.
fn text(name: &'static str, samples: &[&str], read: impl Fn(&str) -> bool + Send + Sync + 'static) -> Target {
    Target::new(name, Corpus::new(Format::Text, samples), move |probe, input| {
        let text = String::from_utf8_lossy(input);
        Verdict::from(probe.measure(|| read(&text)))
    })
}

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
