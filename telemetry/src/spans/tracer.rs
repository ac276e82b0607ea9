//! Where spans are given.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use flotilla_protocol::TraceParent;
use tokio::sync::mpsc;

use super::ids::{self, SpanId, TraceId};
use super::{SPANS, Sampler, Span};

/// Takes spans for the collector. Clones share everything; without a collector it costs a look at an option.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    sampler: Sampler,
    queue: mpsc::Sender<Ended>,
}

/// A span on its way, with the time of day.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) span: Span,
    pub(crate) began: SystemTime,
    pub(crate) ended: SystemTime,
}

/// The trace of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// Its name.
    pub id: TraceId,
    /// The span of whoever asked.
    pub parent: Option<SpanId>,
    /// Whether its spans are told.
    pub is_sampled: bool,
}

impl Tracer {
    pub(crate) fn new(sampler: Sampler, queue: mpsc::Sender<Ended>) -> Self {
        Self(Some(Arc::new(Inner { sampler, queue })))
    }

    /// The trace of a request: its caller's, or one that follows from the request's id. `None` when nobody takes spans.
    #[must_use]
    pub fn trace(&self, request: &str, caller: Option<&TraceParent>) -> Option<Trace> {
        let sampler = self.0.as_ref()?.sampler;
        let id = caller.map_or_else(|| TraceId::derived(request), TraceId::of);
        Some(Trace {
            id,
            parent: caller.map(SpanId::of),
            is_sampled: sampler.takes(id, caller),
        })
    }

    /// The trace that another of our processes goes on with, as that one decided. `None` when nobody takes spans.
    #[must_use]
    pub fn continued(&self, span: &TraceParent) -> Option<Trace> {
        self.0.as_ref()?;
        Some(Trace {
            id: TraceId::of(span),
            parent: Some(SpanId::of(span)),
            is_sampled: span.is_sampled(),
        })
    }

    /// Gives a span away. Never waits: what is too much is dropped and counted.
    pub fn send(&self, span: Span) {
        let Some(inner) = &self.0 else { return };
        let (now, time) = (Instant::now(), SystemTime::now());
        let at = |moment| {
            time.checked_sub(now.saturating_duration_since(moment))
                .unwrap_or(time)
        };
        let ended = Ended {
            began: at(span.began),
            ended: at(span.ended.max(span.began)),
            span,
        };
        if inner.queue.try_send(ended).is_err() {
            SPANS.increment(&["dropped"], 1);
        }
    }

    /// Gives several away.
    pub fn send_all(&self, spans: impl IntoIterator<Item = Span>) {
        spans.into_iter().for_each(|span| self.send(span));
    }
}

impl Trace {
    /// The header of whoever goes on from one of its spans.
    #[must_use]
    pub fn header(&self, span: SpanId) -> TraceParent {
        ids::header(self.id, span, self.is_sampled)
    }
}
