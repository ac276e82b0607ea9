//! Penalties, biases and log-probabilities in a model's steps.

use flotilla_worker_engine::{
    LogitBias, LogitEdits, Penalties, Sampling, SequenceStep, Step, StepError, StepLimits, TokenLogprob,
};
use proptest::prelude::*;

use crate::fixture::{
    GOLDEN, Options, Sequence, bits, blocks_of, generate, golden_folder, load, load_with, read_chunk,
};

const PROMPT: [u32; 4] = [1, 20, 30, 40];

fn penalties() -> impl Strategy<Value = Penalties> {
    (0.5f32..2.0, -1.0f32..2.0, -1.0f32..2.0).prop_map(|(repetition, presence, frequency)| Penalties {
        repetition,
        presence,
        frequency,
    })
}

fn biases() -> impl Strategy<Value = Vec<LogitBias>> {
    let bias = (0u32..96, -3.0f32..3.0).prop_map(|(token, addend)| LogitBias { token, addend });
    prop::collection::vec(bias, 0..5)
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let temperature = prop_oneof![Just(0.0f32), 0.5f32..4.0];
    let top_k = prop_oneof![Just(None), (1u32..100).prop_map(Some)];
    (temperature, top_k, 0.5f32..=1.0, 0.0f32..0.3, any::<u64>()).prop_map(
        |(temperature, top_k, top_p, min_p, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            ..Sampling::GREEDY
        },
    )
}

fn bias(token: u32, addend: f32) -> LogitEdits {
    LogitEdits::new(Penalties::NONE, [LogitBias { token, addend }]).unwrap()
}

fn generated(edits: LogitEdits, sampling: Sampling) -> Vec<u32> {
    let mut model = load(&golden_folder("gqa-f32"));
    let mut sequence = Sequence::new(&PROMPT, blocks_of(0)).with_edits(edits, PROMPT.len());
    generate(&mut model, &mut sequence, 40, sampling)
}

const WARM: Sampling = Sampling {
    temperature: 4.0,
    ..Sampling::GREEDY
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn resumed_generation_with_penalties_equals_the_unbroken_one(
        model in 0..GOLDEN.len(),
        penalties in penalties(),
        biases in biases(),
        sampling in sampling(),
        broken_after in 1usize..30,
    ) {
        let mut model = load(&golden_folder(GOLDEN[model]));
        let edits = LogitEdits::new(penalties, biases).unwrap();
        let mut unbroken = Sequence::new(&PROMPT, blocks_of(0)).with_edits(edits.clone(), PROMPT.len());
        let all = generate(&mut model, &mut unbroken, 30, sampling);

        let journal = [&PROMPT[..], &all[..broken_after]].concat();
        let mut resumed = Sequence::new(&journal, blocks_of(1)).with_edits(edits, PROMPT.len());
        let rest = generate(&mut model, &mut resumed, 30 - broken_after, sampling);
        prop_assert_eq!(rest, &all[broken_after..]);
    }

    #[test]
    fn what_is_drawn_does_not_depend_on_the_rest_of_the_batch(
        parts in prop::collection::vec((penalties(), biases(), sampling()), 2..8),
    ) {
        let mut model = load(&golden_folder("gqa-f32"));
        let sequences: Vec<(Sequence, Sampling)> = (0..)
            .zip(parts)
            .map(|(index, (penalties, biases, sampling))| {
                let edits = LogitEdits::new(penalties, biases).unwrap();
                let sequence = Sequence::new(&[1, 20, 30, 40 + index, 20], blocks_of(index));
                (sequence.with_edits(edits, 4), Sampling { logprobs: Some(20), ..sampling })
            })
            .collect();
        let steps: Vec<SequenceStep<'_>> =
            sequences.iter().map(|(sequence, sampling)| sequence.part(5, Some(*sampling))).collect();
        let output = model.submit(&Step { sequences: &steps }).unwrap().wait().unwrap();
        let together: Vec<_> =
            (0..steps.len()).map(|at| (output.sequences[at], *output.logprobs(at).unwrap())).collect();
        for (step, together) in steps.iter().zip(together) {
            let alone = model.submit(&Step { sequences: &[*step] }).unwrap().wait().unwrap();
            prop_assert_eq!((alone.sequences[0], *alone.logprobs(0).unwrap()), together);
        }
    }
}

#[test]
fn bias_of_a_hundred_forces_a_token() {
    assert!(generated(bias(33, 100.0), WARM).iter().all(|token| *token == 33));
    assert!(
        generated(bias(33, 100.0), Sampling::GREEDY)
            .iter()
            .all(|token| *token == 33)
    );
}

#[test]
fn bias_of_minus_a_hundred_bans_a_token() {
    let favourite = generated(LogitEdits::none(), Sampling::GREEDY)[0];
    let banned = generated(bias(favourite, -100.0), Sampling::GREEDY);
    assert!(banned.iter().all(|token| *token != favourite));
    let banned = generated(bias(favourite, -100.0), WARM);
    assert!(banned.iter().all(|token| *token != favourite));
}

#[test]
fn min_p_of_one_is_greedy() {
    let greedy = generated(LogitEdits::none(), Sampling::GREEDY);
    assert_eq!(
        generated(LogitEdits::none(), Sampling { min_p: 1.0, ..WARM }),
        greedy
    );
}

#[test]
fn strong_presence_penalty_never_repeats_and_neutral_penalties_change_nothing() {
    let penalties = Penalties {
        presence: 100.0,
        ..Penalties::NONE
    };
    let mut tokens = generated(LogitEdits::new(penalties, []).unwrap(), WARM);
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 40);
    let neutral = LogitEdits::new(Penalties::NONE, []).unwrap();
    assert_eq!(generated(neutral, WARM), generated(LogitEdits::none(), WARM));
}

/// Logits as they are drawn from: repetition first, then what is subtracted and added.
#[test]
fn logits_are_penalised_then_biased() {
    let mut model = load(&golden_folder("gqa-f32"));
    let tokens = [1, 20, 30, 40, 20, 20];
    let mut plain = Sequence::new(&tokens, blocks_of(0));
    let expected = read_chunk(&mut model, &mut plain, 6);
    let penalties = Penalties {
        repetition: 1.5,
        presence: 0.25,
        frequency: 0.5,
    };
    let biases = [(20, 2.0), (50, -1.0)].map(|(token, addend)| LogitBias { token, addend });
    let edits = LogitEdits::new(penalties, biases).unwrap();
    let mut edited = Sequence::new(&tokens, blocks_of(1)).with_edits(edits, 4);
    let found = read_chunk(&mut model, &mut edited, 6);
    let repeated = |logit: f32| if logit > 0.0 { logit / 1.5 } else { logit * 1.5 };
    let mut penalised = expected.clone();
    for token in [1, 30, 40] {
        penalised[token] = repeated(expected[token]);
    }
    // Twice in the answer: 0.25 + 2 * 0.5 less, then 2 more.
    penalised[20] = repeated(expected[20]) + 0.75;
    penalised[50] = expected[50] - 1.0;
    assert_eq!(bits(&found), bits(&penalised));
}

#[test]
fn logprobs_are_of_the_edited_logits_without_temperature_and_cuts() {
    let mut model = load(&golden_folder("gqa-f32"));
    let sequence = Sequence::new(&PROMPT, blocks_of(0)).with_edits(bias(33, 2.0), 4);
    let sampling = Sampling {
        top_k: Some(3),
        min_p: 0.1,
        top_p: 0.9,
        logprobs: Some(20),
        ..WARM
    };
    let parts = [sequence.part(4, Some(sampling)), sequence.part(4, Some(WARM))];
    let (output, logits) = model
        .submit(&Step {
            sequences: &parts[..1],
        })
        .unwrap()
        .wait_with_logits()
        .unwrap();
    let total: f64 = logits[0].iter().map(|logit| f64::from(*logit).exp()).sum();
    let logprob = |token: u32| f64::from(logits[0][token as usize]) - total.ln();
    let is_close = |told: f32, token| (f64::from(told) - logprob(token)).abs() < 1e-5;
    let logprobs = output.logprobs(0).unwrap();
    assert_eq!(logprobs.top().len(), 20);
    let is_right = |entry: &TokenLogprob| is_close(entry.logprob, entry.token);
    assert!(logprobs.top().iter().all(is_right), "{logprobs:?}");
    assert!(logprobs.top().is_sorted_by(|a, b| a.logprob >= b.logprob));
    let drawn = output.sequences[0].token().unwrap();
    assert!(is_close(logprobs.drawn(), drawn));

    let unasked = model
        .submit(&Step {
            sequences: &parts[1..],
        })
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(unasked.logprobs(0), None);
}

/// 64 rows of 95 edits are more than the 4096 that one upload carries.
#[test]
fn edits_beyond_one_upload_are_all_applied() {
    let limits = StepLimits {
        batch_tokens_max: 256,
        sequences_max: 64,
    };
    let mut model = load_with(
        &golden_folder("gqa-f32"),
        Options {
            limits,
            ..Options::default()
        },
    );
    let ban_all_but = |kept: u32| {
        let others = (0..96).filter(move |token| *token != kept);
        let biases = others.map(|token| LogitBias {
            token,
            addend: -100.0,
        });
        LogitEdits::new(Penalties::NONE, biases).unwrap()
    };
    let sequences: Vec<Sequence> = (0..64)
        .map(|index| Sequence::new(&PROMPT, [index]).with_edits(ban_all_but(index), 4))
        .collect();
    let parts: Vec<_> = sequences
        .iter()
        .map(|sequence| sequence.part(4, Some(WARM)))
        .collect();
    let output = model.submit(&Step { sequences: &parts }).unwrap().wait().unwrap();
    let drawn: Vec<_> = output
        .sequences
        .iter()
        .filter_map(|output| output.token())
        .collect();
    assert_eq!(drawn, (0..64).collect::<Vec<_>>());
}

#[test]
fn edits_of_tokens_outside_the_vocabulary_are_refused() {
    let mut model = load(&golden_folder("gqa-f32"));
    let mut sequence = Sequence::new(&PROMPT, blocks_of(0));
    sequence.edits = bias(96, 1.0);
    let refused = model.submit(&Step {
        sequences: &[sequence.part(4, Some(WARM))],
    });
    assert!(matches!(
        refused.map(|_| ()),
        Err(StepError::TokenOutOfVocabulary {
            sequence: 0,
            token: 96,
            vocab_size: 96
        })
    ));
}
