//! The rows about single requests.

use flotilla_tests::{Fault, Refusal, Rule, Side};

use super::{LATE, SLOW};

/// One cell of the matrix.
#[derive(Debug)]
pub(super) struct Row {
    /// Which exchange, as docs/architecture/faults.md calls it.
    pub(super) exchange: &'static str,
    pub(super) fault: &'static str,
    /// Whose side of the server is disturbed, and how; `{id}` is the request's, `{model}` its model.
    pub(super) rules: Vec<(&'static str, Rule)>,
    pub(super) course: Course,
    /// What the client hears when it publishes for the first time.
    pub(super) first: First,
}

/// What the request is, and what is to become of it in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Course {
    /// It is answered, as it would be undisturbed.
    Answered,
    /// It takes longer than the server waits for a sign of life about it, and is answered.
    Long,
    /// Its model is not there, and it fails for that.
    UnknownModel,
    /// It is cancelled after its first token.
    Cancelled,
}

/// What a client hears of its publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    Stored,
    /// Nothing in time; it may be stored.
    Unconfirmed,
    Busy,
    NoQueue,
}

/// An exchange of question and answer, and who asks.
struct Exchange {
    name: &'static str,
    part: &'static str,
    subject: &'static str,
    containing: &'static str,
    course: Course,
    refusals: &'static [(&'static str, Refusal)],
    /// What has to fail for the exchange to happen at all.
    because: Option<(&'static str, &'static str)>,
}

const FULL: Refusal = Refusal::JetStream(10077, "maximum bytes exceeded");
const NO_ROOM: Refusal = Refusal::JetStream(10047, "insufficient storage resources available");
const AWAY: Refusal = Refusal::JetStream(10008, "JetStream system temporarily unavailable");
const STORING: &[(&str, Refusal)] = &[
    ("refused: full", FULL),
    ("refused: no room", NO_ROOM),
    ("refused: temporarily unavailable", AWAY),
    ("refused: JetStream is off", Refusal::NoResponders),
    ("refused: not allowed", Refusal::NotAllowed),
];
const READING: &[(&str, Refusal)] = &[
    ("refused: nobody there", Refusal::NoResponders),
    ("refused: bad request", Refusal::Status(408, "Bad Request")),
];
const ASKING: &[(&str, Refusal)] = &[
    ("refused: nobody there", Refusal::NoResponders),
    ("refused: not allowed", Refusal::NotAllowed),
];

const EXCHANGES: [Exchange; 9] = [
    Exchange {
        name: "client publishes a request",
        part: "client",
        subject: "flotilla.request.>",
        containing: "{id}",
        course: Course::Answered,
        refusals: STORING,
        because: None,
    },
    Exchange {
        name: "dispatcher assigns to a worker",
        part: "d0",
        subject: "flotilla.worker.*.assign",
        containing: "{id}",
        course: Course::Answered,
        refusals: ASKING,
        because: None,
    },
    Exchange {
        name: "worker appends to the journal",
        part: "w0",
        subject: "flotilla.journal.{id}",
        containing: "",
        course: Course::Answered,
        refusals: STORING,
        because: None,
    },
    Exchange {
        name: "worker reads the journal",
        part: "w0",
        subject: "$JS.API.DIRECT.GET.FLOTILLA_JOURNAL",
        containing: "{id}",
        course: Course::Answered,
        refusals: READING,
        because: Some(("w0", "flotilla.journal.{id}")),
    },
    Exchange {
        name: "dispatcher ends a request's journal",
        part: "d0",
        subject: "flotilla.journal.{id}",
        containing: "",
        course: Course::UnknownModel,
        refusals: STORING,
        because: None,
    },
    Exchange {
        name: "dispatcher reads a journal",
        part: "d0",
        subject: "$JS.API.DIRECT.GET.FLOTILLA_JOURNAL",
        containing: "{id}",
        course: Course::UnknownModel,
        refusals: READING,
        because: None,
    },
    Exchange {
        name: "dispatcher reads the catalog",
        part: "d0",
        subject: "$JS.API.STREAM.MSG.GET.KV_flotilla_models",
        containing: "{model}",
        course: Course::UnknownModel,
        refusals: READING,
        because: None,
    },
    Exchange {
        name: "dispatcher acknowledges a request",
        part: "d0",
        subject: "$JS.ACK.FLOTILLA_REQUESTS.>",
        containing: "+ACK",
        course: Course::Answered,
        refusals: ASKING,
        because: None,
    },
    Exchange {
        name: "client reads the journal",
        part: "client",
        subject: "$JS.API.DIRECT.GET.FLOTILLA_JOURNAL",
        containing: "{id}",
        course: Course::Answered,
        refusals: READING,
        because: Some(("client", "flotilla.events.{id}")),
    },
];

/// What is told without an answer: who tells or hears it, and on which side of the proxy.
const NEWS: [(&str, &str, &str, &str, Side, Course); 7] = [
    (
        "events reach a client",
        "client",
        "flotilla.events.{id}",
        "",
        Side::Delivery,
        Course::Answered,
    ),
    (
        "request reaches the dispatcher",
        "d0",
        "flotilla.request.>",
        "{id}",
        Side::Delivery,
        Course::Answered,
    ),
    (
        "assignment reaches a worker",
        "w0",
        "flotilla.worker.*.assign",
        "{id}",
        Side::Delivery,
        Course::Answered,
    ),
    (
        "worker says done",
        "w0",
        "flotilla.done",
        "{id}",
        Side::Question,
        Course::Answered,
    ),
    (
        "dispatcher gives signs of life",
        "d0",
        "$JS.ACK.FLOTILLA_REQUESTS.>",
        "+WPI",
        Side::Question,
        Course::Long,
    ),
    (
        "client cancels",
        "client",
        "flotilla.cancel",
        "{id}",
        Side::Question,
        Course::Cancelled,
    ),
    (
        "dispatcher cancels at a worker",
        "d0",
        "flotilla.worker.*.cancel",
        "{id}",
        Side::Question,
        Course::Cancelled,
    ),
];

/// Every row.
pub(super) fn rows() -> Vec<Row> {
    let asked = EXCHANGES.iter().flat_map(Exchange::rows);
    asked.chain(NEWS.iter().flat_map(news)).collect()
}

impl Exchange {
    fn rows(&self) -> Vec<Row> {
        let once = Some(1);
        let plain = [
            (
                "silent: the question is lost",
                Side::Question,
                Fault::Silent,
                once,
            ),
            ("silent: the answer is lost", Side::Answer, Fault::Silent, once),
            ("slow", Side::Answer, Fault::Late(SLOW), None),
            (
                "late: the question comes after its time",
                Side::Question,
                Fault::Late(LATE),
                once,
            ),
            (
                "late: the answer comes after its time",
                Side::Answer,
                Fault::Late(LATE),
                once,
            ),
            ("twice: the question", Side::Question, Fault::Twice, None),
            ("twice: the answer", Side::Answer, Fault::Twice, None),
        ];
        let refused = self.refusals.iter().map(|(name, refusal)| {
            let fault = Fault::Refused(refusal.clone());
            (*name, Side::Question, fault, once)
        });
        let cells = plain.into_iter().chain(refused);
        cells
            .map(|(fault, side, what, times)| self.row(fault, side, what, times))
            .collect()
    }

    fn row(&self, fault: &'static str, side: Side, what: Fault, times: Option<u32>) -> Row {
        let first = match self.part == "client" && self.subject.starts_with("flotilla.request") {
            true => first(&what, times),
            false => First::Stored,
        };
        let rule = rule(self.subject, self.containing, side, what, times);
        let because = self.because.map(|(part, subject)| {
            let (side, times) = match subject.starts_with("flotilla.events") {
                true => (Side::Delivery, None),
                false => (Side::Answer, Some(1)),
            };
            let mut rule = Rule::new(subject, side, Fault::Silent);
            rule.times = times;
            (part, rule)
        });
        Row {
            exchange: self.name,
            fault,
            rules: because.into_iter().chain([(self.part, rule)]).collect(),
            course: self.course,
            first,
        }
    }
}

/// A rule for messages of one request, or for one of the messages that cannot be told apart: other rows want some, too.
fn rule(subject: &str, containing: &str, side: Side, fault: Fault, times: Option<u32>) -> Rule {
    let is_of_one = subject.contains('{') || containing.contains('{');
    let times = times.or(if is_of_one { None } else { Some(1) });
    Rule {
        times,
        ..Rule::new(subject, side, fault).containing(containing)
    }
}

fn first(fault: &Fault, times: Option<u32>) -> First {
    match fault {
        Fault::Silent => First::Unconfirmed,
        Fault::Late(_) if times.is_some() => First::Unconfirmed,
        Fault::Late(_) | Fault::Twice => First::Stored,
        Fault::Refused(refusal) if *refusal == FULL || *refusal == NO_ROOM => First::Busy,
        // A publish is repeated for a while, as servers may be electing.
        Fault::Refused(Refusal::NoResponders) => First::Stored,
        Fault::Refused(_) => First::Unconfirmed,
    }
}

fn news(
    &(exchange, part, subject, containing, side, course): &(
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        Side,
        Course,
    ),
) -> Vec<Row> {
    let cells = [
        ("silent: the first is lost", Fault::Silent, Some(1)),
        ("slow", Fault::Late(SLOW), None),
        ("late: the first comes after its time", Fault::Late(LATE), Some(1)),
        ("twice", Fault::Twice, None),
    ];
    let row = |(fault, what, times)| Row {
        exchange,
        fault,
        rules: vec![(part, rule(subject, containing, side, what, times))],
        course,
        first: First::Stored,
    };
    cells.into_iter().map(row).collect()
}
