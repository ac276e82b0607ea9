//! Plans against devices in virtual time, whose saturation is known.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod bounds;
mod faults;
mod simulated;
mod truth;
