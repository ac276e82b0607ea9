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
    let slo = request.slo.or(of_model).unwrap_or_default();
    request.deadline.is_none_or(|deadline| total <= deadline) && hold(&slo, request, total, first)
}

/// Whether every target holds for a request that took `total` in all and `first` to its first token.
pub(crate) fn hold(slo: &Slo, request: &TraceRequest, total: Duration, first: Duration) -> bool {
    let output = f64::from(request.output_tokens);
    let tokens = f64::from(request.prompt_tokens) + output;
    let tpot_ms = slo.tpot_ms.map(|tpot| tpot * output + slo.ttft_ms.unwrap_or(0.0));
    let within = |limit_ms: Option<f64>, taken| limit_ms.is_none_or(|limit_ms| ms(taken) <= limit_ms);
    within(tpot_ms, total)
        && within(slo.ttft_ms, first)
        && within(slo.tpat_ms.map(|tpat| tpat * tokens), total)
        && within(slo.e2e_ms, total)
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}
