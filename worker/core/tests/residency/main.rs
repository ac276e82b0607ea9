//! Residency under any order of wants, ends, orders, failures and time.
#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

mod bench;
mod devices;
mod history;
mod host;
mod keep_alive;
mod loads;
mod ollama;
mod parts;
mod room;
mod soak;
mod world;
