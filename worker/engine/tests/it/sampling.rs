//! Tokens drawn by a model at temperatures above 0.

use flotilla_worker_engine::{Sampling, SequenceOutput, Step, uniform};

use crate::fixture::{Sequence, blocks_of, golden_folder, load, read_chunk};

const WARM: Sampling = Sampling {
    temperature: 4.0,
    top_k: None,
    top_p: 1.0,
    min_p: 0.0,
    logprobs: None,
    seed: 1,
    position: 0,
};

/// The logits after a fixed prompt, and the tokens that `samplings` draw from them.
fn draws(samplings: impl IntoIterator<Item = Sampling>) -> (Vec<f32>, Vec<u32>) {
    let mut model = load(&golden_folder("gqa-f32"));
    let mut sequence = Sequence::new(&[1, 20, 30, 40], blocks_of(0));
    let logits = read_chunk(&mut model, &mut sequence, 4);
    sequence.read = 3;
    let tokens = samplings
        .into_iter()
        .map(|sampling| {
            let part = [sequence.part(1, Some(sampling))];
            let output = model.submit(&Step { sequences: &part }).unwrap().wait().unwrap();
            output.sequences[0].token().unwrap()
        })
        .collect();
    (logits, tokens)
}

fn positions(sampling: Sampling, count: u64) -> impl Iterator<Item = Sampling> {
    (0..count).map(move |position| Sampling { position, ..sampling })
}

/// Token ids by falling logit.
fn ranking(logits: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..).take(logits.len()).collect();
    ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    ids
}

fn probabilities(logits: &[f32], temperature: f32) -> Vec<f64> {
    let weights: Vec<f64> = logits
        .iter()
        .map(|logit| (f64::from(*logit) / f64::from(temperature)).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

#[test]
fn greedy_takes_the_largest_logit() {
    let (logits, tokens) = draws([Sampling::GREEDY]);
    assert_eq!(tokens[0], ranking(&logits)[0]);
}

#[test]
fn draws_repeat_with_the_seed_and_differ_without() {
    let (_, once) = draws(positions(WARM, 50));
    let (_, again) = draws(positions(WARM, 50));
    let (_, other) = draws(positions(Sampling { seed: 2, ..WARM }, 50));
    assert_eq!(once, again);
    assert_ne!(once, other);
}

#[test]
fn without_limits_the_draw_inverts_the_cumulative_distribution() {
    let (logits, tokens) = draws(positions(WARM, 200));
    let probabilities = probabilities(&logits, WARM.temperature);
    for (position, token) in (0..).zip(tokens) {
        let below: f64 = probabilities[..token as usize].iter().sum();
        let at = below + probabilities[token as usize];
        let drawn = uniform(WARM.seed, position);
        assert!(
            (below - 1e-9..at + 1e-9).contains(&drawn),
            "{drawn} is not in {below}..{at}"
        );
    }
}

#[test]
fn frequencies_follow_the_probabilities() {
    let (logits, tokens) = draws(positions(WARM, 4000));
    let best = ranking(&logits)[0];
    let expected = probabilities(&logits, WARM.temperature)[best as usize];
    let found = tokens.iter().filter(|token| **token == best).count() as f64 / 4000.0;
    // Four standard deviations.
    let tolerance = 4.0 * (expected * (1.0 - expected) / 4000.0).sqrt();
    assert!((found - expected).abs() < tolerance, "{found} against {expected}");
}

#[test]
fn top_k_draws_all_of_the_largest_and_nothing_else() {
    let flat = Sampling {
        temperature: 1e6,
        top_k: Some(5),
        ..WARM
    };
    let (logits, mut tokens) = draws(positions(flat, 200));
    tokens.sort_unstable();
    tokens.dedup();
    let mut largest = ranking(&logits)[..5].to_vec();
    largest.sort_unstable();
    assert_eq!(tokens, largest);
}

#[test]
fn top_p_draws_the_fewest_that_reach_it_and_nothing_else() {
    let sampling = Sampling { top_p: 0.4, ..WARM };
    let (logits, mut tokens) = draws(positions(sampling, 2000));
    let probabilities = probabilities(&logits, sampling.temperature);
    let mut sum = 0.0;
    let mut nucleus: Vec<u32> = ranking(&logits)
        .into_iter()
        .take_while(|token| {
            let before = sum;
            sum += probabilities[*token as usize];
            before < 0.4
        })
        .collect();
    assert!(nucleus.len() > 2, "the case is not trivial");
    nucleus.sort_unstable();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens, nucleus);
}

#[test]
fn tiny_top_p_is_greedy() {
    let (logits, tokens) = draws(positions(Sampling { top_p: 1e-6, ..WARM }, 20));
    assert!(tokens.iter().all(|token| *token == ranking(&logits)[0]));
}

#[test]
fn each_sequence_of_a_step_draws_with_its_own_parameters() {
    let mut model = load(&golden_folder("gqa-f32"));
    let sequences: Vec<Sequence> = (0..4)
        .map(|index| Sequence::new(&[1, 20, 30, 40], blocks_of(index)))
        .collect();
    let samplings = [
        None,
        Some(Sampling::GREEDY),
        Some(WARM),
        Some(Sampling { seed: 9, ..WARM }),
    ];
    let parts: Vec<_> = sequences
        .iter()
        .zip(samplings)
        .map(|(sequence, sampling)| sequence.part(4, sampling))
        .collect();
    let output = model.submit(&Step { sequences: &parts }).unwrap().wait().unwrap();
    let (_, alone) = draws(samplings.into_iter().flatten());
    assert_eq!(output.sequences[0], SequenceOutput::Read);
    let together: Vec<u32> = output.sequences[1..]
        .iter()
        .map(|output| output.token().unwrap())
        .collect();
    assert_eq!(together, alone);
}
