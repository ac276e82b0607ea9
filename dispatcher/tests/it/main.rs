//! What needs a real nats-server and nothing but this crate: streams, the lease, a dispatcher without workers.

#![expect(clippy::unwrap_used, reason = "what helps a test may fail like one")]

mod lease;
mod lone;
mod server;
mod topology;
