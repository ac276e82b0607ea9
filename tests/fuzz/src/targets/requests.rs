//! What clients send: bodies of requests, from their bytes to the tokens of their prompt, and the shapes of answers.

use std::time::SystemTime;

use flotilla_prompt::{ModelBounds, PromptMaker, check_format, text_bytes};
use flotilla_protocol::assignment::Cancel;
use flotilla_protocol::catalog::ModelTask;
use flotilla_protocol::codec::decode_internal;
use flotilla_protocol::request::InferenceRequest;
use flotilla_protocol::{Encoding, ModelName};
use flotilla_text::{JsonGrammar, OneOf};
use serde_json::{Map, Value, json};

use super::messages::round_trip;
use crate::corpus::Corpus;
use crate::probe::Verdict;
use crate::target::{Format, Target};

pub(super) fn targets() -> Vec<Target> {
    vec![
        request("request-json", Format::Json, Encoding::Json),
        request("request-msgpack", Format::MessagePack, Encoding::MessagePack),
        schema(),
        Target::new(
            "cancel",
            Corpus::golden(Format::MessagePack, &["cancel"]),
            |probe, input| {
                let read = probe.measure(|| decode_internal::<Cancel>(input));
                round_trip(Encoding::MessagePack, &read);
                Verdict::from(&read)
            },
        ),
    ]
}

/// As admission does it: decode, measure, check, count tokens; for a model without files.
fn request(name: &'static str, format: Format, encoding: Encoding) -> Target {
    let model = ModelName::new("m").expect("it is a name");
    let makers = [ModelTask::Generate, ModelTask::Embed { dimensions: 8 }].map(|task| {
        PromptMaker::simulated(ModelBounds {
            task,
            vocabulary_size: 32_000,
            context_tokens_max: 4096,
        })
    });
    Target::new(name, Corpus::of_values(format, bodies()), move |probe, input| {
        let request = probe.measure(|| InferenceRequest::decode(&model, encoding, input, BODY_BYTES_MAX));
        let Ok(request) = request else {
            return Verdict::Refused;
        };
        probe.measure(|| text_bytes(&request.input));
        let maker = &makers[usize::from(request.is_embedding())];
        Verdict::from(&probe.measure(|| maker.make(&request, SystemTime::UNIX_EPOCH)))
    })
}

/// The schema of a `response_format` becomes a grammar.
fn schema() -> Target {
    let model = ModelName::new("m").expect("it is a name");
    let corpus = Corpus::of_values(Format::Json, schemas());
    Target::new("response-schema", corpus, move |probe, input| {
        let body = [
            &br#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"name":"n","schema":"#
                [..],
            input,
            b"}}}",
        ]
        .concat();
        let read = probe.measure(|| InferenceRequest::decode(&model, Encoding::Json, &body, BODY_BYTES_MAX));
        let Ok(request) = read else {
            return Verdict::Refused;
        };
        let checked = probe.measure(|| check_format(&request));
        if checked.is_ok()
            && let Ok(Value::Object(schema)) = serde_json::from_slice::<Value>(input)
        {
            let strict = JsonGrammar::of_schema(schema, OneOf::Exact);
            probe.measure(|| strict.check().is_ok());
        }
        Verdict::from(&checked)
    })
    .weighing(2)
}

fn bodies() -> Vec<Value> {
    let call =
        json!({"type": "function", "id": "c1", "function": {"name": "f", "arguments": "{\"x\": [1, 2]}"}});
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "array"}}}}});
    vec![
        json!({"prompt": "1+1=", "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": -1, "stop": ["\n", "."],
               "logit_bias": {"5": -100, "6": 1.5}, "logprobs": 3, "min_p": 0.1, "n": 1, "user": "u", "ignore_eos": false}),
        json!({"model": "m", "prompt": [1, 2, 3, 31999], "keep_alive": "10m", "deadline_ms": 1000, "tenant": "t",
               "slo": {"ttft_ms": 500.0, "tpot_ms": 50}, "cancel_on_disconnect": true, "keep_alive": -1}),
        json!({"messages": [
                 {"role": "system", "content": "be brief"},
                 {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
                 {"role": "assistant", "content": null, "tool_calls": [call], "reasoning_content": "hm"},
                 {"role": "tool", "tool_call_id": "c1", "content": "3"}],
               "tools": [tool], "tool_choice": "auto", "parallel_tool_calls": true, "logprobs": true, "top_logprobs": 2,
               "max_completion_tokens": 9, "stream": true, "stream_options": {"include_usage": true}, "metadata": {"a": [1, {}]}}),
        json!({"input": ["one", "two three"], "encoding_format": "float", "keep_alive": 1.5}),
        json!({"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true,
               "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}}, "presence_penalty": 1, "frequency_penalty": -1,
               "repetition_penalty": 1.1}),
    ]
}

fn schemas() -> Vec<Value> {
    let person = json!({"type": "object", "required": ["name"], "additionalProperties": false, "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]+$", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150, "multipleOf": 5},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 1, null]}, "minItems": 1, "maxItems": 4}}});
    vec![
        person.clone(),
        json!({"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"}),
        json!({"anyOf": [{"type": "null"}, person, {"const": "x"}], "oneOf": [{"type": "string", "format": "date-time"}]}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "number", "exclusiveMinimum": -1.5}}}, {"required": ["a"]}],
               "patternProperties": {"^x-": {"type": "boolean"}}, "prefixItems": [{"type": "string"}]}),
        Value::Object(Map::new()),
    ]
}

/// The default of `dispatcher.request_bytes_max`.
const BODY_BYTES_MAX: usize = 4 << 20;
