//! The checks of the fields that say how tokens are chosen.

use super::shapes::RawLogprobs;
use super::{RawRequest, invalid};
use crate::event::RequestError;
use crate::request::{SamplingParams, TOP_LOGPROBS_MAX};

/// The fields of a body that say how tokens are chosen, checked.
pub(super) fn check(raw: &mut RawRequest) -> Result<SamplingParams, RequestError> {
    let ranges = [
        ("temperature", raw.temperature, 0.0, 2.0),
        ("min_p", raw.min_p, 0.0, 1.0),
        ("presence_penalty", raw.presence_penalty, -2.0, 2.0),
        ("frequency_penalty", raw.frequency_penalty, -2.0, 2.0),
    ];
    for (field, value, min, max) in ranges {
        if value.is_some_and(|value| !(min..=max).contains(&value)) {
            return Err(invalid(field, format!("must be between {min} and {max}")));
        }
    }
    if raw.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
        return Err(invalid("top_p", "must be above 0 and at most 1"));
    }
    if raw
        .repetition_penalty
        .is_some_and(|p| !(p > 0.0 && p.is_finite()))
    {
        return Err(invalid("repetition_penalty", "must be above 0; 1 is none"));
    }
    let logprobs = match raw.messages {
        Some(_) => chat_logprobs(raw)?,
        None => completion_logprobs(raw)?,
    };
    Ok(SamplingParams {
        temperature: raw.temperature,
        top_k: top_k(raw.top_k)?,
        top_p: raw.top_p,
        min_p: raw.min_p,
        repetition_penalty: raw.repetition_penalty,
        presence_penalty: raw.presence_penalty,
        frequency_penalty: raw.frequency_penalty,
        logit_bias: raw.logit_bias.take().map(|bias| bias.0).unwrap_or_default(),
        logprobs,
        // OpenAI's seed is signed: every value is kept apart, none is refused.
        seed: raw.seed.map(i64::cast_unsigned),
    })
}

fn top_k(top_k: Option<i64>) -> Result<Option<u32>, RequestError> {
    match top_k {
        // Both mean "no limit" to clients of other servers.
        None | Some(-1 | 0) => Ok(None),
        Some(k) => u32::try_from(k)
            .map(Some)
            .map_err(|_| invalid("top_k", "must be between 1 and 4294967295, or -1 for all")),
    }
}

/// `logprobs` is a switch, `top_logprobs` the number of alternatives.
fn chat_logprobs(raw: &RawRequest) -> Result<Option<u32>, RequestError> {
    let wanted = match raw.logprobs {
        None => false,
        Some(RawLogprobs::Switch(wanted)) => wanted,
        Some(RawLogprobs::Count(_)) => {
            let message = "is true or false beside messages; top_logprobs is the number of alternatives";
            return Err(invalid("logprobs", message));
        }
    };
    match (wanted, raw.top_logprobs) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(invalid("top_logprobs", "needs \"logprobs\": true")),
        (true, top) => alternatives("top_logprobs", top.unwrap_or(0)).map(Some),
    }
}

/// `logprobs` is the number of alternatives.
fn completion_logprobs(raw: &RawRequest) -> Result<Option<u32>, RequestError> {
    if raw.top_logprobs.is_some() {
        return Err(invalid(
            "top_logprobs",
            "is for messages; logprobs is the number of alternatives",
        ));
    }
    match raw.logprobs {
        None | Some(RawLogprobs::Switch(false)) => Ok(None),
        Some(RawLogprobs::Switch(true)) => Err(invalid(
            "logprobs",
            "is the number of alternatives, 0 for none but the token's own",
        )),
        Some(RawLogprobs::Count(count)) => alternatives("logprobs", count).map(Some),
    }
}

fn alternatives(field: &str, count: i64) -> Result<u32, RequestError> {
    u32::try_from(count)
        .ok()
        .filter(|count| *count <= TOP_LOGPROBS_MAX)
        .ok_or_else(|| invalid(field, format!("must be between 0 and {TOP_LOGPROBS_MAX}")))
}
