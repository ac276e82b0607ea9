//! Whether a request met its targets.

use std::time::Duration;

use flotilla_protocol::request::Slo;

use super::{RequestEnd, RequestRecord};
use crate::trace::TraceRequest;

/// Whether a request's answer is complete, within its deadline, and within every target that is set: its own, or
/// else its model's. All of them count from the publish, so that waiting is never free:
///
/// * `tpot`: the whole answer within `tpot` for each of its tokens, plus `ttft` if that is set;
/// * `ttft`: the first token within `ttft`;
/// * `tpat`: the whole answer within `tpat` for each token of prompt and answer;
/// * `e2e`: the whole answer within `e2e`.
#[must_use]
pub fn meets_targets(request: &TraceRequest, record: &RequestRecord, of_model: Option<Slo>) -> bool {
    let (RequestEnd::Finished, Some(total), Some(first)) =
        (record.end, record.total(), record.to_first_token())
    else {
        return false;
    };
    Limits::of(request, of_model).hold(total, first)
}

/// Whether every target holds for a request that took `total` in all and `first` to its first token.
pub(crate) fn hold(slo: &Slo, request: &TraceRequest, total: Duration, first: Duration) -> bool {
    Limits::of_targets(slo, request).hold(total, first)
}

/// How long a request may take from its publish, in milliseconds; infinite where nothing is set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limits {
    /// The whole answer.
    pub(crate) total_ms: f64,
    /// The first token.
    pub(crate) first_token_ms: f64,
}

impl Limits {
    /// Of a request with its deadline; `of_model` are the targets of its model.
    pub(crate) fn of(request: &TraceRequest, of_model: Option<Slo>) -> Self {
        let slo = request.slo.or(of_model).unwrap_or_default();
        let targets = Self::of_targets(&slo, request);
        let deadline_ms = request.deadline.map_or(f64::INFINITY, ms);
        Self {
            total_ms: targets.total_ms.min(deadline_ms),
            ..targets
        }
    }

    fn of_targets(slo: &Slo, request: &TraceRequest) -> Self {
        let output = f64::from(request.output_tokens);
        let tokens = f64::from(request.prompt_tokens) + output;
        let tpot_ms = slo.tpot_ms.map(|tpot| tpot * output + slo.ttft_ms.unwrap_or(0.0));
        let tpat_ms = slo.tpat_ms.map(|tpat| tpat * tokens);
        let total_ms = [tpot_ms, tpat_ms, slo.e2e_ms].into_iter().flatten();
        Self {
            total_ms: total_ms.fold(f64::INFINITY, f64::min),
            first_token_ms: slo.ttft_ms.unwrap_or(f64::INFINITY),
        }
    }

    fn hold(self, total: Duration, first: Duration) -> bool {
        ms(total) <= self.total_ms && ms(first) <= self.first_token_ms
    }
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}
