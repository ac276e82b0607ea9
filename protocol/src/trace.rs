//! Which trace of its caller a request belongs to (W3C Trace Context, version 00).

use std::fmt;
use std::sync::Arc;

/// A valid `traceparent`: `00-<trace id>-<span id>-<flags>`, all in lower-case hexadecimal. It travels with a request to
/// each of its events as it came, so that whoever has the caller's trace finds the answer in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TraceParent(Arc<str>);

impl TraceParent {
    /// Reads a header. `None` for what is none: who cannot read a trace has to go on without, says the standard. Of a
    /// later version the part that version 00 knows is read.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (known, rest) = text.split_at_checked(CHARS)?;
        let mut parts = known.split('-');
        let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        let lengths = [version.len(), trace.len(), span.len(), flags.len()];
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        let is_known = version == "00" && rest.is_empty();
        let is_later = version != "00" && version != "ff" && (rest.is_empty() || rest.starts_with('-'));
        let is_valid = lengths == [2, 32, 16, 2]
            && parts.next().is_none()
            && [version, trace, span, flags]
                .iter()
                .all(|part| part.chars().all(is_hex))
            && [trace, span].iter().all(|id| id.chars().any(|c| c != '0'));
        let is_valid = is_valid && (is_known || is_later);
        is_valid.then(|| Self(format!("00-{trace}-{span}-{flags}").into()))
    }

    /// The header's value.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trace: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        &self.0[3..35]
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Characters of version 00.
const CHARS: usize = 55;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_standard_calls_valid_is_read_and_nothing_else() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parsed = TraceParent::parse(valid).unwrap();
        assert_eq!(parsed.as_str(), valid);
        assert_eq!(parsed.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like";
        assert_eq!(TraceParent::parse(later).as_ref(), Some(&parsed));
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473ä-00f067aa0ba902b7-1",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }
}
