//! The rule of repositories of a hub: names, and patterns of names.

use figment::value::Value;

use super::{Rule, Wording, filled, wrong_kind};
use crate::Problem;

/// A name of a repository in which `*` stands for any characters, such as `org/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoPattern(String);

impl RepoPattern {
    /// Whether a repository is one of those that are meant.
    #[must_use]
    pub fn matches(&self, repo: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = repo.strip_prefix(first) else {
            return false;
        };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            let found = match parts.peek() {
                // The last part ends the name, wherever else it stands.
                None => return rest.ends_with(part),
                Some(_) => rest.find(part),
            };
            match found {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

/// Patterns separated by commas.
pub(crate) struct RepoPatterns;

impl Rule for RepoPatterns {
    type Out = Vec<RepoPattern>;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<Vec<RepoPattern>, Problem> {
        let text = filled(value, EXPECTED)?;
        let pattern = |part: &str| {
            let part = part.trim();
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '*');
            let is_pattern = !part.is_empty() && part.chars().all(allowed) && part.matches('/').count() <= 1;
            is_pattern
                .then(|| RepoPattern(part.to_owned()))
                .ok_or_else(|| wrong_kind(EXPECTED, value))
        };
        text.split(',').map(pattern).collect()
    }
}

/// The address of a web server.
pub(crate) struct WebAddress;

impl Rule for WebAddress {
    type Out = String;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<String, Problem> {
        let text = filled(value, WEB_EXPECTED)?;
        let rest = ["https://", "http://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | '?' | '#');
        match rest {
            Some(rest) if !rest.trim_matches('/').is_empty() && !rest.contains(bad) => {
                Ok(text.trim_end_matches('/').to_owned())
            }
            _ => Err(wrong_kind(WEB_EXPECTED, value)),
        }
    }
}

const EXPECTED: &str = "repositories separated by commas, each such as org/name or org/*";
const WEB_EXPECTED: &str = "an address such as https://host, without user, query and fragment";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_stands_for_any_characters() {
        let matches = |pattern: &str, repo: &str| RepoPattern(pattern.to_owned()).matches(repo);
        assert!(matches("*", "org/name"));
        assert!(matches("org/*", "org/name"));
        assert!(!matches("org/*", "organisation/name"));
        assert!(matches("org/name", "org/name"));
        assert!(!matches("org/name", "org/name-2"));
        assert!(matches("org/*-instruct", "org/a-instruct-b-instruct"));
        assert!(!matches("org/*-instruct", "org/a-instruct-b"));
        assert!(matches("*/qwen*b", "any/qwen3-8b"));
        assert!(!matches("*/qwen*b", "qwen3-8b"));
    }
}
