//! How long a model stays resident after its last lease, and how people write it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How long a model stays resident after its last lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepAlive {
    /// This many milliseconds; 0 unloads when idle.
    Ms(u64),
    /// Until something else needs the room.
    UntilEvicted,
}

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a duration: write a number with ms, s, m or h, or -1 for \"until evicted\"")]
pub struct KeepAliveError;

impl std::str::FromStr for KeepAlive {
    type Err = KeepAliveError;

    /// Reads `"500ms"`, `"30s"`, `"10m"`, `"2h"`, a bare number of seconds, or a negative one.
    fn from_str(text: &str) -> Result<Self, KeepAliveError> {
        if text.starts_with('-') {
            return Ok(Self::UntilEvicted);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| KeepAliveError)?;
        let unit_ms = match &text[digits..] {
            "ms" => 1,
            "" | "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(KeepAliveError),
        };
        Ok(Self::Ms(number.checked_mul(unit_ms).ok_or(KeepAliveError)?))
    }
}
