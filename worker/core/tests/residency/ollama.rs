//! The cases of Ollama's scheduler, taken from its suite (U) or from its known faults (D), and its outages.
//!
//! "n/a" is explained in docs/architecture/memory.md, "Ollama's cases that have no counterpart". "desk", "ledger" and "victims"
//! are files beside this folder, "shell" is `worker/tests/shell`, the rest are modules of this crate.
//!
//! | case | there | here |
//! |---|---|---|
//! | 1 | the queue is full | desk: `a_full_worker_and_a_deposed_leader_are_refused` |
//! | 2 | cancelled while queued | [`a_request_that_is_cancelled_while_it_waits_leaves_nothing_behind`] |
//! | 3 | no such file | [`a_model_that_cannot_be_read_fails_its_own_waiters_alone`] |
//! | 4 | keep-alive 0 | [`a_model_without_keep_alive_leaves_and_the_next_is_served`] |
//! | 5, 6 | limits of waiting | desk: `slots_epochs_and_reports_agree_after_any_history`: slots bound who waits and who runs, of all models |
//! | 7, 9, 15 | a load fails | `loads::failed_loads_back_off_and_double_until_one_succeeds` |
//! | 8, 10 | one load for all | `loads::requests_share_one_load_and_all_get_leases` |
//! | 11, 12 | context and digests | n/a |
//! | 13 | the first client leaves | `loads::the_first_client_that_leaves_does_not_end_a_load_that_another_waits_for` |
//! | 14 | all clients leave | `loads::a_load_that_nobody_waits_for_any_more_is_cancelled_and_its_pages_come_back` |
//! | 16-25 | when a model is loaded anew | n/a but [`requests_that_want_different_things_share_one_load`] |
//! | 26 | a new version, one in flight | shell: `a_loaded_model_that_the_catalog_quantises_leaves_and_comes_back_smaller` |
//! | 27 | a new version under traffic | [`a_new_version_is_served_though_requests_for_the_old_one_overlap`] |
//! | 28 | an idle and a busy one make room | [`an_idle_model_leaves_at_once_and_a_busy_one_when_its_requests_end`] |
//! | 29 | idle before busy | `room::the_busy_model_with_the_fewest_leases_drains_and_a_pinned_one_never`, [`an_idle_model_leaves_at_once_and_a_busy_one_when_its_requests_end`] |
//! | 30 | equals | victims: `idle_models_leave_in_the_order_of_the_hint_and_then_of_their_use` |
//! | 31 | a chosen victim is asked for | [`a_request_for_a_chosen_victim_does_not_revive_it`] |
//! | 32, 34 | only on the very device | `room::only_a_model_on_the_device_that_the_newcomer_fits_leaves` |
//! | 33 | what never fits | `room::a_model_that_fits_nowhere_is_refused_with_the_numbers_and_nobody_leaves` |
//! | 35 | pinned | `room::pinned_models_are_no_victims_and_outstay_their_keep_alive` |
//! | 36 | the newcomer leaves | `loads::nobody_leaves_for_a_model_that_nobody_waits_for_any_more`; what was ordered is n/a |
//! | 37 | A B A B | [`two_models_that_take_turns_do_not_thrash`] |
//! | 38 | one model at most | `keep_alive::a_model_that_stays_until_evicted_never_expires_and_is_evicted` |
//! | 39 | keep-alives of many | `keep_alive::the_longest_keep_alive_of_a_time_of_use_counts_from_its_last_end` |
//! | 40 | an order while it runs | `keep_alive::an_order_loads_without_a_request_and_another_unloads_when_leases_end` |
//! | 41 | a stray end | [`an_end_that_comes_twice_changes_nothing`] |
//! | 42 | what a keep-alive may be | protocol: `keep_alive_speaks_ollamas_dialects` |
//! | 43 | expiry and a request at once | [`a_newcomer_at_the_moment_of_an_expiry_waits_for_the_pages_and_takes_them`] |
//! | 44 | shutdown | desk: `a_draining_worker_takes_nothing_and_hands_back_what_is_left_at_the_deadline` |
//! | 45, 46 | sums of memory | ledger: `held_and_free_pages_are_all_pages_after_any_history` |
//! | 47 | a device that loads | [`two_cold_models_load_at_once`] |
//! | 48, 50 | brands, graphics in main memory | n/a |
//! | 49 | layers on several devices | `parts::each_device_has_about_as_much_of_a_model_as_it_has_room_for` |
//! | 51 | which devices | `parts::the_fewest_devices_that_can_hold_a_model_together_have_it`; brands n/a |
//! | 52 | room before anything starts | `room::least_recently_used_idle_models_leave_and_no_more_of_them_than_needed` |
//! | 53-55 | memory that is guessed | n/a |
//! | 56-59 | out of memory | n/a |
//! | 60 | out of memory while running | `devices::leases_on_a_failed_device_end_with_a_reason_and_its_models_are_absent`: that device's models alone |
//! | 61 | two cold models | [`two_cold_models_load_at_once`] |
//! | 62 | random events | `soak::a_hundred_thousand_events_break_no_invariant_and_leave_nobody_waiting` |
//! | 63 | reports in a loop | n/a |
//! | 64 | a slow unload | [`a_slow_unload_of_one_model_delays_nobody_else`] |

use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_protocol::request::KeepAlive;
use flotilla_worker_core::residency::{ResidencySettings, UnloadReason};

use crate::bench::Bench;

#[test]
fn a_request_for_a_chosen_victim_does_not_revive_it() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "victim", 60);
    bench.want("r2", "newcomer", None);
    bench.inspect("newcomer", 60);
    bench.want("r3", "victim", Some(KeepAlive::Ms(1_800_000)));
    bench.release("r1");
    assert_eq!(bench.actions(), ["inspect newcomer", "unload victim"]);
    bench.unloaded("victim");
    bench.loaded("newcomer");
    assert_eq!(
        bench.actions(),
        ["inspect victim", "load newcomer", "lease r2 newcomer"]
    );
    bench.inspect("victim", 60);
    bench.release("r2");
    bench.unloaded("newcomer");
    bench.loaded("victim");
    assert_eq!(
        bench.actions(),
        ["unload newcomer", "load victim", "lease r3 victim"],
        "it is served by the next load"
    );
}

#[test]
fn a_request_that_is_cancelled_while_it_waits_leaves_nothing_behind() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "busy", 100);
    bench.actions();
    bench.want("r2", "inspected", None);
    bench.want("r3", "waiting", None);
    bench.inspect("waiting", 50);
    bench.release("r2");
    bench.release("r3");
    bench.inspect("inspected", 50);
    assert_eq!(bench.actions(), ["inspect inspected", "inspect waiting"]);
    assert_eq!(bench.residency.requests().count(), 1);
    assert_eq!(bench.residency.known(), 1, "only the busy one is known");
    bench.release("r1");
    assert_eq!(bench.residency.requests().count(), 0);
}

#[test]
fn a_model_that_cannot_be_read_fails_its_own_waiters_alone() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "idle", 60);
    bench.release("r1");
    bench.want("r2", "broken", None);
    bench.unreadable("broken");
    bench.want("r3", "idle", None);
    assert_eq!(
        bench.actions(),
        ["inspect broken", "failed r2 1000", "lease r3 idle"]
    );
}

#[test]
fn a_model_without_keep_alive_leaves_and_the_next_is_served() {
    let mut bench = Bench::new(100, 1);
    bench.want("r1", "a", Some(KeepAlive::Ms(0)));
    bench.inspect("a", 60);
    bench.loaded("a");
    bench.release("r1");
    assert_eq!(bench.actions(), ["inspect a", "load a", "unload a"]);
    bench.want("r2", "b", None);
    bench.inspect("b", 60);
    bench.unloaded("a");
    bench.loaded("b");
    assert_eq!(bench.actions(), ["inspect b", "load b", "lease r2 b"]);
}

#[test]
fn requests_that_want_different_things_share_one_load() {
    let mut bench = Bench::new(100, 9);
    bench.run("r0", "a", 60);
    bench.release("r0");
    let kept = [None, Some(KeepAlive::Ms(0)), Some(KeepAlive::UntilEvicted)];
    for (number, keep_alive) in kept.into_iter().cycle().take(30).enumerate() {
        bench.want(&format!("r{number}"), "a", keep_alive);
    }
    assert!(bench.actions().iter().all(|action| action.starts_with("lease")));
}

#[test]
fn a_new_version_is_served_though_requests_for_the_old_one_overlap() {
    let mut bench = Bench::new(100, 9);
    bench.run("r0", "a", 60);
    let a = ModelName::new("a").unwrap();
    bench
        .residency
        .handle_unload_order(bench.now, &a, UnloadReason::Replaced);
    for number in 1..10 {
        bench.want(&format!("r{number}"), "a", None);
    }
    assert_eq!(bench.actions(), [""; 0], "the old one grants no lease any more");
    bench.release("r0");
    bench.unloaded("a");
    bench.inspect("a", 60);
    bench.loaded("a");
    let seen = bench.actions();
    assert_eq!(seen[..3], ["unload a", "inspect a", "load a"]);
    assert_eq!(seen.len(), 3 + 9, "everybody is served by the new one");
}

#[test]
fn an_idle_model_leaves_at_once_and_a_busy_one_when_its_requests_end() {
    let mut bench = Bench::with(ResidencySettings {
        device_pages: vec![240, 80],
        ..Bench::settings()
    });
    bench.run("rc", "c", 70);
    bench.run("rb", "b", 200);
    bench.run("ra", "a", 20);
    bench.release_all(&["ra", "rc"]);
    bench.want("rd", "d", None);
    bench.inspect("d", 230);
    assert_eq!(bench.actions(), ["inspect d", "unload a"], "c is elsewhere");
    bench.unloaded("a");
    assert_eq!(bench.actions(), [""; 0]);
    bench.release("rb");
    bench.unloaded("b");
    bench.loaded("d");
    assert_eq!(bench.actions(), ["unload b", "load d", "lease rd d"]);
    assert_eq!(bench.residency.model_reports(bench.now).len(), 2, "c and d");
}

#[test]
fn two_models_that_take_turns_do_not_thrash() {
    let mut bench = Bench::with(ResidencySettings {
        min_residency_max: Duration::from_secs(5),
        keep_alive: KeepAlive::UntilEvicted,
        ..Bench::settings()
    });
    let (mut swaps, mut waited) = (0, Duration::ZERO);
    bench.run_in("r", "m1", 60, 1000);
    bench.release("r");
    for turn in 0..50 {
        let model = format!("m{}", turn % 2);
        bench.want("r", &model, None);
        let asked = bench.now;
        let mut seen = bench.actions();
        while !seen.iter().any(|action| action.starts_with("lease")) {
            for action in std::mem::take(&mut seen) {
                match action.split(' ').collect::<Vec<_>>()[..] {
                    ["inspect", model] => bench.inspect(model, 60),
                    ["unload", model] => bench.unloaded(model),
                    ["load", model, ..] => {
                        swaps += 1;
                        bench.wait(1000);
                        bench.loaded_in(model, 1000);
                    }
                    _ => {}
                }
            }
            seen = bench.actions();
            if seen.is_empty() {
                let due = bench
                    .residency
                    .poll_timeout()
                    .expect("who waits is served in time");
                bench.wait(due.since(bench.now).as_millis().try_into().unwrap());
                seen = bench.actions();
            }
        }
        waited = waited.max(bench.now.since(asked));
        bench.release("r");
    }
    let lasted = bench.now.since(flotilla_protocol::Moment::default());
    assert!(
        lasted >= Duration::from_secs(2) * (swaps - 1),
        "it works as long as it loads"
    );
    assert!(
        waited <= Duration::from_secs(2),
        "a load, and as long again: {waited:?}"
    );
}

#[test]
fn an_end_that_comes_twice_changes_nothing() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 60);
    bench.want("r2", "a", None);
    bench.actions();
    bench.release_all(&["r1", "r1", "stranger"]);
    assert_eq!(bench.residency.model_reports(bench.now)[0].leases, 1);
    bench.wait(60_000);
    assert_eq!(bench.actions(), [""; 0], "r2 holds it");
    bench.release_all(&["r2", "r1"]);
    bench.wait(1000);
    assert_eq!(bench.actions(), ["unload a"]);
    bench.unloaded("a");
    bench.release("r2");
    assert!(bench.residency.is_empty());
}

#[test]
fn a_newcomer_at_the_moment_of_an_expiry_waits_for_the_pages_and_takes_them() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 60);
    bench.release("r1");
    bench.wait(1000);
    bench.want("r2", "b", None);
    bench.inspect("b", 60);
    assert_eq!(
        bench.actions(),
        ["unload a", "inspect b"],
        "its pages are not free yet"
    );
    bench.unloaded("a");
    assert_eq!(bench.actions(), ["load b"]);
}

#[test]
fn two_cold_models_load_at_once() {
    let mut bench = Bench::new(100, 9);
    bench.want("r1", "a", None);
    bench.want("r2", "b", None);
    bench.inspect("a", 50);
    bench.inspect("b", 50);
    assert_eq!(bench.actions(), ["inspect a", "inspect b", "load a", "load b"]);
    bench.loaded("b");
    assert_eq!(
        bench.actions(),
        ["lease r2 b"],
        "the second does not wait for the first"
    );
}

#[test]
fn a_slow_unload_of_one_model_delays_nobody_else() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "slow", 30);
    bench.run("r2", "other", 30);
    bench.order_out("slow");
    bench.release("r1");
    assert_eq!(bench.actions(), ["unload slow"]);
    bench.release("r2");
    bench.wait(1000);
    assert_eq!(bench.actions(), ["unload other"], "its keep-alive is not held up");
    bench.want("r3", "third", None);
    bench.inspect("third", 30);
    bench.loaded("third");
    assert_eq!(bench.actions(), ["inspect third", "load third", "lease r3 third"]);
}
