//! Who gets room, and who leaves for it.

use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_protocol::request::KeepAlive;
use flotilla_worker_core::residency::{Pin, ResidencySettings};

use crate::bench::Bench;

#[test]
fn least_recently_used_idle_models_leave_and_no_more_of_them_than_needed() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "small", 10);
    bench.run("r2", "old", 40);
    bench.run("r3", "new", 40);
    bench.release("r1");
    bench.release("r2");
    bench.release("r3");
    bench.want("r4", "x", None);
    bench.inspect("x", 45);
    assert_eq!(
        bench.actions(),
        ["inspect x", "unload old"],
        "small is older but of no use beside old"
    );
    bench.unloaded("old");
    assert_eq!(bench.actions(), ["load x"]);
}

#[test]
fn a_model_in_use_drains_for_a_newcomer_and_grants_no_more_leases() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 60);
    bench.want("r2", "b", None);
    bench.inspect("b", 60);
    assert_eq!(bench.actions(), ["inspect b"], "nobody with leases is unloaded");
    bench.want("r3", "a", None);
    assert_eq!(bench.actions(), [""; 0], "who is told to leave grants no lease");
    bench.release("r1");
    assert_eq!(bench.actions(), ["unload a"]);
    bench.unloaded("a");
    assert_eq!(bench.actions(), ["inspect a", "load b"]);
    bench.loaded("b");
    bench.inspect("a", 60);
    assert_eq!(bench.actions(), ["lease r2 b"]);
    bench.release("r2");
    assert_eq!(bench.actions(), ["unload b"]);
    bench.unloaded("b");
    bench.loaded("a");
    assert_eq!(bench.actions(), ["load a", "lease r3 a"]);
}

#[test]
fn a_model_that_fits_nowhere_is_refused_with_the_numbers_and_nobody_leaves() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 60);
    bench.release("r1");
    bench.want("r2", "b", None);
    bench.inspect("b", 101);
    assert_eq!(bench.actions(), ["inspect b", "failed r2 1000"]);
    let unloadable = bench
        .residency
        .unloadable(bench.now, &ModelName::new("b").unwrap())
        .unwrap();
    let numbers = "it needs 101 pages of 2 MiB (101 for weights, 0 for workspace, 0 for keys and values); \
                   the largest device has 100, of which 100 are not pinned";
    assert_eq!(unloadable.fault.to_string(), numbers);
}

#[test]
fn pinned_models_are_no_victims_and_outstay_their_keep_alive() {
    let mut bench = Bench::new(100, 9);
    let model = ModelName::new("a").unwrap();
    bench.residency.handle_pin(bench.now, &model, Pin::Pinned);
    bench.run("r1", "a", 60);
    bench.release("r1");
    bench.wait(1_000_000);
    bench.want("r2", "b", None);
    bench.inspect("b", 41);
    assert_eq!(
        bench.actions(),
        ["inspect b", "failed r2 1000"],
        "41 do not fit beside the pinned 60"
    );
    bench.residency.handle_pin(bench.now, &model, Pin::Evictable);
    bench.wait(1000);
    assert_eq!(bench.actions(), ["unload a"], "its keep-alive counts again");
}

#[test]
fn a_small_model_passes_a_large_one_only_beside_its_claim() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 60);
    bench.want("r2", "large", None);
    bench.inspect("large", 80);
    bench.want("r3", "small", None);
    bench.inspect("small", 20);
    bench.want("r4", "other", None);
    bench.inspect("other", 20);
    let seen = bench.actions();
    assert_eq!(
        seen,
        ["inspect large", "inspect small", "load small", "inspect other"]
    );
    bench.release("r1");
    bench.unloaded("a");
    assert_eq!(
        bench.actions(),
        ["unload a", "load large"],
        "the first in line is served first"
    );
}

#[test]
fn the_busy_model_with_the_fewest_leases_drains_and_a_pinned_one_never() {
    let mut bench = Bench::new(100, 9);
    let pinned = ModelName::new("pinned").unwrap();
    bench.residency.handle_pin(bench.now, &pinned, Pin::Pinned);
    bench.run("r0", "pinned", 40);
    bench.release("r0");
    bench.run("r1", "busier", 30);
    bench.want("r2", "busier", None);
    bench.run("r3", "quieter", 30);
    bench.want("r4", "x", None);
    bench.inspect("x", 30);
    assert_eq!(bench.actions(), ["inspect x"], "the pinned one is idle and stays");
    bench.want("r5", "busier", None);
    bench.want("r6", "quieter", None);
    assert_eq!(bench.actions(), ["lease r5 busier"]);
    bench.release("r3");
    assert_eq!(bench.actions(), ["unload quieter"]);
}

#[test]
fn the_end_of_a_lease_is_a_use() {
    let mut bench = Bench::new(100, 2);
    bench.run("r1", "a", 10);
    bench.run("r2", "b", 10);
    bench.release("r2");
    bench.release("r1");
    bench.want("r3", "x", None);
    bench.inspect("x", 10);
    assert_eq!(bench.actions(), ["inspect x", "unload b"]);
}

#[test]
fn places_are_claimed_and_pinned_as_pages_are() {
    let mut bench = Bench::new(100, 2);
    bench.run("r1", "a", 10);
    bench.run("r2", "b", 10);
    for model in ["x", "y"] {
        bench.want(&format!("for-{model}"), model, None);
        bench.inspect(model, 10);
    }
    assert_eq!(bench.actions(), ["inspect x", "inspect y"]);
    bench.release("r1");
    bench.release("r2");
    assert_eq!(
        bench.actions(),
        ["unload a", "unload b"],
        "each newcomer has a place told to leave"
    );

    let mut bench = Bench::new(100, 1);
    bench
        .residency
        .handle_pin(bench.now, &ModelName::new("a").unwrap(), Pin::Pinned);
    bench.run("r1", "a", 10);
    bench.want("r2", "b", None);
    bench.inspect("b", 10);
    assert_eq!(
        bench.actions(),
        ["inspect b", "failed r2 1000"],
        "the only place is pinned"
    );
}

#[test]
fn a_model_that_loads_fast_leaves_rather_than_one_that_loads_slowly() {
    let mut bench = Bench::new(100, 9);
    bench.run_in("r1", "slow", 40, 20_000);
    bench.run_in("r2", "fast", 40, 500);
    bench.release("r1");
    bench.release("r2");
    assert_eq!(bench.unloads_for("x", 45), ["fast"], "slow is less recently used");
}

#[test]
fn a_model_in_frequent_use_stays_though_another_was_used_later() {
    let mut bench = Bench::new(100, 9);
    bench.run_in("r1", "often", 40, 5_000);
    bench.run_in("r2", "once", 40, 5_000);
    bench.release("r1");
    bench.release("r2");
    (0..5).for_each(|_| bench.use_once("often"));
    bench.wait(200);
    bench.use_once("once");
    assert_eq!(bench.unloads_for("x", 45), ["once"]);
}

#[test]
fn two_small_models_leave_when_they_cost_less_than_one_large() {
    let mut bench = Bench::new(100, 9);
    bench.run_in("r1", "large", 60, 30_000);
    bench.run_in("r2", "small", 20, 2_000);
    bench.run_in("r3", "other", 20, 3_000);
    bench.release_all(&["r1", "r2", "r3"]);
    assert_eq!(bench.unloads_for("x", 40), ["small", "other"]);
}

#[test]
fn only_a_model_on_the_device_that_the_newcomer_fits_leaves() {
    let mut bench = Bench::with(ResidencySettings {
        device_pages: vec![40, 100],
        ..Bench::settings()
    });
    bench.run("r1", "a", 35);
    bench.run("r2", "b", 90);
    bench.release("r1");
    bench.release("r2");
    assert_eq!(bench.unloads_for("x", 60), ["b"]);
}

#[test]
fn of_models_with_equally_many_leases_the_one_whose_newest_is_oldest_drains() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 45);
    bench.run("r2", "b", 45);
    bench.want("r3", "b", None);
    bench.want("r4", "a", None);
    bench.want("r5", "x", None);
    bench.inspect("x", 50);
    bench.actions();
    bench.release_all(&["r1", "r4"]);
    assert_eq!(bench.actions(), [""; 0], "a has the newest lease and stays");
    bench.release_all(&["r2", "r3"]);
    assert_eq!(bench.actions(), ["unload b"]);
}

/// A worker on which `a` has left for `b`, which was loaded in so many milliseconds and is idle.
fn after_a_swap(load_ms: u64) -> Bench {
    let mut bench = Bench::with(ResidencySettings {
        min_residency_max: Duration::from_millis(500),
        ..Bench::settings()
    });
    bench.run("r1", "a", 60);
    bench.release("r1");
    assert_eq!(bench.unloads_for("b", 60), ["a"], "the first swap is no chase");
    bench.unloaded("a");
    bench.loaded_in("b", load_ms);
    bench.release("for-b");
    bench
}

#[test]
fn a_model_stays_as_long_as_its_load_took_when_the_one_that_left_for_it_comes_back() {
    let mut bench = after_a_swap(300);
    assert_eq!(bench.unloads_for("a", 60), [""; 0]);
    assert_eq!(
        bench.residency.poll_timeout(),
        Some(bench.now + Duration::from_millis(300))
    );
    bench.wait(299);
    assert_eq!(bench.actions(), [""; 0]);
    bench.wait(1);
    assert_eq!(bench.actions(), ["unload b"]);
}

#[test]
fn who_comes_back_waits_no_longer_than_the_longest_time_of_residence() {
    let mut bench = after_a_swap(60_000);
    assert_eq!(bench.unloads_for("a", 60), [""; 0]);
    bench.wait(500);
    assert_eq!(bench.actions(), ["unload b"]);
}

#[test]
fn a_model_that_comes_back_late_or_never_left_swaps_at_once() {
    let mut bench = after_a_swap(60_000);
    assert_eq!(bench.unloads_for("c", 60), ["b"]);
    let mut bench = after_a_swap(60_000);
    bench.want("r2", "b", Some(KeepAlive::UntilEvicted));
    bench.release("r2");
    bench.wait(60_000);
    assert_eq!(bench.unloads_for("a", 60), ["b"]);
}

#[test]
fn a_model_that_the_dispatcher_named_leaves_though_it_was_just_loaded() {
    let mut bench = after_a_swap(60_000);
    let (a, b) = (ModelName::new("a").unwrap(), ModelName::new("b").unwrap());
    bench.want("for-a", "a", None);
    bench.residency.handle_evict_first(&a, &[b]);
    assert_eq!(bench.unloads_for("a", 60), ["b"]);
}
