use flotilla_profile::DeviceProfile;
use flotilla_protocol::Class;
use flotilla_worker_core::batch::BatchSettings;
use flotilla_worker_core::kv::KvSlab;
use flotilla_worker_core::residency::Keep;
use flotilla_worker_engine::{LogitEdits, Sampling};
use proptest::prelude::*;

use super::*;
use crate::engine::{Made, NewRun, Run};

const BATCH_TOKENS_MAX: usize = 64;

fn timing() -> Arc<Timing> {
    let text = include_str!("../../../../config/profiles/sample-fast.json");
    let profile = DeviceProfile::from_json(text.as_bytes(), None).unwrap();
    Arc::new(Timing::new(&profile))
}

fn step(prefill_tokens: u32, decoding: u32) -> Duration {
    timing().steps.step(prefill_tokens, decoding)
}

fn name(model: &str) -> ModelName {
    ModelName::new(model).unwrap()
}

fn loaded() -> LoadedModel {
    let batch = Batch::new(BatchSettings {
        batch_tokens_max: BATCH_TOKENS_MAX,
        sequences_max: 8,
        block_tokens: 16,
        slab: KvSlab { blocks: 16, pages: 1 },
        context_tokens_max: 1024,
    });
    LoadedModel::Simulated(Box::new(LoadedSimulated {
        batch,
        timing: timing(),
        drawing: Drawing {
            seed: 7,
            vocabulary_size: 1000,
            end: Some(0),
            answer_tokens_mean: None,
        },
    }))
}

async fn device(models: &[&str]) -> Engine {
    let (engine, _ended) = Engine::start_simulated();
    engine.resize_kv(16).await.unwrap();
    for model in models {
        engine.install(name(model), loaded()).await.unwrap();
    }
    engine
}

/// A request with a prompt of its own.
fn request(model: &str, seed: u64, prompt_tokens: usize, answer_tokens: usize) -> NewRun {
    let first = u32::try_from(seed).unwrap();
    NewRun {
        model: name(model),
        class: Class::Interactive,
        tokens: vec![first; prompt_tokens],
        prompt_tokens,
        new_tokens_max: answer_tokens,
        stop_token_ids: [0].into(),
        sampling: Sampling {
            seed,
            ..Sampling::GREEDY
        },
        edits: LogitEdits::none(),
        grammar: None,
        ahead_tokens_max: 2048,
    }
}

/// The tokens of a run, and when its end was told.
async fn answer(mut run: Run) -> (Vec<u32>, Instant) {
    let mut tokens = Vec::new();
    loop {
        let mut made = Vec::new();
        run.take(&mut made).await;
        for made in made {
            match made {
                Made::Token { id, .. } => tokens.push(id),
                Made::Ended(end) => {
                    assert_eq!(end, RunEnd::Length);
                    return (tokens, Instant::now());
                }
            }
        }
    }
}

/// When the next token is made.
async fn next_token(run: &mut Run) -> Instant {
    let mut made = Vec::new();
    run.take(&mut made).await;
    assert!(matches!(made[..], [Made::Token { .. }]), "{made:?}");
    Instant::now()
}

/// Timers are precise to a millisecond: what is due is noticed up to that much later.
fn assert_due(noticed: Instant, due: Instant) {
    let late = noticed.checked_duration_since(due);
    let late = late.unwrap_or_else(|| panic!("{:?} too soon", due - noticed));
    assert!(late <= Duration::from_millis(1), "{late:?} too late");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Of hundreds of steps, each of which is noticed too late, none delays the next.
    #[test]
    fn answer_takes_the_sum_of_its_steps_and_no_more(prompt_tokens in 2..400_usize, answer_tokens in 1..500_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let engine = device(&["m"]).await;
            let joined = Instant::now();
            let run = engine.join(request("m", 1, prompt_tokens, answer_tokens)).await.unwrap();
            let (tokens, ended) = answer(run).await;
            assert_eq!(tokens.len(), answer_tokens);
            let chunks = (0..prompt_tokens).step_by(BATCH_TOKENS_MAX).map(|start| {
                match (prompt_tokens - start).min(BATCH_TOKENS_MAX) {
                    1 => step(0, 1),
                    tokens => step(u32::try_from(tokens).unwrap(), 0),
                }
            });
            let prefill: Duration = chunks.sum();
            let decode = step(0, 1) * u32::try_from(answer_tokens - 1).unwrap();
            assert_due(ended, joined + prefill + decode);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_follow_from_the_seed_and_go_on_elsewhere_as_they_would_have() {
    let engine = device(&["m"]).await;
    let (whole, _) = answer(engine.join(request("m", 5, 20, 40)).await.unwrap()).await;
    let elsewhere = device(&["m"]).await;
    let mut rest = request("m", 5, 20, 25);
    rest.tokens.extend(&whole[..15]);
    let (rest, _) = answer(elsewhere.join(rest).await.unwrap()).await;
    assert_eq!(rest, whole[15..]);
    let (other, _) = answer(engine.join(request("m", 6, 20, 40)).await.unwrap()).await;
    assert_ne!(other, whole);
    assert!(whole.iter().all(|token| (1..1000).contains(token)));
}

#[tokio::test(start_paused = true)]
async fn request_that_comes_during_a_step_waits_for_its_end_and_does_not_move_it() {
    let engine = device(&["m"]).await;
    let joined = Instant::now();
    let mut first = engine.join(request("m", 1, 60, 9)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
    let mut second = engine.join(request("m", 2, 30, 9)).await.unwrap();
    let first_due = joined + step(60, 0);
    assert_due(next_token(&mut first).await, first_due);
    let second_due = first_due + step(30, 1);
    assert_due(next_token(&mut second).await, second_due);
    assert_due(next_token(&mut first).await, second_due);
}

#[tokio::test(start_paused = true)]
async fn models_of_a_device_take_turns() {
    let engine = device(&["a", "b"]).await;
    let joined = Instant::now();
    let a = engine.join(request("a", 1, 2, 10)).await.unwrap();
    let b = engine.join(request("b", 2, 2, 10)).await.unwrap();
    let ((_, a), (_, b)) = tokio::join!(answer(a), answer(b));
    let steps_of_one = step(2, 0) + step(0, 1) * 9;
    assert_due(a, joined + steps_of_one * 2 - step(0, 1));
    assert_due(b, joined + steps_of_one * 2);
}

#[tokio::test(start_paused = true)]
async fn prompt_that_was_read_before_is_read_no_more() {
    let engine = device(&["m"]).await;
    answer(engine.join(request("m", 1, 60, 1)).await.unwrap()).await;
    let joined = Instant::now();
    let mut again = engine.join(request("m", 1, 60, 2)).await.unwrap();
    assert_due(next_token(&mut again).await, joined + step(60 - 48, 0));
    assert_eq!(again.take_reused_tokens(), Some(48));
}

#[tokio::test(start_paused = true)]
async fn idle_device_begins_a_step_when_a_request_comes_and_not_before() {
    let engine = device(&["m"]).await;
    answer(engine.join(request("m", 1, 10, 3)).await.unwrap()).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let joined = Instant::now();
    let (_, ended) = answer(engine.join(request("m", 2, 10, 1)).await.unwrap()).await;
    assert_due(ended, joined + step(10, 0));
}

/// One token fits, and nobody takes it for a while: what comes then is not made in the past.
#[tokio::test(start_paused = true)]
async fn request_whose_reader_rests_goes_on_when_it_is_back() {
    let engine = device(&["m"]).await;
    let mut slow = request("m", 1, 10, 3);
    slow.ahead_tokens_max = 1;
    let mut slow = engine.join(slow).await.unwrap();
    tokio::time::sleep(Duration::from_secs(50)).await;
    let taken = next_token(&mut slow).await;
    assert_due(next_token(&mut slow).await, taken + step(0, 1));
}

#[tokio::test(start_paused = true)]
async fn unloading_ends_what_runs_at_once_and_the_device_goes_on_when_its_step_is_over() {
    let engine = device(&["a", "b"]).await;
    let joined = Instant::now();
    let mut gone = engine.join(request("a", 1, 60, 5)).await.unwrap();
    // The step has begun when this was carried out.
    engine.unload(name("nobody"), Keep::Nowhere).await.unwrap();
    engine.unload(name("a"), Keep::Nowhere).await.unwrap();
    let mut made = Vec::new();
    gone.take(&mut made).await;
    assert_eq!(made, [Made::Ended(RunEnd::ModelGone)]);
    assert_eq!(Instant::now(), joined, "before the step is over");
    engine.install(name("a"), loaded()).await.unwrap();
    let anew = engine.join(request("a", 2, 10, 1)).await.unwrap();
    let other = engine.join(request("b", 3, 10, 1)).await.unwrap();
    let ((_, anew), (_, other)) = tokio::join!(answer(anew), answer(other));
    assert_due(other, joined + step(60, 0) + step(10, 0));
    assert_due(anew, joined + step(60, 0) + step(10, 0) * 2);
}

#[tokio::test(start_paused = true)]
async fn request_that_leaves_makes_room_for_those_that_wait() {
    let engine = device(&["m"]).await;
    let mut all = Vec::new();
    for seed in 0..9 {
        all.push(engine.join(request("m", seed, 16, 100)).await.unwrap());
    }
    let last = all.pop().unwrap();
    drop(all);
    let (tokens, _) = answer(last).await;
    assert_eq!(tokens.len(), 100);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_run_is_told_why() {
    let engine = device(&["m"]).await;
    let end_of = async |new: NewRun| {
        let mut made = Vec::new();
        engine.join(new).await.unwrap().take(&mut made).await;
        made
    };
    let gone = Made::Ended(RunEnd::ModelGone);
    assert_eq!(end_of(request("other", 1, 2, 2)).await, [gone]);
    let refused = end_of(request("m", 1, 1024, 2)).await;
    assert!(
        matches!(refused[..], [Made::Ended(RunEnd::Refused(_))]),
        "{refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn task_ends_with_its_last_handle_and_tells_even_during_a_step() {
    let (engine, ended) = Engine::start_simulated();
    engine.install(name("m"), loaded()).await.unwrap();
    let run = engine.join(request("m", 1, 60, 5)).await.unwrap();
    engine.unload(name("nobody"), Keep::Nowhere).await.unwrap();
    drop((engine, run));
    assert!(ended.await.is_err());
}
