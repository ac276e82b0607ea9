//! Conversations with a model that has a chat template: over the command line, as events and by request-reply.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_tests::{Fleet, Question, demo_models_dir, flotilla_binary};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Makes sums of conversations: a turn goes on from the one before it, each tool counts one, and the result of a
/// call is added up again from its arguments.
const TEMPLATE: &str = "
{%- for message in messages if message.role not in ['user', 'assistant', 'tool'] %}
    {{- raise_exception('there is no part for a ' ~ message.role) }}
{%- endfor %}
{{- bos_token }}
{%- if messages[-1].role == 'tool' %}
    {%- set numbers = messages[-2].tool_calls[0].function.arguments %}
    {{- numbers.a ~ '+' ~ numbers.b }}
{%- else %}
    {{- messages[-2].content if messages | length > 1 }}{{ messages[-1].content }}
    {%- if tools %}{{ '+' ~ tools | length }}{% endif %}
{%- endif %}
{{- '=' if add_generation_prompt }}";

/// The adder, who learned to talk, and the adder as it is.
fn models() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    for name in ["talker", "adder"] {
        copy_of_adder(&folder.path().join(name))?;
    }
    fs::write(folder.path().join("talker/chat_template.jinja"), TEMPLATE)?;
    Ok(folder)
}

fn copy_of_adder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for file in fs::read_dir(demo_models_dir().join("adder"))? {
        let file = file?;
        fs::copy(file.path(), folder.join(file.file_name()))?;
    }
    Ok(())
}

fn talk(fleet: &Fleet, lines: &str, arguments: &[&str]) -> Result<Output> {
    let command = [&["run", "talker", "--chat"], arguments].concat();
    let mut process = Command::new(flotilla_binary())
        .args(fleet.arguments(&command))
        .current_dir(fleet.folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    process
        .stdin
        .take()
        .context("a pipe")?
        .write_all(lines.as_bytes())?;
    Ok(process.wait_with_output()?)
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

async fn refusal(fleet: &Fleet, model: &str, body: Value) -> Result<RequestError> {
    let answer = fleet.ask(&Question::new(model, body.clone())).await?;
    answer.end.err().with_context(|| format!("{body} was answered"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_of_a_chat_on_the_command_line_build_on_each_other() -> Result<()> {
    let models = models()?;
    let fleet = Fleet::builder().models_dir(models.path()).start().await?;
    let output = talk(&fleet, "12+3\n\n+4\n", &[])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(String::from_utf8(output.stdout)?, "15\n19\n");
    let first = talk(&fleet, "+2\n", &["40+1"])?;
    assert_eq!(String::from_utf8(first.stdout)?, "41\n43\n");
    let long = talk(&fleet, &"1".repeat(400), &[])?;
    assert_eq!(long.status.code(), Some(4));
    let stderr = String::from_utf8_lossy(&long.stderr);
    assert!(
        stderr.contains("messages") && stderr.contains("context"),
        "{stderr}"
    );
    Ok(())
}

#[tokio::test]
async fn tools_calls_and_their_results_reach_the_model() -> Result<()> {
    let models = models()?;
    let fleet = Fleet::builder().models_dir(models.path()).start().await?;
    let cases = [
        (
            json!({"messages": [user("12")], "tools": [tool("a"), tool("b")]}),
            "14",
        ),
        (
            json!({"messages": [user("12+5")], "tools": [tool("a")], "tool_choice": "none"}),
            "17",
        ),
        (
            json!({"messages": [
                user("?"),
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "c", "type": "function",
                     "function": {"name": "add", "arguments": "{\"a\": 30, \"b\": 3}"}},
                ]},
                {"role": "tool", "tool_call_id": "c", "content": "?"},
            ]}),
            "33",
        ),
    ];
    for (body, sum) in cases {
        let answer = fleet.ask(&Question::new("talker", body.clone())).await?;
        let finished = answer.end?;
        assert_eq!(answer.text, sum, "{body}");
        // The special token, two numbers with their signs, as the worker counted them.
        assert!(
            (6..=7).contains(&finished.usage.prompt_tokens),
            "{body}: {:?}",
            finished.usage
        );
    }
    let body = json!({"messages": [user("2+2")]}).to_string();
    let subject = "flotilla.infer.talker";
    let reply = fleet.connection.client.request(subject, body.into()).await?;
    let reply: Value = serde_json::from_slice(&reply.payload)?;
    assert_eq!(reply["object"], "chat.completion", "{reply}");
    assert_eq!(
        reply["choices"][0]["message"],
        json!({"role": "assistant", "content": "4"})
    );
    Ok(())
}

#[tokio::test]
async fn each_bad_conversation_fails_with_the_place_and_hurts_nobody() -> Result<()> {
    let models = models()?;
    let fleet = Fleet::builder().models_dir(models.path()).start().await?;
    let call = json!({"type": "function", "function": {"name": "add", "arguments": "{"}});
    let cases = [
        (
            "talker",
            json!({"messages": [{"role": "poet", "content": "1"}]}),
            "messages",
            "no part for a poet",
        ),
        (
            "adder",
            json!({"messages": [user("1")]}),
            "messages",
            "no chat template",
        ),
        (
            "talker",
            json!({"messages": [user("1")], "tools": [{"type": "search"}]}),
            "tools[0].type",
            "function",
        ),
        (
            "talker",
            json!({"messages": [user("1")], "tools": [tool("a")], "tool_choice": "required"}),
            "tool_choice",
            "auto",
        ),
        (
            "talker",
            json!({"messages": [user("1"), {"role": "assistant", "tool_calls": [call]}]}),
            "messages[1].tool_calls[0].function.arguments",
            "JSON",
        ),
        (
            "talker",
            json!({"messages": [user("1")], "logit_bias": {"16": 1}}),
            "logit_bias",
            "vocabulary of 16",
        ),
    ];
    for (model, body, param, part) in cases {
        let error = refusal(&fleet, model, body.clone()).await?;
        assert_eq!(error.code, ErrorCode::InvalidRequest, "{body}: {error}");
        assert_eq!(error.param.as_deref(), Some(param), "{body}: {error}");
        assert!(error.message.contains(part), "{body}: {error}");
    }
    let answer = fleet
        .ask(&Question::new("talker", json!({"messages": [user("1+1")]})))
        .await?;
    assert_eq!(answer.text, "2");
    Ok(())
}
