//! Streams and buckets: whether they are there and as configured.

use flotilla_client::Connection;
use flotilla_config::{Config, Storage};
use serde_json::{Value, json};

use super::Finding;

/// One stream, and what the configuration says about it, as the server names it.
struct Wanted {
    name: String,
    fields: Vec<(&'static str, Value)>,
}

/// Every stream and bucket.
pub(super) async fn check(connection: &Connection, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for wanted in wanted(connection, config) {
        findings.push(check_one(connection, &wanted).await);
    }
    findings
}

async fn check_one(connection: &Connection, wanted: &Wanted) -> Finding {
    let subject = format!("STREAM.INFO.{}", wanted.name);
    let answer: Result<Value, _> = connection.jetstream.request(subject, &()).await;
    match answer {
        Ok(info) => judge(wanted, &info),
        Err(error) => Finding::fail(
            CHECK,
            format!("{} cannot be read: {error}", wanted.name),
            "check the server's log, and that this user may use the JetStream API",
        ),
    }
}

fn judge(wanted: &Wanted, info: &Value) -> Finding {
    let name = &wanted.name;
    let Some(found) = info.get("config") else {
        let reason = info.pointer("/error/description").and_then(Value::as_str);
        return Finding::fail(
            CHECK,
            format!("{name} is missing: {}", reason.unwrap_or("no reason given")),
            "start a dispatcher; it makes what is missing",
        );
    };
    let differences: Vec<String> = wanted
        .fields
        .iter()
        .filter(|(field, value)| found.get(field) != Some(value))
        .map(|(field, value)| format!("{field} is {}, configured {value}", found[field]))
        .collect();
    if !differences.is_empty() {
        let advice =
            "a dispatcher with these settings changes what can be changed; storage and retention cannot";
        return Finding::warn(CHECK, format!("{name}: {}", differences.join("; ")), advice);
    }
    let messages = info.pointer("/state/messages").and_then(Value::as_u64);
    Finding::ok(
        CHECK,
        format!("{name} is as configured, {} messages", messages.unwrap_or(0)),
    )
}

fn wanted(connection: &Connection, config: &Config) -> Vec<Wanted> {
    let nats = &config.nats;
    let subjects = &connection.subjects;
    let storage = match nats.storage {
        Storage::File => "file",
        Storage::Memory => "memory",
    };
    let replicas = ("num_replicas", json!(nats.replicas));
    let nanos = |age: std::time::Duration| json!(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
    let requests = vec![
        ("storage", json!(storage)),
        ("retention", json!("workqueue")),
        ("max_bytes", json!(nats.requests_max_bytes)),
        ("max_msgs", json!(nats.requests_max_messages)),
        ("duplicate_window", nanos(nats.dedupe_window)),
        replicas.clone(),
    ];
    let journal = vec![
        ("storage", json!(storage)),
        ("max_bytes", json!(nats.journal_max_bytes)),
        ("max_age", nanos(nats.journal_max_age)),
        ("allow_direct", json!(true)),
        replicas.clone(),
    ];
    let dead = vec![("max_age", nanos(nats.dead_max_age)), replicas.clone()];
    let relay = vec![
        ("storage", json!("memory")),
        ("max_bytes", json!(nats.relay_max_bytes)),
        ("allow_direct", json!(true)),
    ];
    let streams = [
        (subjects.requests_stream(), requests),
        (subjects.journal_stream(), journal),
        (subjects.dead_stream(), dead),
        (format!("OBJ_{}", subjects.bucket("relay")), relay),
    ];
    let buckets = BUCKETS.map(|bucket| (format!("KV_{}", subjects.bucket(bucket)), vec![replicas.clone()]));
    let all = streams.into_iter().chain(buckets);
    all.map(|(name, fields)| Wanted { name, fields }).collect()
}

const CHECK: &str = "stream";
const BUCKETS: [&str; 6] = ["lease", "models", "profiles", "workers", "holders", "claims"];

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn journal() -> Wanted {
        Wanted {
            name: "FLOTILLA_JOURNAL".into(),
            fields: vec![("storage", json!("file")), ("num_replicas", json!(1))],
        }
    }

    #[test]
    fn a_difference_is_told_with_both_values() {
        let info = json!({"config": {"storage": "memory", "num_replicas": 1}, "state": {"messages": 3}});
        let finding = judge(&journal(), &info);
        assert_eq!(finding.verdict, Verdict::Warn);
        assert_eq!(
            finding.found,
            "FLOTILLA_JOURNAL: storage is \"memory\", configured \"file\""
        );
    }

    #[test]
    fn a_missing_stream_fails_and_one_as_configured_does_not() {
        let missing = json!({"error": {"code": 404, "description": "stream not found"}});
        assert_eq!(judge(&journal(), &missing).verdict, Verdict::Fail);
        let there = json!({"config": {"storage": "file", "num_replicas": 1}, "state": {"messages": 3}});
        assert_eq!(judge(&journal(), &there).verdict, Verdict::Ok);
    }
}
