//! Traces as files.

use std::time::Duration;

use flotilla_protocol::request::Slo;
use flotilla_protocol::{Class, RequestId, Tenant};
use flotilla_simulator::trace::{BuiltinTrace, Recipe, Trace, TraceFaults, TraceRequest};
use proptest::prelude::*;

use crate::scenarios::{model_name, request, steady};

#[test]
fn a_line_needs_no_more_than_its_time_model_and_lengths() {
    let text = r#"
{"at_ms": 1500, "model": "chat", "prompt_tokens": 20, "output_tokens": 30}

{"at_ms": 0.25, "id": "first", "class": "batch", "tenant": "t", "model": "chat", "prompt_tokens": 1, "output_tokens": 2, "output_tokens_max": 3, "slo": {"tpot_ms": 50, "ttft_ms": 200.5}, "deadline_ms": 10000}
"#;
    let trace = Trace::parse("two", text).unwrap();
    let [first, second] = &trace.requests[..] else {
        panic!("{trace:?}")
    };
    let expected = TraceRequest {
        at: Duration::from_micros(250),
        id: RequestId::new("first").unwrap(),
        tenant: Some(Tenant::new("t").unwrap()),
        class: Class::Batch,
        model: model_name("chat"),
        prompt_tokens: 1,
        output_tokens: 2,
        output_tokens_max: 3,
        slo: Some(Slo {
            tpot_ms: Some(50.0),
            ttft_ms: Some(200.5),
            ..Slo::default()
        }),
        deadline: Some(Duration::from_secs(10)),
    };
    assert_eq!(*first, expected);
    assert_eq!((second.id.as_str(), second.output_tokens_max), ("line-2", 30));
}

#[test]
fn every_wrong_line_is_told_with_its_number() {
    let line = |change: &str| {
        let fields = r#""at_ms": 1, "model": "m", "prompt_tokens": 1, "output_tokens": 2"#;
        format!("{{{fields}, {change}}}\n")
    };
    let text = [
        line(r#""id": "a""#),
        line(r#""id": "a""#),
        line(r#""output_token_max": 3"#),
        line(r#""output_tokens_max": 1"#),
        line(r#""deadline_ms": -1"#),
        line(r#""slo": {"tpot_ms": 0}"#),
        "not json\n".to_owned(),
        r#"{"at_ms": 1, "model": "m", "prompt_tokens": 0, "output_tokens": 2}"#.to_owned(),
    ]
    .concat();
    let faults = Trace::parse("wrong", &text).unwrap_err();
    let told: Vec<_> = faults.faults().iter().map(ToString::to_string).collect();
    let expected = [
        "line 2: id a is that of line 1 too",
        "line 3: unknown field `output_token_max`",
        "line 4: output_tokens is 2, more than output_tokens_max of 1",
        "line 5: deadline_ms is -1; give milliseconds from 0",
        "line 6: slo.tpot_ms is 0; give milliseconds above 0",
        "line 7: expected",
        "line 8: prompt_tokens is 0; give at least 1",
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told}");
    }
}

#[test]
fn a_file_of_another_kind_is_not_told_line_by_line() {
    let text = "a,b,c\n".repeat(1_000);
    let faults = Trace::parse("csv", &text).unwrap_err();
    assert_eq!(faults.faults().len(), TraceFaults::COUNT_MAX);
    assert!(
        faults
            .to_string()
            .starts_with("the trace has 20 or more fault(s)")
    );
}

#[test]
fn built_in_traces_are_read_back_as_they_were_written() {
    for built_in in BuiltinTrace::ALL {
        let trace = built_in.make(&Recipe {
            seed: 3,
            rate: 0.7,
            duration: Duration::from_secs(60),
        });
        let read = Trace::parse(built_in.as_str(), &trace.to_jsonl()).unwrap();
        assert_eq!(read, trace);
    }
}

#[test]
fn a_trace_can_be_played_faster_and_in_part() {
    let trace = steady(10, 1.0).at_rate(2.0).until(Duration::from_secs(2));
    let at: Vec<_> = trace
        .requests
        .iter()
        .map(|request| request.at.as_secs_f64())
        .collect();
    assert_eq!(at, [0.0, 0.5, 1.0, 1.5]);
}

proptest! {
    #[test]
    fn any_request_is_read_back_as_it_was_written(
        at_us in 0_u64..1_000_000_000_000,
        output_tokens in 1_u32..5_000,
        spare in 0_u32..5_000,
        tenant in prop::option::of("[a-zäöü \"\\\\]{1,20}"),
        e2e_ms in prop::option::of(1e-3_f64..1e9),
        deadline_us in prop::option::of(0_u64..1_000_000_000_000),
    ) {
        let request = TraceRequest {
            at: Duration::from_micros(at_us),
            tenant: tenant.map(|name| Tenant::new(name).unwrap()),
            output_tokens,
            output_tokens_max: output_tokens + spare,
            slo: e2e_ms.map(|e2e_ms| Slo { e2e_ms: Some(e2e_ms), ..Slo::default() }),
            deadline: deadline_us.map(Duration::from_micros),
            ..request(1)
        };
        let trace = Trace { name: "one".to_owned(), requests: vec![request] };
        prop_assert_eq!(Trace::parse("one", &trace.to_jsonl()).unwrap(), trace);
    }
}
