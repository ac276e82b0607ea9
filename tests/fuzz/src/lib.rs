//! Mutated bytes for every decoder of bytes that come from outside.
//!
//! A [`Target`] is one decoder, called as production calls it, with a corpus of what it should read and a bound
//! on the memory that it may take. Inputs are made of the corpus by a mutator that knows JSON and MessagePack; each
//! follows from a seed, the target's name and its number alone, so that one that breaks something can be made again.
//! A run ([`run`]) finds panics, round trips that change a value, allocations beyond the bound and inputs that take
//! too long.
//!
//! `cargo run --release -p flotilla-fuzz --bin fuzz -- --inputs 10000000 --seed 1`; the ordinary tests run a few
//! thousand inputs.

mod allocations;
mod corpus;
mod finding;
mod mutator;
mod panics;
mod probe;
mod random;
mod run;
mod table;
mod target;
pub mod targets;

pub use finding::{Finding, Problem};
pub use run::{Options, Outcome, Replayed, replay, run};
pub use table::table;
pub use target::{Bound, Format, Target};
