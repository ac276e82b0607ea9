//! Where a value came from.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// The place that gave a setting its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Compiled into the program.
    Default,
    /// The configuration file.
    File {
        /// Path as it was opened.
        path: PathBuf,
        /// Line of the key, from 1.
        line: usize,
    },
    /// An environment variable, by its name.
    Environment(String),
    /// A `key=value` override of the command line, by its key.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "variable {name}"),
            Self::Flag(key) => write!(f, "flag {key}"),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
