use flotilla_text::SpecialTokens;
use flotilla_worker_engine::{AllHere, CpuThreads, LogitBias, Penalties};
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::fixture::{demo_folder, demo_limits, encoder_folder};
use crate::model::OpenedModel;

mod coming;
mod parts;
mod shapes;

struct Loaded {
    engine: Engine,
    model: ModelName,
    opened: OpenedModel,
}

async fn loaded(kv_pages: u64) -> Loaded {
    loaded_from(&demo_folder("adder"), kv_pages).await
}

async fn loaded_from(folder: &Path, kv_pages: u64) -> Loaded {
    let (engine, _ended) = Engine::start(0, Arc::new(CpuThreads::for_this_machine())).unwrap();
    engine.resize_kv(kv_pages).await.unwrap();
    let opened = OpenedModel::open(folder, &AllHere, demo_limits(), None, None).unwrap();
    let watch = LoadWatch::child_of(&CancellationToken::new(), None);
    let model = ModelName::new("adder").unwrap();
    let in_memory = load(
        &opened,
        DEVICE_PAGES,
        None,
        &watch,
        &Arc::new(CpuThreads::for_this_machine()),
    )
    .unwrap();
    assert_eq!(watch.placed_bytes(), opened.weights_bytes() as u64);
    engine.install(model.clone(), in_memory).await.unwrap();
    Loaded {
        engine,
        model,
        opened,
    }
}

fn load_opened(opened: &OpenedModel) -> LoadedModel {
    let watch = LoadWatch::child_of(&CancellationToken::new(), None);
    let threads = Arc::new(CpuThreads::for_this_machine());
    load(opened, DEVICE_PAGES, None, &watch, &threads).unwrap()
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
            grammar: None,
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
async fn model_that_comes_back_from_host_memory_answers_as_before_and_reads_no_file() {
    let loaded = loaded(4).await;
    let image = loaded.engine.unload(loaded.model.clone(), Keep::InHost).await;
    let image = image.unwrap().expect("weights can be kept on this device");
    let watch = LoadWatch::child_of(&CancellationToken::new(), None);
    let threads = Arc::new(CpuThreads::for_this_machine());
    let again = load(
        &loaded.opened,
        DEVICE_PAGES,
        image.into_iter().next(),
        &watch,
        &threads,
    )
    .unwrap();
    assert_eq!(watch.placed_bytes(), 0);
    loaded.engine.install(loaded.model.clone(), again).await.unwrap();
    let run = loaded.engine.join(loaded.sum("123+456=", 64)).await.unwrap();
    assert_eq!(loaded.text(&everything(run).await), "579");
}

#[tokio::test]
async fn prefetched_weights_are_those_of_a_load() {
    let loaded = loaded(4).await;
    let watch = LoadWatch::child_of(&CancellationToken::new(), None);
    let threads = Arc::new(CpuThreads::for_this_machine());
    let image = fetch(&loaded.opened, &watch, &threads).unwrap();
    assert_eq!(watch.placed_bytes(), loaded.opened.weights_bytes() as u64);
    let prefetched = load(
        &loaded.opened,
        DEVICE_PAGES,
        image.into_iter().next(),
        &watch,
        &threads,
    )
    .unwrap();
    loaded
        .engine
        .install(loaded.model.clone(), prefetched)
        .await
        .unwrap();
    let run = loaded.engine.join(loaded.sum("999+1=", 64)).await.unwrap();
    assert_eq!(loaded.text(&everything(run).await), "1000");
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

/// One page for two models: whoever has it gives it up for one that ranks before, and goes on as if nothing had been.
#[tokio::test]
async fn answers_that_were_preempted_are_the_same_as_undisturbed_ones() {
    let run = |loaded: &Loaded, seed: u64, ahead_tokens_max: usize| NewRun {
        class: Class::Batch,
        sampling: Sampling {
            temperature: 2.0,
            seed,
            ..Sampling::GREEDY
        },
        stop_token_ids: [].into(),
        new_tokens_max: 60,
        ..loaded.sum("123+456=", ahead_tokens_max)
    };
    let undisturbed = loaded(8).await;
    let mut expected = Vec::new();
    for seed in 0..4 {
        let alone = undisturbed.engine.join(run(&undisturbed, seed, 64)).await;
        expected.push(everything(alone.unwrap()).await);
    }

    let shared = loaded(1).await;
    let other = ModelName::new("other").unwrap();
    let in_memory = load_opened(&shared.opened);
    shared.engine.install(other.clone(), in_memory).await.unwrap();
    let mut runs = Vec::new();
    for seed in 0..4 {
        // Nobody reads on: it is in the middle of its answer when the urgent one comes.
        let mut begun = shared.engine.join(run(&shared, seed, 8)).await.unwrap();
        let mut made = Vec::new();
        timeout(PATIENCE, begun.take(&mut made)).await.unwrap();
        runs.push((begun, made));
        let urgent = NewRun {
            model: other.clone(),
            ..shared.sum("20+22=", 64)
        };
        let urgent = shared.engine.join(urgent).await.unwrap();
        assert_eq!(shared.text(&everything(urgent).await), "42");
        assert!(shared.engine.kv().borrow().pages_used <= 1, "there is one page");
    }
    for ((run, mut made), expected) in runs.into_iter().zip(expected) {
        if !matches!(made.last(), Some(Made::Ended(_))) {
            made.extend(everything(run).await);
        }
        assert_eq!(made, expected);
    }
}

/// The pool is told to be smaller while its only page is in use: it says so, and when that has ended.
#[tokio::test]
async fn pool_tells_what_it_holds_until_its_pages_are_free() {
    let loaded = loaded(2).await;
    let mut kv = loaded.engine.kv();
    let mut stuck = loaded.engine.join(loaded.sum("123+456=", 1)).await.unwrap();
    timeout(PATIENCE, stuck.take(&mut Vec::new())).await.unwrap();
    loaded.engine.resize_kv(0).await.unwrap();
    let held = |wanted: u64| move |report: &KvReport| report.pages_target == 0 && report.pages_held == wanted;
    timeout(PATIENCE, kv.wait_for(held(1))).await.unwrap().unwrap();
    drop(stuck);
    timeout(PATIENCE, kv.wait_for(held(0))).await.unwrap().unwrap();
}

#[tokio::test]
async fn unloading_ends_what_runs_and_refuses_what_comes() {
    let loaded = loaded(4).await;
    let paused = loaded.engine.join(loaded.sum("123+456=", 1)).await.unwrap();
    loaded
        .engine
        .unload(loaded.model.clone(), Keep::Nowhere)
        .await
        .unwrap();
    let end = Made::Ended(RunEnd::ModelGone);
    assert_eq!(everything(paused).await.last(), Some(&end));
    let late = loaded.engine.join(loaded.sum("1+1=", 64)).await.unwrap();
    assert_eq!(everything(late).await, [end]);
}

#[tokio::test]
async fn thread_ends_with_its_last_handle_and_tells() {
    let (engine, ended) = Engine::start(0, Arc::new(CpuThreads::for_this_machine())).unwrap();
    drop(engine);
    assert!(timeout(PATIENCE, ended).await.unwrap().is_err());
}

const DEVICE_PAGES: u64 = 64;
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
    loaded
        .engine
        .unload(loaded.model.clone(), Keep::Nowhere)
        .await
        .unwrap();
    assert_eq!(fate(&[vec![1]]).await, Err(VectorsEnd::ModelGone));
}

#[test]
fn load_that_is_cancelled_ends_before_its_next_piece() {
    let opened = OpenedModel::open(&demo_folder("adder"), &AllHere, demo_limits(), None, None).unwrap();
    let watch = LoadWatch::child_of(&CancellationToken::new(), None);
    watch.cancel.cancel();
    let fault = load(
        &opened,
        DEVICE_PAGES,
        None,
        &watch,
        &Arc::new(CpuThreads::for_this_machine()),
    )
    .unwrap_err();
    assert!(matches!(fault, LoadFault::Cancelled), "{fault}");
    assert_eq!(watch.placed_bytes(), 0);
}

#[test]
fn load_of_a_file_that_got_shorter_fails_and_names_it() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo_folder("adder")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let opened = OpenedModel::open(folder.path(), &AllHere, demo_limits(), None, None).unwrap();
    let weights = folder.path().join("model.safetensors");
    let file = std::fs::File::options().write(true).open(&weights).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    let watch = LoadWatch::child_of(&CancellationToken::new(), None);
    let threads = Arc::new(CpuThreads::for_this_machine());
    let fault = load(&opened, DEVICE_PAGES, None, &watch, &threads).unwrap_err();
    let LoadFault::Read(error) = fault else {
        panic!("{fault}")
    };
    assert!(
        error.to_string().starts_with(&weights.display().to_string()),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn simulated_load_advances_evenly() {
    let watch = LoadWatch::simulated(&CancellationToken::new(), Duration::from_secs(10), 1000);
    assert_eq!(watch.placed_bytes(), 0);
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(watch.placed_bytes(), 400);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(watch.placed_bytes(), 1000);
}
