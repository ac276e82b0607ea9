//! How a worker is told to end.

use tokio_util::sync::CancellationToken;

/// The two ways in which a worker ends. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Take no new work, finish what runs within the configured time, hand the rest back, end.
    pub drain: CancellationToken,
    /// Hand everything back at once and end.
    pub now: CancellationToken,
}
