//! How one token contributes to the text, by the kind of decoder that its tokenizer has.

use tokenizers::DecoderWrapper;

/// What must be known to turn one token into bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Every character of a token stands for one byte (GPT-2, Llama 3, Qwen).
    ByteLevel,
    /// Tokens `<0x00>` to `<0xFF>` are bytes; the others are text (Llama 2, Mistral, Gemma).
    ByteFallback,
    /// Tokens are text; what one adds depends on the token before it (spaces, word pieces).
    Text,
}

impl Spelling {
    pub(crate) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Self::ByteLevel,
            Some(DecoderWrapper::ByteFallback(_)) => Self::ByteFallback,
            Some(DecoderWrapper::Sequence(sequence)) => Self::of_sequence(sequence.get_decoders()),
            _ => Self::Text,
        }
    }

    /// Joining a byte-level decoder's text changes nothing; any other company makes it plain text.
    fn of_sequence(decoders: &[DecoderWrapper]) -> Self {
        match decoders {
            [DecoderWrapper::ByteLevel(_), rest @ ..]
                if rest
                    .iter()
                    .all(|decoder| matches!(decoder, DecoderWrapper::Fuse(_))) =>
            {
                Self::ByteLevel
            }
            _ if decoders
                .iter()
                .any(|decoder| Self::of(Some(decoder)) == Self::ByteFallback) =>
            {
                Self::ByteFallback
            }
            _ => Self::Text,
        }
    }
}

/// Whether a token adds the same bytes after any other. Word pieces, say, are joined to what is before them by
/// rules that look at both.
pub(crate) fn spells_alike(decoder: Option<&DecoderWrapper>) -> bool {
    let is_alike = |decoder: &DecoderWrapper| match decoder {
        DecoderWrapper::Fuse(_)
        | DecoderWrapper::ByteFallback(_)
        | DecoderWrapper::Metaspace(_)
        | DecoderWrapper::Replace(_) => true,
        // At the beginning of a text it matters to the first token alone, at the end to the last so far.
        DecoderWrapper::Strip(strip) => strip.stop == 0,
        DecoderWrapper::ByteLevel(_)
        | DecoderWrapper::BPE(_)
        | DecoderWrapper::WordPiece(_)
        | DecoderWrapper::CTC(_)
        | DecoderWrapper::Sequence(_) => false,
    };
    match (Spelling::of(decoder), decoder) {
        (Spelling::ByteLevel, _) | (_, None) => true,
        (_, Some(DecoderWrapper::Sequence(sequence))) => sequence.get_decoders().iter().all(is_alike),
        (_, Some(decoder)) => is_alike(decoder),
    }
}

/// The bytes of a byte-level token. One with a character outside the alphabet was added as plain text.
pub(crate) fn byte_level_bytes(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(byte_of)
        .collect::<Option<_>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte that a token such as `<0x0A>` stands for.
pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// GPT-2's alphabet: visible Latin-1 characters stand for themselves, and U+0100 onward for the bytes that
/// have no visible character, in order: 00-20, 7F-A0, AD.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use tokenizers::Decoder;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn alphabet_has_each_byte_once_and_the_library_agrees() {
        let mut bytes: Vec<u8> = ByteLevel::alphabet().into_iter().filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        for character in ByteLevel::alphabet() {
            let whole = ByteLevel::default().decode(vec![character.to_string()]).unwrap();
            assert_eq!(whole, String::from_utf8_lossy(&[byte_of(character).unwrap()]));
        }
    }

    #[test]
    fn token_outside_the_alphabet_is_its_own_text() {
        assert_eq!(byte_level_bytes("<|日本|>"), "<|日本|>".as_bytes());
        assert_eq!(byte_level_bytes("Ġa"), b" a");
    }

    #[test]
    fn only_two_hexadecimal_digits_are_a_byte() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        for token in ["<0xA>", "<0x0AB>", "<0xZZ>", "<0xé>", "0x0A", ""] {
            assert_eq!(fallback_byte(token), None, "{token}");
        }
    }
}
