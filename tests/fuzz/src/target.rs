//! One decoder, and what is demanded of it.

use std::fmt;

use crate::corpus::Corpus;
use crate::probe::{Probe, Verdict};

/// A decoder of bytes from outside.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// How its inputs are written, as far as the mutator cares.
    pub format: Format,
    /// The memory that one input may take.
    pub bound: Bound,
    /// How many of a run's inputs it gets, against the others: slow ones get fewer.
    pub weight: u64,
    pub(crate) corpus: Corpus,
    pub(crate) decode: Decode,
}

/// Reads one input and says whether it was one; panics when what was read does not come back from being written.
pub(crate) type Decode = Box<dyn Fn(&mut Probe, &[u8]) -> Verdict + Send + Sync>;

/// How inputs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON, or lines of it.
    Json,
    /// MessagePack.
    MessagePack,
    /// Text of another kind.
    Text,
    /// Anything else.
    Bytes,
}

/// The memory that a decoder may take for an input: `ratio` times its length and `slack_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// How many times the input's length.
    pub ratio: usize,
    /// How much for any input.
    pub slack_bytes: usize,
    /// Why it is more than 16 times and [`Bound::SMALL`]; empty where it is not.
    pub reason: &'static str,
}

impl Bound {
    /// What is demanded of a decoder: first buffers and an error's text take some of it, whatever the input.
    pub const USUAL: Self = Self {
        ratio: 16,
        slack_bytes: Self::SMALL,
        reason: "",
    };

    /// Of any input: names, an error, the first elements of lists.
    pub const SMALL: usize = 16 << 10;

    /// Most bytes for an input of a length.
    #[must_use]
    pub const fn bytes(self, input_bytes: usize) -> usize {
        self.ratio
            .saturating_mul(input_bytes)
            .saturating_add(self.slack_bytes)
    }
}

impl Target {
    /// A decoder of the usual weight and bound.
    pub(crate) fn new(
        name: &'static str,
        corpus: Corpus,
        decode: impl Fn(&mut Probe, &[u8]) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            format: corpus.format(),
            bound: Bound::USUAL,
            weight: USUAL_WEIGHT,
            corpus,
            decode: Box::new(decode),
        }
    }

    /// The same with another bound, and the reason for it.
    pub(crate) fn within(self, ratio: usize, slack_bytes: usize, reason: &'static str) -> Self {
        let bound = Bound {
            ratio,
            slack_bytes,
            reason,
        };
        Self { bound, ..self }
    }

    /// The same with fewer inputs, or more.
    pub(crate) fn weighing(self, weight: u64) -> Self {
        Self { weight, ..self }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Of a decoder that takes some microseconds.
const USUAL_WEIGHT: u64 = 100;
