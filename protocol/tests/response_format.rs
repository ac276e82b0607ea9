//! Shapes of answers as clients write them.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::{InferenceRequest, ResponseFormat, SCHEMA_BYTES_MAX};
use flotilla_protocol::{Encoding, ModelName};
use serde_json::{Value, json};

fn decode(encoding: Encoding, body: &Value) -> Result<ResponseFormat, RequestError> {
    let model = ModelName::new("adder").unwrap();
    let body = encoding.encode(body).unwrap();
    InferenceRequest::decode(&model, encoding, &body, 1 << 20).map(|request| request.response_format)
}

fn with_format(format: &Value) -> Value {
    json!({"messages": [{"role": "user", "content": "x"}], "response_format": format})
}

#[test]
fn every_kind_of_format_is_understood_in_both_encodings() {
    let schema = json!({"type": "object", "properties": {"b": {"type": "integer"}, "a": {"const": 1}}});
    let named = json!({"type": "json_schema", "json_schema": {
        "name": "numbers-1", "description": "two numbers", "schema": schema, "strict": true}});
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let format = |format: Value| decode(encoding, &with_format(&format)).unwrap();
        assert_eq!(
            decode(encoding, &json!({"prompt": "x"})),
            Ok(ResponseFormat::Text)
        );
        assert_eq!(format(json!({"type": "text"})), ResponseFormat::Text);
        assert_eq!(format(json!({"type": "json_object"})), ResponseFormat::JsonObject);
        let ResponseFormat::JsonSchema(described) = format(named.clone()) else {
            panic!("a schema was given")
        };
        assert!(described.strict);
        assert_eq!(described.name, "numbers-1");
        // Answers have their properties in the order of the schema.
        assert_eq!(Value::from(described.schema).to_string(), schema.to_string());
    }
}

#[test]
fn each_refusal_names_the_part_that_is_wrong() {
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": schema});
    let cases = [
        (json!("json_object"), "response_format"),
        (json!({}), "response_format"),
        (json!({"type": "xml"}), "response_format.type"),
        (
            json!({"type": "json_object", "strict": true}),
            "response_format.strict",
        ),
        (json!({"type": "json_schema"}), "response_format.json_schema"),
        (
            json!({"type": "text", "json_schema": {"name": "a", "schema": {}}}),
            "response_format.json_schema",
        ),
        (schema(json!({"schema": {}})), "response_format.json_schema"),
        (schema(json!({"name": "a"})), "response_format.json_schema"),
        (
            schema(json!({"name": "a b", "schema": {}})),
            "response_format.json_schema.name",
        ),
        (
            schema(json!({"name": "a".repeat(65), "schema": {}})),
            "response_format.json_schema.name",
        ),
        (
            schema(json!({"name": "a", "schema": true})),
            "response_format.json_schema.schema",
        ),
        (
            schema(json!({"name": "a", "schema": {}, "strict": "yes"})),
            "response_format.json_schema.strict",
        ),
        (
            schema(json!({"name": "a", "schema": {"const": "x".repeat(SCHEMA_BYTES_MAX)}})),
            "response_format.json_schema.schema",
        ),
    ];
    for (format, field) in cases {
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            let error = decode(encoding, &with_format(&format)).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{format}");
            assert_eq!(error.param.as_deref(), Some(field), "{format}: {error}");
        }
    }
}

#[test]
fn vectors_have_no_format_and_a_format_ends_the_answer() {
    let refused = |body: Value| decode(Encoding::Json, &body).unwrap_err().param.unwrap();
    let embedding = json!({"input": "x", "response_format": {"type": "json_object"}});
    assert_eq!(refused(embedding), "response_format");
    let endless = json!({"prompt": "x", "ignore_eos": true, "response_format": {"type": "json_object"}});
    assert_eq!(refused(endless), "ignore_eos");
    let text = json!({"prompt": "x", "ignore_eos": true, "response_format": {"type": "text"}});
    assert_eq!(decode(Encoding::Json, &text), Ok(ResponseFormat::Text));
}
