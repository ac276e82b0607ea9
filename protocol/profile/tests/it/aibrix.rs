//! The cases that AIBrix's own suite has for profiles and load, and those that its known faults ask for.

use flotilla_profile::{DeviceProfile, ProfileFault, Reach, Signature};
use flotilla_protocol::profile::Profile;
use proptest::prelude::*;

use crate::device::{Device, checked, single};

fn small_grid() -> DeviceProfile {
    checked(Device::fast().on_small_grid())
}

fn lengths(output_tokens: u32, prompt_tokens: u32) -> Signature {
    Signature {
        prompt_tokens,
        output_tokens,
    }
}

/// AIBrix case 1.
#[test]
fn ticks_lie_one_apart_in_log2_space() {
    let profile = small_grid();
    let [outputs, inputs] = [0, 1].map(|axis: usize| {
        let ticks = profile.document().indexes[axis].iter();
        ticks.map(|tick| tick.log2()).collect::<Vec<_>>()
    });
    assert_eq!(outputs, [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    assert_eq!(inputs, [7.0, 8.0, 9.0, 10.0, 11.0]);
}

/// AIBrix case 2.
#[test]
fn lengths_outside_the_grid_have_the_outermost_cells() {
    assert_eq!(small_grid().cell(lengths(0, 2049)), (0, 4));
}

/// AIBrix case 3.
#[test]
fn exact_ticks_are_found_anywhere_in_the_list() {
    let profile = small_grid();
    let cells = [(64, 256), (256, 128), (8, 128)].map(|(output, input)| profile.cell(lengths(output, input)));
    assert_eq!(cells, [(4, 1), (6, 0), (1, 0)]);
}

/// AIBrix case 4: a negative length is an error there; here it has no type, and no tick either.
#[test]
fn a_negative_number_of_tokens_cannot_be_written() {
    let mut document = Device::fast().on_small_grid();
    document.indexes[0][0] = -4.0;
    let faults = DeviceProfile::try_from(document).unwrap_err();
    assert_eq!(
        faults.to_string(),
        "the profile has 1 fault(s)\n  indexes[0][0]: found -4; give a number of tokens from 1"
    );
}

/// AIBrix case 5, first half.
#[test]
fn every_tick_is_its_own_cell_and_has_that_cells_figures() {
    let document = Device::fast().on_small_grid();
    let profile = checked(document.clone());
    for (output, out_power) in (2..=9_u32).enumerate() {
        for (input, in_power) in (7..=11_u32).enumerate() {
            let signature = lengths(1 << out_power, 1 << in_power);
            assert_eq!(profile.cell(signature), (output, input));
            let e2e = profile.e2e(signature);
            assert_eq!(e2e.reach, Reach::Inside);
            let own = document.e2e.as_ref().unwrap()[output][input];
            assert_eq!(e2e.value, std::time::Duration::from_secs_f64(own));
            let work = std::time::Duration::from_secs_f64(1.0 / document.tputs[output][input]);
            assert_eq!(profile.work(signature), work);
        }
    }
}

/// AIBrix case 5, second half: their search once stopped after one bisection.
#[test]
fn every_length_has_the_cell_that_is_nearest_in_log2() {
    let profile = small_grid();
    let nearest = |ticks: &[f64], tokens: u32| {
        let distance = |tick: &f64| (f64::from(tokens).log2() - tick.log2()).abs();
        let order = |a: &(usize, f64), b: &(usize, f64)| a.1.total_cmp(&b.1);
        let found = ticks.iter().map(distance).enumerate().min_by(order);
        found.unwrap().0
    };
    let indexes = &profile.document().indexes;
    for tokens in 1..=4096 {
        let cell = profile.cell(lengths(tokens, tokens));
        assert_eq!(
            cell,
            (nearest(&indexes[0], tokens), nearest(&indexes[1], tokens)),
            "{tokens}"
        );
    }
    assert_eq!(profile.cell(lengths(181, 181)), (5, 0));
    assert_eq!(profile.cell(lengths(182, 182)), (6, 1));
}

/// AIBrix case 6.
#[test]
fn what_lies_beyond_the_last_tick_costs_more_and_is_marked() {
    let profile = small_grid();
    let last = lengths(512, 2048);
    assert_eq!(profile.e2e(last).reach, Reach::Inside);
    for beyond in [lengths(512, 32_768), lengths(8192, 2048), lengths(8192, 32_768)] {
        let figure = profile.e2e(beyond);
        assert_eq!(figure.reach, Reach::Extrapolated);
        assert_eq!(profile.ttft(beyond).reach, Reach::Extrapolated);
        assert!(
            figure.value > profile.e2e(last).value * 2,
            "{beyond:?}: {figure:?}"
        );
        assert!(profile.work(beyond) > profile.work(last) * 2, "{beyond:?}");
    }
}

/// AIBrix case 7: every fault is named with its place, and nothing takes the place of what was there.
#[test]
fn a_broken_profile_is_refused_with_every_reason() {
    let json = br#"{"gpu": "sim-fast", "cost": 1.0, "created": 1.0, "indexes": [[4, 8], [128, 256]],
        "tputs": [[1.0, NaN], [1.0]], "e2e": [[0.5, 0.0], [0.5, 0.5]], "ttft": [[0.1, 0.1]]}"#;
    let faults = DeviceProfile::try_from(Profile::from_json(json).unwrap()).unwrap_err();
    let places: Vec<_> = faults.faults().iter().map(place).collect();
    assert_eq!(places, ["tputs[0][1]", "tputs[1]", "e2e[0][1]", "ttft"]);
    let without_e2e = Profile {
        e2e: None,
        ..Device::fast().on_small_grid()
    };
    let faults = DeviceProfile::try_from(without_e2e).unwrap_err();
    assert_eq!(place(&faults.faults()[0]), "e2e");
}

/// AIBrix case 8.
#[test]
fn the_newer_profile_replaces_the_older() {
    let older = small_grid();
    let newer = checked(Profile {
        created: older.created() + 1.0,
        ..older.document().clone()
    });
    assert!(newer.replaces(&older) && !older.replaces(&newer) && older.replaces(&older));
}

/// AIBrix case 20.
#[test]
fn six_of_a_sixth_and_a_bit_less_fit_a_device_and_the_seventh_waits() {
    let share = checked(single(62.477, 0.09953)).share(lengths(4, 128));
    assert!((share - 0.1608).abs() < 5e-5, "{share}");
    assert!(share * 6.0 <= 1.0 && share * 7.0 > 1.0);
}

/// AIBrix case 21: their share of such a request exceeds 1, so that no device ever takes it.
#[test]
fn a_request_that_needs_more_than_a_device_has_the_whole_of_one() {
    assert_eq!(checked(single(8.56, 0.0967)).share(lengths(4, 128)), 1.0);
}

proptest! {
    #[test]
    fn no_request_needs_more_than_an_idle_device(output in 0_u32.., input in 0_u32..) {
        for device in [Device::fast(), Device::slow()] {
            let profile = checked(device.on_small_grid());
            let share = profile.share(lengths(output, input));
            prop_assert!(share > 0.0 && share <= 1.0);
        }
    }
}

fn place(fault: &ProfileFault) -> String {
    fault.to_string().split(':').next().unwrap().to_owned()
}
