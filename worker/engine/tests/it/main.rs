//! The engine against reference models, against itself in other batches, and against files that lie.
#![allow(
    clippy::unwrap_used,
    reason = "tests only; clippy sees this in test functions, not in what they call"
)]

mod bad_folders;
mod batches;
mod configs;
mod demo_models;
mod edits;
mod encoder_folders;
mod encoders;
mod fixture;
mod golden_sampling;
mod headers;
mod levels;
mod loading;
mod masks;
mod quantized;
mod reference;
mod sampling;
mod stages;
mod steps;
