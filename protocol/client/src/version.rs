//! Versions of nats-server that Flotilla trusts with work.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The first version that is trusted; [`ServerVersion::distrust`] says why none before.
pub const VERSION_MIN: ServerVersion = ServerVersion {
    major: 2,
    minor: 12,
    patch: 12,
};

/// Versions that are refused: from the first on, before the second, with what they do.
const KNOWN_BAD: [(ServerVersion, ServerVersion, &str); 5] = [
    (
        version(0, 0, 0),
        version(2, 10, 23),
        "it may lose whole streams when it is killed (nats-server #6888)",
    ),
    (
        version(2, 10, 23),
        version(2, 12, 5),
        "its replicated work queues lose messages that were delivered too often (nats-server #7817)",
    ),
    (
        version(2, 12, 5),
        version(2, 12, 9),
        "its consumers may stand still after a message was deleted (nats-server #7984)",
    ),
    (
        version(2, 12, 9),
        VERSION_MIN,
        "its consumers lose count of pending messages at maximum deliveries (nats-server #8156)",
    ),
    (
        version(2, 13, 0),
        version(2, 14, 0),
        "it is a development version, which may keep acknowledged messages of replicated work queues (nats-server #7936)",
    ),
];

const fn version(major: u32, minor: u32, patch: u32) -> ServerVersion {
    ServerVersion { major, minor, patch }
}

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

impl ServerVersion {
    /// Why work is not trusted to this version; `None` when it is.
    #[must_use]
    pub fn distrust(self) -> Option<&'static str> {
        let mut bad = KNOWN_BAD.iter();
        let found = bad.find(|(from, until, _)| (*from..*until).contains(&self));
        found.map(|(_, _, reason)| *reason)
    }
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
    fn versions_that_lose_work_are_refused_by_name_and_others_are_not() {
        let distrust = |text: &str| text.parse::<ServerVersion>().unwrap().distrust();
        for (bad, issue) in [
            ("2.9.25", "#6888"),
            ("2.10.22", "#6888"),
            ("2.11.8", "#7817"),
            ("2.12.4", "#7817"),
            ("2.12.5", "#7984"),
            ("2.12.11", "#8156"),
            ("2.13.0-dev", "#7936"),
        ] {
            assert!(
                distrust(bad).is_some_and(|reason| reason.contains(issue)),
                "{bad}"
            );
        }
        for good in ["2.12.12", "2.12.13", "2.14.0", "2.15.1", "3.0.0"] {
            assert_eq!(distrust(good), None, "{good}");
        }
    }

    #[test]
    fn every_version_before_the_first_trusted_one_is_refused() {
        let mut from = version(0, 0, 0);
        for (begins, ends, _) in KNOWN_BAD.iter().filter(|(begins, ..)| *begins < VERSION_MIN) {
            assert_eq!(*begins, from);
            from = *ends;
        }
        assert_eq!(from, VERSION_MIN);
    }

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
