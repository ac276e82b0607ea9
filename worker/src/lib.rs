//! The worker's shell: NATS, engine threads, model folders.
