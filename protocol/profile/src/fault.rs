//! What can be wrong with a profile.

use std::fmt;

use flotilla_protocol::DecodeError;
use thiserror::Error;

/// Why a JSON document is no profile.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BadProfile {
    /// It is not JSON, or has another shape.
    #[error("the profile is no JSON document of the expected shape{}", of_field(.0))]
    Document(#[source] DecodeError),
    /// Its figures are wrong.
    #[error(transparent)]
    Figures(#[from] ProfileFaults),
}

/// Every fault of one profile, in the order of its fields. Never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct ProfileFaults(pub(crate) Vec<ProfileFault>);

impl ProfileFaults {
    /// The faults one by one.
    #[must_use]
    pub fn faults(&self) -> &[ProfileFault] {
        &self.0
    }
}

impl fmt::Display for ProfileFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the profile has {} fault(s)", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for ProfileFaults {}

/// One fault, where it stands and what belongs there.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ProfileFault {
    /// Nothing is there.
    #[error("{place}: is missing; give {expected}")]
    Missing {
        /// Where.
        place: Place,
        /// What belongs there.
        expected: &'static str,
    },
    /// A figure that means nothing there.
    #[error("{place}: found {}; give {expected}", in_words(*.found))]
    Figure {
        /// Where.
        place: Place,
        /// The figure; NaN also when it was `null`.
        found: f64,
        /// What belongs there.
        expected: &'static str,
    },
    /// A list or a matrix of another length than its neighbours.
    #[error("{place}: has {found} {}; give {expected}, {reason}", plural(*.found))]
    Length {
        /// Where.
        place: Place,
        /// Entries found.
        found: usize,
        /// Entries wanted.
        expected: usize,
        /// Why so many.
        reason: &'static str,
    },
    /// More entries than are read.
    #[error("{place}: has {found} entries; give at most {max}")]
    TooMany {
        /// Where.
        place: Place,
        /// Entries found.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// A list that does not ascend.
    #[error("{place}: {found} does not come after {before}; give ascending {what}")]
    NotAscending {
        /// Where the later one stands.
        place: Place,
        /// The later one.
        found: f64,
        /// The one before it.
        before: f64,
        /// What the list holds.
        what: &'static str,
    },
    /// A name that cannot be used.
    #[error("{place}: the name has {found} bytes or a control character; give 1 to {max} printable bytes")]
    Name {
        /// Where.
        place: Place,
        /// Its length, in bytes.
        found: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// No request of any length meets the targets.
    #[error("tputs: all are 0, so the device can serve nothing; measure under looser slos")]
    NothingFeasible,
}

/// A field and the way to one of its entries, each counted from 0: `tputs[2][3]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    field: &'static str,
    path: Vec<usize>,
}

impl Place {
    pub(crate) fn new(field: &'static str, path: &[usize]) -> Self {
        let path = path.to_vec();
        Self { field, path }
    }

    /// The field, with a dot before the fields of an inner object.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The way into it; empty when the whole field is meant.
    #[must_use]
    pub fn path(&self) -> &[usize] {
        &self.path
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field)?;
        self.path.iter().try_for_each(|index| write!(f, "[{index}]"))
    }
}

/// The field at fault, which the decoder's own words need not name.
fn of_field(error: &DecodeError) -> String {
    match error {
        DecodeError::Malformed { field, .. } if !field.is_empty() => format!("; mend {field}"),
        DecodeError::Malformed { .. } | DecodeError::TooLarge { .. } | DecodeError::ContentType { .. } => {
            String::new()
        }
    }
}

fn in_words(found: f64) -> String {
    if found.is_nan() {
        "no number (NaN, null or nothing)".to_owned()
    } else {
        found.to_string()
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "entry" } else { "entries" }
}
