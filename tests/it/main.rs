//! Integration tests: real processes around a real nats-server.
