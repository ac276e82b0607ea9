//! Whether the journal stream is large enough: a full one drops the oldest entries, of whichever answers they are.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::stream::Info;
use flotilla_client::Connection;
use flotilla_config::Nats;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::ground::Ground;

/// Looks at the stream for as long as it is left running, and warns while it drops what is young.
pub(crate) async fn watch(ground: Ground) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Some(info) = look(&ground.connection).await else {
            continue;
        };
        if let Some(held) = too_short(&info, &ground.config.nats, SystemTime::now()) {
            let (held_s, bytes_max) = (held.as_secs(), info.config.max_bytes);
            warn!(
                held_s,
                bytes_max,
                "the journal stream is full and drops answers of {held_s} s ago; those that run as long are lost when their worker \
                 is; raise nats.journal_max_bytes"
            );
        }
    }
}

async fn look(connection: &Connection) -> Option<Info> {
    let stream = connection
        .jetstream
        .get_stream(connection.subjects.journal_stream());
    match connection.within(stream).await {
        Ok(Ok(stream)) => Some(stream.cached_info().clone()),
        Ok(Err(error)) => {
            debug!(%error, "the journal stream cannot be looked at now");
            None
        }
        Err(late) => {
            debug!(%late, "the journal stream cannot be looked at now");
            None
        }
    }
}

/// For how long a stream that is full holds entries, if that is less than answers may take.
fn too_short(info: &Info, nats: &Nats, now: SystemTime) -> Option<Duration> {
    let bytes_max = u64::try_from(info.config.max_bytes).ok()?;
    let is_full = info.state.messages > 0 && info.state.bytes >= bytes_max - bytes_max / FULL_PART;
    let oldest_ns = u64::try_from(info.state.first_timestamp.unix_timestamp_nanos()).unwrap_or(0);
    let oldest = SystemTime::UNIX_EPOCH + Duration::from_nanos(oldest_ns);
    // A server whose clock is ahead of ours has just dropped everything.
    let held = now.duration_since(oldest).unwrap_or_default();
    (is_full && held < HELD_MIN.min(nats.journal_max_age / 2)).then_some(held)
}

/// As often as operators want to read it.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// A stream that drops entries is less than this part away from its limit: some of its largest messages.
const FULL_PART: u64 = 16;
/// Longer than almost any answer takes.
const HELD_MIN: Duration = Duration::from_secs(600);
