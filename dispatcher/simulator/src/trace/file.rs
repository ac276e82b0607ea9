//! Traces as files: JSON Lines, one request a line.
//!
//! ```json
//! {"at_ms": 12.5, "model": "chat", "prompt_tokens": 210, "output_tokens": 187, "output_tokens_max": 1024,
//!  "id": "a1", "class": "interactive", "tenant": "acme", "slo": {"tpot_ms": 50.0}, "deadline_ms": 30000.0}
//! ```
//!
//! (on one line in a file). `at_ms`, milliseconds from the start of the trace, `model`, `prompt_tokens` and
//! `output_tokens` are needed. Without `output_tokens_max` the answer was as long as it could be; without `id` the
//! request is named after its line; without `class` it is interactive. Empty lines are passed over, lines need
//! not be in order, unknown fields are faults.
//!
//! What a fleet recorded becomes a trace the same way: the publish time of each request, and from its journal the
//! model and class of the subject, `usage` of the `finished` event, and `max_tokens`, `tenant`, `slo` and
//! `deadline_ms` of the body.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use flotilla_protocol::request::Slo;
use flotilla_protocol::{Class, IdError, ModelName, RequestId, Tenant};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Trace, TraceRequest};

/// What is wrong with a trace, in the order of its lines; at most [`TraceFaults::COUNT_MAX`]. Never empty.
#[derive(Debug)]
pub struct TraceFaults(Vec<LineFault>);

/// What is wrong with one line.
#[derive(Debug, Error)]
#[error("line {line}: {problem}")]
pub struct LineFault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what to do.
    pub problem: LineProblem,
}

/// What can be wrong with a line.
#[derive(Debug, Error)]
pub enum LineProblem {
    /// It is no JSON object with the fields of a request.
    #[error("{0}")]
    Shape(serde_json::Error),
    /// Its id cannot be one.
    #[error("{0}")]
    Id(IdError),
    /// A time is not one that could be.
    #[error("{field} is {found}; give milliseconds from 0 to {TIME_MS_MAX}")]
    Time {
        /// The field.
        field: &'static str,
        /// What it says.
        found: f64,
    },
    /// A target is not one that could be met.
    #[error("slo.{field} is {found}; give milliseconds above 0")]
    Target {
        /// The field.
        field: &'static str,
        /// What it says.
        found: f64,
    },
    /// A count is 0.
    #[error("{field} is 0; give at least 1")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// The answer is longer than it may be.
    #[error("output_tokens is {output_tokens}, more than output_tokens_max of {output_tokens_max}")]
    TooLong {
        /// The answer.
        output_tokens: u32,
        /// What it may be.
        output_tokens_max: u32,
    },
    /// Another line has the id.
    #[error("id {id} is that of line {other} too")]
    Duplicate {
        /// The id.
        id: RequestId,
        /// The other line.
        other: usize,
    },
}

impl TraceFaults {
    /// Most faults that are told: a file of another format has one in every line.
    pub const COUNT_MAX: usize = 20;

    /// The faults one by one.
    #[must_use]
    pub fn faults(&self) -> &[LineFault] {
        &self.0
    }
}

impl fmt::Display for TraceFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.0.len() < Self::COUNT_MAX {
            ""
        } else {
            " or more"
        };
        write!(f, "the trace has {}{more} fault(s)", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for TraceFaults {}

/// A line as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequest {
    at_ms: f64,
    model: ModelName,
    prompt_tokens: u32,
    output_tokens: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output_tokens_max: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<RequestId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    class: Option<Class>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<Tenant>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slo: Option<Slo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<f64>,
}

impl Trace {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`TraceFaults`]: what is wrong, line by line.
    pub fn parse(name: impl Into<String>, text: &str) -> Result<Self, TraceFaults> {
        let mut faults = Vec::new();
        let mut requests = Vec::new();
        let mut line_of: BTreeMap<RequestId, usize> = BTreeMap::new();
        for (line, content) in (1..)
            .zip(text.lines())
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let checked =
                read(line, content).and_then(|request| match line_of.insert(request.id.clone(), line) {
                    None => Ok(request),
                    Some(other) => Err(LineProblem::Duplicate {
                        id: request.id,
                        other,
                    }),
                });
            match checked {
                Ok(request) => requests.push(request),
                Err(problem) => faults.push(LineFault { line, problem }),
            }
            if faults.len() == TraceFaults::COUNT_MAX {
                break;
            }
        }
        if !faults.is_empty() {
            return Err(TraceFaults(faults));
        }
        requests.sort_by_key(|request| request.at);
        let name = name.into();
        Ok(Self { name, requests })
    }

    /// Writes a file's text, which [`Trace::parse`] reads as the same requests.
    #[must_use]
    pub fn to_jsonl(&self) -> String {
        let mut text = String::new();
        for request in &self.requests {
            let line = serde_json::to_string(&RawRequest::of(request));
            let line = line.expect("a request has text keys and finite numbers");
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

impl RawRequest {
    fn of(request: &TraceRequest) -> Self {
        Self {
            at_ms: ms(request.at),
            model: request.model.clone(),
            prompt_tokens: request.prompt_tokens,
            output_tokens: request.output_tokens,
            output_tokens_max: Some(request.output_tokens_max),
            id: Some(request.id.clone()),
            class: Some(request.class),
            tenant: request.tenant.clone(),
            slo: request.slo,
            deadline_ms: request.deadline.map(ms),
        }
    }
}

fn read(line: usize, content: &str) -> Result<TraceRequest, LineProblem> {
    let raw: RawRequest = serde_json::from_str(content).map_err(LineProblem::Shape)?;
    let counts = [
        ("prompt_tokens", raw.prompt_tokens),
        ("output_tokens", raw.output_tokens),
    ];
    if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
        return Err(LineProblem::Zero { field });
    }
    let output_tokens_max = raw.output_tokens_max.unwrap_or(raw.output_tokens);
    if raw.output_tokens > output_tokens_max {
        return Err(LineProblem::TooLong {
            output_tokens: raw.output_tokens,
            output_tokens_max,
        });
    }
    check_targets(raw.slo.unwrap_or_default())?;
    let id = match raw.id {
        Some(id) => id,
        None => RequestId::new(format!("line-{line}")).map_err(LineProblem::Id)?,
    };
    Ok(TraceRequest {
        at: time("at_ms", raw.at_ms)?,
        id,
        tenant: raw.tenant,
        class: raw.class.unwrap_or(Class::Interactive),
        model: raw.model,
        prompt_tokens: raw.prompt_tokens,
        output_tokens: raw.output_tokens,
        output_tokens_max,
        slo: raw.slo,
        deadline: raw.deadline_ms.map(|ms| time("deadline_ms", ms)).transpose()?,
    })
}

fn check_targets(slo: Slo) -> Result<(), LineProblem> {
    let targets = [
        ("e2e_ms", slo.e2e_ms),
        ("ttft_ms", slo.ttft_ms),
        ("tpot_ms", slo.tpot_ms),
        ("tpat_ms", slo.tpat_ms),
    ];
    let wrong = targets
        .into_iter()
        .filter_map(|(field, target)| Some((field, target?)))
        .find(|(_, target)| !(target.is_finite() && *target > 0.0));
    wrong.map_or(Ok(()), |(field, found)| Err(LineProblem::Target { field, found }))
}

fn time(field: &'static str, found: f64) -> Result<Duration, LineProblem> {
    match (0.0..=TIME_MS_MAX).contains(&found) {
        true => Ok(Duration::from_secs_f64(found / 1e3)),
        false => Err(LineProblem::Time { field, found }),
    }
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

/// Ten years: a longer trace is one in other units.
const TIME_MS_MAX: f64 = 10.0 * 365.0 * 86_400_000.0;
