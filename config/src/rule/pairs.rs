//! The rule of lists of names with values, as the variables of OpenTelemetry have them.

use figment::value::Value;

use super::{Rule, Visibility, Wording, filled, wrong_kind};
use crate::{Problem, Secret};

/// `name=value` separated by commas; bytes of a value may be written as `%2C`.
pub(crate) struct Pairs;

impl Rule for Pairs {
    type Out = Vec<(String, String)>;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<Vec<(String, String)>, Problem> {
        let text = filled(value, EXPECTED)?;
        parsed(text).ok_or_else(|| wrong_kind(EXPECTED, value))
    }
}

/// The same, never shown.
pub(crate) struct HiddenPairs;

impl Rule for HiddenPairs {
    type Out = Vec<(String, Secret)>;
    const WORDING: Wording = Wording::Text;
    const VISIBILITY: Visibility = Visibility::Hidden;

    fn parse(&self, value: &Value) -> Result<Vec<(String, Secret)>, Problem> {
        let pairs = value.as_str().filter(|text| !text.is_empty()).and_then(parsed);
        let pairs = pairs.ok_or_else(|| Problem::WrongKind {
            expected: EXPECTED.to_owned(),
            found: "something else (not shown, the setting is a secret)".to_owned(),
        })?;
        Ok(pairs
            .into_iter()
            .map(|(name, value)| (name, Secret::new(value)))
            .collect())
    }
}

fn parsed(text: &str) -> Option<Vec<(String, String)>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let name = name.trim();
        (!name.is_empty()).then_some(())?;
        Some((name.to_owned(), unescaped(value.trim())?))
    };
    parts.map(pair).collect()
}

/// `None` where what stands behind a `%` is no byte, or all together is no text.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let digits = rest.split_off(..2)?;
            let digits = str::from_utf8(digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

const EXPECTED: &str = "name=value, more of them separated by commas";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_with_their_escapes() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            parsed(" a.b = 1 ,, c=Basic%20eD0=%2c"),
            Some(vec![pair("a.b", "1"), pair("c", "Basic eD0=,")])
        );
        for wrong in ["a", "=1", "a=%2", "a=%zz", "a=%ff"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
