use proptest::prelude::*;

use super::*;
use crate::Logprobs;

const WARM: Sampling = Sampling {
    temperature: 1.0,
    top_k: None,
    top_p: 1.0,
    min_p: 0.0,
    logprobs: None,
    seed: 5,
    position: 0,
};

fn drawn(logits: &[f32], sampling: Sampling) -> Vec<u32> {
    let mut scratch = vec![u32::MAX; logits.len()];
    let mut tokens: Vec<u32> = (0..200)
        .map(|position| {
            draw(
                logits,
                &Sampling { position, ..sampling },
                AllowedTokens::All,
                &mut scratch,
            )
        })
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

#[test]
fn ties_go_to_the_lowest_ids() {
    let logits = [0.0, 2.0, 2.0, -0.0, 2.0, 1.0];
    assert_eq!(drawn(&logits, Sampling::GREEDY), [1]);
    assert_eq!(
        drawn(
            &logits,
            Sampling {
                top_k: Some(1),
                ..WARM
            }
        ),
        [1]
    );
    assert_eq!(
        drawn(
            &logits,
            Sampling {
                top_k: Some(2),
                ..WARM
            }
        ),
        [1, 2]
    );
    assert_eq!(drawn(&logits, Sampling { top_p: 0.5, ..WARM }), [1, 2]);
    assert_eq!(
        drawn(
            &[-0.0, 0.0, 0.0],
            Sampling {
                top_k: Some(2),
                ..WARM
            }
        ),
        [0, 1]
    );
}

#[test]
fn logits_that_are_not_finite_give_no_token() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for sampling in [Sampling::GREEDY, WARM] {
            assert_eq!(drawn(&[1.0, bad, 3.0], sampling), [NO_TOKEN]);
        }
    }
}

#[test]
fn extreme_logits_and_temperatures_still_give_a_token() {
    let extreme = [f32::MAX, f32::MIN, 0.0];
    assert_eq!(drawn(&extreme, WARM), [0]);
    assert_eq!(
        drawn(
            &extreme,
            Sampling {
                temperature: 1e-45,
                ..WARM
            }
        ),
        [0]
    );
    assert_eq!(
        drawn(
            &[1.0],
            Sampling {
                top_k: Some(9),
                top_p: 0.1,
                ..WARM
            }
        ),
        [0]
    );
    assert_eq!(
        drawn(
            &[1.0, 2.0, 3.0],
            Sampling {
                temperature: f32::MAX,
                ..WARM
            }
        ),
        [0, 1, 2]
    );
}

/// What [`draw`] must equal: everything sorted, every weight computed, one sum after the other.
fn plain_draw(logits: &[f32], sampling: &Sampling) -> u32 {
    let mut tokens: Vec<u32> = (0..).take(logits.len()).collect();
    let falling = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let best = tokens.iter().copied().min_by(falling).unwrap();
    let scaled = |token: u32| {
        let below = f64::from(logits[token as usize]) - f64::from(logits[best as usize]);
        below / f64::from(sampling.temperature)
    };
    let weight = |token: u32| scaled(token).exp();
    let top_k = sampling.top_k.map_or(logits.len(), |top_k| top_k as usize);
    if top_k < logits.len() || sampling.top_p < 1.0 {
        tokens.sort_by(falling);
        tokens.truncate(top_k);
    }
    if sampling.top_p < 1.0 {
        let total: f64 = tokens.iter().map(|token| weight(*token)).sum();
        let mut sum = 0.0;
        let reached = tokens.iter().position(|token| {
            sum += weight(*token);
            sum >= total * f64::from(sampling.top_p)
        });
        tokens.truncate(reached.map_or(tokens.len(), |last| last + 1));
    }
    tokens.retain(|token| scaled(*token) >= f64::from(sampling.min_p).ln());
    let total: f64 = tokens.iter().map(|token| weight(*token)).sum();
    let target = uniform(sampling.seed, sampling.position) * total;
    let mut sum = 0.0;
    let drawn = tokens.iter().find(|token| {
        sum += weight(**token);
        sum > target
    });
    *drawn.unwrap_or(&best)
}

/// Logits like those of a model: many near the middle, few far out; rounded to `step` so that some are equal.
fn made_logits(count: usize, seed: u64, spread: f32, step: f32) -> Vec<f32> {
    let random = |token: u64, part: u64| uniform(seed, token * 6 + part) - 0.5;
    let bell = |token: u64| narrowed((0..6).map(|part| random(token, part)).sum());
    let stepped = |logit: f32| {
        if step == 0.0 {
            logit
        } else {
            (logit / step).round() * step
        }
    };
    // Adding zero makes every zero positive, which the reference's total order tells apart.
    (0..)
        .take(count)
        .map(|token| stepped(bell(token) * spread) + 0.0)
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "any number near it will do")]
fn narrowed(value: f64) -> f32 {
    value as f32
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn draws_equal_those_of_the_plain_way(
        count in prop_oneof![1usize..40, 1000usize..5000],
        (spread, step) in (
            prop_oneof![Just(0.0f32), Just(0.2), Just(2.0), Just(10.0)],
            prop_oneof![Just(0.0f32), Just(0.25)],
        ),
        temperature in prop_oneof![Just(1.0f32), 0.05f32..4.0],
        top_k in prop_oneof![Just(None), (1u32..60).prop_map(Some), (300u32..5000).prop_map(Some)],
        top_p in prop_oneof![Just(1.0f32), Just(0.5), Just(0.999_999_94), 0.01f32..1.0],
        min_p in prop_oneof![Just(0.0f32), Just(1.0), 0.0f32..0.2],
        seed: u64,
    ) {
        let logits = made_logits(count, seed, spread, step);
        let mut scratch = vec![u32::MAX; count];
        for position in 0..8 {
            let sampling = Sampling { temperature, top_k, top_p, min_p, logprobs: None, seed, position };
            prop_assert_eq!(draw(&logits, &sampling, AllowedTokens::All, &mut scratch), plain_draw(&logits, &sampling));
        }
    }

    #[test]
    fn largest_is_found_wherever_it_is(count in 1usize..3000, seed: u64, place: usize, bad: bool) {
        let mut logits = made_logits(count, seed, 2.0, 0.25);
        let place = place % count;
        logits[place] = 99.0;
        prop_assert_eq!(largest(&logits, AllowedTokens::All), Some(u32::try_from(place).unwrap()));
        logits[place] = if bad { f32::NAN } else { f32::NEG_INFINITY };
        prop_assert_eq!(largest(&logits, AllowedTokens::All), None);
    }
}

/// Half of the weights reach a half exactly: which half is decided by rounding alone, so everything is sorted.
#[test]
fn nucleus_that_rounding_decides_is_that_of_the_plain_way() {
    let logits = vec![0.25; 2000];
    let sampling = Sampling {
        top_p: 0.5,
        temperature: 0.7,
        ..WARM
    };
    let mut scratch = vec![0; logits.len()];
    for position in 0..50 {
        let sampling = Sampling { position, ..sampling };
        let drawn = draw(&logits, &sampling, AllowedTokens::All, &mut scratch);
        assert_eq!(drawn, plain_draw(&logits, &sampling));
    }
    let weighing = Weighing {
        logits: &logits,
        maximum: 0.25,
        temperature: 0.7,
    };
    let mut tokens: Vec<u32> = weighing.all().collect();
    assert_eq!(partial_nucleus(&weighing, &mut tokens, 2000.0, 0.5), None);
    assert_eq!(
        partial_nucleus(&weighing, &mut tokens, 2000.0, 0.500_1),
        Some(1001)
    );
}

#[test]
fn min_p_keeps_those_at_least_that_share_of_the_likeliest() {
    let logits = [1.0f32, 0.5, 0.25, 0.2].map(f32::ln);
    let kept = |min_p| drawn(&logits, Sampling { min_p, ..WARM });
    assert_eq!(kept(0.0), [0, 1, 2, 3]);
    assert_eq!(kept(0.24), [0, 1, 2]);
    assert_eq!(kept(0.4), [0, 1]);
    assert_eq!(kept(1.0), [0]);
}

#[test]
fn min_p_counts_after_the_temperature() {
    let logits = [1.0f32, 0.25].map(f32::ln);
    let warmer = Sampling {
        temperature: 2.0,
        min_p: 0.4,
        ..WARM
    };
    assert_eq!(drawn(&logits, warmer), [0, 1], "0.25 has become 0.5");
    assert_eq!(drawn(&logits, Sampling { min_p: 0.4, ..WARM }), [0]);
}

#[test]
fn top_p_counts_among_what_top_k_left() {
    let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
    let sampling = Sampling { top_p: 0.55, ..WARM };
    assert_eq!(drawn(&logits, sampling), [0, 1]);
    let top_k = Some(2);
    assert_eq!(drawn(&logits, Sampling { top_k, ..sampling }), [0], "0.4 of 0.7");
}

#[test]
fn min_p_cuts_what_top_p_left_and_does_not_change_its_mass() {
    let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
    let sampling = Sampling {
        top_p: 0.65,
        min_p: 0.6,
        ..WARM
    };
    assert_eq!(drawn(&logits, sampling), [0, 1], "0.65 of all needs two");
}

fn logprobs_of(logits: &[f32], drawn: u32, top_count: usize) -> Logprobs {
    let mut words = [u32::MAX; LOGPROB_WORDS];
    write_logprobs(logits, AllowedTokens::All, drawn, top_count, &mut words);
    Logprobs::from_words(&words)
}

/// The bits of a mask that allows the tokens for which `allows` holds.
fn mask_bits(count: usize, allows: impl Fn(usize) -> bool) -> Vec<u32> {
    let word = |first: usize| (0..32).map(|bit| u32::from(allows(first + bit)) << bit).sum();
    (0..count).step_by(32).map(word).collect()
}

proptest! {
    /// Masked tokens are as if they were not in the vocabulary at all.
    #[test]
    fn masked_draw_equals_the_draw_from_what_is_allowed(
        count in 1usize..3000,
        logits_seed in any::<u64>(),
        mask_seed in any::<u64>(),
        sparse in any::<bool>(),
        temperature in prop_oneof![Just(0.0f32), Just(f32::MAX), 0.1f32..4.0],
        top_k in prop_oneof![Just(None), (1u32..3000).prop_map(Some)],
        top_p in prop_oneof![Just(1.0f32), 0.01f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..0.5],
        seed in any::<u64>(),
    ) {
        let logits = made_logits(count, logits_seed, 4.0, 0.25);
        let share = if sparse { 0.01 } else { 0.5 };
        let allows = |token: usize| uniform(mask_seed, token as u64) < share;
        let allowed: Vec<usize> = (0..count).filter(|token| allows(*token)).collect();
        let mut masked = logits.clone();
        mask(&mut masked, &mask_bits(count, allows));
        // A top-k that cuts only masked tokens orders the others, so that the same number draws another one.
        let top_k = top_k.filter(|top_k| (*top_k as usize) < allowed.len());
        let sampling = Sampling { temperature, top_k, top_p, min_p, seed, ..WARM };
        let mut scratch = vec![0; count];
        let drawn = draw(&masked, &sampling, AllowedTokens::Masked, &mut scratch);
        let mut words = [u32::MAX; LOGPROB_WORDS];
        write_logprobs(&masked, AllowedTokens::Masked, drawn, 20, &mut words);
        if allowed.is_empty() {
            prop_assert_eq!(drawn, NO_TOKEN);
            prop_assert_eq!(words, [0; LOGPROB_WORDS]);
            return Ok(());
        }
        let left: Vec<f32> = allowed.iter().map(|token| logits[*token]).collect();
        let expected = draw(&left, &sampling, AllowedTokens::All, &mut scratch[..left.len()]);
        prop_assert_eq!(drawn as usize, allowed[expected as usize]);
        let (told, expected) = (Logprobs::from_words(&words), logprobs_of(&left, expected, 20));
        prop_assert_eq!(told.drawn(), expected.drawn());
        let named = |entry: &crate::TokenLogprob| (allowed[entry.token as usize], entry.logprob);
        let found: Vec<_> = told.top().iter().map(|entry| (entry.token as usize, entry.logprob)).collect();
        prop_assert_eq!(found, expected.top().iter().map(named).collect::<Vec<_>>());
    }
}

#[test]
fn mask_does_not_hide_a_logit_that_is_not_finite() {
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = vec![0.5; 70];
        logits[40] = broken;
        mask(&mut logits, &mask_bits(70, |token| token < 8));
        assert_eq!(
            draw(&logits, &WARM, AllowedTokens::Masked, &mut [0; 70]),
            NO_TOKEN
        );
    }
}

#[test]
fn logprobs_of_a_whole_vocabulary_sum_to_one() {
    let logits = made_logits(20, 3, 4.0, 0.0);
    let logprobs = logprobs_of(&logits, 7, 20);
    let total: f64 = logprobs
        .top()
        .iter()
        .map(|entry| f64::from(entry.logprob).exp())
        .sum();
    assert!((total - 1.0).abs() < 1e-6, "{total}");
    let drawn = logprobs.top().iter().find(|entry| entry.token == 7).unwrap();
    assert_eq!(drawn.logprob, logprobs.drawn());
}

#[test]
fn likeliest_tokens_come_first_and_equal_ones_by_id() {
    let logits = [0.0, 2.0, 1.0, 2.0, -5.0, 2.0];
    let tokens = |count| -> Vec<u32> {
        let logprobs = logprobs_of(&logits, 4, count);
        logprobs.top().iter().map(|entry| entry.token).collect()
    };
    assert_eq!(tokens(0), [0; 0]);
    assert_eq!(tokens(2), [1, 3]);
    assert_eq!(tokens(4), [1, 3, 5, 2]);
    assert_eq!(tokens(20), [1, 3, 5, 2, 0, 4], "no more than there are");
}

#[test]
fn logprobs_are_never_above_zero_and_extreme_logits_do_not_break_them() {
    let logprobs = logprobs_of(&[f32::MAX, f32::MIN, 0.0], 0, 3);
    assert_eq!(logprobs.drawn(), 0.0);
    assert!(logprobs.top().iter().all(|entry| entry.logprob <= 0.0));
    let none = logprobs_of(&[1.0, f32::NAN], NO_TOKEN, 2);
    assert!(none.top().is_empty());
}
