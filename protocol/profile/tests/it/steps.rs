//! A device step by step: what the profile says itself, and what is fitted when it says nothing.

use flotilla_profile::StepTimes;
use flotilla_protocol::profile::Profile;
use proptest::prelude::*;

use crate::device::{Device, checked, single};

/// Without what AIBrix's files lack.
fn foreign(document: Profile) -> Profile {
    Profile {
        prefill_tokens_per_s: None,
        tpot_by_batch: None,
        ttft: None,
        tpot: None,
        ..document
    }
}

fn seconds(steps: &StepTimes, prefill_tokens: u32, sequences: u32) -> f64 {
    steps.step(prefill_tokens, sequences).as_secs_f64()
}

fn close(found: f64, expected: f64, part: f64) -> bool {
    (found / expected - 1.0).abs() <= part
}

#[test]
fn a_profile_that_knows_its_steps_is_taken_at_its_word() {
    let device = Device::fast();
    let steps = StepTimes::from_profile(&checked(device.on_small_grid()));
    assert!(steps.fit().is_none());
    assert_eq!(steps.prefill_tokens_per_s(), 12_000.0);
    for sequences in [1, 3, 32, 100] {
        assert!(close(
            seconds(&steps, 0, sequences),
            device.tpot(f64::from(sequences)),
            1e-6
        ));
    }
    assert!(close(seconds(&steps, 600, 0), 0.05, 1e-9));
    assert!(close(seconds(&steps, 600, 32), 0.05 + 0.030, 1e-9));
    assert_eq!(seconds(&steps, 0, 0), 0.0);
}

#[test]
fn batches_outside_the_table_are_the_first_or_on_the_last_slope() {
    let with = |steps: &[(f64, f64)]| {
        StepTimes::from_profile(&checked(Profile {
            tpot_by_batch: Some(steps.to_vec()),
            ..single(1.0, 1.0)
        }))
    };
    let table = with(&[(4.0, 0.02), (8.0, 0.04)]);
    assert!(close(seconds(&table, 0, 1), 0.02, 1e-9));
    assert!(close(seconds(&table, 0, 6), 0.03, 1e-9));
    assert!(close(seconds(&table, 0, 12), 0.06, 1e-9));
    assert!(close(
        seconds(&with(&[(4.0, 0.04), (8.0, 0.02)]), 0, 16),
        0.02,
        1e-9
    ));
    assert!(close(seconds(&with(&[(4.0, 0.04)]), 0, 16), 0.04, 1e-9));
}

#[test]
fn the_fit_finds_the_steps_behind_the_matrices() {
    for device in [Device::fast(), Device::slow()] {
        let steps = StepTimes::from_profile(&checked(foreign(device.on_small_grid())));
        let fit = steps.fit().unwrap();
        assert!(fit.residual < 1e-4, "{fit:?}");
        assert!(
            close(fit.prefill_tokens_per_s, device.prefill_tokens_per_s, 0.01),
            "{fit:?}"
        );
        for sequences in [1, 8, 32, 64] {
            let expected = device.tpot(f64::from(sequences));
            assert!(
                close(seconds(&steps, 0, sequences), expected, 0.01),
                "{sequences}: {fit:?}"
            );
        }
    }
}

#[test]
fn what_the_profile_says_is_kept_and_only_the_rest_is_fitted() {
    let device = Device::slow();
    let whole = device.on_small_grid();
    let without_rate = Profile {
        prefill_tokens_per_s: None,
        ..whole.clone()
    };
    let steps = StepTimes::from_profile(&checked(without_rate));
    assert!(close(
        steps.prefill_tokens_per_s(),
        device.prefill_tokens_per_s,
        0.01
    ));
    assert!(close(seconds(&steps, 0, 8), device.tpot(8.0), 1e-6));

    let without_steps = Profile {
        tpot_by_batch: None,
        ..whole
    };
    let steps = StepTimes::from_profile(&checked(without_steps));
    assert_eq!(steps.prefill_tokens_per_s(), device.prefill_tokens_per_s);
    assert!(close(seconds(&steps, 0, 8), device.tpot(8.0), 0.001));
}

/// Steps of 1 ms with two sequences, 20 with ten and 50 with twenty lie on a line that begins below zero.
#[test]
fn steps_never_have_a_part_below_zero() {
    let rows = [(100.0, 2.0, 0.001), (200.0, 10.0, 0.02), (400.0, 20.0, 0.05)];
    let e2e = |(output, _, step): (f64, f64, f64)| output * step;
    let document = Profile {
        indexes: vec![rows.map(|(output, _, _)| output).to_vec(), vec![1.0]],
        tputs: rows.map(|row| vec![row.1 / e2e(row)]).to_vec(),
        e2e: Some(rows.map(|row| vec![e2e(row)]).to_vec()),
        prefill_tokens_per_s: Some(1e9),
        ..foreign(single(1.0, 1.0))
    };
    let steps = StepTimes::from_profile(&checked(document));
    let fit = steps.fit().unwrap();
    assert_eq!(fit.tpot_base_s, 0.0, "{fit:?}");
    // Least squares of the relative errors of b x N alone, with u = N / step: sum(u) / sum(u^2).
    let us = rows.map(|(_, sequences, step)| sequences / step);
    let each = us.iter().sum::<f64>() / us.iter().map(|u| u * u).sum::<f64>();
    assert!(close(fit.tpot_each_s, each, 1e-4), "{fit:?}, not {each}");
}

#[test]
fn a_profile_of_one_cell_gives_steps_that_explain_it() {
    let steps = StepTimes::from_profile(&checked(foreign(single(8.0, 0.5))));
    let fit = steps.fit().unwrap();
    assert!(fit.residual < 1e-6, "{fit:?}");
    let decoding = 1.0 - 8.0 * 128.0 / fit.prefill_tokens_per_s;
    let e2e = seconds(&steps, 128, 0) + 4.0 * seconds(&steps, 0, 4) / decoding;
    assert!(close(e2e, 0.5, 1e-6), "{e2e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A twentieth more or less, as repeated measurements have it.
    #[test]
    fn the_fit_is_as_good_as_the_measurements(
        noise in proptest::collection::vec(-0.05..0.05_f64, 80),
        each in 0.0003..0.001_f64,
        base in 0.005..0.02_f64,
        rate in 3000.0..20_000.0_f64,
    ) {
        let device = Device {
            prefill_tokens_per_s: rate,
            tpot_alone_s: base + each,
            tpot_full_s: base + 32.0 * each,
            ..Device::fast()
        };
        let mut document = foreign(device.on_small_grid());
        let matrices = document.e2e.iter_mut().chain([&mut document.tputs]);
        for (figure, noise) in matrices.flatten().flatten().zip(noise) {
            *figure *= noise.exp();
        }
        let steps = StepTimes::from_profile(&checked(document));
        let fit = steps.fit().unwrap();
        prop_assert!(fit.residual < 0.1, "{fit:?}");
        prop_assert!(close(seconds(&steps, 0, 16), device.tpot(16.0), 0.35), "{fit:?}");
    }
}
