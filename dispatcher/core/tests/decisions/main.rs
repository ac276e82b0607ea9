//! How the dispatcher decides, through its public interface alone: one test a rule.
//!
//! Where a rule answers a case of AIBrix's SLO router, taken from its suite or from its known faults, the test's doc says
//! which, and what is different here. All of them, with theirs in short:
//!
//! | case | there | here |
//! |---|---|---|
//! | 1 | ticks in log2 | profile: `ticks_lie_one_apart_in_log2_space` |
//! | 2 | lengths outside the grid | profile: `lengths_outside_the_grid_have_the_outermost_cells` |
//! | 3 | exact ticks | profile: `exact_ticks_are_found_anywhere_in_the_list` |
//! | 4 | a negative length | profile: `a_negative_number_of_tokens_cannot_be_written` |
//! | 5 | the nearest cell | profile: `every_tick_is_its_own_cell_and_has_that_cells_figures`, `every_length_has_the_cell_that_is_nearest_in_log2` |
//! | 6 | beyond the last tick | profile: `what_lies_beyond_the_last_tick_costs_more_and_is_marked`; [`explain::prices_beyond_what_was_measured_are_counted`] |
//! | 7 | a broken profile | profile: `a_broken_profile_is_refused_with_every_reason` |
//! | 8 | a newer profile, a removed one | profile: `the_newer_profile_replaces_the_older`; [`profiles::a_new_profile_prices_those_who_wait_anew`], [`profiles::without_its_profile_a_model_runs_on_an_estimate_and_keeps_its_order`] |
//! | 9 | buckets and slots | predictor: `buckets_and_slots_are_as_many_as_sizes_and_window_need` |
//! | 10 | rounded buckets | predictor: `buckets_are_rounded_logarithms` |
//! | 11 | no history | predictor: `without_history_the_prior_or_all_that_is_allowed_is_expected` |
//! | 12 | one answer | predictor: `one_answer_is_remembered_and_two_are_believed` |
//! | 13 | weights of buckets | predictor: `weights_of_two_to_one_divide_the_quantiles_two_to_one` |
//! | 14 | the window moves | predictor: `what_finished_is_forgotten_slot_by_slot_also_in_silence` |
//! | 15 | one prediction a request | predictor: `the_same_question_has_the_same_answer_a_hundred_times`; [`explain::a_running_request_is_explained_by_how_it_was_decided`] |
//! | 16 | least load, pushed | [`capacity::spread_takes_the_emptiest_device_of_those_that_take_work`] |
//! | 17 | least load, pulled | [`capacity::a_request_goes_where_it_takes_less_and_waits_where_it_exceeds_the_device`] |
//! | 18 | pack | [`capacity::pack_gives_the_second_request_to_the_device_of_the_first`] |
//! | 19 | pack until full | [`capacity::who_waits_for_full_devices_gets_the_place_of_the_first_that_ends`] |
//! | 20 | six fit | profile: `six_of_a_sixth_and_a_bit_less_fit_a_device_and_the_seventh_waits`; the test of case 19 |
//! | 21 | more than a device | profile: `a_request_that_needs_more_than_a_device_has_the_whole_of_one`; [`capacity::an_idle_device_takes_a_request_that_needs_more_than_it_has`] |
//! | 22 | bookings are released once | [`capacity::whatever_ends_a_request_its_booking_is_released_once_and_to_the_last_bit`] |
//! | 23 | a line by arrival | [`order::requests_alike_leave_in_the_order_in_which_they_came`] |
//! | 24 | lines by length | [`order::requests_of_nearly_the_same_length_are_told_apart_by_their_slack`] |
//! | 25 | one profile of several | [`profiles::a_device_without_a_profile_takes_what_the_others_leave_and_what_it_can_serve_in_time`], [`profiles::without_any_profile_or_target_the_order_is_that_of_arrival`] |
//! | 26 | lost causes, overload | [`order::who_can_be_in_time_goes_before_those_that_cannot_and_these_go_by_arrival`], [`order::under_twice_the_load_more_are_in_time_than_first_come_first_served`] |
//! | 27 | fast and slow | [`order::a_slow_device_takes_what_it_can_serve_in_time_and_the_rest_waits_for_the_fast_one`] |
//! | 28 | full and infeasible | [`order::a_request_waits_for_a_full_device_whatever_another_one_cannot_do`] |
//! | 29 | what wakes it up | [`order::a_worker_a_slot_and_a_profile_are_used_at_the_moment_they_come`] |
//! | 30 | cancelled while it waits | [`order::a_cancelled_request_leaves_the_queue_at_once_and_nobody_else_notices`] |
//! | 31 | a large one among small ones | [`order::a_large_urgent_request_starts_when_what_runs_has_ended`], [`order::a_large_request_gets_a_device_to_itself_behind_small_ones_of_another_model`] |
//! | 32 | no profile | [`profiles::no_profile_no_target_and_no_times_to_the_first_token_change_the_figures_and_not_the_rules`] |
//! | 33 | an infeasible cell | [`profiles::a_request_that_no_device_serves_in_time_is_late_and_runs`] |
//! | 34 | cold start | [`profiles::the_first_request_of_all_is_served_and_counted_once`] |
//! | 35 | a target is set once | [`profiles::the_second_answer_to_an_assignment_changes_nothing`] |
//! | 36 | one server | [`capacity::a_single_worker_has_a_queue_a_limit_and_an_account`] |
//! | 37 | a restart, two dispatchers | [`capacity::a_new_leader_gives_a_full_fleet_nothing_until_something_ends`], [`capacity::what_strangers_run_takes_the_device_until_its_worker_lists_it_no_more`] |
//! | 38 | a deadline of its own | [`order::a_requests_own_deadline_rules_over_the_profiles_target`] |
//! | 39 | the composite trace | simulator: `on_the_composite_trace_more_are_in_time_than_with_aibrix_for_less` |
//!
//! "profile" stands for `protocol/profile/tests/it/aibrix.rs`, "predictor" for `dispatcher/core/src/predictor.rs`,
//! "simulator" for `dispatcher/simulator/tests/sim/claims.rs`.

#![expect(
    clippy::unwrap_used,
    reason = "all of this crate is test code, its fleet included"
)]

mod capacity;
mod explain;
mod fairness;
mod fleet;
mod machine;
mod order;
mod overview;
mod parts;
mod policies;
mod profiles;
mod residency;
#[path = "../shared/bench.rs"]
mod shared;
mod words;
