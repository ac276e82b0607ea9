//! Integration tests: real processes around a real nats-server.

mod answers;
mod bad_input;
mod bad_models;
mod bad_starts;
mod benchmarks;
mod chat;
mod command_line;
mod crashes;
mod dead;
mod devices;
mod embeddings;
mod endings;
mod foreign_client;
mod hub;
mod journal;
mod load;
mod long_tail;
mod profile_runs;
mod profiles;
mod reality;
mod sampling;
mod services;
mod shapes;
mod simulated;
mod slow;
mod weights;
