use flotilla_text::SpecialTokens;
use flotilla_worker_core::residency::Grant;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::fixture::{demo_folder, demo_limits};
use crate::model::OpenedModel;

struct Loaded {
    engine: Engine,
    model: ModelName,
    opened: OpenedModel,
}

async fn loaded(kv_pages: u64) -> Loaded {
    let (engine, _ended) = Engine::start(0).unwrap();
    let opened = OpenedModel::open(&demo_folder("adder"), demo_limits()).unwrap();
    let grant = Grant {
        weights_pages: 8,
        workspace_pages: 8,
        kv_pages,
    };
    let limits = LoadLimits {
        timeout_floor: PATIENCE,
        bytes_per_s_min: 1 << 20,
        cancel: CancellationToken::new(),
    };
    let model = ModelName::new("adder").unwrap();
    let in_memory = load(&opened, grant, &limits).unwrap();
    engine.install(model.clone(), in_memory).await.unwrap();
    Loaded {
        engine,
        model,
        opened,
    }
}

impl Loaded {
    fn sum(&self, prompt: &str, ahead_tokens_max: usize) -> NewRun {
        let tokens = self
            .opened
            .text
            .tokenizer
            .encode(prompt, SpecialTokens::Add)
            .unwrap();
        NewRun {
            model: self.model.clone(),
            class: Class::Interactive,
            prompt_tokens: tokens.len(),
            tokens,
            new_tokens_max: 16,
            stop_token_ids: self.opened.text.config.eos_token_ids.clone().into(),
            sampling: Sampling::GREEDY,
            ahead_tokens_max,
        }
    }

    fn text(&self, made: &[Made]) -> String {
        let tokens: Vec<u32> = made
            .iter()
            .filter_map(|made| match made {
                Made::Token(token) => Some(*token),
                Made::Ended(_) => None,
            })
            .collect();
        self.opened.text.tokenizer.decode_all(&tokens).unwrap()
    }
}

async fn everything(mut run: Run) -> Vec<Made> {
    let mut made = Vec::new();
    while !matches!(made.last(), Some(Made::Ended(_))) {
        let before = made.len();
        timeout(PATIENCE, run.take(&mut made)).await.unwrap();
        assert!(made.len() > before, "the thread lives");
    }
    made
}

#[tokio::test]
async fn demo_model_adds_two_numbers() {
    let loaded = loaded(4).await;
    let run = loaded.engine.join(loaded.sum("123+456=", 64)).await.unwrap();
    let made = everything(run).await;
    assert_eq!(loaded.text(&made), "579");
    assert_eq!(made.last(), Some(&Made::Ended(RunEnd::Stop)));
}

#[tokio::test]
async fn full_channel_pauses_its_own_request_only_and_nothing_is_lost() {
    let loaded = loaded(4).await;
    let slow = loaded.engine.join(loaded.sum("123+456=", 1)).await.unwrap();
    // The slow one has room for one token and nobody reads it; the others run to their end beside it.
    for (prompt, sum) in [("1+1=", "2"), ("20+22=", "42"), ("999+1=", "1000")] {
        let run = loaded.engine.join(loaded.sum(prompt, 64)).await.unwrap();
        assert_eq!(loaded.text(&everything(run).await), sum);
    }
    assert!(slow.made.len() <= 2, "it is paused and not ended");
    assert_eq!(loaded.text(&everything(slow).await), "579");
}

#[tokio::test]
async fn run_that_is_dropped_while_paused_gives_its_blocks_back() {
    let loaded = loaded(1).await;
    let mut stuck = Vec::new();
    for _ in 0..demo_limits().sequences_max {
        let mut run = loaded.engine.join(loaded.sum("123+456=", 1)).await.unwrap();
        let mut made = Vec::new();
        timeout(PATIENCE, run.take(&mut made)).await.unwrap();
        stuck.push(run);
    }
    let waiting = loaded.engine.join(loaded.sum("2+2=", 64)).await.unwrap();
    drop(stuck);
    assert_eq!(loaded.text(&everything(waiting).await), "4");
}

#[tokio::test]
async fn continued_answer_is_the_same_as_an_uninterrupted_one() {
    let loaded = loaded(4).await;
    let whole = everything(loaded.engine.join(loaded.sum("777+333=", 64)).await.unwrap()).await;
    let mut rest = loaded.sum("777+333=", 64);
    let Made::Token(first) = whole[0] else {
        panic!("an answer has a token")
    };
    rest.tokens.push(first);
    let rest = everything(loaded.engine.join(rest).await.unwrap()).await;
    assert_eq!(rest, whole[1..]);
}

#[tokio::test]
async fn prompt_that_was_read_before_gives_the_same_answer_and_is_not_read_again() {
    let loaded = loaded(4).await;
    let long = || NewRun {
        tokens: (0..40).map(|n| n % 16).collect(),
        prompt_tokens: 40,
        ..loaded.sum("", 64)
    };
    let mut answers = Vec::new();
    for reused in [None, Some(32)] {
        let mut run = loaded.engine.join(long()).await.unwrap();
        let mut made = Vec::new();
        timeout(PATIENCE, run.take(&mut made)).await.unwrap();
        assert_eq!(run.take_reused_tokens(), reused);
        if !matches!(made.last(), Some(Made::Ended(_))) {
            made.extend(everything(run).await);
        }
        answers.push(made);
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn unloading_ends_what_runs_and_refuses_what_comes() {
    let loaded = loaded(4).await;
    let paused = loaded.engine.join(loaded.sum("123+456=", 1)).await.unwrap();
    loaded.engine.unload(loaded.model.clone()).await.unwrap();
    let end = Made::Ended(RunEnd::ModelGone);
    assert_eq!(everything(paused).await.last(), Some(&end));
    let late = loaded.engine.join(loaded.sum("1+1=", 64)).await.unwrap();
    assert_eq!(everything(late).await, [end]);
}

#[tokio::test]
async fn thread_ends_with_its_last_handle_and_tells() {
    let (engine, ended) = Engine::start(0).unwrap();
    drop(engine);
    assert!(timeout(PATIENCE, ended).await.unwrap().is_err());
}

/// A limit on waiting that no machine reaches.
const PATIENCE: Duration = Duration::from_secs(30);
