//! What can be wrong with a fleet file.

use std::fmt;

use flotilla_protocol::IdError;
use thiserror::Error;

/// Every fault of one file, in the order of its lines. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetFaults(pub(crate) Vec<FleetFault>);

/// One fault and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}: {key}: {problem}")]
pub struct FleetFault {
    /// The line, from 1.
    pub line: usize,
    /// The key, such as `devices[0].memory`.
    pub key: String,
    /// What is wrong, and what to do.
    pub problem: FleetProblem,
}

/// What can be wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FleetProblem {
    /// The file is not TOML.
    #[error("not valid TOML: {message}; mend this line")]
    Syntax {
        /// What the parser said.
        message: String,
    },
    /// Nothing has this key.
    #[error("unknown key; did you mean {nearest}?")]
    UnknownKey {
        /// The known key most like it.
        nearest: &'static str,
    },
    /// A key that must be there is not.
    #[error("is missing; give {expected}")]
    Missing {
        /// What belongs there.
        expected: &'static str,
    },
    /// The value is of another kind or out of range.
    #[error("found {found}; give {expected}")]
    Value {
        /// What stands there.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A name cannot be one.
    #[error(transparent)]
    Name(#[from] IdError),
    /// Two models have one name.
    #[error("there are two models of this name; rename one")]
    Duplicate,
    /// Two devices of a kind differ in speed.
    #[error(
        "kind {kind} has the profile {other} already; one kind has one profile, so give this one another kind"
    )]
    SecondProfile {
        /// The kind.
        kind: String,
        /// The other profile's file.
        other: String,
    },
    /// A profile is of another kind of device.
    #[error("{file} is the profile of kind {found:?}; name the kind so, or give another file")]
    OtherKind {
        /// The profile's file.
        file: String,
        /// The kind that it is of.
        found: String,
    },
    /// A profile's file was not read.
    #[error("{file} was not read")]
    NoProfile {
        /// The profile's file.
        file: String,
    },
    /// A model does not fit on any device.
    #[error("needs {bytes} bytes with keys and values of one context, more than any device has")]
    TooLarge {
        /// Bytes that it needs.
        bytes: u64,
    },
}

impl FleetFaults {
    /// The faults one by one.
    #[must_use]
    pub fn faults(&self) -> &[FleetFault] {
        &self.0
    }
}

impl fmt::Display for FleetFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the fleet has {} fault(s)", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for FleetFaults {}
