//! Between, below and beyond the ticks, and where the profile says nothing.

use std::time::Duration;

use flotilla_profile::{DeviceProfile, EstimateFrom, LoadTier, PREFILL_TO_DECODE, Reach, Signature};
use flotilla_protocol::profile::{LoadSeconds, Profile, ProfileSource};
use proptest::prelude::*;

use crate::device::{Device, checked, single, ticks};

fn lengths(output_tokens: u32, prompt_tokens: u32) -> Signature {
    Signature {
        prompt_tokens,
        output_tokens,
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// Equal up to the nanosecond that a span is rounded to, and rounding in logarithms.
fn close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 2e-9 + expected.abs() * 1e-9
}

/// Two output ticks, two input ticks, all figures different.
fn four_cells() -> Profile {
    Profile {
        tputs: vec![vec![8.0, 4.0], vec![2.0, 1.0]],
        indexes: vec![vec![16.0, 64.0], vec![128.0, 512.0]],
        e2e: Some(vec![vec![1.0, 2.0], vec![4.0, 8.0]]),
        ttft: None,
        tpot: None,
        ..single(1.0, 1.0)
    }
}

#[test]
fn halfway_in_log_space_the_answer_is_the_geometric_mean() {
    let profile = checked(four_cells());
    let e2e = |output, input| seconds(profile.e2e(lengths(output, input)).value);
    assert!(close(e2e(32, 128), 2.0));
    assert!(close(e2e(16, 256), 2.0_f64.sqrt()));
    assert!(close(e2e(32, 256), (1.0_f64 * 2.0 * 4.0 * 8.0).powf(0.25)));
    assert!(close(seconds(profile.work(lengths(32, 128))), 0.25));
    assert!(close(profile.share(lengths(32, 128)), 0.25 / 2.0));
}

#[test]
fn below_the_first_tick_the_first_cell_holds() {
    let profile = checked(four_cells());
    for signature in [lengths(0, 0), lengths(1, 127), lengths(16, 5)] {
        let figure = profile.e2e(signature);
        assert_eq!(
            (figure.value, figure.reach),
            (Duration::from_secs(1), Reach::Inside)
        );
    }
}

#[test]
fn beyond_the_last_tick_the_last_slope_goes_on() {
    let profile = checked(four_cells());
    let e2e = |output, input| seconds(profile.e2e(lengths(output, input)).value);
    assert!(close(e2e(112, 128), 4.0 + 48.0 * (4.0 - 1.0) / 48.0));
    assert!(close(e2e(112, 512), 8.0 + 48.0 * (8.0 - 2.0) / 48.0));
    assert!(close(e2e(64, 896), 8.0 + 384.0 * (8.0 - 4.0) / 384.0));
    assert!(
        close(e2e(112, 896), 8.0 + 6.0 + 4.0),
        "both slopes at the last cell add up"
    );
    assert!(close(
        seconds(profile.work(lengths(112, 128))),
        0.5 + (0.5 - 0.125)
    ));
}

#[test]
fn times_that_fall_are_not_extrapolated_downwards() {
    let mut document = four_cells();
    document.e2e = Some(vec![vec![4.0, 4.0], vec![3.0, 2.0]]);
    let profile = checked(document);
    assert!(close(seconds(profile.e2e(lengths(4096, 512)).value), 2.0));
    assert!(close(seconds(profile.e2e(lengths(4096, 128)).value), 3.0));
    assert!(close(seconds(profile.e2e(lengths(64, 1 << 20)).value), 2.0));
}

#[test]
fn a_single_cell_is_extrapolated_in_proportion() {
    let profile = checked(single(2.0, 3.0));
    assert!(close(seconds(profile.e2e(lengths(8, 128)).value), 6.0));
    assert!(close(seconds(profile.e2e(lengths(4, 256)).value), 6.0));
    assert!(close(seconds(profile.work(lengths(8, 128))), 1.0));
    assert_eq!(profile.cell(lengths(4096, 4096)), (0, 0));
}

#[test]
fn the_largest_numbers_of_tokens_still_have_a_time() {
    let profile = checked(four_cells());
    let signature = lengths(u32::MAX, u32::MAX);
    assert!(profile.e2e(signature).value > Duration::from_secs(1_000_000));
    assert!(profile.share(signature) > 0.0);
    assert!(profile.time_left(signature, u32::MAX) > Duration::ZERO);
}

#[test]
fn the_time_to_the_first_token_comes_from_the_best_that_is_known() {
    let table = Profile {
        ttft: Some(vec![vec![0.25; 2]; 2]),
        prefill_tokens_per_s: Some(1000.0),
        ..four_cells()
    };
    assert_eq!(
        checked(table.clone()).ttft(lengths(64, 200)).value,
        Duration::from_millis(250)
    );
    let rate = Profile { ttft: None, ..table };
    assert_eq!(
        checked(rate.clone()).ttft(lengths(64, 200)).value,
        Duration::from_millis(200)
    );
    let neither = Profile {
        prefill_tokens_per_s: None,
        ..rate
    };
    assert_eq!(
        checked(neither).ttft(lengths(64, 512)).value,
        Duration::from_secs(2),
        "that of a request with the shortest answer of the grid"
    );
}

#[test]
fn the_work_of_an_infeasible_cell_follows_from_feasible_ones() {
    let mut document = four_cells();
    document.tputs[1][1] = 0.0;
    let profile = checked(document);
    // From (16, 512), four times as many output tokens: 4 x 0.25; from (64, 128), four times the prompt: 4 x 0.5.
    assert!(close(seconds(profile.work(lengths(64, 512))), 1.0));
    assert!(!profile.is_feasible(lengths(64, 512)) && profile.is_feasible(lengths(64, 255)));
    assert!(
        close(seconds(profile.e2e(lengths(64, 512)).value), 8.0),
        "its time is measured"
    );
    assert!(profile.share(lengths(64, 512)) > 0.0);
}

#[test]
fn an_infeasible_cell_below_all_feasible_ones_needs_at_most_their_work() {
    let mut document = four_cells();
    document.tputs = vec![vec![0.0, 0.0], vec![2.0, 0.0]];
    let profile = checked(document);
    assert!(close(seconds(profile.work(lengths(16, 128))), 0.5));
    assert!(close(seconds(profile.work(lengths(64, 512))), 2.0));
    assert!(close(seconds(profile.work(lengths(16, 512))), 2.0));
}

#[test]
fn an_infeasible_cell_needs_no_less_than_either_smaller_neighbour() {
    let mut document = four_cells();
    document.tputs = vec![vec![8.0, 8.0], vec![0.5, 0.0]];
    let profile = checked(document);
    assert!(
        close(seconds(profile.work(lengths(64, 512))), 2.0),
        "not 4 x 0.125"
    );
}

#[test]
fn load_times_are_known_by_tier() {
    let document = Profile {
        load_seconds_by_tier: Some(LoadSeconds {
            host: Some(0.5),
            peer: None,
            origin: Some(30.0),
        }),
        ..four_cells()
    };
    let profile = checked(document.clone());
    let times = [LoadTier::Host, LoadTier::Peer, LoadTier::Origin].map(|tier| profile.load_time(tier));
    let known = |seconds: f64| Some(Duration::from_secs_f64(seconds));
    assert_eq!(times, [known(0.5), None, known(30.0)]);
    let nothing = checked(Profile {
        load_seconds_by_tier: None,
        ..document
    });
    assert_eq!(nothing.load_time(LoadTier::Host), None);
}

#[test]
fn an_idle_device_is_as_much_faster_as_its_steps_say() {
    let device = Device::slow();
    let profile = checked(device.on_small_grid());
    let signature = lengths(128, 512);
    let alone = 512.0 / device.prefill_tokens_per_s + 128.0 * device.tpot_alone_s;
    let ratio = alone / seconds(profile.e2e(signature).value);
    assert!((profile.idle_speedup(signature) - ratio).abs() < 1e-6 && ratio < 0.8);

    let without_rate = checked(Profile {
        prefill_tokens_per_s: None,
        ..profile.document().clone()
    });
    let sequences = 1.0 / profile.share(signature);
    let ratio = device.tpot_alone_s / device.tpot(sequences);
    assert!((without_rate.idle_speedup(signature) - ratio).abs() < 1e-6);

    let without_steps = checked(Profile {
        tpot_by_batch: None,
        ..profile.document().clone()
    });
    assert_eq!(without_steps.idle_speedup(signature), 1.0);
}

#[test]
fn an_estimate_gives_each_slot_an_equal_share_and_reads_all_weights_in_a_step() {
    let profile = DeviceProfile::estimated(EstimateFrom {
        kind: "cpu".to_owned(),
        cost: 0.1,
        weights_bytes: 2_000_000_000,
        memory_bytes_per_s: 40_000_000_000,
        slots: 8,
        created: 5.0,
    })
    .unwrap();
    assert_eq!(profile.source(), ProfileSource::Estimated);
    assert_eq!(
        (profile.kind(), profile.cost(), profile.created()),
        ("cpu", 0.1, 5.0)
    );
    let step = 0.05;
    for (output, input) in [(16, 16), (1, 9000), (100, 333), (32_768, 32_768)] {
        let signature = lengths(output, input);
        assert!(close(profile.share(signature), 1.0 / 8.0), "{signature:?}");
        assert!(profile.is_feasible(signature));
    }
    let rate = PREFILL_TO_DECODE / step;
    let expected = 1024.0 / rate + 256.0 * step;
    assert!(close(seconds(profile.e2e(lengths(256, 1024)).value), expected));
    assert!(close(
        seconds(profile.ttft(lengths(256, 800)).value),
        800.0 / rate
    ));
    let beyond = seconds(profile.e2e(lengths(65_536, 1024)).value);
    assert!(
        close(beyond, 1024.0 / rate + 65_536.0 * step),
        "its law is a line, and so is the slope"
    );
}

#[test]
fn an_estimate_of_a_tiny_model_or_a_single_slot_holds_too() {
    let from = EstimateFrom {
        kind: "cpu".to_owned(),
        cost: 1.0,
        weights_bytes: 0,
        memory_bytes_per_s: 1_000_000_000_000,
        slots: 1,
        created: 0.0,
    };
    let profile = DeviceProfile::estimated(from).unwrap();
    assert!(close(profile.share(lengths(64, 64)), 1.0));
    assert!(close(
        profile.rate_max(),
        1.0 / (16.0 * 1e-4 / PREFILL_TO_DECODE + 16.0 * 1e-4)
    ));
}

/// A grid whose times and work never fall along either axis.
fn monotone() -> impl Strategy<Value = Profile> {
    (1_usize..6, 1_usize..6).prop_flat_map(|(outputs, inputs)| {
        let steps = proptest::collection::vec(proptest::collection::vec(0.0..2.0_f64, inputs), outputs);
        (axis(outputs), axis(inputs), steps.clone(), steps).prop_map(|(outputs, inputs, times, work)| {
            let [e2e, work] = [times, work].map(summed);
            Profile {
                tputs: work
                    .iter()
                    .map(|row| row.iter().map(|work| 1.0 / work).collect())
                    .collect(),
                indexes: vec![outputs, inputs],
                e2e: Some(e2e),
                ttft: None,
                ..single(1.0, 1.0)
            }
        })
    })
}

fn axis(count: usize) -> impl Strategy<Value = Vec<f64>> {
    proptest::collection::btree_set(1_u32..5000, count)
        .prop_map(|ticks| ticks.into_iter().map(f64::from).collect())
}

/// Sums along both axes, so that nothing falls.
fn summed(steps: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut sums: Vec<Vec<f64>> = Vec::new();
    for row in steps {
        let mut sum = 0.01;
        let along: Vec<f64> = row
            .iter()
            .enumerate()
            .map(|(index, step)| {
                sum += step;
                sum + sums.last().map_or(0.0, |above| above[index])
            })
            .collect();
        sums.push(along);
    }
    sums
}

proptest! {
    #[test]
    fn longer_requests_never_take_less_on_a_table_that_never_falls(
        document in monotone(),
        output in 0_u32..20_000,
        input in 0_u32..20_000,
        more_output in 0_u32..5000,
        more_input in 0_u32..5000,
    ) {
        let profile = checked(document);
        let (less, more) = (lengths(output, input), lengths(output + more_output, input + more_input));
        let nearly = |duration: Duration| duration.mul_f64(1.0 - 1e-9).saturating_sub(Duration::from_nanos(1));
        prop_assert!(profile.e2e(more).value >= nearly(profile.e2e(less).value));
        prop_assert!(profile.work(more) >= nearly(profile.work(less)));
        prop_assert!(profile.ttft(lengths(output, input + more_input)).value >= nearly(profile.ttft(less).value));
    }

    #[test]
    fn the_nearest_tick_is_found_on_any_axis(outputs in axis(7), tokens in 1_u32..6000) {
        let document = Profile {
            tputs: vec![vec![1.0]; 7],
            e2e: Some(vec![vec![1.0]; 7]),
            indexes: vec![outputs.clone(), vec![128.0]],
            ..single(1.0, 1.0)
        };
        let (found, _) = checked(document).cell(lengths(tokens, 128));
        let distance = |tick: f64| (tick.log2() - f64::from(tokens).log2()).abs();
        let least = outputs.iter().map(|&tick| distance(tick)).fold(f64::INFINITY, f64::min);
        prop_assert!(distance(outputs[found]) <= least + 1e-12);
    }

    #[test]
    fn a_profile_survives_export_and_import(document in monotone(), infeasible in any::<prop::sample::Index>()) {
        let mut document = document;
        let columns = document.indexes[1].len();
        let cell = infeasible.index(columns * document.indexes[0].len());
        if columns * document.indexes[0].len() > 1 {
            document.tputs[cell / columns][cell % columns] = 0.0;
        }
        let profile = checked(document.clone());
        let json = serde_json::to_vec(&Profile::from(&profile)).unwrap();
        let back = Profile::from_json(&json).unwrap();
        prop_assert_eq!(&back, &document);
        prop_assert_eq!(checked(back), profile);
    }
}

#[test]
fn a_grid_of_any_feasible_cell_has_work_everywhere() {
    for feasible in 0..15 {
        let mut tputs = vec![vec![0.0; 5]; 3];
        tputs[feasible / 5][feasible % 5] = 2.0;
        let document = Profile {
            tputs,
            indexes: vec![ticks(2..=4), ticks(7..=11)],
            e2e: Some(vec![vec![1.0; 5]; 3]),
            ..single(1.0, 1.0)
        };
        let profile = checked(document);
        for (output, input) in [(4, 128), (16, 2048), (4, 2048), (16, 128)] {
            assert!(
                profile.work(lengths(output, input)) >= Duration::from_millis(500),
                "{feasible}"
            );
        }
    }
}
