//! Drawing a token from a row of logits, and how likely it was.
//!
//! Weights are f64 and summed in a fixed order: by id where every token may be drawn or only min-p cuts, else
//! by falling logit. Journals hold tokens drawn so: another order is another rounding, and breaks them.

use std::cmp::Ordering;

use crate::{
    AllowedTokens, LOGPROB_WORDS, LOGPROBS_MAX, LogitEdit, MASKED_LOGIT, NO_TOKEN, Sampling, uniform,
};

/// The token drawn, or [`NO_TOKEN`] as [`crate::Sample::out`] says; `scratch` has a word for each logit.
pub(super) fn draw(logits: &[f32], sampling: &Sampling, allowed: AllowedTokens, scratch: &mut [u32]) -> u32 {
    let Some(best) = largest(logits, allowed) else {
        return NO_TOKEN;
    };
    if sampling.temperature == 0.0 {
        return best;
    }
    let weighing = Weighing {
        logits,
        maximum: logits[best as usize],
        temperature: sampling.temperature,
    };
    let share = uniform(sampling.seed, sampling.position);
    let drawn = match candidates(&weighing, sampling, scratch) {
        None => pick(weighing.all(), share, |token| weighing.weight(token)),
        Some(tokens) => pick(tokens.iter().copied(), share, |token| weighing.weight(token)),
    };
    // None is drawn only if rounding makes the target the total itself.
    drawn.unwrap_or(best)
}

/// Writes how likely `drawn` was and the `top_count` likeliest tokens, in the form that
/// [`crate::Sample::logprobs`] documents.
pub(super) fn write_logprobs(
    logits: &[f32],
    allowed: AllowedTokens,
    drawn: u32,
    top_count: usize,
    out: &mut [u32; LOGPROB_WORDS],
) {
    out.fill(0);
    let Some(best) = largest(logits, allowed).filter(|_| drawn != NO_TOKEN) else {
        return;
    };
    let weighing = Weighing {
        logits,
        maximum: logits[best as usize],
        temperature: 1.0,
    };
    let total_ln = weighing.total().ln();
    let logprob_bits = |token: u32| logprob_bits(weighing.scaled(token) - total_ln);
    let mut likeliest = [0; LOGPROBS_MAX];
    let likeliest = likeliest_tokens(logits, &mut likeliest[..top_count]);
    let (head, pairs) = out.split_at_mut(2);
    head[0] = logprob_bits(drawn);
    head[1] = u32::try_from(likeliest.len()).expect("there are at most 20");
    for (pair, token) in pairs.chunks_exact_mut(2).zip(likeliest) {
        pair[0] = *token;
        pair[1] = logprob_bits(*token);
    }
}

/// Changes a logit of one of the rows; see [`crate::Backend::edit_logits`].
pub(super) fn edit(logits: &mut [f32], vocab_size: usize, row: u32, edit: &LogitEdit) {
    let logit = &mut logits[row as usize * vocab_size..][..vocab_size][edit.token as usize];
    *logit = edit.edited(*logit);
}

/// Masks one row of logits by its bits; see [`crate::Backend::mask_logits`].
pub(super) fn mask(logits: &mut [f32], bits: &[u32]) {
    if largest(logits, AllowedTokens::All).is_none() {
        return logits.fill(f32::NAN);
    }
    for (logits, word) in logits.chunks_mut(32).zip(bits) {
        match *word {
            u32::MAX => {}
            0 => logits.fill(MASKED_LOGIT),
            word => {
                let masked = (0..).zip(logits).filter(|(bit, _)| word >> bit & 1 == 0);
                masked.for_each(|(_, logit)| *logit = MASKED_LOGIT);
            }
        }
    }
}

/// Unnormalised probabilities; the largest is 1, of a masked token 0.
struct Weighing<'a> {
    logits: &'a [f32],
    maximum: f32,
    temperature: f32,
}

impl Weighing<'_> {
    fn all(&self) -> impl ExactSizeIterator<Item = u32> + Clone + use<> {
        let count = u32::try_from(self.logits.len()).expect("a vocabulary is below 2^32");
        0..count
    }

    /// The logarithm of the weight.
    fn scaled(&self, token: u32) -> f64 {
        let below = f64::from(self.logits[token as usize]) - f64::from(self.maximum);
        below / f64::from(self.temperature)
    }

    fn weight(&self, token: u32) -> f64 {
        self.scaled(token).exp()
    }

    fn total(&self) -> f64 {
        self.all().map(|token| self.weight(token)).sum()
    }

    fn falling(&self, a: u32, b: u32) -> Ordering {
        let (a_logit, b_logit) = (self.logits[a as usize], self.logits[b as usize]);
        b_logit
            .partial_cmp(&a_logit)
            .expect("logits are finite")
            .then(a.cmp(&b))
    }
}

/// The lowest id of the largest logit; none if a logit is not finite, or if a mask has left none that is. One
/// pass, and one block again.
fn largest(logits: &[f32], allowed: AllowedTokens) -> Option<u32> {
    let mut best = (0, f32::NEG_INFINITY);
    let mut are_finite = true;
    for (index, block) in logits.chunks(BLOCK_LOGITS).enumerate() {
        let (maximum, is_finite) = block_maximum(block);
        are_finite &= is_finite;
        if maximum > best.1 {
            best = (index * BLOCK_LOGITS, maximum);
        }
    }
    let is_sound = match allowed {
        AllowedTokens::All => are_finite,
        // Of a row that was not finite the mask has left NaN, which is never the larger.
        AllowedTokens::Masked => best.1 > MASKED_LOGIT,
    };
    if !is_sound {
        return None;
    }
    let within = logits[best.0..].iter().position(|logit| *logit == best.1)?;
    u32::try_from(best.0 + within).ok()
}

/// The largest of a block, and whether all are finite; in lanes, as vector instructions want it.
fn block_maximum(block: &[f32]) -> (f32, bool) {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    // Zero times a number is zero, times infinity or NaN it is NaN and stays in the sum.
    let mut zeros = [0f32; LANES];
    let (lanes, rest) = block.as_chunks::<LANES>();
    for chunk in lanes {
        for ((maximum, zero), logit) in maxima.iter_mut().zip(&mut zeros).zip(chunk) {
            *maximum = if *logit > *maximum { *logit } else { *maximum };
            *zero += logit * 0.0;
        }
    }
    for ((maximum, zero), logit) in maxima.iter_mut().zip(&mut zeros).zip(rest) {
        *maximum = if *logit > *maximum { *logit } else { *maximum };
        *zero += logit * 0.0;
    }
    let maximum = maxima.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (maximum, zeros.iter().all(|zero| *zero == 0.0))
}

/// The tokens that may be drawn, or none when that is all of them: by id where only min-p leaves some out, else
/// by falling logit.
fn candidates<'a>(weighing: &Weighing<'_>, sampling: &Sampling, scratch: &'a mut [u32]) -> Option<&'a [u32]> {
    let vocab_size = scratch.len();
    let top_k = sampling
        .top_k
        .map_or(vocab_size, |top_k| vocab_size.min(top_k as usize));
    let least_scaled = f64::from(sampling.min_p).ln();
    let sorted = if top_k < vocab_size {
        fill(scratch, weighing.all());
        scratch.select_nth_unstable_by(top_k - 1, |a, b| weighing.falling(*a, *b));
        nucleus(weighing, &mut scratch[..top_k], sampling.top_p)
    } else if sampling.top_p < 1.0 {
        nucleus_of_all(weighing, scratch, sampling.top_p)
    } else if sampling.min_p > 0.0 {
        let likely = weighing
            .all()
            .filter(|token| weighing.scaled(*token) >= least_scaled);
        let count = fill(scratch, likely);
        return Some(&scratch[..count]);
    } else {
        return None;
    };
    let likely = sorted.partition_point(|token| weighing.scaled(*token) >= least_scaled);
    Some(&sorted[..likely])
}

/// The fewest of the whole vocabulary that reach the share `top_p`, sorted. Tokens that are too unlikely to
/// matter are left out before anything is sorted.
fn nucleus_of_all<'a>(weighing: &Weighing<'_>, scratch: &'a mut [u32], top_p: f32) -> &'a [u32] {
    let total = weighing.total();
    // All below the cut together weigh less than what may be left out: the likeliest alone weighs 1.
    let cut_scaled = ((1.0 - f64::from(top_p)) / count_f64(scratch.len())).ln() - 1.0;
    let matters = weighing
        .all()
        .filter(|token| weighing.scaled(*token) >= cut_scaled);
    let count = fill(scratch, matters);
    if let Some(count) = partial_nucleus(weighing, &mut scratch[..count], total, top_p) {
        return &scratch[..count];
    }
    fill(scratch, weighing.all());
    sorted_nucleus(weighing, scratch, top_p)
}

/// The fewest of the candidates that reach the share `top_p` of their total, sorted; at least one.
fn nucleus<'a>(weighing: &Weighing<'_>, tokens: &'a mut [u32], top_p: f32) -> &'a [u32] {
    if top_p < 1.0 && tokens.len() > SORTED_FIRST {
        let total = tokens.iter().map(|token| weighing.weight(*token)).sum();
        if let Some(count) = partial_nucleus(weighing, tokens, total, top_p) {
            return &tokens[..count];
        }
    }
    sorted_nucleus(weighing, tokens, top_p)
}

/// As [`nucleus`], with everything sorted: what the other ways must equal.
fn sorted_nucleus<'a>(weighing: &Weighing<'_>, tokens: &'a mut [u32], top_p: f32) -> &'a [u32] {
    tokens.sort_unstable_by(|a, b| weighing.falling(*a, *b));
    if top_p >= 1.0 {
        return tokens;
    }
    let total: f64 = tokens.iter().map(|token| weighing.weight(*token)).sum();
    let wanted = total * f64::from(top_p);
    let mut sum = 0.0;
    let below = tokens.iter().take_while(|token| {
        sum += weighing.weight(**token);
        sum < wanted
    });
    let count = (below.count() + 1).min(tokens.len());
    &tokens[..count]
}

/// How many of the largest reach the share; those are sorted to the front, ever more of them until it is
/// reached. None where rounding could decide otherwise than in [`sorted_nucleus`], which sums in another order.
fn partial_nucleus(weighing: &Weighing<'_>, tokens: &mut [u32], total: f64, top_p: f32) -> Option<usize> {
    // The rounding of a sum of n weights is below n * 2^-53 of it; two sums differ by twice that.
    let slack = 2.0 * count_f64(weighing.logits.len() + 2) * f64::EPSILON;
    let wanted = total * f64::from(top_p);
    let (perhaps, surely) = (wanted * (1.0 - slack), wanted * (1.0 + slack));
    let (mut sum, mut sorted) = (0.0, 0);
    while sorted < tokens.len() {
        let rest = &mut tokens[sorted..];
        let count = (sorted * 3).max(SORTED_FIRST).min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count - 1, |a, b| weighing.falling(*a, *b));
        }
        rest[..count].sort_unstable_by(|a, b| weighing.falling(*a, *b));
        for (index, token) in (sorted..).zip(&rest[..count]) {
            sum += weighing.weight(*token);
            if sum >= perhaps {
                return (sum >= surely).then_some(index + 1);
            }
        }
        sorted += count;
    }
    None
}

/// Writes tokens to the front of the scratch; gives how many.
fn fill(scratch: &mut [u32], tokens: impl Iterator<Item = u32>) -> usize {
    let mut count = 0;
    for (slot, token) in scratch.iter_mut().zip(tokens) {
        *slot = token;
        count += 1;
    }
    count
}

/// The first candidate with which the running sum of weights exceeds `share` of their total. Running sums are
/// kept at the ends of blocks, so that few weights are computed twice.
fn pick(
    tokens: impl ExactSizeIterator<Item = u32> + Clone,
    share: f64,
    weight: impl Fn(u32) -> f64,
) -> Option<u32> {
    let block_len = tokens.len().div_ceil(RUNNING_SUMS).max(1);
    let mut ends = [0f64; RUNNING_SUMS];
    let mut sum = 0.0;
    let mut rest = tokens.clone();
    for end in &mut ends {
        sum = rest
            .by_ref()
            .take(block_len)
            .fold(sum, |sum, token| sum + weight(token));
        *end = sum;
    }
    let target = share * sum;
    let block = ends.iter().position(|end| *end > target)?;
    sum = if block == 0 { 0.0 } else { ends[block - 1] };
    tokens.skip(block * block_len).find(|token| {
        sum += weight(*token);
        sum > target
    })
}

/// The tokens with the largest logits, as many as there is room for and are not masked; largest first, ties by
/// id.
fn likeliest_tokens<'a>(logits: &[f32], room: &'a mut [u32]) -> &'a [u32] {
    let mut count = 0;
    let drawable = (0..).zip(logits).filter(|(_, logit)| **logit > MASKED_LOGIT);
    for (token, logit) in drawable {
        let worst = room[..count].last();
        if count == room.len() && worst.is_none_or(|worst| *logit <= logits[*worst as usize]) {
            continue;
        }
        let place = room[..count].partition_point(|other| logits[*other as usize] >= *logit);
        count = (count + 1).min(room.len());
        room[place..count].rotate_right(1);
        room[place] = token;
    }
    &room[..count]
}

#[expect(clippy::cast_possible_truncation, reason = "f32 is what is told")]
fn logprob_bits(logprob: f64) -> u32 {
    // Rounding may lift a certain token's above 0.
    (logprob as f32).min(0.0).to_bits()
}

#[expect(clippy::cast_precision_loss, reason = "a vocabulary is below 2^32")]
fn count_f64(count: usize) -> f64 {
    count as f64
}

/// What fits a few vector registers, whatever their width.
const LANES: usize = 16;
/// Short enough to be in the cache when it is looked at again, long enough to make the looks rare.
const BLOCK_LOGITS: usize = 1024;
/// How many of the largest are sorted first: what top-p leaves of most distributions.
const SORTED_FIRST: usize = 256;
/// How many running sums [`pick`] keeps, 2 KiB of stack.
const RUNNING_SUMS: usize = 256;

#[cfg(test)]
mod tests;
