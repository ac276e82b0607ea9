//! Embedding requests as far as their admission, and vectors on their way through a journal.

use anyhow::{Context, Result};
use flotilla_client::{Answer, Catalog, Events, Journal, NewEntry, new_request_id};
use flotilla_protocol::catalog::{CatalogEntry, ModelFacts, ModelSource, ModelTask};
use flotilla_protocol::event::{
    Embedding, ErrorCode, Event, FinishReason, Finished, RequestError, Timings, Usage, embeddings_bytes_max,
};
use flotilla_protocol::{Attempt, Encoding, ModelName, Strikes, WorkerId};
use flotilla_tests::{Fleet, Question, demo_models_dir};
use serde_json::{Value, json};

/// A model in the catalog that makes vectors; its tokenizer is the adder's, with 16 tokens.
async fn add_embedder(fleet: &Fleet, dimensions: u32) -> Result<()> {
    let entry = CatalogEntry {
        name: ModelName::new("embedder")?,
        source: ModelSource::Folder(demo_models_dir().join("adder").canonicalize()?),
        facts: ModelFacts {
            architecture: "BertModel".into(),
            context_tokens_max: 20,
            vocabulary_size: 16,
            weights_bytes: 1 << 20,
            task: ModelTask::Embed { dimensions },
        },
        slots: None,
        keep_alive: None,
        pin: false,
        slo: None,
        quantize: None,
    };
    Ok(Catalog::open(&fleet.connection).await?.add(&entry).await?)
}

async fn refusal(fleet: &Fleet, model: &str, body: Value) -> Result<RequestError> {
    let answer = fleet.ask(&Question::new(model, body.clone())).await?;
    answer.end.err().with_context(|| format!("{body} was answered"))
}

#[tokio::test]
async fn each_request_that_is_not_for_the_model_is_refused_with_its_field() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    add_embedder(&fleet, 1 << 16).await?;
    let chat = json!({"messages": [{"role": "user", "content": "1"}]});
    let (invalid, too_large) = (ErrorCode::InvalidRequest, ErrorCode::TooLarge);
    let cases = [
        ("adder", json!({"input": "1"}), invalid, "input", "makes text"),
        (
            "embedder",
            json!({"prompt": "1"}),
            invalid,
            "prompt",
            "makes embeddings",
        ),
        (
            "embedder",
            json!({"prompt": [1]}),
            invalid,
            "prompt",
            "makes embeddings",
        ),
        ("embedder", chat, invalid, "messages", "makes embeddings"),
        (
            "embedder",
            json!({"input": "1", "temperature": 1}),
            invalid,
            "temperature",
            "no meaning",
        ),
        (
            "embedder",
            json!({"input": ["1", "1".repeat(20)]}),
            ErrorCode::ContextExceeded,
            "input[1]",
            "21 tokens",
        ),
        // A server of the tests takes 8 MiB at once.
        (
            "embedder",
            json!({"input": vec!["1"; 9]}),
            too_large,
            "input",
            "8 do",
        ),
    ];
    for (model, body, code, param, part) in cases {
        let error = refusal(&fleet, model, body.clone()).await?;
        assert_eq!(
            (error.code, error.param.as_deref()),
            (code, Some(param)),
            "{body}: {error}"
        );
        assert!(error.message.contains(part), "{body}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn embeddings_that_no_worker_makes_yet_are_refused_by_name() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    add_embedder(&fleet, 8).await?;
    let error = refusal(&fleet, "embedder", json!({"input": ["1+1", "2"]})).await?;
    assert_eq!(
        (error.code, error.param.as_deref()),
        (ErrorCode::InvalidRequest, Some("input"))
    );
    assert!(error.message.contains("not embeddings"), "{error}");
    Ok(())
}

#[tokio::test]
async fn the_largest_vectors_that_are_admitted_go_through_a_journal() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let worker = WorkerId::new("w")?;
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let request = new_request_id();
        let dimensions = 1 << 14;
        let texts = (1..)
            .take_while(|texts| embeddings_bytes_max(*texts, dimensions, encoding) < (8 << 20) - (4 << 10))
            .last()
            .context("one fits")?;
        let vector: Vec<f32> = (0..dimensions)
            .map(|place| -1e-30 / (f32::from(u16::try_from(place % 999).unwrap_or(0)) + 3.0))
            .collect();
        let data = (0..u32::try_from(texts)?).map(|index| Embedding {
            index,
            embedding: vector.clone(),
        });
        let finished = Finished {
            finish_reason: FinishReason::Stop,
            usage: Usage::new(9, 0),
            timings: Timings::default(),
            data: Some(data.collect()),
        };
        let event = Event::Finished(finished.clone());
        let mut events = Events::subscribe(&fleet.connection, request.clone()).await?;
        Journal::new(&fleet.connection)
            .append(NewEntry {
                request: &request,
                expected_last_sequence: 0,
                attempt: Attempt(1),
                worker: Some(&worker),
                strikes: Strikes(0),
                encoding,
                event: &event,
            })
            .await?;
        let answer = Answer::collect(&mut events).await?;
        assert_eq!(answer.end?, finished, "{encoding}");
    }
    Ok(())
}
