//! What needs a real nats-server and nothing but this crate: streams, the lease, a dispatcher without workers.

mod lease;
mod lone;
mod server;
mod topology;
