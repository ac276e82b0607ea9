//! Answers that must have a shape, from a request to its answer.

use anyhow::{Context, Result};
use flotilla_client::{Answer, AnswerBuilder};
use flotilla_protocol::Attempt;
use flotilla_protocol::event::{ErrorCode, Event, FinishReason};
use flotilla_tests::{Fleet, ModelFolderBuilder, Question, Spelling};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::crashes::assert_journal_is_whole;
use crate::slow::{again, worker_of};

/// A folder of models with one, `bytes`, that draws nonsense of any bytes.
fn byte_models() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let model = ModelFolderBuilder {
        spelling: Spelling::Bytes,
        ..ModelFolderBuilder::default()
    };
    model.write(&folder.path().join("bytes"))?;
    Ok(folder)
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "born": {"type": "string", "pattern": "^[12][0-9]{3}-[01][0-9]$"},
            "kind": {"enum": ["cat", "dog", null]},
            "legs": {"type": "integer", "minimum": 0, "maximum": 4},
            "toys": {"type": "array", "minItems": 2, "maxItems": 4, "items": {
                "type": "object", "properties": {"new": {"type": "boolean"}, "size": {"type": "number", "maximum": 100}},
                "required": ["new"], "additionalProperties": false,
            }},
        },
        "required": ["name", "born", "kind", "legs", "toys"],
        "additionalProperties": false,
    })
}

fn assert_is_a_person(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let fields = value.as_object().map(|fields| fields.keys().collect::<Vec<_>>());
    assert_eq!(
        fields.unwrap_or_default(),
        ["name", "born", "kind", "legs", "toys"],
        "{text}"
    );
    assert!(
        value["name"]
            .as_str()
            .is_some_and(|name| name.chars().count() <= 12),
        "{text}"
    );
    assert!(
        value["born"]
            .as_str()
            .is_some_and(|born| born.len() == 7 && &born[4..5] == "-"),
        "{text}"
    );
    assert!(
        [json!("cat"), json!("dog"), Value::Null].contains(&value["kind"]),
        "{text}"
    );
    assert!(
        value["legs"].as_i64().is_some_and(|legs| (0..=4).contains(&legs)),
        "{text}"
    );
    let toys = value["toys"].as_array().map(Vec::as_slice).unwrap_or_default();
    assert!((2..=4).contains(&toys.len()), "{text}");
    for toy in toys {
        let size = toy.get("size");
        assert!(
            toy["new"].is_boolean()
                && size.is_none_or(|size| size.as_f64().is_some_and(|size| size <= 100.0)),
            "{text}"
        );
        assert_eq!(
            toy.as_object().map(serde_json::Map::len),
            Some(1 + usize::from(size.is_some())),
            "{text}"
        );
    }
}

fn schema_format(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}})
}

fn question(seed: u32) -> Question {
    let body = json!({
        "prompt": "A person: ", "max_tokens": 900, "temperature": 1.0, "top_k": 40, "seed": seed,
        // Quotes, braces, brackets and commas are likelier than the rest, so that numbers come to an end.
        "logit_bias": {"35": 1.5, "126": 1.5, "94": 1.5, "45": 1.5},
        "response_format": schema_format(&person()),
    });
    Question::new("bytes", body)
}

fn reason(answer: &Answer) -> Option<FinishReason> {
    answer.end.as_ref().ok().map(|finished| finished.finish_reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_a_schema_parse_and_are_of_it_beside_others_and_after_a_kill() -> Result<()> {
    let models = byte_models()?;
    let mut fleet = Fleet::builder()
        .models_dir(models.path())
        .workers(2)
        .set("dispatcher.worker_lost_after_ms=1500")
        .set("worker.report_interval_ms=300")
        .start()
        .await?;
    let unbroken = futures_util::future::try_join_all((0..6).map(|seed| {
        let fleet = &fleet;
        async move { fleet.ask(&question(seed)).await }
    }));
    let unbroken = unbroken.await?;
    for answer in &unbroken {
        assert_eq!(reason(answer), Some(FinishReason::Stop), "{}", answer.text);
        assert_is_a_person(&answer.text);
    }
    for (seed, kill_at) in [(0, 1), (1, 20), (2, 60)] {
        let expected = &unbroken[seed as usize];
        let question = again(&question(seed));
        let mut events = fleet.submit(&question).await?;
        let worker = worker_of(&fleet, &question, 0).await;
        let (mut builder, mut seen, mut killed) = (AnswerBuilder::default(), 0, false);
        let answer = loop {
            let delivered = events
                .next()
                .await?
                .context("the stream ended without an answer")?;
            if let Event::Tokens(tokens) = &delivered.event {
                seen += tokens.token_ids.len();
            }
            if !killed && seen >= kill_at {
                fleet.workers[worker].kill()?;
                killed = true;
            }
            if let Some(answer) = builder.push(delivered) {
                break answer;
            }
        };
        assert_eq!(
            answer.token_ids, expected.token_ids,
            "killed after {kill_at} tokens"
        );
        assert_eq!(answer.text, expected.text);
        assert_eq!(
            answer.attempts,
            Attempt(2),
            "the kill came in the middle of the answer"
        );
        assert_journal_is_whole(&fleet, &question, &answer).await?;
        fleet.restart_worker(worker)?;
        fleet.wait_for_workers(2).await;
    }
    Ok(())
}

#[tokio::test]
async fn demo_model_answers_in_a_shape_and_limits_and_stop_strings_cut_it() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let ask = async |mut body: Value, schema: Value| {
        body["response_format"] = schema_format(&schema);
        fleet.ask(&Question::new("adder", body)).await
    };
    let sum = || json!({"prompt": "123+456="});
    let free = ask(sum(), json!({"type": "integer"})).await?;
    assert_eq!(
        (free.text.as_str(), reason(&free)),
        ("579", Some(FinishReason::Stop))
    );
    let bounded = ask(sum(), json!({"enum": [57, 580]})).await?;
    assert_eq!(
        (bounded.text.as_str(), reason(&bounded)),
        ("57", Some(FinishReason::Stop))
    );
    let cut = ask(
        json!({"prompt": "123+456=", "max_tokens": 2}),
        json!({"type": "integer"}),
    )
    .await?;
    assert_eq!(
        (cut.text.as_str(), reason(&cut)),
        ("57", Some(FinishReason::Length))
    );
    let stopped = ask(
        json!({"prompt": "123+456=", "stop": "9"}),
        json!({"type": "integer"}),
    )
    .await?;
    assert_eq!(
        (stopped.text.as_str(), reason(&stopped)),
        ("57", Some(FinishReason::Stop))
    );
    let body = json!({"prompt": "123+456=", "response_format": schema_format(&json!({"const": 42}))});
    let reply = fleet
        .connection
        .client
        .request("flotilla.infer.adder", body.to_string().into())
        .await?;
    let reply: Value = serde_json::from_slice(&reply.payload)?;
    assert_eq!(reply["choices"][0]["text"], "42", "{reply}");
    Ok(())
}

#[tokio::test]
async fn shapes_that_cannot_be_had_are_refused_by_field() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let refusal = async |format: Value| {
        let body = json!({"prompt": "1+1=", "response_format": format});
        let answer = fleet.ask(&Question::new("adder", body)).await?;
        answer.end.err().context("it is refused")
    };
    let schema = "response_format.json_schema.schema";
    for (format, field, part) in [
        (
            schema_format(&json!({"type": "strin"})),
            schema,
            "Invalid type: strin",
        ),
        (schema_format(&json!({"$ref": "#"})), schema, "no token"),
        (json!({"type": "xml"}), "response_format.type", "xml"),
        // Its vocabulary has no braces.
        (
            json!({"type": "json_object"}),
            "response_format",
            "no token that the model has",
        ),
        (
            schema_format(&json!({"type": "object"})),
            schema,
            "no token that the model has",
        ),
    ] {
        let error = refusal(format.clone()).await?;
        assert_eq!(error.code, ErrorCode::InvalidRequest, "{format}: {error}");
        assert_eq!(error.param.as_deref(), Some(field), "{format}: {error}");
        assert!(error.message.contains(part), "{format}: {error}");
    }
    Ok(())
}
