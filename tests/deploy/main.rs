//! The compose files with a real Docker engine: real images are built and started, and clients stand outside.
//!
//! Needs a Docker engine and the base images that the files name; `.ci/images.sh` makes them of Debian's packages where
//! they cannot be fetched, and says what is missing. `make test-deploy` runs these tests.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod asking;
mod cluster;
mod compose;
mod fleet;
