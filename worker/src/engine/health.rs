//! Whether the device still works.
//!
//! A step that fails is the fault of a sequence when it fails with that one alone. When every sequence fails
//! alone, several steps in a row, the device may be broken, or clients send one poisoned request after the other.
//! A computation of known outcome tells which.

use std::sync::Arc;

use flotilla_worker_engine::{Backend, CpuBackend, CpuThreads, DeviceError, PAGE_BYTES, Span};
use thiserror::Error;

use super::round::caught;

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// There was nothing to run.
    Idle,
    /// Something was made.
    Worked,
    /// Every sequence failed alone.
    Failed,
    /// A device of a model in parts is gone.
    Lost,
}

/// What is known of a device.
#[derive(Debug, Default)]
pub(super) struct Health {
    failed_rounds: u32,
}

impl Health {
    /// Takes note of a step. After [`FAILED_ROUNDS_MAX`] failed ones in a row it lets the device be tried, and
    /// gives what is wrong with it.
    pub(super) fn note<E>(&mut self, round: Round, probe: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        match round {
            Round::Idle | Round::Lost => {}
            Round::Worked => self.failed_rounds = 0,
            Round::Failed => self.failed_rounds += 1,
        }
        if self.failed_rounds < FAILED_ROUNDS_MAX {
            return Ok(());
        }
        self.failed_rounds = 0;
        probe()
    }
}

/// Computes something on every thread of the device and compares it with what is right.
///
/// # Errors
/// What broke, in words.
pub(super) fn probe(threads: &Arc<CpuThreads>) -> Result<(), String> {
    let result = caught(|| sum_of_halves(CpuBackend::new(Arc::clone(threads))));
    result.map_err(|broken| broken.message)
}

fn sum_of_halves(mut device: impl Backend) -> Result<(), ProbeError> {
    let region = device.reserve(PAGE_BYTES)?;
    device.map_pages(region, 0..1)?;
    let half = |index: usize| Span {
        region,
        offset_bytes: index * PAGE_BYTES / 2,
        len_bytes: PAGE_BYTES / 2,
    };
    let (ones, twos) = (1.5_f32.to_ne_bytes(), 2.5_f32.to_ne_bytes());
    device.upload(half(0), &ones.repeat(PAGE_BYTES / 2 / ones.len()))?;
    device.upload(half(1), &twos.repeat(PAGE_BYTES / 2 / twos.len()))?;
    device.add(half(0), half(1))?;
    let mut sums = vec![0; PAGE_BYTES / 2];
    device.download(half(0), &mut sums)?;
    match sums.chunks_exact(4).all(|sum| sum == 4.0_f32.to_ne_bytes()) {
        true => Ok(()),
        false => Err(ProbeError::Wrong),
    }
}

/// Why a device is broken.
#[derive(Debug, Error)]
enum ProbeError {
    #[error("the device failed a simple computation")]
    Device(#[from] DeviceError),
    #[error("the device computes wrong sums")]
    Wrong,
}

/// Failed steps in a row after which a device is tried: more than a few poisoned requests in turn make.
const FAILED_ROUNDS_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(rounds: &[Round]) -> Result<(), &'static str> {
        let mut health = Health::default();
        rounds
            .iter()
            .try_for_each(|round| health.note(*round, || Err("broken")))
    }

    #[test]
    fn device_is_tried_only_after_several_failed_steps_in_a_row() {
        use Round::{Failed, Idle, Worked};
        assert_eq!(noted(&[Failed, Failed, Worked, Failed, Failed]), Ok(()));
        assert_eq!(noted(&[Failed, Idle, Failed, Idle, Failed]), Err("broken"));
    }

    #[test]
    fn device_that_computes_what_is_right_goes_on_and_is_tried_again_later() {
        let mut health = Health::default();
        let mut probes = 0;
        for _ in 0..7 {
            let probed = health.note(Round::Failed, || {
                probes += 1;
                probe(&Arc::new(CpuThreads::for_this_machine()))
            });
            assert_eq!(probed, Ok(()));
        }
        assert_eq!(probes, 2);
    }
}
