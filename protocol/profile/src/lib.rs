//! What a profile says about a request: how long it takes on a device kind, how much of the device's time it
//! costs, and which share of the device it occupies meanwhile.
//!
//! [`DeviceProfile`] is a profile whose figures were checked; it is made of the document that travels
//! ([`flotilla_protocol::profile::Profile`]) and refuses it with every fault at once. Between the ticks of its
//! grid it interpolates, beyond the last it extrapolates and says so. [`StepTimes`] is the same device seen
//! from below, step by step, for whoever simulates one. Pure: no clock, no I/O, no state.

mod check;
mod estimate;
mod fault;
mod figures;
mod fit;
mod grid;
mod profile;
mod remaining;
mod steps;
mod work;

pub use estimate::{EstimateFrom, PREFILL_TO_DECODE};
pub use fault::{BadProfile, Place, ProfileFault, ProfileFaults};
pub use fit::Fit;
pub use profile::{DeviceProfile, Figure, LoadTier, Reach, Signature};
pub use steps::StepTimes;
