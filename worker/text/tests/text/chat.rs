//! Chat templates of the shapes that models come with.

use std::time::{Duration, Instant, SystemTime};

use flotilla_text::{ChatError, ChatOptions, ChatTemplate, GenerationPrompt};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixtures;

const CHATML: &str = "{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' -}}
{% endif %}";

const LLAMA_3: &str = "{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}
{{- system_message }}
{{- '<|eot_id|>' }}
{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}";

const QWEN: &str = "{%- if tools %}{%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- generation %}{{- content }}{%- endgeneration %}
    {%- else %}
        {{- loop.index0 ~ ':' ~ message.content }}
    {%- endif %}
    {{- '|' }}
{%- endfor %}
{{- ns.last_query_index }}";

const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}";

/// 2024-07-26, a date of Llama 3's own examples.
const NOW_S: u64 = 1_721_952_000;

fn open(template: &str) -> Result<Option<ChatTemplate>, ChatError> {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template});
    ChatTemplate::open(fixtures::folder(&[("tokenizer_config.json", &config.to_string())]).path())
}

fn render(template: &str, messages: &Value, tools: Option<&Value>) -> Result<String, ChatError> {
    let options = ChatOptions {
        generation_prompt: GenerationPrompt::Add,
        tools,
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S),
    };
    open(template)?
        .unwrap()
        .render(messages.as_array().unwrap(), options)
}

fn conversation() -> Value {
    json!([
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "2+2 < 5?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
        {"role": "user", "content": "Sure 😀?"},
    ])
}

fn weather_tool() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "about": "a < b & é", "args": []}}])
}

#[test]
fn chatml_is_rendered() {
    assert_eq!(
        render(CHATML, &json!([{"role": "user", "content": "hi"}]), None).unwrap(),
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn llama_3_template_is_rendered_with_date_and_tools() {
    let text = render(LLAMA_3, &conversation(), Some(&weather_tool())).unwrap();
    assert!(text.starts_with(
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>{\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \"weather\",\n        \"about\": \"a < b & é\",\n        \"args\": []\n    }\n}<|start_header_id|>user<|end_header_id|>\n\n2+2 < 5?<|eot_id|>"
    ), "{text}");
    assert!(
        text.ends_with("Sure 😀?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
        "{text}"
    );
}

#[test]
fn qwen_template_is_rendered_with_tools_as_the_client_sent_them() {
    assert_eq!(
        render(QWEN, &conversation(), Some(&weather_tool())).unwrap(),
        "{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"about\": \"a < b & é\", \"args\": []}}\n0: Be brief. |1:2+2 < 5?|Yes.|3:Sure 😀?|3"
    );
}

#[test]
fn mistral_template_is_rendered_and_its_refusal_is_typed() {
    let turns = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    assert_eq!(render(MISTRAL, &turns, None).unwrap(), "<s>[INST] a [/INST]b</s>");
    let refused = json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]);
    match render(MISTRAL, &refused, None).unwrap_err() {
        ChatError::Raised { message } => assert!(message.starts_with("Conversation roles must alternate")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn exception_of_a_macro_is_still_an_exception() {
    let template = "{% macro refuse() %}{{ raise_exception('no') }}{% endmacro %}{{ refuse() }}";
    assert!(
        matches!(render(template, &json!([]), None), Err(ChatError::Raised { message }) if message == "no")
    );
}

#[test]
fn none_and_booleans_are_written_as_python_does() {
    let messages = json!([{"part": {"content": null}, "flag": true, "number": 1.0}]);
    let template =
        "{{ messages[0].part.content }} {{ messages[0].flag }} {{ messages[0].number }} {{ tools is none }}";
    assert_eq!(render(template, &messages, None).unwrap(), "None True 1.0 True");
}

#[test]
fn template_file_goes_before_the_configuration_and_default_is_chosen_of_several() {
    let named = json!({"chat_template": [
        {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"},
    ]});
    let render = |files: &[(&str, &str)]| {
        let template = ChatTemplate::open(fixtures::folder(files).path())
            .unwrap()
            .unwrap();
        let now = SystemTime::UNIX_EPOCH;
        template
            .render(
                &[],
                ChatOptions {
                    generation_prompt: GenerationPrompt::Omit,
                    tools: None,
                    now,
                },
            )
            .unwrap()
    };
    let config = named.to_string();
    assert_eq!(render(&[("tokenizer_config.json", &config)]), "named");
    assert_eq!(
        render(&[
            ("tokenizer_config.json", &config),
            ("chat_template.jinja", "file")
        ]),
        "file"
    );
}

#[test]
fn chat_with_tools_is_rendered_by_the_template_for_them() {
    let named = json!({"chat_template": [
        {"name": "tool_use", "template": "configured tools"}, {"name": "default", "template": "configured"},
    ]});
    let (named, one) = (
        named.to_string(),
        json!({"chat_template": "configured"}).to_string(),
    );
    let texts = |files: &[(&str, &str)]| {
        let folder = fixtures::folder(files);
        let template = ChatTemplate::open(folder.path()).unwrap().unwrap();
        let tools = weather_tool();
        [None, Some(&tools)].map(|tools| {
            let options = ChatOptions {
                generation_prompt: GenerationPrompt::Add,
                tools,
                now: SystemTime::UNIX_EPOCH,
            };
            template.render(&[], options).unwrap()
        })
    };
    let (config, file) = ("tokenizer_config.json", "chat_template.jinja");
    let additional = "additional_chat_templates/tool_use.jinja";
    assert_eq!(texts(&[(config, &named)]), ["configured", "configured tools"]);
    assert_eq!(texts(&[(config, &one)]), ["configured", "configured"]);
    assert_eq!(
        texts(&[(config, &one), (additional, "added")]),
        ["configured", "added"]
    );
    assert_eq!(
        texts(&[(config, &named), (additional, "added")]),
        ["configured", "added"]
    );
    assert_eq!(texts(&[(config, &named), (file, "file")]), ["file", "file"]);
    assert_eq!(texts(&[(file, "file"), (additional, "added")]), ["file", "added"]);
    let alone = fixtures::folder(&[(additional, "added")]);
    assert!(matches!(
        ChatTemplate::open(alone.path()),
        Err(ChatError::NoDefault { .. })
    ));
}

#[test]
fn broken_template_for_tools_is_named_when_it_is_opened() {
    let folder = fixtures::folder(&[
        ("chat_template.jinja", "x"),
        ("additional_chat_templates/tool_use.jinja", "{% for %}"),
    ]);
    let error = ChatTemplate::open(folder.path()).unwrap_err();
    assert!(
        error.to_string().contains("tool_use.jinja is not valid"),
        "{error}"
    );
}

#[test]
fn folder_without_a_template_has_none_and_one_without_a_default_is_an_error() {
    assert!(ChatTemplate::open(&fixtures::adder_folder()).unwrap().is_none());
    let config = json!({"chat_template": [{"name": "rag", "template": "x"}]}).to_string();
    let folder = fixtures::folder(&[("tokenizer_config.json", &config)]);
    assert!(matches!(
        ChatTemplate::open(folder.path()),
        Err(ChatError::NoDefault { .. })
    ));
}

#[test]
fn invalid_template_is_named_when_it_is_opened() {
    let error = open("{% for %}").unwrap_err();
    assert!(
        error.to_string().contains("tokenizer_config.json is not valid"),
        "{error}"
    );
}

#[test]
fn hostile_templates_end_with_an_error() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(
        render(endless, &json!([]), None),
        Err(ChatError::OutOfSteps { .. })
    ));
    let large = "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}";
    assert!(matches!(
        render(large, &json!([]), None),
        Err(ChatError::OutputTooLarge { .. })
    ));
    let others = [
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'x' | indent(18446744073709551615) }}",
        "{{ 'x' | indent(width=9999999999999) }}",
        "{{ messages | tojson(indent=18446744073709551615) }}",
        "{{ messages | tojson(separators='x') }}",
        "{{ messages | tojson(separators=['a', 'b', 'c']) }}",
        "{{ messages | tojson(colour=true) }}",
        "{{ ('x' * 99999999) | tojson }}",
        "{{ 'x' * 9999999999999 }}",
        "{{ strftime_now('%Q') }}",
        "{{ messages[0].a.b.c }}",
        "{% include 'other' %}",
    ];
    for template in others {
        let outcome = render(template, &json!([]), None);
        assert!(
            matches!(outcome, Err(ChatError::Render { .. })),
            "{template}: {outcome:?}"
        );
    }
}

proptest! {
    #[test]
    fn mutated_templates_never_panic(
        source in prop::sample::select(vec![CHATML, LLAMA_3, QWEN, MISTRAL]),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..9, "[-+{}%#| a-z0-9'\\[\\]().*~]{0,4}"), 1..4),
    ) {
        let mut template = source.to_owned();
        for (place, removed, inserted) in edits {
            let start = place.index(template.len());
            let end = (start + removed).min(template.len());
            template.replace_range(start..end, &inserted);
        }
        let outcome = render(&template, &conversation(), Some(&weather_tool()));
        let panicked = matches!(outcome, Err(ChatError::Panicked { .. }));
        prop_assert!(!panicked, "{}", template);
    }

}

/// A format of 20 kB in a loop took minutes, for one step a call.
#[test]
fn format_of_a_date_is_bounded() {
    let long = "{{ strftime_now('%Y' * 9999) }}";
    let error = render(long, &conversation(), None).unwrap_err();
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let told: Vec<String> = causes.map(ToString::to_string).collect();
    assert!(told.concat().contains("more than 256 bytes"), "{told:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn random_templates_end_in_time_and_never_panic(template in any_template()) {
        let begun = Instant::now();
        let outcome = render(&template, &conversation(), Some(&weather_tool()));
        let panicked = matches!(outcome, Err(ChatError::Panicked { .. }));
        prop_assert!(!panicked, "{}", template);
        prop_assert!(begun.elapsed() < RENDER_MAX, "{}", template);
    }
}

/// Templates that mostly compile: statements within statements, some of them cut short or with noise inside.
fn any_template() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(PIECES.to_vec()).prop_map(str::to_owned);
    let nested = piece.prop_recursive(6, 40, 5, |inner| {
        let body = prop::collection::vec(inner, 1..5).prop_map(|parts| parts.concat());
        (prop::sample::select(WRAPPERS.to_vec()), body)
            .prop_map(|((begin, end), body)| format!("{begin}{body}{end}"))
    });
    let noise = prop::option::weighted(0.2, ("[ -~\\n]{0,8}", any::<prop::sample::Index>()));
    (prop::collection::vec(nested, 1..5), noise).prop_map(|(parts, noise)| {
        let mut template = parts.concat();
        if let Some((noise, place)) = noise {
            template.insert_str(template.floor_char_boundary(place.index(template.len())), &noise);
        }
        template
    })
}

/// Statements that fail, loop for long or write much, in any order.
const PIECES: [&str; 30] = [
    "{% set x = [x, x] %}",
    "{% set x = 'ab' * 99 %}",
    "{% set x = messages %}",
    "{% set x = tools[0] %}",
    "{% set ns = namespace(x=1) %}",
    "{% set ns.x = (ns.x, x) %}",
    "{{ f(1) }}",
    "{{ f(f) }}",
    "{{ loop(x) }}",
    "{{ loop.index ~ loop.previtem }}",
    "{{ caller() }}",
    "{% break %}",
    "{% continue %}",
    "{{ x | tojson(indent=9) }}",
    "{{ messages | tojson(ensure_ascii=true) }}",
    "{{ tools[::-1] }}",
    "{{ x.split('a') }}",
    "{{ x | indent(64) }}",
    "{{ messages[0].content[1:-1].strip() }}",
    "{{ x | batch(3) | list }}",
    "{{ strftime_now('%Y' * 9999) }}",
    "{{ raise_exception(x) }}",
    "{{ m.role.upper() }}",
    "{{ m.content | trim }}",
    "{{ 9 ** 99999 }}",
    "{{ x | sort | unique | list }}",
    "{{ self }}{{ x is iterable }}",
    "{% include 'default' %}",
    "{{ 'x' * 99999 }}",
    "a\n  é {# b #}",
];

const WRAPPERS: [(&str, &str); 9] = [
    ("{% for m in messages %}", "{% endfor %}"),
    ("{% for a in range(99999) %}", "{% endfor %}"),
    ("{%- for x in [x] recursive -%}", "{%- endfor -%}"),
    ("{% if tools %}", "{% else %}x{% endif %}"),
    ("{% macro f(a) %}", "{% endmacro %}{{ f(2) }}"),
    ("{% call f(1) %}", "{% endcall %}"),
    ("{% set x %}", "{% endset %}"),
    ("{% generation %}", "{% endgeneration %}"),
    ("{% filter upper %}", "{% endfilter %}"),
];

/// A rendering of all the steps that are allowed takes a fraction of this in a debug build on a busy machine.
const RENDER_MAX: Duration = Duration::from_secs(60);
