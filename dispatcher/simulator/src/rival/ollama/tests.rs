use flotilla_protocol::fleet::ModelState::{Loading, Ready};

use super::*;
use crate::rival::stage::{arriving, devices, done, fleet, model_name, orders, profile, report, seconds};

/// A scheduler before so many devices of 16 GiB, which hold two models each with keys and values for four
/// contexts. All have reported to be empty.
fn scheduler(device_count: usize, models: &[&str]) -> Ollama {
    let devices = devices(&profile("gpu", |_, _| (1.0, 1.0)), device_count);
    let mut scheduler = Ollama::before(&for_ollama(&fleet(devices, models)), 1);
    for number in 0..device_count {
        scheduler.handle_report(seconds(0.0), report(&format!("gpu-{number}"), 1, &[]));
    }
    scheduler
}

fn come(scheduler: &mut Ollama, at: f64, name: &str, model: &str) -> Vec<String> {
    scheduler.handle_arrival(seconds(at), &arriving(name, model, seconds(at), 100));
    orders(scheduler)
}

fn tell(scheduler: &mut Ollama, at: f64, worker: &str, models: &[(&str, ModelState)]) -> Vec<String> {
    scheduler.handle_report(seconds(at), report(worker, 2, models));
    orders(scheduler)
}

fn end(scheduler: &mut Ollama, at: f64, worker: &str, request: &str) -> Vec<String> {
    scheduler.handle_done(seconds(at), done(worker, request, 100, 10));
    orders(scheduler)
}

fn wait(scheduler: &mut Ollama, at: f64) -> Vec<String> {
    assert_eq!(scheduler.poll_timeout(), Some(seconds(at)));
    scheduler.handle_timeout(seconds(at));
    orders(scheduler)
}

/// Loads a model by a request that ends at once.
fn load(scheduler: &mut Ollama, at: f64, worker: &str, model: &str, beside: &[&str]) {
    let name = format!("load-{model}");
    assert_eq!(come(scheduler, at, &name, model), [format!("{name}>{worker}")]);
    let all: Vec<_> = beside
        .iter()
        .copied()
        .chain([model])
        .map(|name| (name, Ready))
        .collect();
    tell(scheduler, at, worker, &all);
    end(scheduler, at, worker, &name);
}

#[test]
fn a_model_is_loaded_once_and_runs_four_requests_at_a_time() {
    let mut scheduler = scheduler(2, &["a"]);
    assert_eq!(come(&mut scheduler, 0.0, "r0", "a"), ["r0>gpu-0"]);
    assert_eq!(
        come(&mut scheduler, 0.1, "r1", "a"),
        Vec::<String>::new(),
        "its model is on its way"
    );
    assert_eq!(tell(&mut scheduler, 5.0, "gpu-0", &[("a", Ready)]), ["r1>gpu-0"]);
    for name in ["r2", "r3"] {
        assert_eq!(come(&mut scheduler, 5.1, name, "a"), [format!("{name}>gpu-0")]);
    }
    for name in ["r4", "r5"] {
        assert_eq!(come(&mut scheduler, 5.2, name, "a"), Vec::<String>::new());
    }
    assert_eq!(end(&mut scheduler, 6.0, "gpu-0", "r1"), ["r4>gpu-0"]);
}

#[test]
fn the_device_with_the_most_free_memory_is_taken() {
    let mut scheduler = scheduler(2, &["a", "b", "c"]);
    load(&mut scheduler, 0.0, "gpu-0", "a", &[]);
    load(&mut scheduler, 1.0, "gpu-1", "b", &[]);
    load(&mut scheduler, 2.0, "gpu-0", "c", &["a"]);
}

#[test]
fn a_load_holds_up_every_model_that_is_not_there_and_whoever_comes_behind() {
    let mut scheduler = scheduler(3, &["a", "b", "c"]);
    load(&mut scheduler, 0.0, "gpu-0", "a", &[]);
    assert_eq!(come(&mut scheduler, 1.0, "b1", "b"), ["b1>gpu-1"]);
    assert_eq!(
        come(&mut scheduler, 1.1, "a1", "a"),
        ["a1>gpu-0"],
        "a is loaded and at the head"
    );
    assert_eq!(come(&mut scheduler, 1.2, "c1", "c"), Vec::<String>::new());
    assert_eq!(
        come(&mut scheduler, 1.3, "a2", "a"),
        Vec::<String>::new(),
        "behind c"
    );
    assert_eq!(
        tell(&mut scheduler, 9.0, "gpu-1", &[("b", Ready)]),
        ["c1>gpu-2", "a2>gpu-0"]
    );
}

#[test]
fn an_idle_model_leaves_for_a_newcomer_and_the_loop_waits_until_that_is_noticed() {
    let mut scheduler = scheduler(1, &["a", "b", "c"]);
    load(&mut scheduler, 0.0, "gpu-0", "a", &[]);
    load(&mut scheduler, 1.0, "gpu-0", "b", &["a"]);
    assert_eq!(come(&mut scheduler, 2.0, "b1", "b"), ["b1>gpu-0"]);
    assert_eq!(come(&mut scheduler, 3.0, "c1", "c"), ["a-gpu-0"], "b is busy");
    tell(&mut scheduler, 3.1, "gpu-0", &[("b", Ready)]);
    assert_eq!(
        come(&mut scheduler, 3.2, "b2", "b"),
        Vec::<String>::new(),
        "behind c"
    );
    assert_eq!(wait(&mut scheduler, 3.25), ["c1>gpu-0", "b2>gpu-0"]);
}

#[test]
fn without_an_idle_model_one_is_drained_and_gets_no_new_request() {
    let mut scheduler = scheduler(1, &["a", "b"]);
    scheduler.gpus[0].take(1 << 12);
    load(&mut scheduler, 0.0, "gpu-0", "a", &[]);
    assert_eq!(come(&mut scheduler, 1.0, "a1", "a"), ["a1>gpu-0"]);
    assert_eq!(come(&mut scheduler, 2.0, "b1", "b"), Vec::<String>::new());
    assert_eq!(come(&mut scheduler, 3.0, "a2", "a"), Vec::<String>::new());
    assert_eq!(end(&mut scheduler, 9.0, "gpu-0", "a1"), ["a-gpu-0"]);
    tell(&mut scheduler, 9.1, "gpu-0", &[]);
    assert_eq!(
        wait(&mut scheduler, 9.25),
        ["b1>gpu-0"],
        "a2 waits behind b's load"
    );
}

#[test]
fn an_idle_model_leaves_five_minutes_after_its_last_request() {
    let mut scheduler = scheduler(1, &["a"]);
    load(&mut scheduler, 10.0, "gpu-0", "a", &[]);
    come(&mut scheduler, 20.0, "a1", "a");
    assert_eq!(scheduler.poll_timeout(), None, "it is in use");
    end(&mut scheduler, 30.0, "gpu-0", "a1");
    assert_eq!(wait(&mut scheduler, 330.0), ["a-gpu-0"]);
}

#[test]
fn more_than_three_models_a_device_evict_one_whatever_the_memory() {
    let mut small = fleet(
        devices(&profile("gpu", |_, _| (1.0, 1.0)), 1),
        &["a", "b", "c", "d"],
    );
    for model in &mut small.models {
        model.weights_bytes = 1 << 20;
        model.context_tokens_max = 16;
    }
    let mut scheduler = Ollama::before(&for_ollama(&small), 1);
    scheduler.handle_report(seconds(0.0), report("gpu-0", 1, &[]));
    for (at, model) in [(0.0, "a"), (1.0, "b"), (2.0, "c")] {
        load(&mut scheduler, at, "gpu-0", model, &[]);
    }
    let evicted = come(&mut scheduler, 3.0, "d1", "d");
    assert_eq!(evicted.len(), 1);
    assert!(evicted[0].ends_with("-gpu-0"), "{evicted:?}");
    assert_eq!(scheduler.runners.len(), 2);
}

#[test]
fn no_more_than_512_wait_for_their_placement() {
    let mut scheduler = scheduler(1, &["a"]);
    come(&mut scheduler, 0.0, "first", "a");
    for number in 0..512 {
        assert_eq!(
            come(&mut scheduler, 1.0, &format!("r{number}"), "a"),
            Vec::<String>::new()
        );
    }
    assert_eq!(come(&mut scheduler, 1.0, "one-more", "a"), ["one-more!refused"]);
}

#[test]
fn a_model_that_was_resident_everywhere_keeps_one_copy() {
    let mut warm = fleet(devices(&profile("gpu", |_, _| (1.0, 1.0)), 3), &["a"]);
    warm.models[0].start = crate::fleet::Start::Warm;
    let mut scheduler = Ollama::before(&for_ollama(&warm), 1);
    assert_eq!(
        come(&mut scheduler, 0.0, "early", "a"),
        Vec::<String>::new(),
        "nobody reported yet"
    );
    tell(&mut scheduler, 0.1, "gpu-0", &[("a", Ready)]);
    tell(&mut scheduler, 0.1, "gpu-1", &[("a", Ready)]);
    let ordered = tell(&mut scheduler, 0.1, "gpu-2", &[("a", Ready)]);
    assert_eq!(ordered, ["a-gpu-1", "a-gpu-2", "early>gpu-0"]);
    assert!(scheduler.runners.contains_key(&model_name("a")));
}

#[test]
fn a_client_that_left_while_it_waited_is_passed_over() {
    let mut scheduler = scheduler(1, &["a"]);
    come(&mut scheduler, 0.0, "first", "a");
    let hasty = Arriving {
        deadline: Some(seconds(2.0)),
        ..arriving("hasty", "a", seconds(1.0), 100)
    };
    scheduler.handle_arrival(seconds(1.0), &hasty);
    assert_eq!(wait(&mut scheduler, 2.0), ["hasty!deadline"]);
    assert_eq!(
        tell(&mut scheduler, 3.0, "gpu-0", &[("a", Ready)]),
        Vec::<String>::new()
    );
}

#[test]
fn a_model_that_fails_to_load_is_an_error_for_whoever_asked() {
    let mut scheduler = scheduler(1, &["a", "b"]);
    come(&mut scheduler, 0.0, "a1", "a");
    come(&mut scheduler, 0.0, "b1", "b");
    tell(&mut scheduler, 1.0, "gpu-0", &[("a", Loading)]);
    let failed = Done {
        end: AttemptEnd::ModelUnloadable {
            reason: "too large".to_owned(),
            retry_in_ms: 1,
        },
        ..done("gpu-0", "a1", 0, 0)
    };
    scheduler.handle_report(seconds(2.0), report("gpu-0", 3, &[]));
    scheduler.handle_done(seconds(2.0), failed);
    assert_eq!(orders(&mut scheduler), ["a1!refused", "b1>gpu-0"]);
}
