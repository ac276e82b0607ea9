//! One test a rule, by what goes in and what comes out.

#![expect(
    clippy::unwrap_used,
    reason = "all of this crate is test code, its bench and world included"
)]

mod arrivals;
mod assigning;
mod attempts;
mod bench;
mod endings;
mod measuring;
mod suspects;
mod waiting;
mod workers;
