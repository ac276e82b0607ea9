//! An input that a decoder should have taken otherwise.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// An input that breaks a demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The decoder.
    pub target: &'static str,
    /// The seed of the run.
    pub seed: u64,
    /// Its number.
    pub input: u64,
    /// Its length.
    pub input_bytes: usize,
    /// Which demand.
    pub problem: Problem,
    /// Where it was written to; `None` where nothing could be written.
    pub file: Option<PathBuf>,
}

/// Which demand an input breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The decoder panicked, or what it read changed when it was written and read again.
    Panicked {
        /// Its words and place.
        message: String,
    },
    /// It took more memory than its bound.
    Allocated {
        /// How much.
        bytes: usize,
        /// The bound for an input of this length.
        bytes_max: usize,
    },
    /// It took too long.
    Slow {
        /// How long.
        time: Duration,
        /// The bound.
        time_max: Duration,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            target, seed, input, ..
        } = self;
        writeln!(
            f,
            "{target}: input {input} of {} bytes: {}",
            self.input_bytes, self.problem
        )?;
        if let Some(file) = &self.file {
            writeln!(f, "    it is kept in {}", file.display())?;
        }
        write!(
            f,
            "    again: {REPLAY} --target {target} --seed {seed} --from {input} --inputs 1"
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked { message } => f.write_str(message),
            Self::Allocated { bytes, bytes_max } => {
                write!(f, "{bytes} bytes were allocated, {bytes_max} is the bound")
            }
            Self::Slow { time, time_max } => write!(f, "it took {time:?}, {time_max:?} is the bound"),
        }
    }
}

const REPLAY: &str = "cargo run --release -p flotilla-fuzz --bin fuzz --";
