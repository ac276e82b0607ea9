//! Loads that succeed, fail, and are shared.

use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_worker_core::residency::{LoadFailure, LoadFiles, LoadStall, ResidencySettings, UnloadReason};

use crate::bench::{Bench, broken};

#[test]
fn requests_share_one_load_and_all_get_leases() {
    let mut bench = Bench::new(100, 3);
    bench.want("r1", "a", None);
    bench.want("r2", "a", None);
    assert_eq!(bench.actions(), ["inspect a"]);
    bench.inspect("a", 10);
    bench.want("r3", "a", None);
    assert_eq!(bench.actions(), ["load a"]);
    bench.loaded("a");
    assert_eq!(bench.actions(), ["lease r1 a", "lease r2 a", "lease r3 a"]);
}

#[test]
fn failed_loads_back_off_and_double_until_one_succeeds() {
    let mut bench = Bench::new(100, 1);
    for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
        bench.want("r1", "a", None);
        bench.want("r2", "a", None);
        bench.inspect("a", 10);
        bench.not_loaded("a", broken("broken").into());
        let ms = expected * 1000;
        let expected = [
            "inspect a",
            "load a",
            &format!("failed r1 {ms}"),
            &format!("failed r2 {ms}"),
        ];
        assert_eq!(bench.actions(), expected);
        bench.wait(ms - 1);
        bench.want("r3", "a", None);
        assert_eq!(
            bench.actions(),
            ["failed r3 1"],
            "nothing is tried during the back-off"
        );
        bench.wait(1);
    }
    bench.run("r4", "a", 10);
    let reports = bench.residency.model_reports(bench.now);
    assert_eq!(
        (reports[0].leases, reports[0].load_ms, reports[0].device),
        (1, Some(7), Some(0))
    );
}

/// A worker that loads `a`, of 60 pages, for `r1` and `r2`.
fn loading() -> Bench {
    let mut bench = Bench::with(ResidencySettings {
        load_stall: Some(LoadStall {
            window: Duration::from_secs(10),
            bytes_min: 1000,
        }),
        ..Bench::settings()
    });
    bench.want("r1", "a", None);
    bench.want("r2", "a", None);
    bench.inspect("a", 60);
    assert_eq!(bench.actions(), ["inspect a", "load a"]);
    bench
}

#[test]
fn the_first_client_that_leaves_does_not_end_a_load_that_another_waits_for() {
    let mut bench = loading();
    bench.release("r1");
    assert_eq!(bench.actions(), [""; 0]);
    bench.loaded("a");
    assert_eq!(bench.actions(), ["lease r2 a"]);
}

#[test]
fn a_load_that_nobody_waits_for_any_more_is_cancelled_and_its_pages_come_back() {
    let mut bench = loading();
    bench.release_all(&["r1", "r2"]);
    assert_eq!(bench.actions(), ["cancel a"]);
    assert_eq!(bench.pages_free(), 40, "its memory is held until it has ended");
    bench.not_loaded("a", LoadFailure::Cancelled);
    assert_eq!(bench.actions(), [""; 0]);
    assert_eq!(bench.pages_free(), 100);
    assert!(bench.residency.is_empty());
    bench.want("r3", "a", None);
    assert_eq!(
        bench.actions(),
        ["inspect a"],
        "it is no failure and there is no back-off"
    );
}

#[test]
fn who_wants_a_cancelled_model_again_is_served_by_its_next_load() {
    let mut bench = loading();
    bench.release_all(&["r1", "r2"]);
    bench.want("r3", "a", None);
    assert_eq!(bench.actions(), ["cancel a"]);
    bench.not_loaded("a", LoadFailure::Cancelled);
    bench.inspect("a", 60);
    bench.loaded("a");
    assert_eq!(bench.actions(), ["inspect a", "load a", "lease r3 a"]);
}

#[test]
fn a_load_that_ends_before_the_word_of_its_cancellation_leaves_the_model_idle() {
    let mut bench = loading();
    bench.release_all(&["r1", "r2"]);
    bench.loaded("a");
    assert_eq!(bench.actions(), ["cancel a"]);
    assert_eq!(
        bench.residency.poll_timeout(),
        Some(bench.now + Duration::from_secs(1)),
        "it stays by its keep-alive"
    );
}

#[test]
fn an_order_keeps_a_load_going_and_another_ends_it_when_nobody_waits() {
    let mut bench = loading();
    bench.order("a");
    bench.release_all(&["r1", "r2"]);
    assert_eq!(bench.actions(), [""; 0]);
    bench.order_out("a");
    assert_eq!(bench.actions(), ["cancel a"]);
}

#[test]
fn a_newcomer_takes_the_pages_of_a_cancelled_load_and_nobody_leaves_for_it() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "idle", 40);
    bench.release("r1");
    bench.want("r2", "a", None);
    bench.inspect("a", 60);
    bench.release("r2");
    bench.want("r3", "b", None);
    bench.inspect("b", 60);
    assert_eq!(bench.actions(), ["inspect a", "load a", "cancel a", "inspect b"]);
    bench.not_loaded("a", LoadFailure::Cancelled);
    assert_eq!(bench.actions(), ["load b"]);
}

#[test]
fn a_load_that_advances_goes_on_however_long_it_takes() {
    let mut bench = loading();
    for step in 1..1000 {
        bench.wait(9_999);
        bench.progress("a", step * 1000);
    }
    assert_eq!(bench.actions(), [""; 0]);
    bench.loaded("a");
    assert_eq!(bench.actions(), ["lease r1 a", "lease r2 a"]);
}

#[test]
fn a_load_whose_files_are_on_their_way_stalls_only_when_they_are_here() {
    let mut bench = loading();
    for _ in 0..10 {
        bench.wait(9_999);
        bench.progress_of("a", 5, LoadFiles::OnTheirWay);
    }
    assert_eq!(bench.actions(), [""; 0]);
    // The last of them came just before it would have stalled.
    bench.wait(9_990);
    let here = LoadFiles::Here(bench.now);
    bench.wait(9);
    bench.progress_of("a", 6, here);
    bench.wait(9_990);
    bench.progress_of("a", 1_005, here);
    assert_eq!(bench.actions(), [""; 0]);
    bench.wait(1);
    assert_eq!(bench.actions(), ["failed r1 1000", "failed r2 1000", "cancel a"]);
}

#[test]
fn a_cancelled_load_has_to_end_in_time_even_if_its_files_still_come() {
    let mut bench = loading();
    bench.release_all(&["r1", "r2"]);
    bench.want("r3", "a", None);
    bench.wait(9_999);
    bench.progress_of("a", 5, LoadFiles::OnTheirWay);
    bench.wait(1);
    assert_eq!(bench.actions(), ["cancel a", "failed r3 1000"]);
}

#[test]
fn a_load_that_stalls_fails_its_waiters_at_once_and_keeps_its_pages_until_it_ends() {
    let mut bench = loading();
    bench.progress("a", 5000);
    bench.wait(5_000);
    bench.progress("a", 5999);
    bench.wait(5_000);
    assert_eq!(bench.actions(), ["failed r1 1000", "failed r2 1000", "cancel a"]);
    assert_eq!(bench.residency.poll_timeout(), None);
    bench.wait(60_000);
    bench.want("r3", "a", None);
    assert_eq!(
        bench.actions(),
        ["failed r3 1000"],
        "nobody waits for what may never end"
    );
    assert_eq!(bench.pages_free(), 40);
    bench.not_loaded("a", LoadFailure::Cancelled);
    assert_eq!(bench.pages_free(), 100);
    let model = ModelName::new("a").unwrap();
    assert_eq!(
        bench.residency.unloadable(bench.now, &model),
        None,
        "its back-off is over"
    );
    bench.want("r4", "a", None);
    assert_eq!(bench.actions(), ["inspect a"]);
}

#[test]
fn an_order_for_a_stalled_model_is_carried_out_when_its_load_has_ended() {
    let mut bench = loading();
    bench.wait(10_000);
    bench.order("a");
    assert_eq!(bench.actions(), ["failed r1 1000", "failed r2 1000", "cancel a"]);
    bench.not_loaded("a", LoadFailure::Cancelled);
    assert_eq!(bench.actions(), ["inspect a"]);
}

#[test]
fn who_waits_behind_a_cancelled_load_that_does_not_end_is_refused_in_time() {
    let mut bench = loading();
    bench.release_all(&["r1", "r2"]);
    bench.want("r3", "a", None);
    bench.wait(10_000);
    assert_eq!(bench.actions(), ["cancel a", "failed r3 1000"]);
    bench.loaded("a");
    assert!(!bench.residency.is_empty(), "a late end is one all the same");
}

#[test]
fn nobody_leaves_for_a_model_that_nobody_waits_for_any_more() {
    let mut bench = Bench::new(100, 1);
    bench.run("r1", "a", 60);
    bench.release("r1");
    bench.want("r2", "b", None);
    bench.release("r2");
    bench.inspect("b", 95);
    assert_eq!(bench.actions(), ["inspect b"]);
}

#[test]
fn an_order_to_unload_during_a_load_takes_effect_when_it_ends() {
    let mut bench = Bench::new(100, 9);
    bench.want("r1", "a", None);
    bench.inspect("a", 10);
    bench
        .residency
        .handle_unload_order(bench.now, &ModelName::new("a").unwrap(), UnloadReason::Ordered);
    bench.loaded("a");
    bench.want("r2", "a", None);
    assert_eq!(bench.actions(), ["inspect a", "load a", "lease r1 a"]);
    bench.release("r1");
    assert_eq!(bench.actions(), ["unload a"]);
}

#[test]
fn a_model_ordered_out_while_it_waits_for_room_is_inspected_anew() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 80);
    bench.want("r2", "b", None);
    bench.inspect("b", 80);
    assert_eq!(bench.actions(), ["inspect b"], "there is no room");
    bench
        .residency
        .handle_unload_order(bench.now, &ModelName::new("b").unwrap(), UnloadReason::Ordered);
    assert_eq!(bench.actions(), ["inspect b"], "its files may be others");
    bench.inspect("b", 10);
    assert_eq!(bench.actions(), ["load b"]);
}

#[test]
fn a_success_ends_the_doubling() {
    let mut bench = Bench::new(100, 1);
    let model = ModelName::new("a").unwrap();
    for (request, after) in [("r1", 1000), ("r2", 2000)] {
        bench.want(request, "a", None);
        bench.unreadable("a");
        assert_eq!(
            bench.actions(),
            ["inspect a", &format!("failed {request} {after}")]
        );
        bench.wait(after);
    }
    bench.run("r3", "a", 10);
    bench
        .residency
        .handle_unload_order(bench.now, &model, UnloadReason::Ordered);
    bench.release("r3");
    bench.unloaded("a");
    bench.want("r4", "a", None);
    bench.unreadable("a");
    assert_eq!(bench.actions(), ["unload a", "inspect a", "failed r4 1000"]);
}

#[test]
fn models_that_came_and_went_are_remembered_but_not_for_ever() {
    let mut bench = Bench::new(100, 1);
    for number in 0..1000 {
        let model = format!("m{number}");
        bench.run("r", &model, 10);
        bench.release("r");
        bench.wait(1000);
        assert_eq!(bench.actions(), [format!("unload {model}")]);
        bench.unloaded(&model);
        assert!(bench.residency.known() <= 300);
    }
    assert!(bench.residency.is_empty());
}
