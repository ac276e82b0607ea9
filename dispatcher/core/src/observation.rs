//! What happened to single requests, for metrics that are counted as things happen.

use std::collections::VecDeque;
use std::time::Duration;

use flotilla_protocol::{Class, ModelName};

/// Something worth counting.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// A request was given to a worker.
    Assigned {
        /// Its model.
        model: ModelName,
        /// Its class.
        class: Class,
        /// Time since its publish.
        waited: Duration,
        /// Seconds that it is early by what was forecast, negative when it will be late; `None` without a target.
        slack_s: Option<f64>,
    },
    /// A worker has answered a request.
    Answered {
        /// Its model.
        model: ModelName,
        /// Its class.
        class: Class,
        /// Time since its publish.
        age: Duration,
        /// Tokens of the answer.
        output_tokens: u32,
        /// Tokens that its device was booked for.
        predicted_tokens: u32,
        /// Whether the answer was there in time.
        target: TargetOutcome,
        /// Time that it took on its device over what was forecast; `None` where it was taken over, or had to wait for
        /// its model.
        forecast_ratio: Option<f64>,
    },
    /// A request with a target, or a deadline, was ended without an answer.
    Missed {
        /// Its model.
        model: ModelName,
        /// Its class.
        class: Class,
    },
}

/// Whether an answer was complete in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetOutcome {
    /// Nothing bounds when it has to be complete.
    None,
    /// It was.
    Met,
    /// It was not.
    Missed,
}

impl TargetOutcome {
    /// The outcome as a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Met => "met",
            Self::Missed => "missed",
        }
    }
}

/// Observations that nobody has polled yet. Who never polls loses them and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Observations(VecDeque<Observation>);

impl Observations {
    pub(crate) fn push(&mut self, make: impl FnOnce() -> Observation) {
        if self.0.len() < OBSERVATIONS_MAX {
            self.0.push_back(make());
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Observation> {
        self.0.pop_front()
    }
}

/// More than one input leads to: a worker that is lost has at most as many requests as slots.
const OBSERVATIONS_MAX: usize = 4096;
