//! Drawing a token from a row of logits.

use std::cmp::Ordering;

use crate::{NO_TOKEN, Sampling, uniform};

/// The token drawn, or [`NO_TOKEN`] if a logit is not finite; `scratch` has a word for each logit.
pub(super) fn draw(logits: &[f32], sampling: &Sampling, scratch: &mut [u32]) -> u32 {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return NO_TOKEN;
    }
    let best = best(logits);
    if sampling.temperature == 0.0 {
        return best;
    }
    let weighing = Weighing {
        logits,
        maximum: logits[best as usize],
        temperature: sampling.temperature,
    };
    let candidates = candidates(&weighing, sampling, scratch);
    let total: f64 = candidates.iter().map(|token| weighing.weight(*token)).sum();
    let target = uniform(sampling.seed, sampling.position) * total;
    let mut sum = 0.0;
    for token in candidates {
        sum += weighing.weight(*token);
        if sum > target {
            return *token;
        }
    }
    // Reached only if rounding makes the target the total itself.
    best
}

/// Unnormalised probabilities; the largest is 1.
struct Weighing<'a> {
    logits: &'a [f32],
    maximum: f32,
    temperature: f32,
}

impl Weighing<'_> {
    fn weight(&self, token: u32) -> f64 {
        let below = f64::from(self.logits[token as usize]) - f64::from(self.maximum);
        (below / f64::from(self.temperature)).exp()
    }
}

fn best(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in (0u32..).zip(logits) {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best.0
}

/// The tokens that may be drawn: by falling logit where some are left out, else by id.
fn candidates<'a>(weighing: &Weighing<'_>, sampling: &Sampling, scratch: &'a mut [u32]) -> &'a [u32] {
    for (slot, token) in scratch.iter_mut().zip(0u32..) {
        *slot = token;
    }
    let vocab_size = scratch.len();
    let kept = sampling
        .top_k
        .map_or(vocab_size, |top_k| vocab_size.min(top_k as usize));
    if kept == vocab_size && sampling.top_p >= 1.0 {
        return scratch;
    }
    let falling = |a: &u32, b: &u32| -> Ordering {
        let (a_logit, b_logit) = (weighing.logits[*a as usize], weighing.logits[*b as usize]);
        b_logit
            .partial_cmp(&a_logit)
            .expect("logits are finite")
            .then(a.cmp(b))
    };
    if kept < vocab_size {
        scratch.select_nth_unstable_by(kept - 1, falling);
    }
    let kept = &mut scratch[..kept];
    kept.sort_unstable_by(falling);
    let count = nucleus(weighing, kept, sampling.top_p);
    &kept[..count]
}

/// How many of the sorted candidates reach the share `top_p` of their total; at least one.
fn nucleus(weighing: &Weighing<'_>, sorted: &[u32], top_p: f32) -> usize {
    if top_p >= 1.0 {
        return sorted.len();
    }
    let total: f64 = sorted.iter().map(|token| weighing.weight(*token)).sum();
    let wanted = total * f64::from(top_p);
    let mut sum = 0.0;
    let below = sorted.iter().take_while(|token| {
        sum += weighing.weight(**token);
        sum < wanted
    });
    (below.count() + 1).min(sorted.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARM: Sampling = Sampling {
        temperature: 1.0,
        top_k: None,
        top_p: 1.0,
        seed: 5,
        position: 0,
    };

    fn drawn(logits: &[f32], sampling: Sampling) -> Vec<u32> {
        let mut scratch = vec![u32::MAX; logits.len()];
        let mut tokens: Vec<u32> = (0..200)
            .map(|position| draw(logits, &Sampling { position, ..sampling }, &mut scratch))
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
}
