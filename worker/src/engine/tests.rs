use flotilla_text::SpecialTokens;
use flotilla_worker_core::residency::Grant;
use flotilla_worker_engine::{CpuThreads, LogitBias, Penalties};
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::fixture::{demo_folder, demo_limits, encoder_folder};
use crate::model::OpenedModel;

struct Loaded {
    engine: Engine,
    model: ModelName,
    opened: OpenedModel,
}

async fn loaded(kv_pages: u64) -> Loaded {
    loaded_from(&demo_folder("adder"), kv_pages).await
}

async fn loaded_from(folder: &Path, kv_pages: u64) -> Loaded {
    let (engine, _ended) = Engine::start(0).unwrap();
    let opened = OpenedModel::open(folder, demo_limits(), None).unwrap();
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
    let in_memory = load(&opened, grant, &limits, &Arc::new(CpuThreads::for_this_machine())).unwrap();
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
            .prompts
            .tokenizer()
            .encode(prompt, SpecialTokens::Add)
            .unwrap();
        NewRun {
            model: self.model.clone(),
            class: Class::Interactive,
            prompt_tokens: tokens.len(),
            tokens,
            new_tokens_max: 16,
            stop_token_ids: Arc::clone(&self.opened.text.stop_token_ids),
            sampling: Sampling::GREEDY,
            edits: LogitEdits::none(),
            ahead_tokens_max,
        }
    }

    fn text(&self, made: &[Made]) -> String {
        let tokens: Vec<u32> = made
            .iter()
            .filter_map(|made| match made {
                Made::Token { id, .. } => Some(*id),
                Made::Ended(_) => None,
            })
            .collect();
        self.opened.text.prompts.tokenizer().decode_all(&tokens).unwrap()
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
    let Made::Token { id: first, .. } = whole[0] else {
        panic!("an answer has a token")
    };
    rest.tokens.push(first);
    let rest = everything(loaded.engine.join(rest).await.unwrap()).await;
    assert_eq!(rest, whole[1..]);
}

/// Penalties are counted anew from the tokens that earlier attempts made: the rest is the same to the last bit.
#[tokio::test]
async fn continued_answer_with_penalties_and_logprobs_is_the_same_as_an_uninterrupted_one() {
    let loaded = loaded(4).await;
    let penalties = Penalties {
        repetition: 1.4,
        presence: 0.5,
        frequency: 0.7,
    };
    let run = |made: &[u32]| {
        let mut run = loaded.sum("777+333=", 64);
        run.sampling = Sampling {
            temperature: 3.0,
            top_p: 0.95,
            min_p: 0.01,
            logprobs: Some(3),
            seed: 2,
            ..Sampling::GREEDY
        };
        run.edits = LogitEdits::new(penalties, []).unwrap();
        run.stop_token_ids = [].into();
        run.tokens.extend(made);
        run.new_tokens_max -= made.len();
        run
    };
    let whole = everything(loaded.engine.join(run(&[])).await.unwrap()).await;
    let ids: Vec<u32> = whole[..16]
        .iter()
        .map(|made| match made {
            Made::Token { id, logprobs } => {
                assert_eq!(logprobs.as_ref().unwrap().top().len(), 3);
                *id
            }
            Made::Ended(end) => panic!("{end:?} before all tokens were made"),
        })
        .collect();
    for made in [1, 7, 15] {
        let rest = everything(loaded.engine.join(run(&ids[..made])).await.unwrap()).await;
        assert_eq!(rest, whole[made..]);
    }
}

#[tokio::test]
async fn bias_forces_a_token_and_logprobs_come_only_if_asked_for() {
    let loaded = loaded(4).await;
    let mut run = loaded.sum("1+1=", 64);
    let bias = LogitBias {
        token: 7,
        addend: 100.0,
    };
    run.edits = LogitEdits::new(Penalties::NONE, [bias]).unwrap();
    let mut made = everything(loaded.engine.join(run).await.unwrap()).await;
    assert_eq!(made.pop(), Some(Made::Ended(RunEnd::Length)));
    let forced = Made::Token {
        id: 7,
        logprobs: None,
    };
    assert_eq!(made, vec![forced; 16]);
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

fn new_texts(loaded: &Loaded, texts: &[Vec<u32>]) -> NewTexts {
    NewTexts {
        model: loaded.model.clone(),
        class: Class::Batch,
        texts: texts.to_vec(),
    }
}

#[tokio::test]
async fn texts_of_many_steps_give_one_vector_each_and_dropped_ones_hold_up_nobody() {
    let folder = encoder_folder();
    let loaded = loaded_from(folder.path(), 0).await;
    let texts: Vec<Vec<u32>> = (1..60).map(|n| vec![n; n as usize % 40 + 1]).collect();
    let dropped = loaded.engine.embed(new_texts(&loaded, &texts)).await.unwrap();
    let mut all = loaded.engine.embed(new_texts(&loaded, &texts)).await.unwrap();
    drop(dropped);
    let all = timeout(PATIENCE, all.vectors()).await.unwrap().unwrap();
    assert_eq!(all.len(), texts.len());
    let mut one = loaded
        .engine
        .embed(new_texts(&loaded, &texts[7..8]))
        .await
        .unwrap();
    let one = timeout(PATIENCE, one.vectors()).await.unwrap().unwrap();
    assert_eq!(one, [all[7].clone()]);
}

#[tokio::test]
async fn texts_that_cannot_run_are_told_why() {
    let folder = encoder_folder();
    let loaded = loaded_from(folder.path(), 0).await;
    let fate = async |texts: &[Vec<u32>]| {
        let mut run = loaded.engine.embed(new_texts(&loaded, texts)).await.unwrap();
        timeout(PATIENCE, run.vectors()).await.unwrap()
    };
    assert!(matches!(fate(&[]).await, Err(VectorsEnd::Refused(_))));
    // The engine refuses the whole step for one of its texts; only that text's request ends.
    assert!(matches!(
        fate(&[vec![1], vec![2, 96]]).await,
        Err(VectorsEnd::Panicked { .. })
    ));
    assert!(fate(&[vec![1]]).await.is_ok());
    let prompt = NewRun {
        stop_token_ids: [].into(),
        ..loaded.sum("w1", 4)
    };
    let made = everything(loaded.engine.join(prompt).await.unwrap()).await;
    assert_eq!(made, [Made::Ended(RunEnd::ModelGone)], "it makes no text");
    loaded.engine.unload(loaded.model.clone()).await.unwrap();
    assert_eq!(fate(&[vec![1]]).await, Err(VectorsEnd::ModelGone));
}
