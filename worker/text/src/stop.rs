//! Stop strings: where an answer ends although its model would go on.

use std::mem;
use std::sync::Arc;

/// Most stop strings of one answer; OpenAI allows 4.
const STRINGS_MAX: usize = 16;

/// Most bytes of one stop string, and so the most text that is ever held back for it.
const STRING_BYTES_MAX: usize = 1024;

/// The stop strings of one answer, checked and prepared. Cheap to clone; the default is none.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    patterns: Arc<[Pattern]>,
}

/// Why stop strings were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopStringsError {
    /// An empty string would end every answer before it began.
    #[error("stop string {index} is empty")]
    Empty {
        /// Which one, from 0.
        index: usize,
    },
    /// One is longer than allowed.
    #[error("stop string {index} has {bytes} bytes, the limit is {limit_bytes}")]
    TooLong {
        /// Which one, from 0.
        index: usize,
        /// Its length.
        bytes: usize,
        /// Most bytes of one.
        limit_bytes: usize,
    },
    /// There are more than allowed.
    #[error("{count} stop strings were given, the limit is {limit}")]
    TooMany {
        /// How many were given.
        count: usize,
        /// Most that are allowed.
        limit: usize,
    },
}

impl StopStrings {
    /// Checks stop strings: at most 16, each of 1 to 1024 bytes.
    ///
    /// # Errors
    /// The first string that breaks a limit, by its index, or their number.
    pub fn new(strings: &[String]) -> Result<Self, StopStringsError> {
        if strings.len() > STRINGS_MAX {
            return Err(StopStringsError::TooMany {
                count: strings.len(),
                limit: STRINGS_MAX,
            });
        }
        let patterns = strings
            .iter()
            .enumerate()
            .map(|(index, string)| match string.len() {
                0 => Err(StopStringsError::Empty { index }),
                1..=STRING_BYTES_MAX => Ok(Pattern::new(string)),
                bytes => Err(StopStringsError::TooLong {
                    index,
                    bytes,
                    limit_bytes: STRING_BYTES_MAX,
                }),
            });
        Ok(Self {
            patterns: patterns.collect::<Result<_, _>>()?,
        })
    }
}

/// Cuts a stream of text before the first stop string in it.
///
/// First is the one that is complete first, so that a model never runs on after a stop string; of those
/// that end together, the longest. Text that may be the beginning of one is held back.
#[derive(Debug)]
pub(crate) struct StopFilter {
    stops: StopStrings,
    /// For each pattern, how many bytes of its beginning the text ends with.
    matched: Vec<usize>,
    /// The end of the text, as long as the longest of `matched`.
    held: String,
    stopped: bool,
}

impl StopFilter {
    pub(crate) fn new(stops: StopStrings) -> Self {
        Self {
            matched: vec![0; stops.patterns.len()],
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Bytes of text that [`finish`](Self::finish) would return.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// Adds text and returns what can no longer belong to a stop string; nothing once stopped.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        for (index, byte) in text.bytes().enumerate() {
            let complete_bytes = self.advance(byte);
            if complete_bytes > 0 {
                self.stopped = true;
                let mut before = mem::take(&mut self.held);
                before.push_str(&text[..=index]);
                before.truncate(before.len() - complete_bytes);
                return before;
            }
        }
        self.held.push_str(text);
        let kept_bytes = self.matched.iter().copied().max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - kept_bytes);
        mem::replace(&mut self.held, kept)
    }

    /// Ends the stream: what was held back turned out to be no stop string.
    pub(crate) fn finish(&mut self) -> String {
        mem::take(&mut self.held)
    }

    /// Moves every pattern by one byte; the length of the longest that is complete, or 0.
    fn advance(&mut self, byte: u8) -> usize {
        let mut complete_bytes = 0;
        for (pattern, matched) in self.stops.patterns.iter().zip(&mut self.matched) {
            *matched = pattern.advance(*matched, byte);
            if *matched == pattern.bytes.len() {
                complete_bytes = complete_bytes.max(*matched);
            }
        }
        complete_bytes
    }
}

/// One stop string with its Knuth-Morris-Pratt table, so that each byte costs the same on average.
#[derive(Debug)]
struct Pattern {
    bytes: Box<[u8]>,
    /// `borders[n]`: length of the longest proper suffix of the first `n + 1` bytes that is a prefix too.
    borders: Box<[usize]>,
}

impl Pattern {
    fn new(string: &str) -> Self {
        let mut pattern = Self {
            bytes: string.as_bytes().into(),
            borders: vec![0; string.len()].into(),
        };
        let mut border = 0;
        for index in 1..string.len() {
            border = pattern.advance(border, pattern.bytes[index]);
            pattern.borders[index] = border;
        }
        pattern
    }

    /// How many bytes are matched after `byte`, when `matched` of them were before it.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes.get(matched) != Some(&byte) {
            matched = self.borders[matched - 1];
        }
        if self.bytes[matched] == byte {
            matched + 1
        } else {
            matched
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(stops: &[&str]) -> StopFilter {
        let strings: Vec<String> = stops.iter().map(ToString::to_string).collect();
        StopFilter::new(StopStrings::new(&strings).unwrap())
    }

    #[test]
    fn beginning_of_a_stop_string_is_held_until_it_is_none() {
        let mut filter = filter(&["\n\nUser:"]);
        assert_eq!(filter.push("yes\n"), "yes");
        assert_eq!(filter.push("\n"), "");
        assert_eq!(filter.push("\nUs"), "\n");
        assert_eq!(filter.push("ers"), "\n\nUsers");
        assert_eq!(filter.push("\n\nUser: no"), "");
        assert!(filter.stopped());
        assert_eq!(filter.push("more"), "");
    }

    #[test]
    fn stop_string_that_is_complete_first_wins_over_one_that_began_first() {
        let mut filter = filter(&["abcd", "bc"]);
        assert_eq!(filter.push("xabcd"), "xa");
        assert!(filter.stopped());
    }

    #[test]
    fn longest_of_the_stop_strings_that_end_together_is_cut() {
        let mut filter = filter(&["c", "abc"]);
        assert_eq!(filter.push("xab"), "x");
        assert_eq!(filter.push("c"), "");
        assert!(filter.stopped());
    }

    #[test]
    fn limits_name_the_string_that_breaks_them() {
        let strings = |lengths: &[usize]| lengths.iter().map(|&bytes| "x".repeat(bytes)).collect::<Vec<_>>();
        assert!(StopStrings::new(&strings(&[1024; 16])).is_ok());
        assert_eq!(
            StopStrings::new(&strings(&[1, 0])).unwrap_err(),
            StopStringsError::Empty { index: 1 }
        );
        assert_eq!(
            StopStrings::new(&strings(&[1, 1025])).unwrap_err(),
            StopStringsError::TooLong {
                index: 1,
                bytes: 1025,
                limit_bytes: 1024
            }
        );
        assert_eq!(
            StopStrings::new(&strings(&[1; 17])).unwrap_err(),
            StopStringsError::TooMany { count: 17, limit: 16 }
        );
    }

    /// The text before the first stop string, by looking at every end of the text.
    fn cut<'a>(text: &'a str, stops: &[String]) -> (&'a str, bool) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let longest = stops
                .iter()
                .filter(|stop| text[..end].ends_with(*stop))
                .map(String::len)
                .max();
            if let Some(bytes) = longest {
                return (&text[..end - bytes], true);
            }
        }
        (text, false)
    }

    proptest! {
        #[test]
        fn any_cutting_of_any_text_ends_before_the_first_stop_string(
            chunks in prop::collection::vec("[abé界]{0,5}", 0..12),
            stops in prop::collection::vec("[abé界]{1,4}", 0..4),
        ) {
            let mut filter = StopFilter::new(StopStrings::new(&stops).unwrap());
            let mut text = String::new();
            for chunk in &chunks {
                text.push_str(&filter.push(chunk));
                let held = filter.held_bytes();
                prop_assert!(held == 0 || stops.iter().any(|stop| held < stop.len()));
            }
            let stopped = filter.stopped();
            text.push_str(&filter.finish());
            let whole = chunks.concat();
            prop_assert_eq!((text.as_str(), stopped), cut(&whole, &stops));
        }
    }
}
