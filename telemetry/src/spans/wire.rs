//! Spans as OTLP 1 writes them: the part of `opentelemetry.proto.collector.trace.v1` that we have something to say in.

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::tracer::Ended;
use super::{SpanKind, Value};

/// The body of an export of spans that are told by a process of which this is known.
pub(crate) fn body(resource: &[(String, String)], spans: &[Ended]) -> Vec<u8> {
    let attributes = resource.iter().map(|(key, value)| KeyValue {
        key: key.clone(),
        value: Some(any(any_value::Value::String(value.clone()))),
    });
    let request = ExportRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: attributes.collect(),
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(Scope {
                    name: "flotilla".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                }),
                spans: spans.iter().map(span).collect(),
            }],
        }],
    };
    request.encode_to_vec()
}

/// How many spans a collector that took the others did not take, and why.
pub(crate) fn rejected(body: &[u8]) -> Option<(u64, String)> {
    // An answer that cannot be read says no more than its status.
    let answer = ExportAnswer::decode(body).ok()?;
    let partial = answer.partial_success?;
    let count = u64::try_from(partial.rejected_spans)
        .ok()
        .filter(|count| *count > 0)?;
    Some((count, partial.error_message))
}

fn span(ended: &Ended) -> WireSpan {
    let span = &ended.span;
    let mut attributes: Vec<KeyValue> = span
        .attributes
        .iter()
        .map(|(key, value)| attribute(key, value))
        .collect();
    attributes.extend(
        span.error
            .map(|error| attribute("error.type", &Value::Word(error))),
    );
    WireSpan {
        trace_id: span.trace.bytes().to_vec(),
        span_id: span.id.bytes().to_vec(),
        parent_span_id: span
            .parent
            .map_or_else(Vec::new, |parent| parent.bytes().to_vec()),
        name: span.name.clone(),
        kind: match span.kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
        },
        start_time_unix_nano: unix_ns(ended.began),
        end_time_unix_nano: unix_ns(ended.ended),
        attributes,
        status: span.error.map(|error| Status {
            message: error.to_owned(),
            code: STATUS_ERROR,
        }),
    }
}

fn attribute(key: &str, value: &Value) -> KeyValue {
    let word = |word: &str| any_value::Value::String(word.to_owned());
    let value = match value {
        Value::Text(text) => word(text),
        Value::Word(text) => word(text),
        Value::Words(words) => any_value::Value::Array(ArrayValue {
            values: words.iter().map(|text| any(word(text))).collect(),
        }),
        Value::Whole(number) => any_value::Value::Int(*number),
        Value::Number(number) => any_value::Value::Double(*number),
        Value::Truth(truth) => any_value::Value::Bool(*truth),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(any(value)),
    }
}

fn any(value: any_value::Value) -> AnyValue {
    AnyValue { value: Some(value) }
}

/// 0 for a clock that is before 1970.
fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

const STATUS_ERROR: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ExportAnswer {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<WireSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "any_value::Value", tags = "1, 2, 3, 4, 5")]
    value: Option<any_value::Value>,
}

#[derive(Clone, PartialEq, Message)]
struct ArrayValue {
    #[prost(message, repeated, tag = "1")]
    values: Vec<AnyValue>,
}

mod any_value {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Value {
        #[prost(string, tag = "1")]
        String(String),
        #[prost(bool, tag = "2")]
        Bool(bool),
        #[prost(int64, tag = "3")]
        Int(i64),
        #[prost(double, tag = "4")]
        Double(f64),
        #[prost(message, tag = "5")]
        Array(super::ArrayValue),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_were_not_taken_are_counted_and_anything_else_is_not() {
        let answer = |rejected_spans| ExportAnswer {
            partial_success: Some(PartialSuccess {
                rejected_spans,
                error_message: "too old".to_owned(),
            }),
        };
        assert_eq!(
            rejected(&answer(3).encode_to_vec()),
            Some((3, "too old".to_owned()))
        );
        assert_eq!(rejected(&answer(0).encode_to_vec()), None);
        assert_eq!(rejected(&answer(-1).encode_to_vec()), None);
        assert_eq!(rejected(b""), None);
        assert_eq!(rejected(b"no protobuf"), None);
    }
}
