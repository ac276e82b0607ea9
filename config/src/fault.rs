//! What can be wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use crate::Source;

/// Every fault of one configuration, in the order of the sections. Never empty.
#[derive(Debug)]
pub struct ConfigErrors(pub(crate) Vec<Fault>);

impl ConfigErrors {
    /// The faults one by one.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} fault(s)", self.0.len())?;
        for fault in &self.0 {
            write!(f, "\n  {fault}")?;
            let mut cause = std::error::Error::source(fault);
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// One fault and where it stands.
#[derive(Debug, Error)]
pub enum Fault {
    /// The file cannot be read.
    #[error("{}: cannot be read; check the path and its permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not valid TOML: {message}; mend this line", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// First line that could not be understood, from 1.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// An environment variable is not UTF-8.
    #[error("variable {name}: not valid UTF-8; write it as UTF-8 text")]
    NotUnicode {
        /// Name of the variable, with replacement characters where it is not UTF-8 itself.
        name: String,
    },
    /// An override is not `key=value`.
    #[error("flag {given}: no '='; write it as section.key=value")]
    NotAnOverride {
        /// The override as given.
        given: String,
    },
    /// A setting is wrong.
    #[error("{key} ({source_of_value}): {problem}")]
    Setting {
        /// Dotted key.
        key: String,
        /// Where its value came from.
        source_of_value: Source,
        /// What is wrong, and what to do.
        problem: Box<Problem>,
    },
}

/// What is wrong with one setting, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// No setting has this key.
    #[error("unknown key; did you mean {nearest}?")]
    UnknownKey {
        /// The known key most like it.
        nearest: String,
    },
    /// A value stands where a table of keys belongs.
    #[error("is a section, not a value; set the keys in it instead, for example {example}")]
    NotASection {
        /// A key of the section.
        example: String,
    },
    /// The value is of another kind.
    #[error("found {found}; give {expected}")]
    WrongKind {
        /// What belongs here.
        expected: String,
        /// What stands here.
        found: String,
    },
    /// The number is too small or too large.
    #[error("found {found}; give a value from {min} to {max}")]
    OutOfRange {
        /// The number found.
        found: String,
        /// Smallest value allowed.
        min: String,
        /// Largest value allowed.
        max: String,
    },
    /// The value is none of a closed list.
    #[error("found {found}; give one of {}", choices.join(", "))]
    NotAChoice {
        /// What stands here.
        found: String,
        /// What may stand here.
        choices: Vec<String>,
    },
    /// The name has a forbidden character or length.
    #[error("found {found:?}; give 1 to {max} characters of A-Z, a-z, 0-9, '_' and '-'")]
    BadName {
        /// The name found.
        found: String,
        /// Longest name allowed, in characters.
        max: usize,
    },
    /// The same is given more than once.
    #[error("gives {what} twice; keep one")]
    Twice {
        /// What.
        what: String,
    },
    /// An address of a server cannot be used. The address is not repeated: it may hold a password.
    #[error("address {position} of the list {reason}")]
    BadAddress {
        /// Place in the list, from 1.
        position: usize,
        /// What is wrong with it, and what to do.
        reason: &'static str,
    },
    /// The value does not go with that of another setting.
    #[error("does not go with {other}: {advice}")]
    Conflict {
        /// Key of the other setting.
        other: &'static str,
        /// What to do.
        advice: &'static str,
    },
}
