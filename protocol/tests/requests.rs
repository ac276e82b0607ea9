//! Request bodies as clients write them: what is understood, and what a refusal says.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use flotilla_protocol::event::ErrorCode;
use flotilla_protocol::request::{InferenceRequest, Input, KeepAlive};
use flotilla_protocol::{Encoding, ModelName};
use proptest::prelude::*;

const BYTES_MAX: usize = 10_000;

fn decode(body: &str) -> Result<InferenceRequest, flotilla_protocol::event::RequestError> {
    let model = ModelName::new("adder").unwrap();
    InferenceRequest::decode(&model, Encoding::Json, body.as_bytes(), BYTES_MAX)
}

fn refusal(body: &str) -> (ErrorCode, Option<String>, String) {
    let error = decode(body).expect_err(body);
    (error.code, error.param, error.message)
}

#[test]
fn completion_with_every_field_of_ours_is_understood() {
    let request = decode(
        r#"{"model":"adder","prompt":"1+1=","max_tokens":8,"temperature":0.5,"top_k":40,"top_p":0.9,"seed":-1,
            "stop":"\n","keep_alive":"10m","deadline_ms":500,"slo":{"e2e_ms":100},"tenant":"team a","stream":true}"#,
    )
    .unwrap();
    assert_eq!(request.input, Input::Prompt("1+1=".into()));
    assert_eq!(request.max_tokens, Some(8));
    assert_eq!(request.sampling.seed, Some(u64::MAX));
    assert_eq!(request.stop, ["\n"]);
    assert_eq!(request.keep_alive, Some(KeepAlive::Ms(600_000)));
    assert_eq!(request.slo.unwrap().e2e_ms, Some(100.0));
    assert_eq!(request.tenant.unwrap().as_str(), "team a");
}

#[test]
fn chat_parts_are_joined_and_embedding_input_may_be_one_text() {
    let chat = decode(
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#,
    )
    .unwrap();
    let Input::Chat(chat) = chat.input else {
        panic!("not a chat")
    };
    assert_eq!(chat.messages[0].content.as_deref(), Some("ab"));
    assert_eq!(chat.tools, [] as [serde_json::Value; 0]);
    assert_eq!(
        decode(r#"{"input":"x"}"#).unwrap().input,
        Input::Embed(vec!["x".into()])
    );
}

#[test]
fn keep_alive_speaks_ollamas_dialects() {
    let cases = [
        (r#""90""#, KeepAlive::Ms(90_000)),
        ("0", KeepAlive::Ms(0)),
        ("1.5", KeepAlive::Ms(1500)),
        ("-1", KeepAlive::UntilEvicted),
        (r#""-1m""#, KeepAlive::UntilEvicted),
        (r#""2h""#, KeepAlive::Ms(7_200_000)),
    ];
    for (text, keep_alive) in cases {
        let request = decode(&format!(r#"{{"prompt":"x","keep_alive":{text}}}"#)).expect(text);
        assert_eq!(request.keep_alive, Some(keep_alive), "{text}");
    }
    assert_eq!(
        refusal(r#"{"prompt":"x","keep_alive":"soon"}"#).1.as_deref(),
        Some("keep_alive")
    );
}

#[test]
fn each_refusal_names_its_field() {
    let cases = [
        (r#"{"prompt":"x","max_tokens":-3}"#, "max_tokens"),
        (r#"{"prompt":"x","max_tokens":"many"}"#, "max_tokens"),
        (r#"{"prompt":"x","max_tokens":0}"#, "max_tokens"),
        (r#"{"prompt":17}"#, "prompt"),
        (r#"{"prompt":["a","b"]}"#, "prompt[0]"),
        (r#"{"prompt":[]}"#, "prompt"),
        (r#"{}"#, "prompt"),
        (r#"{"prompt":"x","messages":[]}"#, "messages"),
        (
            r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#,
            "messages[0].content",
        ),
        (r#"{"prompt":"x","temperature":-0.1}"#, "temperature"),
        (r#"{"prompt":"x","temperature":1e999}"#, "temperature"),
        (r#"{"prompt":"x","top_p":0}"#, "top_p"),
        (r#"{"prompt":"x","top_k":-2}"#, "top_k"),
        (r#"{"prompt":"x","n":2}"#, "n"),
        (r#"{"prompt":"x","best_of":2}"#, "best_of"),
        (r#"{"input":"x","encoding_format":"base64"}"#, "encoding_format"),
        (r#"{"input":"x","dimensions":2}"#, "dimensions"),
        (r#"{"input":"x","max_tokens":2}"#, "max_tokens"),
        (r#"{"input":"x","stop":"a"}"#, "stop"),
        (r#"{"input":"x","ignore_eos":false}"#, "ignore_eos"),
        (r#"{"prompt":"x","ignore_eos":"yes"}"#, "ignore_eos"),
        (r#"{"input":"x","prompt":"x"}"#, "input"),
        (r#"{"input":[]}"#, "input"),
        (r#"{"prompt":"x","stop":[""]}"#, "stop"),
        (r#"{"prompt":"x","slo":{"e2e_ms":0}}"#, "slo.e2e_ms"),
        (r#"{"prompt":"x","slo":{"e2e":1}}"#, "slo.e2e"),
        (r#"{"prompt":"x","deadline_ms":0}"#, "deadline_ms"),
        (r#"{"prompt":"x","tenant":""}"#, "tenant"),
        (r#"{"prompt":"x","model":"sorter"}"#, "model"),
    ];
    for (body, field) in cases {
        let (code, param, message) = refusal(body);
        assert_eq!(code, ErrorCode::InvalidRequest, "{body}");
        assert_eq!(param.as_deref(), Some(field), "{body}: {message}");
    }
}

#[test]
fn end_tokens_end_the_answer_unless_they_are_ignored() {
    let ignored = |body| decode(body).unwrap().ignore_eos;
    assert!(!ignored(r#"{"prompt":"x"}"#));
    assert!(!ignored(r#"{"prompt":"x","ignore_eos":false}"#));
    assert!(ignored(r#"{"prompt":"x","ignore_eos":true}"#));
}

#[test]
fn every_sampling_parameter_is_understood() {
    let request = decode(
        r#"{"prompt":"x","min_p":0.05,"repetition_penalty":1.1,"presence_penalty":-2,"frequency_penalty":2,
            "logit_bias":{"7":-100,"3":0.5},"logprobs":20}"#,
    )
    .unwrap();
    let sampling = request.sampling;
    assert_eq!(sampling.min_p, Some(0.05));
    assert_eq!(sampling.repetition_penalty, Some(1.1));
    assert_eq!(sampling.presence_penalty, Some(-2.0));
    assert_eq!(sampling.frequency_penalty, Some(2.0));
    assert_eq!(
        sampling.logit_bias.into_iter().collect::<Vec<_>>(),
        [(3, 0.5), (7, -100.0)]
    );
    assert_eq!(sampling.logprobs, Some(20));
}

#[test]
fn logprobs_is_a_number_for_a_prompt_and_a_switch_for_a_chat() {
    let chat = r#""messages":[{"role":"user","content":"x"}]"#;
    let cases = [
        (r#"{"prompt":"x"}"#.to_owned(), None),
        (r#"{"prompt":"x","logprobs":false}"#.to_owned(), None),
        (r#"{"prompt":"x","logprobs":null}"#.to_owned(), None),
        (r#"{"prompt":"x","logprobs":0}"#.to_owned(), Some(0)),
        (format!("{{{chat}}}"), None),
        (format!("{{{chat},\"logprobs\":false}}"), None),
        (format!("{{{chat},\"logprobs\":true}}"), Some(0)),
        (
            format!("{{{chat},\"logprobs\":true,\"top_logprobs\":5}}"),
            Some(5),
        ),
    ];
    for (body, logprobs) in cases {
        assert_eq!(decode(&body).expect(&body).sampling.logprobs, logprobs, "{body}");
    }
    let refused = [
        (r#"{"prompt":"x","logprobs":true}"#.to_owned(), "logprobs"),
        (r#"{"prompt":"x","logprobs":21}"#.to_owned(), "logprobs"),
        (r#"{"prompt":"x","logprobs":-1}"#.to_owned(), "logprobs"),
        (
            r#"{"prompt":"x","logprobs":18446744073709551615}"#.to_owned(),
            "logprobs",
        ),
        (r#"{"prompt":"x","top_logprobs":1}"#.to_owned(), "top_logprobs"),
        (format!("{{{chat},\"logprobs\":3}}"), "logprobs"),
        (format!("{{{chat},\"top_logprobs\":3}}"), "top_logprobs"),
        (
            format!("{{{chat},\"logprobs\":true,\"top_logprobs\":21}}"),
            "top_logprobs",
        ),
    ];
    for (body, field) in refused {
        assert_eq!(refusal(&body).1.as_deref(), Some(field), "{body}");
    }
}

#[test]
fn sampling_parameters_out_of_range_are_refused_by_name() {
    let cases = [
        (r#""min_p":1.01"#, "min_p"),
        (r#""min_p":-0.1"#, "min_p"),
        (r#""repetition_penalty":0"#, "repetition_penalty"),
        (r#""repetition_penalty":-1"#, "repetition_penalty"),
        (r#""repetition_penalty":1e39"#, "repetition_penalty"),
        (r#""presence_penalty":2.1"#, "presence_penalty"),
        (r#""frequency_penalty":-2.1"#, "frequency_penalty"),
        (r#""logit_bias":[1]"#, "logit_bias"),
        (r#""logit_bias":{"a":1}"#, "logit_bias"),
        (r#""logit_bias":{"-1":1}"#, "logit_bias"),
        (r#""logit_bias":{"1":101}"#, "logit_bias"),
        (r#""logit_bias":{"1":1,"01":1}"#, "logit_bias"),
        (r#""logit_bias":{"1":"x"}"#, "logit_bias.1"),
    ];
    for (field, param) in cases {
        let (code, named, message) = refusal(&format!(r#"{{"prompt":"x",{field}}}"#));
        assert_eq!(code, ErrorCode::InvalidRequest, "{field}");
        assert_eq!(named.as_deref(), Some(param), "{field}: {message}");
    }
}

#[test]
fn as_many_biases_as_allowed_are_taken_and_one_more_is_refused() {
    let body = |count: usize| {
        let biases: serde_json::Map<_, _> = (0..count).map(|token| (token.to_string(), 1.into())).collect();
        serde_json::json!({"prompt": "x", "logit_bias": biases}).to_string()
    };
    let model = ModelName::new("adder").unwrap();
    let decode = |body: &str| InferenceRequest::decode(&model, Encoding::Json, body.as_bytes(), 1 << 20);
    assert_eq!(decode(&body(1024)).unwrap().sampling.logit_bias.len(), 1024);
    let error = decode(&body(1025)).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("logit_bias"));
}

#[test]
fn numbers_that_json_cannot_write_are_refused_in_message_pack() {
    let model = ModelName::new("adder").unwrap();
    #[derive(serde::Serialize)]
    struct Body {
        prompt: &'static str,
        #[serde(flatten)]
        field: std::collections::BTreeMap<&'static str, f32>,
    }
    for name in [
        "temperature",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
    ] {
        for number in [f32::NAN, f32::INFINITY] {
            let field = [(name, number)].into();
            let body = Body { prompt: "x", field };
            let body = Encoding::MessagePack.encode(&body).unwrap();
            let decoded = InferenceRequest::decode(&model, Encoding::MessagePack, &body, BYTES_MAX);
            assert_eq!(decoded.unwrap_err().param.as_deref(), Some(name), "{number}");
        }
    }
}

#[test]
fn prompt_and_answer_share_the_context() {
    let room = |body: &str, prompt_tokens| decode(body).unwrap().answer_tokens_max(prompt_tokens, 10);
    assert_eq!(room(r#"{"prompt":"x"}"#, 9).unwrap(), 1);
    assert_eq!(room(r#"{"prompt":"x","max_tokens":2}"#, 8).unwrap(), 2);
    for (body, prompt_tokens, param, parts) in [
        (r#"{"prompt":"x"}"#, 10, "prompt", ["10 tokens", "of 10"]),
        (
            r#"{"messages":[{"role":"user","content":"x"}]}"#,
            11,
            "messages",
            ["11 tokens", "of 10"],
        ),
        (
            r#"{"prompt":"x","max_tokens":2}"#,
            9,
            "max_tokens",
            ["9 tokens", "max_tokens is 2"],
        ),
    ] {
        let error = room(body, prompt_tokens).unwrap_err();
        assert_eq!(
            (error.code, error.param.as_deref()),
            (ErrorCode::ContextExceeded, Some(param))
        );
        assert!(parts.iter().all(|part| error.message.contains(part)), "{error}");
    }
}

#[test]
fn a_misspelt_field_is_answered_with_the_one_meant() {
    let (_, param, message) = refusal(r#"{"prompt":"x","max_token":8}"#);
    assert_eq!(param.as_deref(), Some("max_token"));
    assert_eq!(
        message,
        r#"unknown field "max_token"; did you mean "max_tokens"?"#
    );
    for (written, meant) in [
        ("minp", "min_p"),
        ("tool", "tools"),
        ("servce_tier", "service_tier"),
    ] {
        let (_, param, message) = refusal(&format!(r#"{{"prompt":"x","{written}":8}}"#));
        assert_eq!(param.as_deref(), Some(written));
        assert!(message.contains(&format!("did you mean {meant:?}?")), "{message}");
    }
    assert_eq!(
        refusal(r#"{"prompt":"x","zzzzzzzzz":8}"#).2,
        r#"unknown field "zzzzzzzzz""#
    );
}

#[test]
fn broken_json_tells_where_and_a_large_body_its_limit() {
    assert!(refusal(r#"{"prompt":"x""#).2.contains("line 1 column 13"));
    let (code, _, message) = refusal(&format!(r#"{{"prompt":"{}"}}"#, "x".repeat(BYTES_MAX)));
    assert_eq!(code, ErrorCode::TooLarge);
    assert!(message.contains("at most 10000"), "{message}");
}

#[test]
fn message_pack_bodies_name_fields_too() {
    let body = Encoding::MessagePack
        .encode(&serde_json::json!({"prompt": "x", "max_tokens": -1}))
        .unwrap();
    let model = ModelName::new("adder").unwrap();
    let error = InferenceRequest::decode(&model, Encoding::MessagePack, &body, BYTES_MAX).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("max_tokens"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_or_read_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let model = ModelName::new("adder").unwrap();
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            if let Err(error) = InferenceRequest::decode(&model, encoding, &bytes, BYTES_MAX) {
                prop_assert_eq!(error.code, ErrorCode::InvalidRequest);
            }
        }
    }

    #[test]
    fn a_request_with_one_damaged_byte_never_panics(index in 0usize..150, byte in any::<u8>()) {
        let mut body = br#"{"prompt":"1+1=","max_tokens":8,"stop":["a"],"keep_alive":"10m","slo":{"e2e_ms":1.5},"tenant":"t"}"#.to_vec();
        let index = index % body.len();
        body[index] = byte;
        let model = ModelName::new("adder").unwrap();
        let decoded = InferenceRequest::decode(&model, Encoding::Json, &body, BYTES_MAX);
        prop_assert!(decoded.is_ok() || decoded.is_err_and(|error| error.code == ErrorCode::InvalidRequest));
    }
}
