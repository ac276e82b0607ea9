//! Requests to prompts, with the tokenizer of the adder and templates made for each test.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flotilla_prompt::{Made, ModelBounds, OpenTextError, Prompt, PromptMaker, check_format, text_bytes};
use flotilla_protocol::catalog::ModelTask;
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::InferenceRequest;
use flotilla_protocol::{Encoding, ModelName};
use serde_json::{Value, json};

const BOUNDS: ModelBounds = ModelBounds {
    task: ModelTask::Generate,
    vocabulary_size: 16,
    context_tokens_max: 32,
};

fn adder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cli/demo-models/adder")
}

fn maker(template: Option<&str>) -> PromptMaker {
    bounded_maker(template, BOUNDS)
}

fn bounded_maker(template: Option<&str>, bounds: ModelBounds) -> PromptMaker {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(adder().join(file), folder.path().join(file)).unwrap();
    }
    if let Some(template) = template {
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    }
    PromptMaker::open(folder.path(), bounds).unwrap()
}

fn request(body: &Value) -> InferenceRequest {
    let name = ModelName::new("adder").unwrap();
    InferenceRequest::decode(&name, Encoding::Json, body.to_string().as_bytes(), 1 << 20).unwrap()
}

fn make(template: Option<&str>, body: &Value) -> Result<Prompt, RequestError> {
    match maker(template).make(&request(body), SystemTime::UNIX_EPOCH)? {
        Made::Generate(prompt) => Ok(prompt),
        embed @ Made::Embed(_) => panic!("{embed:?}"),
    }
}

fn text(template: &str, body: &Value) -> String {
    let prompt = make(Some(template), body).unwrap();
    maker(None).tokenizer().decode_all(&prompt.tokens).unwrap()
}

fn chat(content: &str) -> Value {
    json!({"messages": [{"role": "user", "content": content}]})
}

#[test]
fn text_and_its_tokens_and_a_rendered_chat_make_one_prompt() {
    let of_text = make(None, &json!({"prompt": "12+3="})).unwrap();
    let of_tokens = make(None, &json!({"prompt": of_text.tokens})).unwrap();
    assert_eq!(of_text, of_tokens);
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}=";
    assert_eq!(make(Some(template), &chat("12+3")).unwrap(), of_text);
    assert_eq!(
        usize::try_from(of_text.answer_tokens_max).unwrap(),
        32 - of_text.tokens.len()
    );
}

#[test]
fn template_sees_tools_calls_and_results() {
    let template = "{{ tools | length }}+{{ messages[1].tool_calls[0].function.arguments.a }}\
                    +{{ messages[1].content is undefined and 7 }}+{{ messages[2].tool_call_id }}\
                    {% if messages[0].tool_calls is defined %}={% endif %}";
    let body = json!({
        "messages": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": "{\"a\": 23}"}},
            ]},
            {"role": "tool", "tool_call_id": "456", "content": "2"},
        ],
        "tools": [{"type": "function", "function": {"name": "add"}}],
    });
    assert_eq!(text(template, &body), "1+23+7+456");
    let without = "{% if tools %}1{% else %}2{% endif %}";
    assert_eq!(text(without, &chat("3")), "2");
}

#[test]
fn each_refusal_names_the_field_and_what_is_wrong() {
    let cases: [(Option<&str>, Value, &str, &str); 8] = [
        (Some("{# silence #}"), chat("1"), "messages", "has no tokens"),
        (
            None,
            json!({"prompt": [3, 16]}),
            "prompt",
            "token 16 is outside the model's vocabulary of 16",
        ),
        (
            None,
            json!({"prompt": "1", "logit_bias": {"3": 1, "99": 1}}),
            "logit_bias",
            "token 99 is outside",
        ),
        (None, json!({"input": "1"}), "input", "not embeddings"),
        (None, chat("1"), "messages", "no chat template"),
        (
            Some("{{ raise_exception('only poems') }}"),
            chat("1"),
            "messages",
            "only poems",
        ),
        (
            Some("{{ messages[0].a.b.c }}"),
            chat("1"),
            "messages",
            "undefined value",
        ),
        (
            Some("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"),
            chat("1"),
            "messages",
            "steps",
        ),
    ];
    for (template, body, field, part) in cases {
        let error = make(template, &body).expect_err(&body.to_string());
        assert_eq!(error.code, ErrorCode::InvalidRequest, "{body}: {error}");
        assert_eq!(error.param.as_deref(), Some(field), "{body}: {error}");
        assert!(error.message.contains(part), "{body}: {error}");
    }
}

#[test]
fn prompt_that_fills_the_context_is_refused_and_one_token_less_is_not() {
    assert_eq!(
        make(None, &json!({"prompt": vec![3; 31]}))
            .unwrap()
            .answer_tokens_max,
        1
    );
    for (body, field) in [
        (json!({"prompt": vec![3; 32]}), "prompt"),
        (json!({"prompt": "1".repeat(40)}), "prompt"),
        (json!({"prompt": "1", "max_tokens": 32}), "max_tokens"),
    ] {
        let error = make(None, &body).unwrap_err();
        assert_eq!(
            (error.code, error.param.as_deref()),
            (ErrorCode::ContextExceeded, Some(field)),
            "{body}"
        );
    }
}

#[test]
fn what_needs_no_tokenizer_is_refused_by_the_numbers_alone() {
    for body in [
        json!({"prompt": [3, 16]}),
        json!({"prompt": vec![3; 32]}),
        json!({"prompt": "1", "logit_bias": {"16": 1}}),
        json!({"input": ["1"]}),
    ] {
        let alone = BOUNDS.check(&request(&body)).unwrap_err();
        assert_eq!(alone, make(None, &body).unwrap_err(), "{body}");
    }
    assert_eq!(
        BOUNDS.check(&request(&json!({"prompt": "1", "logit_bias": {"15": 1}}))),
        Ok(())
    );
}

#[test]
fn texts_of_an_embedding_request_are_encoded_and_cut_one_by_one() {
    let bounds = ModelBounds {
        task: ModelTask::Embed { dimensions: 3 },
        ..BOUNDS
    };
    let maker = bounded_maker(None, bounds);
    let make = |body: &Value| maker.make(&request(body), SystemTime::UNIX_EPOCH);
    let one = make(&json!({"input": "12"})).unwrap();
    // A text has its special token, and may fill the context: no answer follows.
    let full = make(&json!({"input": ["12", "1".repeat(31)]})).unwrap();
    assert_eq!((one.prompt_tokens(), full.prompt_tokens()), (3, 35));
    let Made::Embed(texts) = full else {
        panic!("{full:?}")
    };
    assert_eq!(Made::Embed(vec![texts[0].clone()]), one);
    // What is longer is cut, as sentence-transformers does.
    let long = make(&json!({"input": ["1".repeat(32), "1".repeat(999)]})).unwrap();
    let Made::Embed(cut) = long else {
        panic!("{long:?}")
    };
    assert_eq!(cut, [texts[1].clone(), texts[1].clone()]);
    for (body, field) in [
        (json!({"prompt": "1"}), "prompt"),
        (json!({"prompt": [1]}), "prompt"),
        (chat("1"), "messages"),
    ] {
        let error = make(&body).unwrap_err();
        assert_eq!(
            (error.code, error.param.as_deref()),
            (ErrorCode::InvalidRequest, Some(field)),
            "{body}"
        );
        assert!(error.message.contains("embeddings"), "{error}");
    }
}

#[test]
fn broken_files_are_named_when_a_folder_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let error = PromptMaker::open(folder.path(), BOUNDS).unwrap_err();
    assert!(matches!(error, OpenTextError::Tokenizer(_)), "{error}");
    std::fs::copy(
        adder().join("tokenizer.json"),
        folder.path().join("tokenizer.json"),
    )
    .unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{% for %}").unwrap();
    let error = PromptMaker::open(folder.path(), BOUNDS).unwrap_err();
    assert!(matches!(error, OpenTextError::Chat(_)), "{error}");
}

#[test]
fn bytes_of_a_prompt_are_those_of_its_text() {
    assert_eq!(text_bytes(&request(&json!({"prompt": "123"})).input), 3);
    assert_eq!(text_bytes(&request(&json!({"prompt": [1, 2, 3]})).input), 12);
    assert_eq!(text_bytes(&request(&json!({"input": ["1", "22"]})).input), 3);
    let long = text_bytes(&request(&chat(&"1".repeat(100))).input);
    assert!((100..120).contains(&long), "{long}");
}

fn simulated(body: &Value) -> Prompt {
    let bounds = ModelBounds {
        task: ModelTask::Generate,
        vocabulary_size: 32_000,
        context_tokens_max: 512,
    };
    let maker = PromptMaker::simulated(bounds);
    match maker.make(&request(body), SystemTime::UNIX_EPOCH).unwrap() {
        Made::Generate(prompt) => prompt,
        embed @ Made::Embed(_) => panic!("{embed:?}"),
    }
}

#[test]
fn simulated_model_takes_texts_tokens_and_chats_without_any_file() {
    let of_text = simulated(&json!({"prompt": "ba zu doni"}));
    assert_eq!(of_text.tokens.len(), 3);
    assert_eq!(simulated(&json!({"prompt": of_text.tokens})), of_text);
    let of_chat = simulated(&chat("ba zu doni"));
    let whole = simulated(&json!({"prompt": "user ba zu doni assistant"}));
    assert_eq!(of_chat, whole);
}

/// So that the keys and values of the turns before are found again.
#[test]
fn simulated_chat_that_goes_on_begins_with_what_was_read_and_answered() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let first = simulated(&json!({"messages": [turn("user", "how many sheep")]}));
    let answer = "ba zu doni";
    let next = simulated(&json!({"messages": [
        turn("user", "how many sheep"), turn("assistant", answer), turn("user", "and goats")
    ]}));
    let read = [first.tokens, simulated(&json!({"prompt": answer})).tokens].concat();
    assert_eq!(next.tokens[..read.len()], read);
}

#[test]
fn simulated_model_refuses_what_its_numbers_forbid_as_others_do() {
    let bounds = ModelBounds {
        vocabulary_size: 32_000,
        ..BOUNDS
    };
    let maker = PromptMaker::simulated(bounds);
    let refused = |body: &Value| {
        let error = maker.make(&request(body), SystemTime::UNIX_EPOCH).unwrap_err();
        (error.code, error.param.unwrap_or_default())
    };
    let cases = [
        (json!({"prompt": " "}), ErrorCode::InvalidRequest, "prompt"),
        (json!({"prompt": [32_000]}), ErrorCode::InvalidRequest, "prompt"),
        (
            json!({"prompt": vec![3; 32]}),
            ErrorCode::ContextExceeded,
            "prompt",
        ),
    ];
    for (body, code, field) in cases {
        assert_eq!(refused(&body), (code, field.to_owned()), "{body}");
    }
}

fn shaped(schema: &Value) -> Value {
    let described = json!({"name": "answer", "schema": schema});
    json!({"prompt": "12+3=", "response_format": {"type": "json_schema", "json_schema": described}})
}

#[test]
fn format_changes_nothing_about_the_prompt_and_makes_a_grammar() {
    let (maker, plain) = (maker(None), json!({"prompt": "12+3="}));
    let integer = request(&shaped(&json!({"type": "integer"})));
    assert_eq!(check_format(&integer), Ok(()));
    let made = maker.make(&integer, SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(
        made,
        maker.make(&request(&plain), SystemTime::UNIX_EPOCH).unwrap()
    );
    assert!(maker.answer_grammar(&request(&plain), &[2]).unwrap().is_none());
    let mut answer = maker.answer_grammar(&integer, &[2]).unwrap().unwrap();
    // The tokens 4 to 13 are the digits.
    assert_eq!(answer.mask().unwrap(), [0b0011_1111_1111_0000]);
    answer.push(7).unwrap();
    assert_eq!(answer.mask().unwrap(), [0b0011_1111_1111_0100], "and the end");
}

#[test]
fn schema_that_cannot_be_obeyed_is_refused_alike_with_and_without_a_model() {
    for schema in [
        json!({"type": "strin"}),
        json!({"type": "array", "uniqueItems": true}),
        json!({"$ref": "https://example.com/schema"}),
    ] {
        let request = request(&shaped(&schema));
        let refused = check_format(&request).unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidRequest);
        assert_eq!(
            refused.param.as_deref(),
            Some("response_format.json_schema.schema")
        );
        assert_eq!(maker(None).answer_grammar(&request, &[2]).unwrap_err(), refused);
    }
}

#[test]
fn strict_schema_has_one_of_to_the_letter_and_any_other_takes_it_for_any_of() {
    let one_of = json!({"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 3}]});
    let mut body = shaped(&one_of);
    assert_eq!(check_format(&request(&body)), Ok(()));
    body["response_format"]["json_schema"]["strict"] = json!(true);
    let refused = check_format(&request(&body)).unwrap_err();
    assert!(refused.message.contains("oneOf"), "{refused}");
}

#[test]
fn simulated_models_have_no_answers_of_a_shape() {
    let maker = PromptMaker::simulated(BOUNDS);
    for format in [
        json!({"type": "json_object"}),
        shaped(&json!({}))["response_format"].clone(),
    ] {
        let request = request(&json!({"prompt": "ba", "response_format": format}));
        let refused = maker.make(&request, SystemTime::UNIX_EPOCH).unwrap_err();
        assert_eq!(refused.param.as_deref(), Some("response_format"));
    }
}
