//! What profiles say, on synthetic devices whose steps are known.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod aibrix;
mod device;
mod faults;
mod lookups;
mod remaining;
mod samples;
mod steps;
