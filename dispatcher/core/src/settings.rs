//! What a term is run with.

use std::time::Duration;

use flotilla_protocol::{Epoch, Strikes};
use serde::{Deserialize, Serialize};

/// The limits and intervals of one term of leadership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// This term; it goes out with every assignment.
    pub epoch: Epoch,
    /// A worker that was not heard for this long is lost: all that it ran gets a strike and goes elsewhere.
    /// 4 s survives three lost reports; less makes strikes of hiccups, more makes clients wait longer.
    pub worker_lost_after: Duration,
    /// With this many strikes a request is poison and becomes a dead letter.
    pub strikes_max: Strikes,
    /// Most messages held at once, duplicates included; bounds the memory together with the largest body.
    pub held_max: usize,
    /// Most workers known at once; reports of further ones are ignored and counted.
    pub workers_max: usize,
    /// How often a waiting request hears of its place, while that changes.
    pub progress_interval: Duration,
}
