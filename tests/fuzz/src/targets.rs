//! Every decoder of bytes that come from outside.
//!
//! Not here are files that a worker writes for itself beside the models (kept manifests, notes of the store, `up.json`),
//! and what the NATS and TLS libraries read before a message is one.

mod admin;
mod events;
mod fleet;
mod http;
mod messages;
mod models;
mod names;
mod operators;
mod requests;
mod texts;
mod weights;

use crate::target::Target;

/// All of them.
#[must_use]
pub fn all() -> Vec<Target> {
    [
        names::targets(),
        requests::targets(),
        events::targets(),
        fleet::targets(),
        admin::targets(),
        weights::targets(),
        models::targets(),
        texts::targets(),
        operators::targets(),
        http::targets(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
