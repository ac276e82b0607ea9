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
    /// The configured id, or one made of the host name.
    ///
    /// # Errors
    /// [`IdError`] when the configured id is none; the configuration checks the same rule.
    pub(crate) fn new(config: &Worker) -> Result<Self, IdError> {
        let host = host_name();
        let incarnation = random_bits();
        let worker = match &config.id {
            Some(id) => WorkerId::new(id)?,
            None => WorkerId::new(made_id(&host, incarnation))?,
        };
        Ok(Self {
            worker,
            incarnation,
            host,
        })
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
    fn two_starts_differ() {
        assert_ne!(random_bits(), random_bits());
    }
}
