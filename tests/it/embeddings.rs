//! Embedding requests and their vectors, with real processes.

use std::fs;

use anyhow::{Context, Result, ensure};
use flotilla_client::{Answer, Catalog, Events, Journal, NewEntry, new_request_id};
use flotilla_protocol::catalog::{CatalogEntry, ModelFacts, ModelSource, ModelTask};
use flotilla_protocol::event::{
    Embedding, ErrorCode, Event, FinishReason, Finished, RequestError, Timings, Usage, embeddings_bytes_max,
};
use flotilla_protocol::{Attempt, Encoding, ModelName, Strikes, WorkerId};
use flotilla_tests::{Fleet, Question, demo_models_dir, golden_encoder, write_encoder};
use safetensors::SafeTensors;
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
        root: None,
        slots: None,
        keep_alive: None,
        pin: false,
        slo: None,
        quantize: None,
        policy: None,
        output_tokens_prior: None,
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
async fn catalog_that_calls_a_text_model_an_embedder_is_found_out_by_the_worker() -> Result<()> {
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
                incarnation: Some(7),
                strikes: Strikes(0),
                alone: false,
                encoding,
                event: &event,
            })
            .await?;
        let answer = Answer::collect(&mut events).await?;
        assert_eq!(answer.end?, finished, "{encoding}");
    }
    Ok(())
}

/// A folder of models: two golden encoders, and the adder.
fn mixed_models() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    for name in ["bert-mean-f32", "bert-cls-bf16"] {
        write_encoder(name, &folder.path().join(name))?;
    }
    let adder = folder.path().join("adder");
    fs::create_dir(&adder)?;
    for file in fs::read_dir(demo_models_dir().join("adder"))? {
        let file = file?;
        fs::copy(file.path(), adder.join(file.file_name()))?;
    }
    Ok(folder)
}

/// The texts of a golden encoder, as `w<n>` words, and the vectors that sentence-transformers makes of them.
fn golden_texts(name: &str, tensor: &str) -> Result<Vec<(String, Vec<f32>)>> {
    let bytes = fs::read(golden_encoder(name).join("expected.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let integers = |tensor| -> Result<Vec<i64>> {
        let (found, _) = file.tensor(tensor)?.data().as_chunks::<8>();
        Ok(found.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
    };
    let (vectors, _) = file.tensor(tensor)?.data().as_chunks::<4>();
    let vectors: Vec<f32> = vectors.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let (mut tokens, lengths) = (integers("tokens")?.into_iter(), integers("lengths")?);
    let hidden = vectors.len() / lengths.len();
    lengths
        .into_iter()
        .zip(vectors.chunks_exact(hidden))
        .map(|(length, vector)| {
            let words = tokens.by_ref().take(usize::try_from(length)?);
            let words: Vec<String> = words.map(|token| format!("w{token}")).collect();
            Ok((words.join(" "), vector.to_vec()))
        })
        .collect()
}

async fn embed(fleet: &Fleet, model: &str, input: &[String]) -> Result<Finished> {
    let answer = fleet.ask(&Question::new(model, json!({"input": input}))).await?;
    Ok(answer.end?)
}

fn vectors(finished: &Finished) -> Result<Vec<&[f32]>> {
    let data = finished.data.as_ref().context("the answer has vectors")?;
    let indexes: Vec<usize> = data.iter().map(|one| one.index as usize).collect();
    ensure!(indexes.iter().copied().eq(0..data.len()), "{indexes:?}");
    Ok(data.iter().map(|one| one.embedding.as_slice()).collect())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[tokio::test]
async fn worker_answers_texts_with_the_vectors_of_sentence_transformers_and_prompts_with_text() -> Result<()>
{
    let models = mixed_models()?;
    let fleet = Fleet::builder().models_dir(models.path()).start().await?;
    for (name, tensor) in [
        ("bert-mean-f32", "mean_normalized"),
        ("bert-cls-bf16", "cls_bf16_inputs"),
    ] {
        let mut golden = golden_texts(name, tensor)?;
        // Longer than the model's texts: it is cut, and so has another vector than the reference, which cuts no
        // tokens.
        let (long, _) = golden.pop().context("there are texts")?;
        let texts: Vec<String> = golden.iter().map(|(text, _)| text.clone()).collect();
        let question = Question::prompt("adder", "123+456=");
        let (finished, sum) = tokio::join!(embed(&fleet, name, &texts), fleet.ask(&question));
        let (finished, sum) = (finished?, sum?);
        assert_eq!(sum.text, "579");
        assert_eq!(finished.finish_reason, FinishReason::Stop);
        let words: usize = texts.iter().map(|text| text.split(' ').count()).sum();
        assert_eq!(finished.usage, Usage::new(u32::try_from(words)?, 0));
        let found = vectors(&finished)?;
        assert_eq!(found.len(), golden.len());
        for (found, (text, expected)) in found.into_iter().zip(&golden) {
            let cosine = cosine(found, expected);
            assert!(cosine > 0.9999, "{name}: {cosine} for {text}");
        }
        let cut: Vec<&str> = long.split(' ').take(40).collect();
        let finished = embed(&fleet, name, &[long.clone(), cut.join(" ")]).await?;
        assert_eq!(finished.usage.prompt_tokens, 80, "what is read is counted");
        let found = vectors(&finished)?;
        assert_eq!(found[0], found[1]);
    }
    Ok(())
}

#[tokio::test]
async fn list_of_many_steps_is_answered_with_the_vectors_of_each_text_alone() -> Result<()> {
    let models = mixed_models()?;
    let fleet = Fleet::builder()
        .models_dir(models.path())
        .set("worker.batch_tokens_max=64")
        .start()
        .await?;
    let texts: Vec<String> = (0..300)
        .map(|n| vec![format!("w{}", n % 95 + 1); n % 40 + 1].join(" "))
        .collect();
    let together = embed(&fleet, "bert-mean-f32", &texts).await?;
    let together = vectors(&together)?;
    assert_eq!(together.len(), 300);
    for index in [0, 150, 299] {
        let alone = embed(&fleet, "bert-mean-f32", &texts[index..=index]).await?;
        assert_eq!(vectors(&alone)?, [together[index]]);
    }
    Ok(())
}

/// The real all-MiniLM-L6-v2, from text to vector. `FLOTILLA_TEST_MINILM` names its folder in
/// sentence-transformers' layout; sentences and their vectors are sentence-transformers' own.
#[tokio::test]
async fn minilm_makes_the_vectors_of_sentence_transformers() -> Result<()> {
    let Some(folder) = std::env::var_os("FLOTILLA_TEST_MINILM") else {
        println!("skipped: FLOTILLA_TEST_MINILM names no folder");
        return Ok(());
    };
    let folder = fs::canonicalize(folder)?;
    let expected = fs::read(golden_encoder("minilm").join("expected.json"))
        .context("the expected vectors of minilm are beside the golden encoders")?;
    let mut expected: Value = serde_json::from_slice(&expected)?;
    let sentences: Vec<String> = serde_json::from_value(expected["sentences"].take())?;
    let expected: Vec<Vec<f32>> = serde_json::from_value(expected["vectors"].take())?;
    let models = tempfile::tempdir()?;
    ensure!(folder.join("config.json").is_file(), "{folder:?} is no model");
    std::os::unix::fs::symlink(&folder, models.path().join("minilm"))?;
    let fleet = Fleet::builder().models_dir(models.path()).start().await?;
    let finished = embed(&fleet, "minilm", &sentences).await?;
    let found = vectors(&finished)?;
    ensure!(!found.is_empty() && found.len() == expected.len());
    for ((found, expected), sentence) in found.into_iter().zip(&expected).zip(&sentences) {
        assert_eq!(found.len(), expected.len());
        let cosine = cosine(found, expected);
        assert!(cosine > 1.0 - 1e-4, "{cosine} for {sentence:?}");
    }
    Ok(())
}
