//! The text of an answer, streamed token by token and continued by another worker.

use std::mem;

use crate::stop::{StopFilter, StopStrings};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::utf8::Utf8Stream;

/// Turns the tokens of an answer into its text as they come, and ends it before a stop string.
///
/// What is emitted after tokens `t1..tn` depends on these tokens and the stop strings alone, so a worker
/// that takes over feeds the journal's tokens ([`resume`](Self::resume)) and is where the other one was.
/// Emitted text is never taken back. Held back are an incomplete character, and the end of the text as
/// long as it may be the beginning of a stop string.
///
/// All that is emitted equals [`Tokenizer::decode_all`] of all tokens, cut before the stop string that is
/// complete first (the longest of those that end together). There is one difference: where byte-fallback tokens
/// (`<0xE2>`) form no valid UTF-8, their valid characters stay and only the rest becomes U+FFFD. The
/// library rewrites the whole run to U+FFFD, which would take back text that a client has.
///
/// Order of calls: [`push`](Self::push) for each token, then [`finish`](Self::finish) when the answer
/// ends for another reason than a stop string. The cost of a token does not grow with the answer.
#[derive(Debug)]
pub struct AnswerText {
    tokenizer: Tokenizer,
    /// The last token that is in the text.
    previous: Option<u32>,
    characters: Utf8Stream,
    stops: StopFilter,
    /// Text of replayed tokens that was not emitted before.
    backlog: String,
    /// Bytes of coming text that were emitted before, as a flush.
    ahead_bytes: usize,
    emitted_bytes: usize,
}

/// What one token added to the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emitted {
    /// New text, final; often empty.
    pub text: String,
    /// A stop string is complete: the text has ended before it, and later tokens add nothing.
    pub stopped: bool,
}

/// Why an answer's text could not be made or continued.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The tokenizer failed on a token; the answer's state is as before it.
    #[error("token {token} has no text")]
    Token {
        /// The token.
        token: u32,
        /// What the tokenizer said.
        source: TokenizerError,
    },
    /// More text was emitted before than the replayed tokens can have: they are not of the same answer.
    #[error(
        "{emitted_bytes} bytes were emitted before, but the replayed tokens have at most {possible_bytes}"
    )]
    EmittedBeyondTokens {
        /// Bytes that were emitted before, as the caller says.
        emitted_bytes: usize,
        /// Bytes of the replayed tokens, with what a flush adds.
        possible_bytes: usize,
    },
    /// The text emitted before would end inside a character: it is not of the same answer.
    #[error("{emitted_bytes} bytes were emitted before, which ends inside a character of the replayed text")]
    EmittedInsideCharacter {
        /// Bytes that were emitted before, as the caller says.
        emitted_bytes: usize,
    },
}

impl AnswerText {
    /// An answer without tokens.
    pub fn new(tokenizer: Tokenizer, stops: StopStrings) -> Self {
        Self {
            tokenizer,
            previous: None,
            characters: Utf8Stream::default(),
            stops: StopFilter::new(stops),
            backlog: String::new(),
            ahead_bytes: 0,
            emitted_bytes: 0,
        }
    }

    /// An answer that another worker began: its tokens so far, and how many bytes of text it emitted.
    ///
    /// Only text beyond `emitted_bytes` is emitted from here on. Fewer bytes than the tokens have are
    /// made up for by the next [`push`](Self::push) or [`finish`](Self::finish). More are what
    /// the other worker's `finish` flushed before it was lost; that much of the coming text is left out.
    ///
    /// # Errors
    /// Tokens that the tokenizer refuses, or bytes that cannot have come from them.
    pub fn resume(
        tokenizer: Tokenizer,
        stops: StopStrings,
        tokens: &[u32],
        emitted_bytes: usize,
    ) -> Result<Self, AnswerError> {
        let mut answer = Self::new(tokenizer, stops);
        let mut replayed = String::new();
        for &token in tokens {
            replayed.push_str(&answer.push(token)?.text);
        }
        let possible_bytes = replayed.len() + answer.held_bytes();
        if emitted_bytes > possible_bytes {
            return Err(AnswerError::EmittedBeyondTokens {
                emitted_bytes,
                possible_bytes,
            });
        }
        answer.ahead_bytes = emitted_bytes.saturating_sub(replayed.len());
        if answer.ahead_bytes == 0 {
            if !replayed.is_char_boundary(emitted_bytes) {
                return Err(AnswerError::EmittedInsideCharacter { emitted_bytes });
            }
            answer.backlog = replayed.split_off(emitted_bytes);
        }
        answer.emitted_bytes = emitted_bytes;
        Ok(answer)
    }

    /// Adds a token and returns the text that is final now. Special and unknown tokens add none.
    ///
    /// # Errors
    /// [`AnswerError::Token`]; nothing has changed then.
    pub fn push(&mut self, token: u32) -> Result<Emitted, AnswerError> {
        let mut text = String::new();
        if !self.stopped() {
            let spelled = self.tokenizer.spell(self.previous, token);
            if let Some(bytes) = spelled.map_err(|source| AnswerError::Token { token, source })? {
                self.previous = Some(token);
                text = self.stops.push(&self.characters.push(&bytes));
            }
        }
        Ok(Emitted {
            text: self.emit(text),
            stopped: self.stopped(),
        })
    }

    /// Ends the answer and returns the text that was held back, with U+FFFD for an incomplete character.
    pub fn finish(mut self) -> String {
        let mut text = self.stops.push(self.characters.finish());
        text.push_str(&self.stops.finish());
        self.emit(text)
    }

    /// Whether a stop string has ended the text.
    pub fn stopped(&self) -> bool {
        self.stops.stopped()
    }

    /// Bytes of text emitted so far, by this worker and by those before it.
    pub fn emitted_bytes(&self) -> usize {
        self.emitted_bytes
    }

    fn held_bytes(&self) -> usize {
        if self.stopped() {
            0
        } else {
            self.stops.held_bytes() + self.characters.held_bytes()
        }
    }

    fn emit(&mut self, new: String) -> String {
        let mut text = mem::take(&mut self.backlog);
        text.push_str(&new);
        let skipped_bytes = text.ceil_char_boundary(self.ahead_bytes.min(text.len()));
        self.ahead_bytes = self.ahead_bytes.saturating_sub(skipped_bytes);
        let text = text.split_off(skipped_bytes);
        self.emitted_bytes += text.len();
        text
    }
}
