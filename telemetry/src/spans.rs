//! Spans: what happened to a request and when, told to a collector.
//!
//! Nothing is made while a request runs: whoever knows that a part of it is over gives one [`Span`] with its two moments
//! to the [`Tracer`], which puts it in a bounded queue or drops it. The rest is done by the [`Exporter`]'s thread, so
//! that a collector that is slow or away costs a role nothing but the spans.

mod authorities;
mod exporter;
mod ids;
mod sampler;
mod tracer;
mod wire;

use std::time::Instant;

pub use exporter::{Exporter, ExporterError, ExporterSettings};
pub use ids::{SpanId, TraceId};
pub use sampler::Sampler;
pub use tracer::{Trace, Tracer};

crate::catalogue! {
    SPANS: counter "flotilla_process_spans_total" ["outcome"]
        "Spans of requests by what became of them, where telemetry.otlp.endpoint is set: sent, dropped (too many waited for the collector), undelivered (the collector did not take them, or not in time).";
}

/// Lets the counters be there before there is a span.
pub(crate) fn register() {
    for outcome in ["sent", "dropped", "undelivered"] {
        SPANS.register(&[outcome]);
    }
}

/// A part of a request's way.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// What it is, from a closed set, perhaps with the model.
    pub name: String,
    /// Who is on its other side.
    pub kind: SpanKind,
    /// The trace that it belongs to.
    pub trace: TraceId,
    /// The span.
    pub id: SpanId,
    /// What it is a part of.
    pub parent: Option<SpanId>,
    /// When it began.
    pub began: Instant,
    /// When it ended; not before it began.
    pub ended: Instant,
    /// What is known of it. Never of what was asked or answered.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed, a word from a closed set, if it did.
    pub error: Option<&'static str>,
}

/// Who is on the other side of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Nobody.
    Internal,
    /// Who asked.
    Server,
    /// Who was asked.
    Client,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text, bounded by whoever made it.
    Text(String),
    /// One word.
    Word(&'static str),
    /// Several words.
    Words(Vec<&'static str>),
    /// A whole number.
    Whole(i64),
    /// Any number.
    Number(f64),
    /// A truth value.
    Truth(bool),
}

impl From<&'static str> for Value {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Whole(number.into())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Truth(truth)
    }
}
