//! Who this worker is: its id, its host, and which start of it this is.

use std::fs;

use flotilla_config::Worker;
use flotilla_protocol::{IdError, WorkerId};

/// Who this worker is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Its name in the fleet.
    pub(crate) worker: WorkerId,
    /// Random, so that a restart is never taken for the old process.
    pub(crate) incarnation: u64,
    /// Host name, for people.
    pub(crate) host: String,
}

impl Identity {
    /// Those of so many workers of one process: the configured id, or one made of the host name, with a number
    /// behind it when there are several.
    ///
    /// # Errors
    /// [`IdError`] when the configured id is none, or leaves no room for a number; the configuration checks the
    /// first.
    pub(crate) fn all(config: &Worker, count: usize) -> Result<Vec<Self>, IdError> {
        let host = host_name();
        let stem = match &config.id {
            Some(id) => id.clone(),
            None => made_id(&host, random_bits()),
        };
        let ids = (0..count).map(|number| match count {
            1 => WorkerId::new(&stem),
            _ => WorkerId::new(format!("{stem}-{number:03}")),
        });
        let identity = |worker| Self {
            worker,
            incarnation: random_bits(),
            host: host.clone(),
        };
        ids.map(|id| id.map(identity)).collect()
    }
}

/// As much of the host's name as an id may hold, and 32 random bits: several workers may share a host.
fn made_id(host: &str, bits: u64) -> String {
    let allowed = host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-');
    let stem: String = allowed.take(STEM_CHARS_MAX).collect();
    format!("{stem}-{:08x}", bits & 0xffff_ffff)
}

fn host_name() -> String {
    // A system that does not tell its name still has a worker with an id: the random part.
    let name = fs::read_to_string(HOST_NAME).unwrap_or_else(|_| "worker".to_owned());
    name.trim().to_owned()
}

fn random_bits() -> u64 {
    let mut bits = [0; 8];
    getrandom::fill(&mut bits).expect("the operating system gives random bytes");
    u64::from_ne_bytes(bits)
}

const HOST_NAME: &str = "/proc/sys/kernel/hostname";
/// Leaves room for the random part within the 64 characters of an id.
const STEM_CHARS_MAX: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_id_is_valid_whatever_the_host_is_called() {
        for host in ["gpu-1.example.org", "", "ö host", &"x".repeat(300)] {
            assert!(WorkerId::new(made_id(host, u64::MAX)).is_ok(), "{host:?}");
        }
        assert_eq!(made_id("gpu-1.lan", 0xa), "gpu-1lan-0000000a");
    }

    #[test]
    fn workers_of_one_process_are_numbered_and_a_single_one_is_not() {
        let config = flotilla_config::Config::load(&flotilla_config::LoadOptions {
            flags: vec!["worker.id=w".to_owned()],
            ..flotilla_config::LoadOptions::default()
        });
        let config = config.unwrap().worker;
        let ids = |count| -> Vec<String> {
            let all = Identity::all(&config, count).unwrap().into_iter();
            all.map(|identity| identity.worker.to_string()).collect()
        };
        assert_eq!(ids(1), ["w"]);
        assert_eq!(ids(3), ["w-000", "w-001", "w-002"]);
        let too_long = Worker {
            id: Some("x".repeat(62)),
            ..config.clone()
        };
        assert!(Identity::all(&too_long, 1).is_ok() && Identity::all(&too_long, 2).is_err());
    }

    #[test]
    fn two_starts_differ() {
        assert_ne!(random_bits(), random_bits());
    }
}
