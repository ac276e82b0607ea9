//! Inputs that are nearly what a decoder should read.

mod bytes;
mod tree;

use crate::corpus::{Corpus, written};
use crate::random::Random;
use crate::target::Format;

/// Makes the input of these random numbers.
pub(crate) fn input(corpus: &Corpus, random: &mut Random) -> Vec<u8> {
    // Most stay small, so that there are many; a few are as large as it takes to see what grows too fast.
    let bytes_max = match random.once_in(64) {
        true => LARGE_BYTES,
        false => SMALL_BYTES,
    };
    let mut input = match random.below(16) {
        0 => (0..random.below(256)).map(|_| random.byte()).collect(),
        1..=8 if !corpus.values.is_empty() => changed_value(corpus, random, bytes_max),
        _ => random.pick(&corpus.samples).cloned().unwrap_or_default(),
    };
    // One in some is left as it is, so that what comes after decoding sees something.
    let changes = match random.below(8) {
        0 => 0,
        1..=4 => 1,
        _ => 1 + random.below(8),
    };
    for _ in 0..changes {
        bytes::change(&mut input, corpus, random, bytes_max);
        input.truncate(bytes_max);
    }
    input
}

/// A sample that was changed as JSON, in the corpus's encoding.
fn changed_value(corpus: &Corpus, random: &mut Random, bytes_max: usize) -> Vec<u8> {
    let mut value = random.pick(&corpus.values).cloned().unwrap_or_default();
    for _ in 0..1 + random.below(3) {
        tree::change(&mut value, corpus, random, bytes_max);
    }
    match corpus.format() {
        Format::MessagePack => written(Format::MessagePack, &value),
        Format::Json | Format::Text | Format::Bytes => written(Format::Json, &value),
    }
}

/// Longest inputs, but for one in 64.
const SMALL_BYTES: usize = 4 << 10;
/// Longest inputs.
const LARGE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_follows_from_its_numbers_and_is_bounded() {
        let corpus = Corpus::golden(Format::MessagePack, &["report"]);
        for number in 0..2000 {
            let made = input(&corpus, &mut Random::of(7, "report", number));
            assert_eq!(made, input(&corpus, &mut Random::of(7, "report", number)));
            // A value is written as it is; only what is added is cut.
            assert!(made.len() <= 8 * LARGE_BYTES, "{} bytes", made.len());
        }
        let other = |seed| input(&corpus, &mut Random::of(seed, "report", 3));
        assert!((0..10).any(|seed| other(seed) != other(seed + 1)));
    }
}
