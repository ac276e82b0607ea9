//! Conversations as clients write them: messages, tools and the calls that a model made.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::{Chat, InferenceRequest, Input};
use flotilla_protocol::{Encoding, ModelName};
use serde_json::{Value, json};

const BYTES_MAX: usize = 100_000;

fn decode(body: &Value) -> Result<InferenceRequest, RequestError> {
    let model = ModelName::new("adder").unwrap();
    let decode = |encoding: Encoding| {
        let body = encoding.encode(body).unwrap();
        InferenceRequest::decode(&model, encoding, &body, BYTES_MAX)
    };
    let (json, packed) = (decode(Encoding::Json), decode(Encoding::MessagePack));
    match (&json, &packed) {
        (Err(json), Err(packed)) => assert_eq!((json.code, &json.param), (packed.code, &packed.param)),
        (json, packed) => assert_eq!(json, packed),
    }
    json
}

fn chat(body: &Value) -> Chat {
    match decode(body)
        .unwrap_or_else(|error| panic!("{body}: {error}"))
        .input
    {
        Input::Chat(chat) => chat,
        other => panic!("{other:?}"),
    }
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"z": 1, "a": {"b": [null, true]}}}})
}

fn user() -> Value {
    json!({"role": "user", "content": "x"})
}

fn call(arguments: &Value) -> Value {
    json!({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}})
}

#[test]
fn tools_are_kept_as_they_came_with_the_order_of_their_keys() {
    let kept = chat(&json!({"messages": [user()], "tools": [tool("a"), tool("b")], "tool_choice": "auto"}));
    assert_eq!(
        serde_json::to_string(&kept.tools).unwrap(),
        json!([tool("a"), tool("b")]).to_string()
    );
    let none = chat(&json!({"messages": [user()], "tools": [tool("a")], "tool_choice": "none"}));
    assert!(
        none.tools.is_empty(),
        "a model calls no tool that it does not know of"
    );
    assert!(chat(&json!({"messages": [user()], "tools": []})).tools.is_empty());
    let defaults = json!({"messages": [user()], "tools": [tool("a")], "parallel_tool_calls": true});
    assert_eq!(chat(&defaults).tools.len(), 1);
}

#[test]
fn calls_and_their_results_reach_the_template_with_arguments_as_objects() {
    let texts = json!({"messages": [
        user(),
        {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
            call(&json!("{\"z\": 1, \"a\": 2}")), call(&json!({"b": [1.5]})), call(&json!("")),
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain", "name": "weather"},
    ]});
    let values: Vec<Value> = chat(&texts)
        .messages
        .iter()
        .map(|message| message.to_value())
        .collect();
    let expected = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [
            call(&json!({"z": 1, "a": 2})), call(&json!({"b": [1.5]})), call(&json!({})),
        ], "reasoning_content": "hm"},
        {"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "c1"},
    ]);
    assert_eq!(json!(values).to_string(), expected.to_string());
}

#[test]
fn each_refusal_names_the_place() {
    let assistant = |calls: Value| json!([user(), {"role": "assistant", "tool_calls": calls}]);
    let cases = [
        (json!({"messages": []}), "messages"),
        (json!({"messages": [user()], "tools": {}}), "tools"),
        (json!({"messages": [user()], "tools": [1]}), "tools[0]"),
        (
            json!({"messages": [user()], "tools": [tool("a"), {"type": "retrieval"}]}),
            "tools[1].type",
        ),
        (
            json!({"messages": [user()], "tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
        (
            json!({"messages": [user()], "tools": [{"type": "function", "function": "a"}]}),
            "tools[0].function",
        ),
        (
            json!({"messages": [user()], "tools": [tool("")]}),
            "tools[0].function.name",
        ),
        (
            json!({"messages": [user()], "tools": vec![tool("a"); 129]}),
            "tools",
        ),
        (
            json!({"messages": [user()], "tools": [tool("a")], "tool_choice": "required"}),
            "tool_choice",
        ),
        (
            json!({"messages": [user()], "tools": [tool("a")],
                   "tool_choice": {"type": "function", "function": {"name": "a"}}}),
            "tool_choice",
        ),
        (
            json!({"messages": [user()], "tool_choice": "auto"}),
            "tool_choice",
        ),
        (
            json!({"messages": [user()], "tools": [tool("a")], "parallel_tool_calls": false}),
            "parallel_tool_calls",
        ),
        (json!({"prompt": "x", "tools": [tool("a")]}), "tools"),
        (json!({"prompt": "x", "tool_choice": "none"}), "tool_choice"),
        (
            json!({"input": "x", "parallel_tool_calls": true}),
            "parallel_tool_calls",
        ),
        (
            json!({"messages": [user(), {"role": "user"}]}),
            "messages[1].content",
        ),
        (
            json!({"messages": [user(), {"role": "assistant", "content": null}]}),
            "messages[1].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "tool_calls": [call(&json!({}))]}]}),
            "messages[0].tool_calls",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "tool_call_id": "c1"}]}),
            "messages[0].tool_call_id",
        ),
        (
            json!({"messages": assistant(json!([1]))}),
            "messages[1].tool_calls[0]",
        ),
        (
            json!({"messages": assistant(json!([call(&json!("{"))]))}),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            json!({"messages": assistant(json!([call(&json!("[1]"))]))}),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            json!({"messages": assistant(json!([call(&json!({})), call(&json!(7))]))}),
            "messages[1].tool_calls[1].function.arguments",
        ),
        (
            json!({"messages": assistant(json!([{"type": "custom"}]))}),
            "messages[1].tool_calls[0].type",
        ),
    ];
    for (body, field) in cases {
        let error = decode(&body).expect_err(&body.to_string());
        assert_eq!(error.code, ErrorCode::InvalidRequest, "{body}");
        assert_eq!(error.param.as_deref(), Some(field), "{body}: {}", error.message);
    }
}

#[test]
fn text_of_a_conversation_is_counted_with_its_tools() {
    let plain = chat(&json!({"messages": [user()]})).text_bytes();
    let long = "y".repeat(1000);
    let tools = json!([{"type": "function", "function": {"name": "a", "parameters": {&long: [&long, 1]}}}]);
    let with_tools = chat(&json!({"messages": [user()], "tools": tools})).text_bytes();
    assert!(
        with_tools > plain + 2000 && with_tools < plain + 2200,
        "{with_tools}"
    );
}
