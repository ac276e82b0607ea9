//! What may be wrong with what is to be measured, and with what was.

use std::fmt;

use flotilla_profile::{ProfileFaults, Signature};
use thiserror::Error;

/// Why lengths make no grid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GridFault {
    /// An axis without lengths.
    #[error("{axis}: is empty; give at least one number of tokens")]
    Empty {
        /// `inputs` or `outputs`.
        axis: &'static str,
    },
    /// More lengths than anybody waits for.
    #[error("{axis}: has {found} numbers of tokens; give at most {max}")]
    TooMany {
        /// `inputs` or `outputs`.
        axis: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// Lengths out of order.
    #[error("{axis}: {found} does not come after {before}; give ascending numbers of tokens")]
    NotAscending {
        /// `inputs` or `outputs`.
        axis: &'static str,
        /// The length.
        found: u32,
        /// The one before it.
        before: u32,
    },
    /// A length that cannot be measured.
    #[error("{axis}: {found} is too short; give {min} or more, since {reason}")]
    TooShort {
        /// `inputs` or `outputs`.
        axis: &'static str,
        /// The length.
        found: u32,
        /// The shortest.
        min: u32,
        /// Why.
        reason: &'static str,
    },
}

/// Why a target is none.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ObjectiveFault {
    /// A percentile that is none.
    #[error("percentile: found {found}; give a number above 0 and up to 100, or 0 for the mean")]
    Percentile {
        /// The number.
        found: f64,
    },
    /// A target of no time.
    #[error("target {name}: is 0; give a time above 0, or leave it out")]
    Target {
        /// Which one.
        name: &'static str,
    },
}

/// Why limits are none.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum LimitsFault {
    /// A number out of its range.
    #[error("{name}: found {found}; give a number from {min} to {max}")]
    Range {
        /// Which limit.
        name: &'static str,
        /// The number.
        found: f64,
        /// The least.
        min: f64,
        /// The most.
        max: f64,
    },
}

/// Why a point cannot be used. The run cannot go on: the device is not what is being measured.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PointFault {
    /// No request alone was answered.
    #[error("{}: none of {requests} requests was answered; see why with `flotilla run`", Length(*.cell))]
    NothingSucceeded {
        /// The cell.
        cell: Signature,
        /// How many were sent.
        requests: usize,
    },
    /// Answers of another length.
    #[error("{}: an answer has {found} tokens; the device must not end answers by itself", Length(*.cell))]
    WrongLength {
        /// The cell.
        cell: Signature,
        /// Tokens of the answer.
        found: u32,
    },
    /// Times that cannot be.
    #[error("{}: a request ends before it starts; its times must be of one clock", Length(*.cell))]
    OutOfOrder {
        /// The cell.
        cell: Signature,
    },
    /// Not what was asked for.
    #[error("{}: {found} requests were measured where {expected} were asked for", Length(*.cell))]
    Count {
        /// The cell.
        cell: Signature,
        /// Outcomes that were told.
        found: usize,
        /// Outcomes that were asked for.
        expected: usize,
    },
    /// The point is not the one that was asked for last.
    #[error("{}: this point was not asked for", Length(*.cell))]
    Unasked {
        /// The cell.
        cell: Signature,
    },
}

/// Why there is no profile.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum FinishError {
    /// Some cells were not measured.
    #[error("{cells} of the grid's cells are not measured yet")]
    Unfinished {
        /// How many.
        cells: usize,
    },
    /// No cell meets the targets.
    #[error(
        "no request of the grid meets the targets, not even alone: the fastest took {fastest_s:.3} s; give looser targets or shorter lengths"
    )]
    NothingFeasible {
        /// Time of the fastest request alone, in seconds.
        fastest_s: f64,
    },
    /// The figures make no profile.
    #[error("the measurements make no profile")]
    Figures(#[source] ProfileFaults),
}

/// A cell in words.
struct Length(Signature);

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Signature {
            prompt_tokens,
            output_tokens,
        } = self.0;
        write!(f, "prompt of {prompt_tokens}, answer of {output_tokens} tokens")
    }
}
