//! Names of the message headers that Flotilla reads and writes.

/// Encoding of a body: `application/json` or `application/msgpack`.
pub const CONTENT_TYPE: &str = "Content-Type";
/// Kind of a journal message, see [`crate::event::EventKind`].
pub const EVENT: &str = "Flotilla-Event";
/// Attempt that wrote a journal message; 0 when the dispatcher wrote it.
pub const ATTEMPT: &str = "Flotilla-Attempt";
/// Worker that wrote a journal message; absent when the dispatcher wrote it. On a request: the only worker that may
/// have it, which is for measurements. Such a request needs a
/// `deadline_ms`, and no profile limits how many of them run.
pub const WORKER: &str = "Flotilla-Worker";
/// On `accepted`: strikes that the request had when the attempt began.
pub const STRIKES: &str = "Flotilla-Strikes";
/// On `accepted`: which start of the worker wrote it, since one that died may come back under its name.
pub const INCARNATION: &str = "Flotilla-Incarnation";
/// On `accepted`: `true` when the attempt has its worker for itself; absent otherwise.
pub const ALONE: &str = "Flotilla-Alone";
/// On a request, an assignment and an event: the trace of whoever asked, see [`crate::TraceParent`].
pub const TRACE_PARENT: &str = "traceparent";
/// On a dead letter: why it is one, in words.
pub const DEAD_REASON: &str = "Flotilla-Dead-Reason";
/// On a dead letter: the request's id, where it had one.
pub const DEAD_REQUEST: &str = "Flotilla-Dead-Request";
/// On a dead letter: the subject that the message was published to.
pub const DEAD_SUBJECT: &str = "Flotilla-Dead-Subject";
/// On a dead letter: its place in the request stream, which makes the copy idempotent.
pub const DEAD_SEQUENCE: &str = "Flotilla-Dead-Sequence";
