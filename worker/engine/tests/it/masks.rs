//! Masks in a model's steps.

use std::sync::OnceLock;
use std::thread;

use flotilla_worker_engine::{
    LogitBias, LogitEdits, MASKED_LOGIT, Penalties, Sampling, SequenceOutput, SequenceStep, Step, TokenMask,
};
use proptest::prelude::*;

use crate::fixture::{Sequence, blocks_of, generate, golden_folder, load};

const PROMPT: [u32; 4] = [1, 20, 30, 40];

const WARM: Sampling = Sampling {
    temperature: 4.0,
    ..Sampling::GREEDY
};

fn biased(token: u32, addend: f32) -> LogitEdits {
    LogitEdits::new(Penalties::NONE, [LogitBias { token, addend }]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A row of logits is masked in the batch as it is alone, and its neighbours without a mask are not.
    #[test]
    fn what_is_drawn_does_not_depend_on_the_rest_of_the_batch(
        moduli in prop::collection::vec(prop::option::of(1u32..50), 2..8),
        seed in any::<u64>(),
    ) {
        let mut model = load(&golden_folder("gqa-f32"));
        let sampling = Sampling { seed, logprobs: Some(20), ..WARM };
        let sequences: Vec<Sequence> = (0..)
            .zip(&moduli)
            .map(|(index, modulus)| {
                let sequence = Sequence::new(&[1, 20, 30, 40 + index], blocks_of(index));
                match modulus {
                    Some(modulus) => sequence.with_mask(|token| token % modulus == 0),
                    None => sequence,
                }
            })
            .collect();
        let parts: Vec<SequenceStep<'_>> =
            sequences.iter().map(|sequence| sequence.part(4, Some(sampling))).collect();
        let output = model.submit(&Step { sequences: &parts }).unwrap().wait().unwrap();
        let together: Vec<_> =
            (0..parts.len()).map(|at| (output.sequences[at], *output.logprobs(at).unwrap())).collect();
        for ((part, together), modulus) in parts.iter().zip(together).zip(moduli) {
            let alone = model.submit(&Step { sequences: &[*part] }).unwrap().wait().unwrap();
            prop_assert_eq!((alone.sequences[0], *alone.logprobs(0).unwrap()), together);
            prop_assert_eq!(together.0.token().unwrap() % modulus.unwrap_or(1), 0);
        }
    }
}

#[test]
fn only_allowed_tokens_are_drawn_and_edits_move_nothing_across_the_mask() {
    let mut model = load(&golden_folder("gqa-f32"));
    let allowed = |token: u32| token.is_multiple_of(7);
    for sampling in [
        Sampling::GREEDY,
        WARM,
        Sampling {
            top_k: Some(90),
            ..WARM
        },
    ] {
        let plain = Sequence::new(&PROMPT, blocks_of(0)).with_edits(biased(8, 100.0), 4);
        let mut masked = plain.clone().with_mask(allowed);
        let drawn = generate(&mut model, &mut masked, 40, sampling);
        assert!(drawn.iter().copied().all(allowed), "{drawn:?}");
        let mut forced = Sequence::new(&PROMPT, blocks_of(0))
            .with_edits(biased(14, 100.0), 4)
            .with_mask(allowed);
        let drawn = generate(&mut model, &mut forced, 5, sampling);
        assert_eq!(drawn, [14; 5], "a bias chooses among what is allowed");
    }
}

#[test]
fn mask_of_all_tokens_changes_nothing() {
    let mut model = load(&golden_folder("gqa-f32"));
    let plain = generate(&mut model, &mut Sequence::new(&PROMPT, blocks_of(0)), 40, WARM);
    let mut masked = Sequence::new(&PROMPT, blocks_of(1)).with_mask(|_| true);
    assert_eq!(generate(&mut model, &mut masked, 40, WARM), plain);
}

#[test]
fn step_waits_for_a_mask_that_is_still_in_the_making() {
    let mut model = load(&golden_folder("gqa-f32"));
    let mut sequence = Sequence::new(&PROMPT, blocks_of(0));
    sequence.mask = Some(OnceLock::new());
    let part = [sequence.part(4, Some(Sampling::GREEDY))];
    let mask = part[0].mask.unwrap();
    let (output, logits) = thread::scope(|scope| {
        scope.spawn(move || mask.set(TokenMask::from_words(vec![1 << 9])).unwrap());
        let pending = model.submit(&Step { sequences: &part }).unwrap();
        let (output, logits) = pending.wait_with_logits().unwrap();
        (output.sequences[0], logits)
    });
    assert_eq!(output, SequenceOutput::Token(9));
    let left = (0..96).filter(|token| logits[0][*token] > MASKED_LOGIT);
    assert_eq!(
        left.collect::<Vec<_>>(),
        [9],
        "tokens beyond the mask are not allowed"
    );
}

#[test]
fn mask_that_allows_nothing_gives_no_token_and_touches_nobody_else() {
    let mut model = load(&golden_folder("gqa-f32"));
    let starved = Sequence::new(&PROMPT, blocks_of(0)).with_mask(|_| false);
    let free = Sequence::new(&PROMPT, blocks_of(1));
    let parts = [starved, free].map(|sequence| (sequence, Some(WARM)));
    let parts = parts
        .each_ref()
        .map(|(sequence, sampling)| sequence.part(4, *sampling));
    let output = model.submit(&Step { sequences: &parts }).unwrap().wait().unwrap();
    assert_eq!(output.sequences[0], SequenceOutput::NoToken);
    assert!(output.sequences[1].token().is_some());
}
