//! The spans of requests, made of what a term does for them and what the core tells.
//!
//! Ids of the spans that others go on from follow from the request, its attempt and its worker. So whoever leads next goes
//! on in the same trace, the span of a request is made by whoever acknowledges it, from its publish on, and a worker's
//! spans have their parent even when the leader that gave it the request is gone. A term that ends makes no span of what
//! it holds: the next one does.

use std::collections::HashMap;
use std::time::Instant;

use flotilla_dispatcher_core::AssignOutcome;
use flotilla_protocol::assignment::{AssignReply, Assignment, AttemptEnd, Done};
use flotilla_protocol::event::{ErrorCode, Event};
use flotilla_protocol::{Attempt, Class, ModelName, RequestId, TraceParent, WorkerId};
use flotilla_telemetry::{Span, SpanId, SpanKind, Trace, Tracer, Value};

use crate::admission::Envelope;
use crate::journal_state::JournalEnd;

/// The requests whose spans are under way. Does nothing when nobody takes spans.
#[derive(Debug)]
pub(crate) struct Spans {
    tracer: Tracer,
    /// Those whose traces are told.
    open: HashMap<RequestId, Open>,
}

/// A request that is not acknowledged.
#[derive(Debug)]
struct Open {
    trace: Trace,
    class: Class,
    model: ModelName,
    published: Instant,
    pulled: Instant,
    /// Whether its check has a span.
    is_checked: bool,
    waits_since: Option<Instant>,
    sent: Option<Sent>,
    /// The newest attempt that has a span.
    told: Attempt,
    failure: Option<ErrorCode>,
}

/// An attempt that was sent to a worker.
#[derive(Debug)]
struct Sent {
    attempt: Attempt,
    worker: WorkerId,
    began: Instant,
    /// When its answer was given up; it may run all the same.
    unanswered: Option<Instant>,
}

/// What is told of an attempt that is over.
#[derive(Debug)]
struct Over {
    error: Option<&'static str>,
    end: &'static str,
}

impl Spans {
    pub(crate) fn new(tracer: Tracer) -> Self {
        let open = HashMap::new();
        Self { tracer, open }
    }

    /// A message was pulled. One that is held stays as it is.
    pub(crate) fn pulled(&mut self, envelope: &Envelope, caller: Option<&TraceParent>) {
        let Some(trace) = self.tracer.trace(envelope.request.as_str(), caller) else {
            return;
        };
        if !trace.is_sampled {
            return;
        }
        let pulled = Instant::now();
        let published = pulled.checked_sub(envelope.pulled.age()).unwrap_or(pulled);
        self.open.entry(envelope.request.clone()).or_insert_with(|| Open {
            trace,
            class: envelope.class,
            model: envelope.model.clone(),
            published,
            pulled,
            is_checked: false,
            waits_since: None,
            sent: None,
            told: Attempt(0),
            failure: None,
        });
    }

    /// Admission has looked at it, and perhaps refused it.
    pub(crate) fn checked(&mut self, request: &RequestId, refused: Option<ErrorCode>) {
        let Some(open) = self.open.get_mut(request).filter(|open| !open.is_checked) else {
            return;
        };
        let now = Instant::now();
        open.is_checked = true;
        open.waits_since = refused.is_none().then_some(now);
        let mut span = open.part(request, "admission", open.pulled, now);
        span.error = refused.map(ErrorCode::as_str);
        self.tracer.send(span);
    }

    /// There is no room for it: it comes again.
    pub(crate) fn forget(&mut self, request: &RequestId) {
        self.open.remove(request);
    }

    /// An attempt is sent. Returns what the worker goes on from.
    pub(crate) fn assigned(
        &mut self,
        worker: &WorkerId,
        assignment: &Assignment,
        caller: Option<&TraceParent>,
    ) -> Option<TraceParent> {
        let (request, attempt) = (&assignment.request, assignment.attempt);
        let trace = self.tracer.trace(request.as_str(), caller)?;
        if let Some(open) = self.open.get_mut(request) {
            let now = Instant::now();
            // What became of the one before was not told.
            self.tracer.send_all(open.give_up(request, LOST));
            let waited = open.waits_since.take();
            self.tracer
                .send_all(waited.map(|since| open.part(request, "queue", since, now)));
            open.sent = Some(Sent {
                attempt,
                worker: worker.clone(),
                began: now,
                unanswered: None,
            });
        }
        Some(trace.header(attempt_span(request, worker, attempt)))
    }

    /// What came of sending it.
    pub(crate) fn replied(
        &mut self,
        request: &RequestId,
        worker: &WorkerId,
        attempt: Attempt,
        outcome: &AssignOutcome,
    ) {
        let Some(open) = self.open.get_mut(request) else {
            return;
        };
        let is_it = |sent: &Sent| sent.attempt == attempt && sent.worker == *worker;
        let Some(sent) = open.sent.as_mut().filter(|sent| is_it(sent)) else {
            return;
        };
        match outcome {
            AssignOutcome::Replied(AssignReply::Accepted { .. }) => {}
            AssignOutcome::NoAnswer => sent.unanswered = Some(Instant::now()),
            AssignOutcome::Replied(AssignReply::Refused(_)) => {
                let over = Over {
                    error: Some("refused"),
                    end: "refused",
                };
                let mut span = open.end_sent(request, over);
                // Its number, and with it the id, is another attempt's.
                span.iter_mut().for_each(|span| span.id = SpanId::fresh());
                open.told = Attempt(attempt.0.saturating_sub(1));
                self.tracer.send_all(span);
            }
        }
    }

    /// A worker says that an attempt ended.
    pub(crate) fn done(&mut self, done: &Done) {
        let Some(open) = self.open.get_mut(&done.request) else {
            return;
        };
        let over = Over {
            error: done.end.fault(done.failure),
            end: done.end.as_str(),
        };
        let span = open.end_attempt(&done.request, &done.worker, done.attempt, over);
        if span.is_some() && done.end == AttemptEnd::Terminal {
            open.waits_since = None;
            open.failure = done.failure;
        }
        self.tracer.send_all(span);
    }

    /// Its journal has an end that nobody told, if it has one.
    pub(crate) fn found_ended(&mut self, request: &RequestId, end: Option<JournalEnd>) {
        let (Some(open), Some(end)) = (self.open.get_mut(request), end) else {
            return;
        };
        if let Some((worker, attempt)) = &end.writer {
            let over = Over {
                error: end.failure.map(ErrorCode::as_str),
                end: "terminal",
            };
            let span = open.end_attempt(request, worker, *attempt, over);
            self.tracer.send_all(span);
        }
        open.waits_since = None;
        open.failure = end.failure;
    }

    /// An attempt ended with its worker.
    pub(crate) fn lost(&mut self, request: &RequestId, worker: &WorkerId, attempt: Attempt) {
        let Some(open) = self.open.get_mut(request) else {
            return;
        };
        let span = open.end_attempt(request, worker, attempt, LOST);
        self.tracer.send_all(span);
    }

    /// The dispatcher ends it with this event.
    pub(crate) fn ends(&mut self, request: &RequestId, event: &Event) {
        let Some(open) = self.open.get_mut(request) else {
            return;
        };
        if let Event::Failed(failed) = event {
            open.failure = Some(failed.error.code);
        }
        if let Some(since) = open.waits_since.take() {
            self.tracer
                .send(open.part(request, "queue", since, Instant::now()));
        }
    }

    /// Its journal is terminal, and it is acknowledged.
    pub(crate) fn acknowledged(&mut self, request: &RequestId) {
        let Some(mut open) = self.open.remove(request) else {
            return;
        };
        // Its journal tells that it ended; a lost attempt was told before.
        self.tracer.send_all(open.give_up(request, UNTOLD));
        let mut attributes = open.attributes(request);
        attributes.push(("messaging.system", "nats".into()));
        self.tracer.send(Span {
            name: "request".to_owned(),
            kind: SpanKind::Server,
            trace: open.trace.id,
            id: request_span(request),
            parent: open.trace.parent,
            began: open.published,
            ended: Instant::now(),
            attributes,
            error: open.failure.map(ErrorCode::as_str),
        });
    }
}

impl Open {
    /// A part of the request's way in which nobody else has one.
    fn part(&self, request: &RequestId, name: &str, began: Instant, ended: Instant) -> Span {
        Span {
            name: name.to_owned(),
            kind: SpanKind::Internal,
            trace: self.trace.id,
            id: SpanId::fresh(),
            parent: Some(request_span(request)),
            began,
            ended,
            attributes: Vec::new(),
            error: None,
        }
    }

    /// Ends the attempt that is sent, if one is.
    fn end_sent(&mut self, request: &RequestId, over: Over) -> Option<Span> {
        let sent = self.sent.as_ref()?;
        let (worker, attempt) = (sent.worker.clone(), sent.attempt);
        self.end_attempt(request, &worker, attempt, over)
    }

    /// Ends the attempt that is sent, if one is: what became of it was not told.
    fn give_up(&mut self, request: &RequestId, over: Over) -> Option<Span> {
        let Some(unanswered) = self.sent.as_ref()?.unanswered else {
            return self.end_sent(request, over);
        };
        let mut span = self.end_sent(request, UNANSWERED)?;
        span.ended = unanswered;
        self.waits_since = Some(unanswered);
        Some(span)
    }

    /// An attempt is over. One that a former leader sent began before we know of it.
    fn end_attempt(
        &mut self,
        request: &RequestId,
        worker: &WorkerId,
        attempt: Attempt,
        Over { error, end }: Over,
    ) -> Option<Span> {
        if attempt <= self.told {
            return None;
        }
        let is_it = |sent: &mut Sent| sent.attempt == attempt && sent.worker == *worker;
        let sent = self.sent.take_if(is_it);
        if sent.is_none() && self.sent.is_some() {
            return None;
        }
        let now = Instant::now();
        self.told = attempt;
        self.waits_since = Some(now);
        let mut attributes = self.attributes(request);
        attributes.push(("flotilla.attempt", attempt.0.into()));
        attributes.push(("flotilla.attempt.end", end.into()));
        attributes.push(("flotilla.worker.id", worker.as_str().to_owned().into()));
        attributes.push(("flotilla.attempt.adopted", sent.is_none().into()));
        Some(Span {
            name: "attempt".to_owned(),
            kind: SpanKind::Client,
            trace: self.trace.id,
            id: attempt_span(request, worker, attempt),
            parent: Some(request_span(request)),
            began: sent.map_or(self.pulled, |sent| sent.began),
            ended: now,
            attributes,
            error,
        })
    }

    fn attributes(&self, request: &RequestId) -> Vec<(&'static str, Value)> {
        vec![
            ("flotilla.request.id", request.as_str().to_owned().into()),
            ("flotilla.class", self.class.as_str().into()),
            ("gen_ai.request.model", self.model.as_str().to_owned().into()),
        ]
    }
}

fn request_span(request: &RequestId) -> SpanId {
    SpanId::derived(&["request", request.as_str()])
}

fn attempt_span(request: &RequestId, worker: &WorkerId, attempt: Attempt) -> SpanId {
    let attempt = attempt.0.to_string();
    SpanId::derived(&["attempt", request.as_str(), worker.as_str(), &attempt])
}

const LOST: Over = Over {
    error: Some("worker_lost"),
    end: "lost",
};
const UNTOLD: Over = Over {
    error: None,
    end: "untold",
};
const UNANSWERED: Over = Over {
    error: Some("unanswered"),
    end: "unanswered",
};
