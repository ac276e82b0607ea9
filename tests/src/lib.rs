//! Harness for tests with a real nats-server and real processes.
