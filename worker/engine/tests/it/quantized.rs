//! What rounding weights costs: logits of quantised models against those of the same models unquantised, over
//! 100 positions of a prompt. Part of it is the inputs' rounding to bf16, where unquantised weights are f32 or f16.
//!
//! Measured, as the root mean square of the differences over that of the logits:
//!
//! | models | int8 | int4 |
//! |---|---|---|
//! | demonstration models: trained, 128 wide | 0.0041 to 0.0112 | 0.0265 to 0.0993 |
//! | golden models: random, 32 to 50 wide | 0.0214 to 0.0708 | 0.0998 to 0.4323 |
//!
//! Random weights are the bad case: nothing in them outweighs the rest, so what rounding does to one layer grows
//! in the next.

use std::path::{Path, PathBuf};

use flotilla_worker_engine::Precision;

use crate::fixture::{
    GOLDEN, Options, Sequence, bits, blocks_of, demo_folder, golden_folder, load_with, read_chunk,
};

fn logits(folder: &Path, precision: Precision) -> Vec<f32> {
    let options = Options {
        precision,
        ..Options::default()
    };
    let mut model = load_with(folder, options);
    let vocab_size = u32::try_from(model.plan().config().vocab_size).unwrap();
    let tokens: Vec<u32> = (0..100).map(|index| (index * 37 + 5) % vocab_size).collect();
    let mut sequence = Sequence::new(&tokens, blocks_of(0));
    let positions = 0..tokens.len();
    positions
        .flat_map(|_| read_chunk(&mut model, &mut sequence, 1))
        .collect()
}

fn root_mean_square(values: impl ExactSizeIterator<Item = f32>) -> f64 {
    let count = values.len() as f64;
    let squares: f64 = values.map(|value| f64::from(value).powi(2)).sum();
    (squares / count).sqrt()
}

/// The root mean square of the differences, in units of that of the unquantised logits.
fn relative_error(folder: &Path, precision: Precision) -> f64 {
    let (stored, rounded) = (logits(folder, Precision::Stored), logits(folder, precision));
    let differences = stored.iter().zip(&rounded).map(|(a, b)| a - b);
    root_mean_square(differences) / root_mean_square(stored.iter().copied())
}

/// Asserts that rounding changes each model's logits by less than the bound, and that there was rounding.
#[track_caller]
fn assert_error_below(bound: f64, precision: Precision, folders: impl IntoIterator<Item = PathBuf>) {
    for folder in folders {
        let error = relative_error(&folder, precision);
        let name = folder.file_name().unwrap().display();
        assert!(error > 1e-3 && error < bound, "{name}, {precision:?}: {error}");
    }
}

#[test]
fn logits_of_trained_models_stay_within_a_fiftieth_in_int8_and_a_seventh_in_int4() {
    let folders = || ["adder", "sorter", "reverser"].map(demo_folder);
    assert_error_below(0.02, Precision::Int8, folders());
    assert_error_below(1.0 / 7.0, Precision::Int4, folders());
}

#[test]
fn logits_of_random_models_stay_within_a_tenth_in_int8_and_six_tenths_in_int4() {
    assert_error_below(0.1, Precision::Int8, GOLDEN.map(golden_folder));
    assert_error_below(0.6, Precision::Int4, GOLDEN.map(golden_folder));
}

/// Layers whose rows do not divide into groups of 32 columns are int8 in both.
#[test]
fn models_whose_rows_divide_into_no_groups_are_the_same_in_int4_as_in_int8() {
    let folder = golden_folder("gqa-f32");
    let (int8, int4) = (logits(&folder, Precision::Int8), logits(&folder, Precision::Int4));
    assert_eq!(bits(&int8), bits(&int4));
}
