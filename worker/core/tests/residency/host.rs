//! Weights in host memory.

use flotilla_protocol::ModelName;
use flotilla_protocol::fleet::LoadSource;
use flotilla_worker_core::residency::{PrefetchRefusal, ResidencySettings, UnloadReason};

use crate::bench::{Bench, broken};

/// A device of 100 pages and so many pages of host memory.
fn bench(host_pages: u64) -> Bench {
    Bench::with(ResidencySettings {
        host_pages,
        ..Bench::settings()
    })
}

/// Loads a model of so many pages, in so long, and lets it leave.
fn leave(bench: &mut Bench, model: &str, pages: u64, ms: u64) -> Vec<String> {
    bench.run_in("r", model, pages, ms);
    bench.order_out(model);
    bench.release("r");
    let seen = bench.actions();
    match seen.iter().any(|action| action.ends_with("to host")) {
        true => bench.unloaded_to_host(model),
        false => bench.unloaded(model),
    }
    seen
}

fn name(model: &str) -> ModelName {
    ModelName::new(model).unwrap()
}

fn prefetch(bench: &mut Bench, model: &str) {
    bench.residency.handle_prefetch(bench.now, &name(model)).unwrap();
}

fn prefetched(bench: &mut Bench, model: &str) {
    bench.residency.handle_prefetched(bench.now, &name(model), Ok(()));
}

#[test]
fn a_model_that_leaves_is_kept_in_host_memory_and_comes_back_from_there() {
    let mut bench = bench(100);
    assert_eq!(leave(&mut bench, "a", 60, 5000), ["unload a to host"]);
    assert_eq!(bench.in_host(), ["a"]);
    assert_eq!(bench.pages_free(), 100, "the device is empty");
    bench.want("r1", "a", None);
    bench.inspect("a", 60);
    assert_eq!(bench.actions(), ["inspect a", "load a from host"]);
    bench.loaded_in("a", 300);
    assert_eq!(bench.actions(), ["lease r1 a"]);
    assert_eq!(bench.in_host(), [""; 0], "the copy is used up");
    let report = &bench.residency.model_reports(bench.now)[0];
    assert_eq!(
        (report.loaded_from, report.load_ms),
        (Some(LoadSource::Host), Some(300))
    );
}

#[test]
fn a_worker_without_host_memory_drops_what_leaves_and_refuses_prefetches() {
    let mut bench = bench(0);
    assert_eq!(leave(&mut bench, "a", 60, 5000), ["unload a"]);
    assert_eq!(bench.residency.host_report(), None);
    let refused = bench.residency.handle_prefetch(bench.now, &name("a"));
    assert_eq!(refused, Err(PrefetchRefusal::NoHostMemory));
}

#[test]
fn the_cheapest_copy_goes_when_host_memory_is_full_and_none_that_is_worth_more() {
    let mut bench = bench(100);
    leave(&mut bench, "dear", 50, 60_000);
    leave(&mut bench, "cheap", 50, 1_000);
    let seen = leave(&mut bench, "middle", 50, 5_000);
    assert_eq!(seen, ["drop cheap", "unload middle to host"]);
    assert_eq!(leave(&mut bench, "cheap", 50, 1_000), ["unload cheap"]);
    assert_eq!(bench.in_host(), ["dear", "middle"]);
    assert_eq!(
        leave(&mut bench, "wide", 100, 90_000).len(),
        3,
        "two go for one worth more"
    );
}

#[test]
fn a_prefetched_model_is_loaded_from_host_memory() {
    let mut bench = bench(100);
    prefetch(&mut bench, "a");
    bench.inspect("a", 60);
    assert_eq!(bench.actions(), ["inspect a", "prefetch a"]);
    prefetch(&mut bench, "a");
    assert!(
        bench.residency.model_reports(bench.now).is_empty(),
        "nobody has it"
    );
    bench.want("r1", "a", None);
    assert_eq!(
        bench.actions(),
        [""; 0],
        "who wants it meanwhile waits for what is under way"
    );
    prefetched(&mut bench, "a");
    bench.inspect("a", 60);
    bench.loaded("a");
    assert_eq!(bench.actions(), ["inspect a", "load a from host", "lease r1 a"]);
}

#[test]
fn a_prefetch_evicts_no_copy_that_is_worth_more_and_touches_no_device() {
    let mut bench = bench(60);
    leave(&mut bench, "a", 60, 60_000);
    prefetch(&mut bench, "b");
    bench.inspect("b", 60);
    assert_eq!(bench.actions(), ["inspect b"]);
    bench.run("r1", "c", 90);
    prefetch(&mut bench, "c");
    assert_eq!(bench.actions(), [""; 0], "it is nearer already");
}

#[test]
fn a_prefetch_that_fails_leaves_nothing_and_a_load_tries_the_files_again() {
    let mut bench = bench(100);
    prefetch(&mut bench, "a");
    bench.inspect("a", 60);
    bench
        .residency
        .handle_prefetched(bench.now, &name("a"), Err(broken("unreadable")));
    assert_eq!(bench.in_host(), [""; 0]);
    bench.want("r1", "a", None);
    bench.inspect("a", 60);
    assert_eq!(
        bench.actions(),
        ["inspect a", "prefetch a", "inspect a", "load a"]
    );
}

#[test]
fn a_copy_of_a_replaced_model_is_dropped_wherever_it_is() {
    let mut bench = bench(100);
    leave(&mut bench, "held", 30, 5000);
    bench.run("r1", "resident", 30);
    prefetch(&mut bench, "coming");
    bench.inspect("coming", 30);
    bench.actions();
    for model in ["held", "resident", "coming"] {
        let reason = UnloadReason::Replaced;
        bench
            .residency
            .handle_unload_order(bench.now, &name(model), reason);
    }
    assert_eq!(bench.actions(), ["drop held"]);
    bench.release("r1");
    assert_eq!(bench.actions(), ["unload resident"]);
    prefetched(&mut bench, "coming");
    assert_eq!(bench.actions(), ["drop coming"]);
    assert_eq!(bench.in_host(), [""; 0]);
}

#[test]
fn files_that_changed_behind_the_catalog_make_the_next_load_read_them() {
    let mut bench = bench(100);
    leave(&mut bench, "a", 60, 5000);
    bench.want("r1", "a", None);
    bench.residency.handle_host_outdated(&name("a"));
    bench.inspect("a", 60);
    assert_eq!(bench.actions(), ["inspect a", "drop a", "load a"]);
}

#[test]
fn a_copy_that_could_not_be_made_is_not_counted() {
    let mut bench = bench(100);
    bench.run_in("r1", "a", 60, 5000);
    bench.release("r1");
    bench.wait(1000);
    assert_eq!(bench.actions(), ["unload a to host"]);
    bench.unloaded("a");
    assert_eq!(bench.in_host(), [""; 0]);
    assert_eq!(bench.residency.poll_timeout(), None);
}
