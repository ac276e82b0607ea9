//! Who asks for what, and when.

mod builtin;
mod file;

use std::collections::BTreeSet;
use std::time::Duration;

use flotilla_protocol::request::Slo;
use flotilla_protocol::{Class, ModelName, RequestId, Tenant};

pub use builtin::{BuiltinTrace, Recipe, UnknownTrace};
pub use file::{LineFault, LineProblem, TraceFaults};

/// Requests in the order of their publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// What it is called in results.
    pub name: String,
    /// The requests; [`TraceRequest::at`] never falls.
    pub requests: Vec<TraceRequest>,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceRequest {
    /// When it is published, from the start of the trace.
    pub at: Duration,
    /// Its name, unique in the trace.
    pub id: RequestId,
    /// On whose account it runs.
    pub tenant: Option<Tenant>,
    /// How urgent it is.
    pub class: Class,
    /// Its model.
    pub model: ModelName,
    /// Tokens of the prompt; at least 1.
    pub prompt_tokens: u32,
    /// Tokens of the answer, which no online policy may know; 1 to [`Self::output_tokens_max`].
    pub output_tokens: u32,
    /// Most tokens of the answer, as the request says.
    pub output_tokens_max: u32,
    /// Its own targets; without them those of its model hold.
    pub slo: Option<Slo>,
    /// It is worthless this long after its publish.
    pub deadline: Option<Duration>,
}

impl Trace {
    /// Time from the start to the last publish.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.requests.last().map_or(Duration::ZERO, |request| request.at)
    }

    /// The same requests at `rate` times their pace; `rate` is above 0.
    #[must_use]
    pub fn at_rate(mut self, rate: f64) -> Self {
        for request in &mut self.requests {
            request.at = request.at.div_f64(rate);
        }
        self
    }

    /// The requests that are published before a time.
    #[must_use]
    pub fn until(mut self, end: Duration) -> Self {
        self.requests.retain(|request| request.at < end);
        self
    }

    /// The models that are asked for.
    #[must_use]
    pub fn models(&self) -> BTreeSet<&ModelName> {
        self.requests.iter().map(|request| &request.model).collect()
    }
}
