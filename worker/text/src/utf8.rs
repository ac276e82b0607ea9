//! Bytes to characters while the bytes are still coming.

use std::mem;

/// Turns a stream of bytes into text. Holds back the up to three bytes that may still become a character.
///
/// All that was returned, in order, equals `String::from_utf8_lossy` of all that was pushed.
#[derive(Debug, Default)]
pub(crate) struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Adds bytes and returns the characters that are complete now, with U+FFFD for what can be none.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let mut unread = mem::take(&mut self.pending);
        unread.extend_from_slice(bytes);
        let mut text = String::with_capacity(unread.len());
        let mut chunks = unread.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            if chunk.invalid().is_empty() {
                continue;
            }
            if chunks.peek().is_none() && may_become_a_character(chunk.invalid()) {
                self.pending = chunk.invalid().to_vec();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    /// Ends the stream: U+FFFD in place of an incomplete character.
    pub(crate) fn finish(&mut self) -> &'static str {
        if mem::take(&mut self.pending).is_empty() {
            ""
        } else {
            "\u{fffd}"
        }
    }

    /// Bytes of text that [`finish`](Self::finish) would return.
    pub(crate) fn held_bytes(&self) -> usize {
        if self.pending.is_empty() {
            0
        } else {
            char::REPLACEMENT_CHARACTER.len_utf8()
        }
    }
}

fn may_become_a_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_cutting_of_any_bytes_gives_the_lossy_text(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 0..24),
        ) {
            let mut stream = Utf8Stream::default();
            let mut text: String = chunks.iter().map(|chunk| stream.push(chunk)).collect();
            prop_assert!(stream.pending.len() <= 3);
            text.push_str(stream.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&chunks.concat()).into_owned());
        }

        #[test]
        fn characters_cut_anywhere_come_out_whole(text in "\\PC{0,12}", width in 1_usize..5) {
            let mut stream = Utf8Stream::default();
            let cut: String = text.as_bytes().chunks(width).map(|chunk| stream.push(chunk)).collect();
            prop_assert_eq!(stream.finish(), "");
            prop_assert_eq!(cut, text);
        }
    }
}
