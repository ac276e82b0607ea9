//! Every decoder, a few hundred inputs each; `cargo run --release -p flotilla-fuzz --bin fuzz` reads millions.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::time::Duration;

use flotilla_fuzz::{Options, run, targets};

#[test]
fn every_decoder_takes_the_inputs_of_a_fixed_seed() {
    nothing_breaks(1, 20_000);
}

#[test]
fn every_decoder_takes_the_inputs_of_a_new_seed() {
    nothing_breaks(getrandom::u64().unwrap() >> 16, 10_000);
}

#[expect(clippy::print_stderr, reason = "a run that fails is made again by its seed")]
fn nothing_breaks(seed: u64, inputs: u64) {
    eprintln!("seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        seed,
        inputs,
        from: 0,
        // Without optimisation and beside other tests.
        time_max: Duration::from_secs(60),
        threads: 2,
        // What breaks something stays there.
        folder: folder.path().to_owned(),
    };
    let targets = targets::all();
    let outcomes = run(&targets, &options);
    let findings: Vec<String> = outcomes
        .iter()
        .flat_map(|outcome| &outcome.findings)
        .map(ToString::to_string)
        .collect();
    if !findings.is_empty() {
        let kept = folder.keep();
        panic!(
            "{} findings, kept in {}:\n{}",
            findings.len(),
            kept.display(),
            findings.join("\n")
        );
    }
    for (target, outcome) in targets.iter().zip(&outcomes) {
        // A corpus that its decoder refuses tries nothing but the first check.
        assert!(
            outcome.inputs < 50 || outcome.accepted > 0,
            "{} accepts nothing",
            target.name
        );
    }
}
