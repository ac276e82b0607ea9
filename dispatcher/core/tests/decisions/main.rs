//! How the dispatcher decides, through its public interface alone: one test a rule.
//!
//! Where the rule answers a case of AIBrix's SLO router, taken from its suite or from its known faults, the test says
//! which, and what is different here.

#![expect(
    clippy::unwrap_used,
    reason = "all of this crate is test code, its fleet included"
)]

mod capacity;
mod fleet;
mod machine;
mod order;
#[path = "../shared/bench.rs"]
mod shared;
mod words;
