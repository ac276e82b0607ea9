//! Integration tests: real processes around a real nats-server.

mod answers;
mod bad_input;
mod bad_models;
mod bad_starts;
mod benchmarks;
mod chat;
mod command_line;
mod crashes;
mod embeddings;
mod endings;
mod foreign_client;
mod journal;
mod load;
mod profile_runs;
mod profiles;
mod reality;
mod sampling;
mod services;
mod simulated;
mod slow;
