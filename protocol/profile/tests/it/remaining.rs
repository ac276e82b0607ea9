//! What is left of a request while its tokens come.

use std::time::Duration;

use flotilla_profile::Signature;
use flotilla_protocol::profile::Profile;
use proptest::prelude::*;

use crate::device::{Device, checked, single};

fn lengths(output_tokens: u32, prompt_tokens: u32) -> Signature {
    Signature {
        prompt_tokens,
        output_tokens,
    }
}

#[test]
fn before_the_first_token_all_of_it_is_left() {
    let profile = checked(Device::slow().on_small_grid());
    let signature = lengths(100, 1500);
    assert_eq!(profile.time_left(signature, 0), profile.e2e(signature).value);
}

#[test]
fn what_is_left_is_the_whole_less_what_was_done() {
    let profile = checked(Device::slow().on_small_grid());
    let (whole, done) = (lengths(256, 1024), lengths(64, 1024));
    let time = profile.e2e(whole).value - profile.e2e(done).value;
    assert!(profile.time_left(whole, 64).abs_diff(time) <= Duration::from_nanos(2));
}

#[test]
fn below_the_first_tick_tokens_count_in_proportion() {
    let profile = checked(single(1.0, 4.0));
    let left = |output, made| profile.time_left(lengths(output, 128), made);
    assert_eq!(left(4, 1), Duration::from_secs(3));
    assert_eq!(left(4, 3), Duration::from_secs(1));
    assert_eq!(left(2, 1), Duration::from_secs(2));
    assert_eq!(
        left(8, 2),
        Duration::from_secs(6),
        "half of the first tick's four seconds are over"
    );
}

#[test]
fn an_answer_that_outlives_its_prediction_is_taken_to_be_an_eighth_longer() {
    let profile = checked(single(1.0, 4.0));
    let left = |output, made| profile.time_left(lengths(output, 128), made);
    assert_eq!(
        left(16, 16),
        Duration::from_secs(2),
        "two more tokens at a second each"
    );
    assert_eq!(left(16, 160), Duration::from_secs(20));
    assert_eq!(left(4, 4), Duration::from_secs(1), "at least one more");
}

#[test]
fn a_table_that_falls_still_leaves_a_token() {
    let profile = checked(Profile {
        tputs: vec![vec![1.0], vec![2.0]],
        indexes: vec![vec![4.0, 8.0], vec![128.0]],
        e2e: Some(vec![vec![8.0], vec![2.0]]),
        ..single(1.0, 1.0)
    });
    assert_eq!(profile.time_left(lengths(8, 128), 5), Duration::from_millis(250));
}

proptest! {
    #[test]
    fn the_time_left_falls_as_tokens_come(output in 2_u32..2000, input in 0_u32..5000, made in 0_u32..2000) {
        let profile = checked(Device::fast().on_small_grid());
        prop_assume!(made + 1 < output);
        let signature = lengths(output, input);
        let (before, after) = (profile.time_left(signature, made), profile.time_left(signature, made + 1));
        prop_assert!(after <= before + Duration::from_nanos(1), "{before:?} {after:?}");
        prop_assert!(after > Duration::ZERO);
    }
}
