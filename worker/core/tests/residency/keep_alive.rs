//! How long an idle model stays.

use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_protocol::request::KeepAlive;
use flotilla_worker_core::residency::UnloadReason;

use crate::bench::Bench;

#[test]
fn the_longest_keep_alive_of_a_time_of_use_counts_from_its_last_end() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 10);
    bench.want("r2", "a", Some(KeepAlive::Ms(5000)));
    bench.want("r3", "a", Some(KeepAlive::Ms(0)));
    bench.release("r2");
    bench.wait(100);
    bench.release("r1");
    bench.release("r3");
    assert_eq!(
        bench.residency.poll_timeout(),
        Some(bench.now + Duration::from_secs(5))
    );
    bench.wait(4999);
    assert_eq!(
        bench.actions(),
        [""; 0],
        "a lease that ended before it was polled is not granted"
    );
    bench.want("r4", "a", Some(KeepAlive::Ms(0)));
    bench.release("r4");
    assert_eq!(
        bench.actions(),
        ["unload a"],
        "a new time of use has a keep-alive of its own"
    );
    bench.unloaded("a");
    bench.run("r5", "a", 10);
    bench.release("r5");
    bench.wait(1000);
    assert_eq!(bench.actions(), ["unload a"]);
}

#[test]
fn a_model_that_stays_until_evicted_never_expires_and_is_evicted() {
    let mut bench = Bench::new(100, 1);
    bench.run("r1", "a", 10);
    bench.want("r2", "a", Some(KeepAlive::UntilEvicted));
    bench.release("r1");
    bench.release("r2");
    assert_eq!(bench.residency.poll_timeout(), None);
    bench.want("r3", "b", None);
    bench.inspect("b", 10);
    assert_eq!(bench.actions(), ["inspect b", "unload a"], "there is one place");
}

#[test]
fn an_order_loads_without_a_request_and_another_unloads_when_leases_end() {
    let mut bench = Bench::new(100, 1);
    let model = ModelName::new("a").unwrap();
    bench
        .residency
        .handle_load_order(bench.now, &model, Some(KeepAlive::Ms(50)));
    bench.inspect("a", 10);
    bench.loaded("a");
    assert_eq!(bench.actions(), ["inspect a", "load a"]);
    assert_eq!(
        bench.residency.poll_timeout(),
        Some(bench.now + Duration::from_millis(50))
    );
    bench.want("r1", "a", None);
    bench
        .residency
        .handle_unload_order(bench.now, &model, UnloadReason::Ordered);
    bench.want("r2", "a", None);
    assert_eq!(bench.actions(), ["lease r1 a"]);
    bench.release("r1");
    bench.unloaded("a");
    assert_eq!(
        bench.actions(),
        ["unload a", "inspect a"],
        "who came after the order waits for the next load"
    );
}
