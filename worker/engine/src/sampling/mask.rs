//! Masks: which tokens a grammar, or whatever else bounds an answer, leaves to be drawn.
//!
//! A mask is one bit for each token, so that the upload of a step grows with the sequences that have one and
//! not with their logits. Sequences without a mask cost nothing.

/// Which tokens may be drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// A mask of bits: token `t` may be drawn if bit `t % 32` of word `t / 32` is set. Tokens beyond the words
    /// may not; bits beyond the vocabulary mean nothing.
    #[must_use]
    pub const fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// No token may be drawn: the step gives none.
    #[must_use]
    pub const fn none() -> Self {
        Self::from_words(Vec::new())
    }

    /// The form in which devices read it: the row of logits, then as many words of bits as a vocabulary needs.
    pub fn to_words(&self, row: u32, vocab_size: usize) -> impl Iterator<Item = u32> + '_ {
        let bits = self.words.iter().copied().chain(std::iter::repeat(0));
        std::iter::once(row).chain(bits.take(mask_words(vocab_size) - 1))
    }
}

/// What the logits of tokens that may not be drawn become, after all edits.
pub const MASKED_LOGIT: f32 = f32::NEG_INFINITY;

/// How many u32 words [`TokenMask::to_words`] gives.
pub const fn mask_words(vocab_size: usize) -> usize {
    1 + vocab_size.div_ceil(u32::BITS as usize)
}

/// Which tokens of a row of logits may be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedTokens {
    /// All of them: every logit is finite.
    All,
    /// Those that a mask has left: the logits of the others are [`MASKED_LOGIT`].
    Masked,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_as_long_as_the_vocabulary_needs() {
        let mask = TokenMask::from_words(vec![5, 6, 7]);
        let words = |vocab_size| mask.to_words(9, vocab_size).collect::<Vec<_>>();
        assert_eq!(words(1), [9, 5]);
        assert_eq!(words(64), [9, 5, 6]);
        assert_eq!(words(65), [9, 5, 6, 7]);
        assert_eq!(words(129), [9, 5, 6, 7, 0, 0]);
        assert_eq!(TokenMask::none().to_words(0, 40).collect::<Vec<_>>(), [0, 0, 0]);
    }
}
