//! Versions of nats-server that Flotilla trusts with work.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// First version whose work queues keep their messages: 2.12.5 mended dead-lettered messages that were
/// lost with three replicas (nats-server #7817), 2.12.12 the leak of pending messages at maximum deliveries.
pub const VERSION_MIN: ServerVersion = ServerVersion {
    major: 2,
    minor: 12,
    patch: 12,
};

/// A server's version; a pre-release counts as the release that it precedes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a version of the form 2.12.12")]
pub struct VersionError {
    text: String,
}

impl FromStr for ServerVersion {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let error = || VersionError {
            text: text.chars().take(64).collect(),
        };
        let core = text
            .trim_start_matches('v')
            .split(['-', '+'])
            .next()
            .unwrap_or(text);
        let numbers: Vec<u32> = core
            .split('.')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| error())?;
        let [major, minor, patch] = numbers[..] else {
            return Err(error());
        };
        Ok(Self { major, minor, patch })
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number_and_not_by_text() {
        let version = |text: &str| text.parse::<ServerVersion>().unwrap();
        assert!(version("2.9.10") < VERSION_MIN);
        assert!(version("v2.12.8") < VERSION_MIN);
        assert!(version("2.14.0-RC.1") > VERSION_MIN);
        assert_eq!(version("2.12.12"), VERSION_MIN);
        assert!("2.12".parse::<ServerVersion>().is_err());
    }
}
