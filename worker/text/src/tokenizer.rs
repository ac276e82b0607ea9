//! A model's tokenizer: text to tokens, and single tokens to bytes.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::file::{FILE_BYTES_MAX, FileError, read_bounded};
use crate::simulated::SimulatedVocabulary;
use crate::spelling::{Spelling, byte_level_bytes, fallback_byte, spells_alike};
use crate::tokenizer_config::{ConfigError, TokenizerConfig};

/// A model's tokenizer. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Tokenizer {
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    /// By the files of a model's folder.
    Files(Arc<Shared>),
    /// By rule.
    Simulated(SimulatedVocabulary),
}

/// Whether the tokens that a model wants around every text are added, such as `<s>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// As the tokenizer's post-processor says: for a plain prompt.
    Add,
    /// None: for text that has them already, such as a rendered chat.
    Skip,
}

/// What a tokenizer was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerOp {
    /// Text to tokens.
    Encode,
    /// Tokens to text.
    Decode,
}

/// Why a tokenizer could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `tokenizer.json` is not a tokenizer that is understood.
    #[error("{} is not a usable tokenizer: fetch the model again, or convert it to the tokenizers format", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the tokenizers library said.
        source: tokenizers::Error,
    },
    /// `tokenizer_config.json` is not a tokenizer configuration.
    #[error("{} is not a tokenizer configuration: fetch the model again", path.display())]
    MalformedConfig {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// `tokenizer.json` made the tokenizers library panic.
    #[error("{} breaks the tokenizers library: fetch the model again", path.display())]
    OpenPanicked {
        /// The file.
        path: PathBuf,
    },
    /// The tokenizers library refused a text or tokens.
    #[error("the tokenizer failed to {op}")]
    Failed {
        /// What it was doing.
        op: TokenizerOp,
        /// What the tokenizers library said.
        source: tokenizers::Error,
    },
    /// The tokenizers library panicked: its file promises what it does not hold.
    #[error("the tokenizer's file is inconsistent: the library panicked as it was asked to {op}")]
    Panicked {
        /// What it was doing.
        op: TokenizerOp,
    },
}

impl Tokenizer {
    /// Opens `tokenizer.json`, and `tokenizer_config.json` where there is one, of a model's folder.
    ///
    /// Truncation and padding that the file may ask for are turned off: a prompt is never cut silently.
    ///
    /// # Errors
    /// A file that is missing, larger than 64 MiB or malformed; the error names it and says what to do.
    pub fn open(folder: &Path) -> Result<Self, TokenizerError> {
        Self::open_with(folder, None)
    }

    /// The same, but that every text is cut to `tokens_max` tokens at its end, those included that the model
    /// wants around it: as sentence-transformers cuts texts that are too long.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_truncating(folder: &Path, tokens_max: usize) -> Result<Self, TokenizerError> {
        let truncation = tokenizers::TruncationParams {
            max_length: tokens_max,
            ..tokenizers::TruncationParams::default()
        };
        Self::open_with(folder, Some(truncation))
    }

    fn open_with(
        folder: &Path,
        truncation: Option<tokenizers::TruncationParams>,
    ) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let content = read_bounded(&path, FILE_BYTES_MAX)?;
        let parsed = catch_unwind(|| tokenizers::Tokenizer::from_bytes(&content));
        let mut inner = match parsed {
            Ok(Ok(inner)) => inner,
            Ok(Err(source)) => return Err(TokenizerError::Malformed { path, source }),
            Err(_panic) => return Err(TokenizerError::OpenPanicked { path }),
        };
        inner.with_padding(None);
        inner
            .with_truncation(truncation)
            .map_err(|source| TokenizerError::Malformed { path, source })?;
        let config = TokenizerConfig::open(folder)?;
        let special_id = |wanted: &str| {
            let (_, token) = config.special_tokens().find(|(name, _)| *name == wanted)?;
            inner.token_to_id(token)
        };
        let (bos_id, eos_id) = (special_id("bos_token"), special_id("eos_token"));
        let spelling = Spelling::of(inner.get_decoder());
        let shared = Arc::new(Shared {
            inner,
            spelling,
            bos_id,
            eos_id,
        });
        Ok(Self {
            kind: Kind::Files(shared),
        })
    }

    /// The tokenizer of a model that is simulated and has no files.
    #[must_use]
    pub fn simulated(vocabulary: SimulatedVocabulary) -> Self {
        Self {
            kind: Kind::Simulated(vocabulary),
        }
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`] for a text outside the vocabulary of a tokenizer without an unknown token.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, TokenizerError> {
        match &self.kind {
            Kind::Files(shared) => shared.encode(text, special),
            Kind::Simulated(vocabulary) => Ok(vocabulary.encode(text)),
        }
    }

    /// How many tokens a text has.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn count(&self, text: &str, special: SpecialTokens) -> Result<usize, TokenizerError> {
        Ok(self.encode(text, special)?.len())
    }

    /// The text of all tokens at once, without special ones. [`AnswerText`](crate::AnswerText) streams it.
    ///
    /// # Errors
    /// [`TokenizerError`] where the tokenizer's file is inconsistent.
    pub fn decode_all(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        match &self.kind {
            Kind::Files(shared) => shared.decode_all(tokens),
            Kind::Simulated(vocabulary) => {
                let words = tokens.iter().filter_map(|token| vocabulary.word(*token));
                Ok(words.collect::<Vec<_>>().join(" "))
            }
        }
    }

    /// Number of tokens, special ones and those added to the model's own included.
    pub fn vocabulary_size(&self) -> usize {
        match &self.kind {
            Kind::Files(shared) => shared.inner.get_vocab_size(true),
            Kind::Simulated(vocabulary) => usize::try_from(vocabulary.size()).unwrap_or(usize::MAX),
        }
    }

    /// The token that begins a text, where `tokenizer_config.json` names one.
    pub fn bos_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Files(shared) => shared.bos_id,
            Kind::Simulated(_) => None,
        }
    }

    /// The token that ends an answer, where `tokenizer_config.json` names one.
    pub fn eos_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Files(shared) => shared.eos_id,
            Kind::Simulated(_) => Some(SimulatedVocabulary::END),
        }
    }

    /// Whether a token adds the same bytes to a text wherever it stands, but for its beginning: only then can
    /// answers be given a shape.
    pub fn spells_alike_anywhere(&self) -> bool {
        match &self.kind {
            Kind::Files(shared) => spells_alike(shared.inner.get_decoder()),
            Kind::Simulated(_) => false,
        }
    }

    /// The bytes that a token adds to the text after `previous`, the last token that was in the text.
    ///
    /// `None` for a special or an unknown token, which is not in the text at all. Looks at two tokens at
    /// most, so the cost does not grow with the answer.
    pub(crate) fn spell(&self, previous: Option<u32>, token: u32) -> Result<Option<Vec<u8>>, TokenizerError> {
        match &self.kind {
            Kind::Files(shared) => shared.spell(previous, token),
            Kind::Simulated(vocabulary) => {
                let blank = if previous.is_some() { " " } else { "" };
                let word = vocabulary.word(token);
                Ok(word.map(|word| [blank, &word].concat().into_bytes()))
            }
        }
    }
}

impl Shared {
    fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, TokenizerError> {
        let add = special == SpecialTokens::Add;
        let encoding = guarded(TokenizerOp::Encode, || self.inner.encode_fast(text, add))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn decode_all(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        if !tokens.iter().any(|&token| self.token_text(token).is_some()) {
            // The library's decoder for `</w>` counts on a token.
            return Ok(String::new());
        }
        self.decode(tokens)
    }

    fn spell(&self, previous: Option<u32>, token: u32) -> Result<Option<Vec<u8>>, TokenizerError> {
        let Some(text) = self.token_text(token) else {
            return Ok(None);
        };
        let bytes = match self.spelling {
            Spelling::ByteLevel => byte_level_bytes(&text),
            Spelling::ByteFallback => match fallback_byte(&text) {
                // At the beginning the decoder may strip a space, however it was written.
                Some(byte) if previous.is_some() || !byte.is_ascii() => vec![byte],
                Some(_) | None => self.added_text(previous, token)?.into_bytes(),
            },
            Spelling::Text => self.added_text(previous, token)?.into_bytes(),
        };
        Ok(Some(bytes))
    }

    fn added_text(&self, previous: Option<u32>, token: u32) -> Result<String, TokenizerError> {
        let Some(previous) = previous else {
            return self.decode(&[token]);
        };
        let before = self.decode(&[previous])?;
        let both = self.decode(&[previous, token])?;
        match both.strip_prefix(&before) {
            Some(added) => Ok(added.to_owned()),
            // A decoder that rewrites the token before: what was sent cannot be taken back.
            None => self.decode(&[token]),
        }
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        guarded(TokenizerOp::Decode, || self.inner.decode(tokens, true))
    }

    /// The vocabulary's entry of a token that belongs into text.
    fn token_text(&self, token: u32) -> Option<String> {
        let text = self.inner.id_to_token(token)?;
        (!self.inner.get_added_vocabulary().is_special_token(&text)).then_some(text)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Tokenizer");
        debug.field("vocabulary_size", &self.vocabulary_size());
        match &self.kind {
            Kind::Files(shared) => debug.field("spelling", &shared.spelling),
            Kind::Simulated(_) => debug.field("spelling", &"words"),
        };
        debug.finish_non_exhaustive()
    }
}

impl fmt::Display for TokenizerOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encode => "encode a text",
            Self::Decode => "decode tokens",
        })
    }
}

impl From<ConfigError> for TokenizerError {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::File(error) => Self::File(error),
            ConfigError::Malformed { path, source } => Self::MalformedConfig { path, source },
        }
    }
}

struct Shared {
    inner: tokenizers::Tokenizer,
    spelling: Spelling,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
}

/// Calls the library, which trusts its file: a `Strip` decoder panics on a token shorter than its cut.
///
/// Nothing of ours is touched by the call, and the library's own state is a cache of encodings.
fn guarded<T>(op: TokenizerOp, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TokenizerError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(outcome) => outcome.map_err(|source| TokenizerError::Failed { op, source }),
        Err(_panic) => Err(TokenizerError::Panicked { op }),
    }
}
