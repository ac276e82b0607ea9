//! How much is asked for lately.

use flotilla_protocol::Moment;

/// How often a model is asked for: exponentially weighted, a minute's memory.
#[derive(Debug, Default)]
pub(super) struct Demand {
    per_s: f64,
    at: Moment,
}

impl Demand {
    /// A second, as of `now`.
    pub(super) fn per_s(&self, now: Moment) -> f64 {
        self.per_s * (-now.since(self.at).as_secs_f64() / DEMAND_MEMORY_S).exp()
    }

    /// Whether anything was ever asked for.
    pub(super) fn is_any(&self) -> bool {
        self.per_s > 0.0
    }

    /// So much more is asked for.
    pub(super) fn add(&mut self, now: Moment, amount: f64) {
        self.per_s = self.per_s(now) + amount / DEMAND_MEMORY_S;
        self.at = now;
    }
}

/// How long demand is remembered, in seconds: long against an answer, short against a change of habits.
const DEMAND_MEMORY_S: f64 = 60.0;
