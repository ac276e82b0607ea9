//! The worker is killed at every token of an answer.

use anyhow::Result;
use flotilla_protocol::event::{Event, EventKind};
use flotilla_tests::{Fleet, ModelFolderBuilder, Question, Spelling, demo_models_dir};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Limiter, Outcome, QUICK, Step, TOKENS, answered, ask, journal, outcome};
use crate::crashes::assert_journal_is_whole;
use crate::slow::again;

/// The demonstration models, and one whose tokens are bytes: theirs are too few for braces and quotes.
fn models() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    for model in ["adder", "sorter"] {
        std::os::unix::fs::symlink(demo_models_dir().join(model), folder.path().join(model))?;
    }
    let bytes = ModelFolderBuilder {
        hidden: 96,
        layers: 2,
        spelling: Spelling::Bytes,
        ..ModelFolderBuilder::default()
    };
    bytes.write(&folder.path().join("bytes"))?;
    Ok(folder)
}

/// Without their end token the demonstration models talk on until they may not.
fn endless(mut body: Value) -> Value {
    body["logit_bias"] = json!({"2": -100});
    body["max_tokens"] = json!(TOKENS);
    body
}

fn text() -> Question {
    // A stop string that begins often and never ends: text is held back, and has to be again after a kill.
    let body = json!({"prompt": "123+456=", "temperature": 0, "stop": ["5+", "9=9=9="]});
    Question::new("adder", endless(body))
}

fn seeded() -> Question {
    let body = json!({"prompt": "sort 52914=", "temperature": 2.0, "seed": 7, "repetition_penalty": 1.2});
    Question::new("sorter", endless(body))
}

fn schema() -> Question {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "legs": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}},
        },
        "required": ["name", "legs"],
        "additionalProperties": false,
    });
    let body = json!({
        "prompt": "A person: ", "max_tokens": TOKENS, "temperature": 1.0, "top_k": 40, "seed": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    });
    Question::new("bytes", body)
}

/// What the journal says of who wrote what: the tokens of the first worker, and whether it wrote the end.
async fn assert_continued_at(fleet: &Fleet, question: &Question, limit: Step) -> Result<()> {
    let (mut before, mut offsets_after) = (Vec::new(), Vec::new());
    for entry in journal(fleet, question).await? {
        let is_first = entry
            .worker
            .as_ref()
            .is_some_and(|worker| worker.as_str() == "w0");
        let (kind, event) = (entry.event.kind(), entry.event);
        match event {
            Event::Tokens(tokens) if is_first => before.push((kind, tokens.token_ids.len())),
            Event::Tokens(tokens) => offsets_after.push(tokens.offset as usize),
            _ if is_first => before.push((kind, 0)),
            _ => {}
        }
    }
    let steps = [EventKind::Accepted].into_iter();
    let steps = steps
        .chain([EventKind::Tokens; TOKENS])
        .chain([EventKind::Finished]);
    let expected: Vec<(EventKind, usize)> = steps
        .map(|kind| (kind, usize::from(kind == EventKind::Tokens)))
        .take(limit.0)
        .collect();
    assert_eq!(before, expected, "what the first worker wrote");
    let expected = (limit.tokens_before() < TOKENS).then_some(limit.tokens_before());
    assert_eq!(
        offsets_after.first().copied(),
        expected,
        "where the next worker went on"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_is_killed_at_any_token_leaves_an_answer_that_ends_as_if_undisturbed() -> Result<()> {
    let (models, limiter) = (models()?, Limiter::default());
    let mut builder = Fleet::builder()
        .models_dir(models.path())
        .gate("w0", &limiter.gate())
        // A token is appended before the next but one is made: each is an append of its own.
        .set("worker.answer_channel_tokens=1")
        .set("worker.slots=256");
    for setting in QUICK {
        builder = builder.set(setting);
    }
    let mut fleet = builder.start().await?;
    let mut asked = Vec::new();
    for question in [text(), schema(), seeded()] {
        let undisturbed: Outcome = outcome(&fleet.ask(&again(&question)).await?)?;
        assert_eq!(undisturbed.token_ids.len(), TOKENS, "{undisturbed:?}");
        for limit in Step::all() {
            let question = again(&question);
            limiter.limit(&question.request, limit);
            let answer = ask(&fleet, &question).await?;
            asked.push((question, limit, undisturbed.clone(), answer));
        }
    }
    limiter.all_reached().await;
    fleet.add_worker()?;
    fleet.wait_for_workers(2).await;
    fleet.workers[0].kill()?;
    for (question, limit, undisturbed, answer) in asked {
        let answer = answered(&question, answer).await?;
        assert_eq!(
            outcome(&answer)?,
            undisturbed,
            "{} killed before {limit:?}",
            question.model
        );
        assert_journal_is_whole(&fleet, &question, &answer).await?;
        assert_continued_at(&fleet, &question, limit).await?;
    }
    fleet.wait_for_an_empty_queue().await;
    Ok(())
}
