//! Whole runs on a virtual clock, single devices, and files.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod bound;
mod claims;
mod clairvoyant;
mod devices;
mod fleets;
mod profiles;
mod runs;
mod scenarios;
mod targets;
mod traces;
