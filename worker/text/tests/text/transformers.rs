//! The same templates and conversations as Hugging Face transformers renders them, text for text.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use flotilla_text::{ChatError, ChatOptions, ChatTemplate, GenerationPrompt};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::fixtures;

#[derive(Deserialize)]
struct Case {
    messages: Vec<Value>,
    tools: Option<Value>,
}

/// What transformers made of a case.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rendered {
    Text(String),
    /// With this message of `raise_exception`.
    Raises(String),
    Fails(bool),
}

/// By template and case, with and without a generation prompt.
type Expected = BTreeMap<String, BTreeMap<String, [Rendered; 2]>>;

/// 2024-07-26, to which the script sets the clock of transformers.
const NOW_S: u64 = 1_721_952_000;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/templates")
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(folder().join(name)).unwrap()).unwrap()
}

fn open(name: &str) -> ChatTemplate {
    let template = std::fs::read_to_string(folder().join(format!("{name}.jinja"))).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}).to_string();
    let opened = ChatTemplate::open(fixtures::folder(&[("tokenizer_config.json", &config)]).path());
    opened.unwrap().unwrap()
}

fn render(template: &ChatTemplate, case: &Case, generation_prompt: GenerationPrompt) -> Rendered {
    let options = ChatOptions {
        generation_prompt,
        tools: case.tools.as_ref(),
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S),
    };
    match template.render(&case.messages, options) {
        Ok(text) => Rendered::Text(text),
        Err(ChatError::Raised { message }) => Rendered::Raises(message),
        Err(ChatError::Render { .. }) => Rendered::Fails(true),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn every_template_renders_every_conversation_as_transformers_does() {
    let cases: BTreeMap<String, Case> = read("cases.json");
    let expected: Expected = read("expected.json");
    let mut differences = Vec::new();
    for (name, by_case) in &expected {
        let template = open(name);
        assert_eq!(by_case.len(), cases.len());
        for (case, [with, without]) in by_case {
            for (add, expected) in [(GenerationPrompt::Add, with), (GenerationPrompt::Omit, without)] {
                let rendered = render(&template, &cases[case], add);
                if rendered != *expected {
                    differences.push(format!("{name} {case} {add:?}\n  {rendered:?}\n  {expected:?}"));
                }
            }
        }
    }
    assert!(expected.len() >= 8 && cases.len() >= 7);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
