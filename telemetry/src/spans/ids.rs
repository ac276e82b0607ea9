//! What traces and spans are called.

use flotilla_protocol::TraceParent;

/// Name of a trace; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// Name of a span in its trace; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl TraceId {
    /// The trace of something that has a name of its own and no trace of its caller: the same whoever asks.
    pub(crate) fn derived(name: &str) -> Self {
        let hash = blake3::derive_key(TRACES, name.as_bytes());
        let (bytes, _) = hash.split_first_chunk().expect("a hash is longer");
        Self(u128::from_be_bytes(*bytes).max(1))
    }

    pub(crate) fn of(parent: &TraceParent) -> Self {
        let number = u128::from_str_radix(parent.trace_id(), 16);
        Self(number.expect("a trace id is 32 digits"))
    }

    /// As it travels.
    pub(crate) fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The part that is random, says the standard.
    pub(crate) fn random_bits(self) -> u64 {
        let [.., a, b, c, d, e, f, g] = self.bytes();
        u64::from_be_bytes([0, a, b, c, d, e, f, g])
    }
}

impl SpanId {
    /// The span that these words name: the same whoever makes it, so that one process can name the parent of what another
    /// makes, or has made.
    #[must_use]
    pub fn derived(words: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(SPANS);
        for word in words {
            hasher.update(&(word.len() as u64).to_le_bytes());
            hasher.update(word.as_bytes());
        }
        let hash = hasher.finalize();
        let (bytes, _) = hash.as_bytes().split_first_chunk().expect("a hash is longer");
        Self(u64::from_be_bytes(*bytes).max(1))
    }

    /// One that nobody else has.
    ///
    /// # Panics
    /// When the system has no random numbers.
    #[must_use]
    pub fn fresh() -> Self {
        let number = getrandom::u64().expect("the system has random numbers");
        Self(number.max(1))
    }

    pub(crate) fn of(parent: &TraceParent) -> Self {
        let number = u64::from_str_radix(parent.span_id(), 16);
        Self(number.expect("a span id is 16 digits"))
    }

    /// As it travels.
    pub(crate) fn bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// The header of whoever goes on from a span.
pub(crate) fn header(trace: TraceId, span: SpanId, is_sampled: bool) -> TraceParent {
    let flags = u8::from(is_sampled);
    let text = format!("00-{:032x}-{:016x}-{flags:02x}", trace.0, span.0);
    TraceParent::parse(&text).expect("neither is zero")
}

/// What the hashes are for, so that they are like no other of the same text.
const TRACES: &str = "flotilla 2026 trace of a request";
const SPANS: &str = "flotilla 2026 span of a request";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_from_names_and_words_and_differ_between_them() {
        assert_eq!(TraceId::derived("a"), TraceId::derived("a"));
        assert_ne!(TraceId::derived("a"), TraceId::derived("b"));
        assert_eq!(SpanId::derived(&["a", "b"]), SpanId::derived(&["a", "b"]));
        assert_ne!(SpanId::derived(&["a", "b"]), SpanId::derived(&["ab", ""]));
        assert_ne!(SpanId::fresh(), SpanId::fresh());
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let (trace, span) = (TraceId::derived("a"), SpanId::derived(&["a"]));
        for is_sampled in [false, true] {
            let header = header(trace, span, is_sampled);
            assert_eq!((TraceId::of(&header), SpanId::of(&header)), (trace, span));
            assert_eq!(header.is_sampled(), is_sampled);
        }
    }
}
