//! The text side of simulated models: every token is a short word, by a rule instead of a file.
//!
//! Dispatcher and workers have to agree on how many tokens a prompt has, and an answer that is sent back as part
//! of the next prompt has to be the same tokens again, so that blocks of keys and values are found: both hold
//! because words and tokens stand for each other one to one.

/// A vocabulary of short words, such as `ba`, `zu` and `doni`. Token 0 ends an answer and has no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimulatedVocabulary {
    size: u32,
}

impl SimulatedVocabulary {
    /// The token that ends an answer.
    pub const END: u32 = 0;

    /// A vocabulary of `size` tokens, the end included. One of fewer than two has words all the same, which
    /// the bounds of its model refuse.
    #[must_use]
    pub const fn new(size: u32) -> Self {
        Self { size }
    }

    /// How many tokens there are.
    #[must_use]
    pub const fn size(self) -> u32 {
        self.size
    }

    /// The word of a number: all words are equally often drawn from evenly distributed numbers.
    #[must_use]
    pub fn draw(self, number: u64) -> u32 {
        let word = number % u64::from(self.words());
        1 + u32::try_from(word).expect("the remainder is below a u32")
    }

    /// The word of a token; `None` for the end, and for what is no token.
    #[must_use]
    pub fn word(self, token: u32) -> Option<String> {
        if token == Self::END || token > self.words() {
            return None;
        }
        // Numbers of syllables without a zero, so that each word is written in one way: `ba` is 1, not 0.
        let mut rest = token as usize;
        let mut syllables = Vec::new();
        while rest > 0 {
            rest -= 1;
            syllables.push(rest % SYLLABLES);
            rest /= SYLLABLES;
        }
        let letters = syllables.into_iter().rev().flat_map(letters);
        Some(letters.map(char::from).collect())
    }

    /// The tokens of a text. A word of this vocabulary is its token; any other is cut into pieces of six
    /// characters, each of which is a token by its hash. Blanks only separate.
    #[must_use]
    pub fn encode(self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        for word in text.split_whitespace() {
            match self.token(word) {
                Some(token) => tokens.push(token),
                None => self.encode_foreign(word, &mut tokens),
            }
        }
        tokens
    }

    fn encode_foreign(self, word: &str, tokens: &mut Vec<u32>) {
        let mut rest = word;
        while !rest.is_empty() {
            let end = rest
                .char_indices()
                .nth(PIECE_CHARS)
                .map_or(rest.len(), |(at, _)| at);
            let (piece, after) = rest.split_at(end);
            tokens.push(self.draw(hash(piece.as_bytes())));
            rest = after;
        }
    }

    fn token(self, word: &str) -> Option<u32> {
        let bytes = word.as_bytes();
        if !bytes.len().is_multiple_of(2) || bytes.len() > WORD_BYTES_MAX {
            return None;
        }
        let mut token = 0_usize;
        for pair in bytes.chunks_exact(2) {
            let consonant = CONSONANTS.iter().position(|letter| *letter == pair[0])?;
            let vowel = VOWELS.iter().position(|letter| *letter == pair[1])?;
            token = token * SYLLABLES + consonant * VOWELS.len() + vowel + 1;
        }
        let token = u32::try_from(token).ok()?;
        (1..=self.words()).contains(&token).then_some(token)
    }

    fn words(self) -> u32 {
        self.size.saturating_sub(1).max(1)
    }
}

fn letters(syllable: usize) -> [u8; 2] {
    [
        CONSONANTS[syllable / VOWELS.len()],
        VOWELS[syllable % VOWELS.len()],
    ]
}

/// FNV-1a, the same on every machine.
fn hash(bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325;
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
const VOWELS: &[u8; 5] = b"aeiou";
const SYLLABLES: usize = CONSONANTS.len() * VOWELS.len();
/// Six syllables are more words than a u32 has.
const WORD_BYTES_MAX: usize = 12;
/// With it English prose has about 1.3 tokens a word, as with vocabularies of real models.
const PIECE_CHARS: usize = 6;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_token_but_the_end_has_a_word_of_its_own_that_is_its_token_again() {
        let vocabulary = SimulatedVocabulary::new(40_000);
        let mut words = HashSet::new();
        for token in 1..vocabulary.size() {
            let word = vocabulary.word(token).unwrap();
            assert_eq!(vocabulary.encode(&word), [token], "{word}");
            assert!(words.insert(word));
        }
        assert_eq!(vocabulary.word(SimulatedVocabulary::END), None);
        assert_eq!(vocabulary.word(vocabulary.size()), None);
        assert_eq!(vocabulary.word(1).as_deref(), Some("ba"));
    }

    #[test]
    fn largest_vocabulary_and_smallest_ones_have_words() {
        let largest = SimulatedVocabulary::new(u32::MAX);
        let last = largest.word(u32::MAX - 1).unwrap();
        assert_eq!(largest.encode(&last), [u32::MAX - 1], "{last}");
        for size in [0, 1, 2] {
            assert_eq!(SimulatedVocabulary::new(size).encode("what ever"), [1, 1]);
        }
    }

    #[test]
    fn foreign_words_are_pieces_that_are_the_same_each_time() {
        let vocabulary = SimulatedVocabulary::new(32_000);
        let counts = [
            ("", 0),
            (" \n\t", 0),
            ("hello", 1),
            ("hello  hello", 2),
            ("incomprehensible", 3),
            ("日本語日本語日", 2),
        ];
        for (text, tokens) in counts {
            assert_eq!(vocabulary.encode(text).len(), tokens, "{text:?}");
        }
        assert_eq!(vocabulary.encode("hello"), vocabulary.encode("hello"));
        assert_ne!(vocabulary.encode("hello"), vocabulary.encode("hullo"));
    }

    #[test]
    fn words_that_only_a_larger_vocabulary_has_are_foreign() {
        let (small, large) = (SimulatedVocabulary::new(10), SimulatedVocabulary::new(10_000));
        let word = large.word(9_000).unwrap();
        assert_eq!(small.encode(&word).len(), word.len().div_ceil(PIECE_CHARS));
        assert!(small.encode(&word).iter().all(|token| (1..10).contains(token)));
    }
}
