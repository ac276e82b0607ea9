//! The spans of an attempt, made when it is over.

use flotilla_protocol::assignment::AttemptEnd;
use flotilla_protocol::request::{InferenceRequest, Input};
use flotilla_telemetry::{Span, SpanId, SpanKind, Trace, Value};
use tokio::time::Instant;

use super::Attempt;

/// Tells where the time of an attempt went. Nothing of what was asked or answered is told.
pub(super) fn tell(attempt: &Attempt, end: &AttemptEnd) {
    let (new, tracer) = (&attempt.new, &attempt.context.tracer);
    let trace = match &new.traces.attempt {
        Some(span) => tracer.continued(span),
        // A dispatcher that makes no spans.
        None => tracer.trace(new.assignment.request.as_str(), new.traces.request.as_ref()),
    };
    let Some(trace) = trace.filter(|trace| trace.is_sampled) else {
        return;
    };
    let whole = whole(attempt, end, trace);
    for part in parts(attempt, &whole) {
        tracer.send(part);
    }
    tracer.send(whole);
}

fn whole(attempt: &Attempt, end: &AttemptEnd, trace: Trace) -> Span {
    let model = attempt.new.assignment.model.as_str();
    let request = attempt.new.request.as_ref().ok();
    let operation = request.map(operation);
    let mut attributes = about(attempt, end);
    attributes.extend(operation.map(|operation| ("gen_ai.operation.name", operation.into())));
    attributes.extend(request.into_iter().flat_map(asked));
    attributes.extend(answered(attempt, end));
    Span {
        name: format!("{} {model}", operation.unwrap_or("attempt")),
        kind: SpanKind::Server,
        trace: trace.id,
        id: SpanId::fresh(),
        parent: trace.parent,
        began: attempt.clock.received.into_std(),
        ended: Instant::now().into_std(),
        attributes,
        error: end.fault(attempt.tally.failure()),
    }
}

fn about(attempt: &Attempt, end: &AttemptEnd) -> Vec<(&'static str, Value)> {
    let (assignment, context) = (&attempt.new.assignment, &attempt.context);
    vec![
        ("gen_ai.provider.name", "flotilla".into()),
        (
            "gen_ai.request.model",
            assignment.model.as_str().to_owned().into(),
        ),
        ("server.address", context.host.clone().into()),
        (
            "flotilla.request.id",
            assignment.request.as_str().to_owned().into(),
        ),
        ("flotilla.class", assignment.class.as_str().into()),
        ("flotilla.worker.id", context.worker.as_str().to_owned().into()),
        ("flotilla.attempt", assignment.attempt.0.into()),
        ("flotilla.attempt.end", end.as_str().into()),
        ("flotilla.attempt.alone", assignment.alone.into()),
        ("flotilla.strikes", assignment.strikes.0.into()),
    ]
}

fn operation(request: &InferenceRequest) -> &'static str {
    match request.input {
        Input::Prompt(_) | Input::PromptTokens(_) => "text_completion",
        Input::Chat(_) => "chat",
        Input::Embed(_) => "embeddings",
    }
}

fn asked(request: &InferenceRequest) -> impl Iterator<Item = (&'static str, Value)> {
    let sampling = &request.sampling;
    let numbers = [
        ("gen_ai.request.max_tokens", request.max_tokens.map(Value::from)),
        (
            "gen_ai.request.temperature",
            sampling.temperature.map(|it| f64::from(it).into()),
        ),
        (
            "gen_ai.request.top_p",
            sampling.top_p.map(|it| f64::from(it).into()),
        ),
    ];
    numbers
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
}

/// What became of the answer, when it is one. Tokens are told by the attempt that ended it alone, so that they are counted
/// once.
fn answered(attempt: &Attempt, end: &AttemptEnd) -> Vec<(&'static str, Value)> {
    let Some((reason, usage)) = attempt.tally.answered() else {
        return Vec::new();
    };
    if *end != AttemptEnd::Terminal {
        return Vec::new();
    }
    let cached = usage.prompt_tokens_details.map(|details| details.cached_tokens);
    let mut told = vec![
        ("gen_ai.response.finish_reasons", Value::Words(vec![reason])),
        ("gen_ai.usage.input_tokens", usage.prompt_tokens.into()),
        ("gen_ai.usage.output_tokens", usage.completion_tokens.into()),
    ];
    told.extend(cached.map(|tokens| ("gen_ai.usage.cache_read.input_tokens", tokens.into())));
    told
}

/// One after the other, as far as the attempt came.
fn parts(attempt: &Attempt, whole: &Span) -> impl Iterator<Item = Span> {
    let clock = attempt.clock;
    let ended = clock.made.map_or(whole.ended, Instant::into_std);
    let begins = [
        ("load", Some(clock.received)),
        ("prepare", clock.leased),
        ("prefill", clock.joined),
        ("decode", clock.first_token),
    ];
    let ends = [clock.leased, clock.joined, clock.first_token, None];
    let (trace, parent) = (whole.trace, whole.id);
    let parts = begins.into_iter().zip(ends).map(move |((name, began), next)| {
        let tier = clock.tier.filter(|_| name == "load");
        Some(Span {
            name: name.to_owned(),
            kind: SpanKind::Internal,
            trace,
            id: SpanId::fresh(),
            parent: Some(parent),
            began: began?.into_std(),
            ended: next.map_or(ended, Instant::into_std),
            attributes: tier
                .map(|tier| ("flotilla.load.tier", tier.into()))
                .into_iter()
                .collect(),
            error: None,
        })
    });
    parts.flatten()
}
