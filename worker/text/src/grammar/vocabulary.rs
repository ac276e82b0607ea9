//! The bytes of a model's tokens, as a trie that all answers share.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokRxInfo, TokTrie};

use super::{AnswerGrammar, GrammarError, JsonGrammar, brief, limits};
use crate::tokenizer::Tokenizer;

/// What a model can write. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct GrammarVocabulary {
    shared: Arc<Shared>,
}

struct Shared {
    factory: ParserFactory,
    size: usize,
    end_tokens: Vec<u32>,
    /// Tokens that are spelled otherwise at the beginning of an answer, each with one that is spelled so in its
    /// middle, if there is one.
    first: HashMap<u32, Option<u32>>,
}

impl GrammarVocabulary {
    /// The vocabulary of a model with `size` rows and these tokens that end an answer. Takes up to seconds for
    /// hundred thousands of tokens, and some hundred bytes for each.
    ///
    /// # Errors
    /// [`GrammarError::Tokenizer`].
    pub fn new(tokenizer: &Tokenizer, size: u32, end_tokens: &[u32]) -> Result<Self, GrammarError> {
        let spellings = Spellings::of(tokenizer, size, end_tokens)?;
        let slices = SlicedBiasComputer::general_slices();
        let first = spellings.first;
        Ok(Self::from_words(&spellings.words, end_tokens, first, &slices))
    }

    /// A vocabulary that can write every byte and end an answer.
    pub(super) fn of_bytes() -> Self {
        let bytes = (0..=u8::MAX).map(|byte| vec![byte]);
        let words: Vec<Vec<u8>> = bytes.chain([Vec::new()]).collect();
        Self::from_words(&words, &[256], HashMap::new(), &[])
    }

    fn from_words(
        words: &[Vec<u8>],
        end_tokens: &[u32],
        first: HashMap<u32, Option<u32>>,
        slices: &[String],
    ) -> Self {
        let size = u32::try_from(words.len()).expect("a vocabulary is counted in u32");
        let end_tokens: Vec<u32> = end_tokens.iter().copied().filter(|end| *end < size).collect();
        let mut trie = TokTrie::from(&TokRxInfo::new(size, INVALID_TOKEN), words);
        if !end_tokens.is_empty() {
            trie = trie.with_eos_tokens(&end_tokens);
        }
        let capabilities = InferenceCapabilities::default();
        let mut factory = ParserFactory::new(
            &(Arc::new(ApproximateTokEnv::new(trie)) as _),
            capabilities,
            slices,
        )
        .expect("the slices are the library's own, or none");
        factory.quiet();
        *factory.limits_mut() = limits();
        Self {
            shared: Arc::new(Shared {
                factory,
                size: words.len(),
                end_tokens,
                first,
            }),
        }
    }

    /// An answer without tokens. Compiles the grammar.
    ///
    /// # Errors
    /// [`GrammarError::Schema`].
    pub fn answer(&self, grammar: &JsonGrammar) -> Result<AnswerGrammar, GrammarError> {
        let parser = self.shared.factory.create_parser(grammar.to_llguidance()?);
        let parser = parser.map_err(|error| GrammarError::Schema {
            message: brief(&error),
        })?;
        Ok(AnswerGrammar::new(parser, self.clone()))
    }

    pub(super) fn end_tokens_mask(&self) -> Vec<u32> {
        let mut words = vec![0; self.shared.size.div_ceil(32)];
        for end in &self.shared.end_tokens {
            set(&mut words, *end, true);
        }
        words
    }

    /// The token that is spelled in the middle of an answer as this one at its beginning.
    pub(super) fn first_twin(&self, token: u32) -> Option<u32> {
        self.shared.first.get(&token).copied().unwrap_or(Some(token))
    }

    /// Makes a mask of tokens in the middle of an answer one of its first token.
    pub(super) fn spell_first(&self, words: &mut [u32]) {
        let first = self.shared.first.iter();
        let allowed = first.map(|(token, twin)| (*token, twin.is_some_and(|twin| is_set(words, twin))));
        let allowed: Vec<(u32, bool)> = allowed.collect();
        for (token, is_allowed) in allowed {
            set(words, token, is_allowed);
        }
    }
}

impl fmt::Debug for GrammarVocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("GrammarVocabulary");
        debug.field("size", &self.shared.size).finish_non_exhaustive()
    }
}

/// The bytes that tokens add to a text.
struct Spellings {
    /// In its middle; none for tokens that are not in the text at all, and for those that end an answer.
    words: Vec<Vec<u8>>,
    first: HashMap<u32, Option<u32>>,
}

impl Spellings {
    fn of(tokenizer: &Tokenizer, size: u32, end_tokens: &[u32]) -> Result<Self, GrammarError> {
        let spell = |previous, token| match tokenizer.spell(previous, token) {
            Ok(bytes) => Ok(bytes.unwrap_or_default()),
            Err(_) => Err(GrammarError::Tokenizer),
        };
        if !tokenizer.spells_alike_anywhere() {
            return Err(GrammarError::Tokenizer);
        }
        let anchor = (0..size).find(|token| spell(None, *token).is_ok_and(|bytes| is_plain(&bytes)));
        let anchor = anchor.ok_or(GrammarError::NoToken)?;
        let (mut words, mut differing) = (Vec::new(), Vec::new());
        for token in 0..size {
            if end_tokens.contains(&token) {
                words.push(Vec::new());
                continue;
            }
            let word = spell(Some(anchor), token)?;
            let first = spell(None, token)?;
            if first != word {
                differing.push((token, first));
            }
            words.push(word);
        }
        let first = first_twins(&words, differing);
        Ok(Self { words, first })
    }
}

fn first_twins(words: &[Vec<u8>], differing: Vec<(u32, Vec<u8>)>) -> HashMap<u32, Option<u32>> {
    let by_word: HashMap<&[u8], u32> = match differing.is_empty() {
        true => HashMap::new(),
        false => words.iter().map(Vec::as_slice).zip(0..).collect(),
    };
    let twin = |first: &[u8]| by_word.get(first).copied().filter(|_| !first.is_empty());
    let twins = differing.into_iter().map(|(token, first)| (token, twin(&first)));
    twins.collect()
}

/// Whether no decoder does anything about it.
fn is_plain(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_alphanumeric)
}

fn is_set(words: &[u32], token: u32) -> bool {
    words[token as usize / 32] >> (token % 32) & 1 == 1
}

fn set(words: &mut [u32], token: u32, is_allowed: bool) {
    let word = &mut words[token as usize / 32];
    *word = *word & !(1 << (token % 32)) | u32::from(is_allowed) << (token % 32);
}
