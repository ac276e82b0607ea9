//! The NATS server: version, limits, durability and clock.

use std::time::{Duration, Instant, SystemTime};

use flotilla_client::{Connection, VERSION_MIN};
use flotilla_config::{Config, Storage};
use serde_json::Value;

use super::{Finding, guarantee};
use crate::table::bytes;

/// Everything about the server. The connection itself has refused one that is too old.
pub(super) async fn check(connection: &Connection, config: &Config) -> Vec<Finding> {
    vec![
        Finding::ok(
            "server",
            format!("nats-server {} (needed {VERSION_MIN})", connection.server),
        ),
        payload(connection, config),
        limits(connection, config).await,
        guarantee::check(connection).await,
        clock(connection).await,
    ]
}

fn payload(connection: &Connection, config: &Config) -> Finding {
    let found = connection.client.max_payload();
    let wanted = config.dispatcher.request_bytes_max + ENVELOPE_BYTES;
    let told = format!("max_payload is {}", bytes(found as u64));
    if found >= wanted {
        return Finding::ok("max_payload", told);
    }
    let advice = format!(
        "set max_payload to {wanted} or more in the server's configuration (8MB is usual), or lower \
         dispatcher.request_bytes_max"
    );
    Finding::warn(
        "max_payload",
        format!("{told}; larger requests are refused"),
        advice,
    )
}

async fn limits(connection: &Connection, config: &Config) -> Finding {
    let account = match connection.jetstream.query_account().await {
        Ok(account) => account,
        Err(error) => {
            return Finding::fail(
                "jetstream",
                format!("the account's limits cannot be read: {error}"),
                "enable JetStream for the account",
            );
        }
    };
    let nats = &config.nats;
    let wanted = nats.requests_max_bytes.saturating_add(nats.journal_max_bytes);
    let (used, limit) = match nats.storage {
        Storage::File => (account.storage, account.limits.max_storage),
        Storage::Memory => (account.memory, account.limits.max_memory),
    };
    let limit = limit.and_then(|limit| u64::try_from(limit).ok());
    let told = format!(
        "{} used of {}",
        bytes(used),
        limit.map_or_else(|| "no limit of the account".to_owned(), bytes)
    );
    match limit.is_some_and(|limit| limit < wanted) {
        false => Finding::ok("jetstream", told),
        true => Finding::fail(
            "jetstream",
            format!("{told}, and the streams want {}", bytes(wanted)),
            "raise the account's limit, or lower nats.requests_max_bytes and nats.journal_max_bytes",
        ),
    }
}

/// Compares the clocks by a request to JetStream, whose answer says when it was made.
async fn clock(connection: &Connection) -> Finding {
    let (sent, start) = (SystemTime::now(), Instant::now());
    let subject = format!("STREAM.INFO.{}", connection.subjects.requests_stream());
    let answer: Result<Value, _> = connection.jetstream.request(subject, &()).await;
    let way = start.elapsed() / 2;
    let told = answer
        .ok()
        .and_then(|info| humantime::parse_rfc3339(info.get("ts")?.as_str()?).ok());
    let Some(told) = told else {
        return Finding::warn(
            "clock",
            "the server's clock cannot be compared before its streams exist",
            "start a dispatcher, then ask again",
        );
    };
    judge_skew(skew(sent + way, told), way)
}

/// How far two clocks are apart, in either direction.
fn skew(ours: SystemTime, theirs: SystemTime) -> Duration {
    ours.duration_since(theirs)
        .unwrap_or_else(|earlier| earlier.duration())
}

fn judge_skew(skew: Duration, precision: Duration) -> Finding {
    let told = format!(
        "{} ms between this machine and the server, to within {} ms",
        skew.as_millis(),
        precision.as_millis() + 1
    );
    match skew > SKEW_MAX + precision {
        false => Finding::ok("clock", told),
        true => Finding::warn(
            "clock",
            told,
            "synchronise the clocks (NTP): ages and deadlines are counted from the server's time",
        ),
    }
}

/// What an assignment adds to a request's body.
const ENVELOPE_BYTES: usize = 64 << 10;
/// A tenth of a second is no matter to any deadline that a person sets.
const SKEW_MAX: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn clocks_that_differ_by_more_than_can_be_measured_are_told() {
        let now = SystemTime::now();
        let precise = Duration::from_millis(1);
        let far = skew(now, now + Duration::from_secs(2));
        assert_eq!(far, skew(now + Duration::from_secs(2), now));
        assert_eq!(judge_skew(far, precise).verdict, Verdict::Warn);
        assert_eq!(judge_skew(far, Duration::from_secs(3)).verdict, Verdict::Ok);
        assert_eq!(
            judge_skew(Duration::from_millis(90), precise).verdict,
            Verdict::Ok
        );
    }
}
