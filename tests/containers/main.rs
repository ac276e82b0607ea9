//! Real processes in containers, each with a network of its own, over links that are slow, lossy or cut.
//!
//! Needs what not every machine has: a Docker engine and the right to shape a container's link. `.ci/containers.sh`
//! says whether they are here, and `make test` leaves these tests out, and says so, where they are not.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod engine;
mod fleet;
mod link;
mod links;
