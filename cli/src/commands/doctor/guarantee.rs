//! What this server, as it is, guarantees for what was accepted: not what the settings wish for.

use std::time::Duration;

use flotilla_client::Connection;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::timeout;

use super::Finding;

/// How a stream is kept, by the server's own word.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    name: String,
    is_on_disk: bool,
    replicas: usize,
    /// Servers that have all of it now.
    current: usize,
    /// Servers that do not, with what is wrong.
    behind: Vec<String>,
}

/// How often servers bring their files to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// Before every acknowledgement.
    Always,
    Every(Duration),
    /// A server tells its system account only.
    Unknown,
}

/// Whether something is survived.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Survives {
    Yes(String),
    No(String),
    Unknown(String),
}

/// The guarantee for requests that were accepted and answers that were begun.
pub(super) async fn check(connection: &Connection) -> Finding {
    let subjects = &connection.subjects;
    let mut streams = Vec::new();
    for name in [subjects.requests_stream(), subjects.journal_stream()] {
        let subject = format!("STREAM.INFO.{name}");
        let answer: Result<Value, _> = connection.jetstream.request(subject, &()).await;
        match answer.ok().and_then(|info| read_stream(&name, &info)) {
            Some(kept) => streams.push(kept),
            None => {
                let told = format!("{name} cannot be looked at, so nothing is promised");
                return Finding::warn(CHECK, told, "start a dispatcher, which makes it, then ask again");
            }
        }
    }
    judge(
        &connection.server.to_string(),
        &streams,
        read_sync(connection).await,
    )
}

fn read_stream(name: &str, info: &Value) -> Option<Kept> {
    let config = info.get("config")?;
    let replicas = config.get("num_replicas")?.as_u64()?;
    let peers = info.pointer("/cluster/replicas").and_then(Value::as_array);
    let peers = peers.into_iter().flatten();
    let has_leader = match info.get("cluster") {
        Some(cluster) => cluster.get("leader").is_some_and(|leader| leader != ""),
        None => true,
    };
    let mut kept = Kept {
        name: name.to_owned(),
        is_on_disk: config.get("storage")? == "file",
        replicas: usize::try_from(replicas).ok()?,
        current: usize::from(has_leader),
        behind: Vec::new(),
    };
    for peer in peers {
        let is = |flag: &str| peer.get(flag).and_then(Value::as_bool).unwrap_or(false);
        let name = peer.get("name").and_then(Value::as_str).unwrap_or("a server");
        if is("offline") {
            kept.behind.push(format!("{name} is offline"));
        } else if is("current") {
            kept.current += 1;
        } else {
            kept.behind.push(format!("{name} is catching up"));
        }
    }
    Some(kept)
}

/// Asks all servers at once, as the system account may; the most careless of them counts.
async fn read_sync(connection: &Connection) -> Sync {
    let client = &connection.client;
    let inbox = client.new_inbox();
    let Ok(mut answers) = client.subscribe(inbox.clone()).await else {
        return Sync::Unknown;
    };
    let asked = client.publish_with_reply(JSZ, inbox, "".into()).await;
    if asked.is_err() {
        return Sync::Unknown;
    }
    let mut found = Sync::Unknown;
    while let Ok(Some(answer)) = timeout(SYNC_PATIENCE, answers.next()).await {
        let told = serde_json::from_slice::<Value>(&answer.payload).ok();
        match told.and_then(|told| sync_of(told.pointer("/data/config")?)) {
            Some(sync) => found = more_careless(found, sync),
            None => break,
        }
    }
    found
}

fn sync_of(config: &Value) -> Option<Sync> {
    if config.get("sync_always").and_then(Value::as_bool) == Some(true) {
        return Some(Sync::Always);
    }
    let nanos = config.get("sync_interval")?.as_u64()?;
    Some(Sync::Every(Duration::from_nanos(nanos)))
}

fn more_careless(one: Sync, other: Sync) -> Sync {
    match (one, other) {
        (Sync::Every(one), Sync::Every(other)) => Sync::Every(one.max(other)),
        (every @ Sync::Every(_), _) | (_, every @ Sync::Every(_)) => every,
        (Sync::Always, _) | (_, Sync::Always) => Sync::Always,
        (Sync::Unknown, Sync::Unknown) => Sync::Unknown,
    }
}

/// The weakest of the streams counts: a request is as safe as its answer.
fn judge(version: &str, streams: &[Kept], sync: Sync) -> Finding {
    let weakest = streams.iter().min_by_key(|kept| {
        let spare = kept.current.saturating_sub(kept.replicas / 2 + 1);
        (kept.is_on_disk, spare, kept.replicas)
    });
    let Some(kept) = weakest else {
        return Finding::warn(CHECK, "there is no stream", "start a dispatcher");
    };
    let questions = [
        ("process kill", process_kill(kept)),
        ("power failure", power_failure(kept, sync)),
        ("machine loss", machine_loss(kept)),
    ];
    let answers = questions
        .iter()
        .map(|(question, answer)| format!("{question} {}", answer.text()));
    let storage = if kept.is_on_disk { "file" } else { "memory" };
    let copies = if kept.replicas == 1 {
        "1 copy".to_owned()
    } else {
        format!("{} copies", kept.replicas)
    };
    let mut told = format!(
        "survives: {} (nats-server {version}, {} in {storage}, {copies})",
        answers.collect::<Vec<_>>().join(", "),
        kept.name,
    );
    for behind in &kept.behind {
        told.push_str(&format!("; {behind}"));
    }
    if questions
        .iter()
        .all(|(_, answer)| matches!(answer, Survives::Yes(_)))
    {
        return Finding::ok(CHECK, told);
    }
    Finding::warn(CHECK, told, advice(kept, sync))
}

fn process_kill(kept: &Kept) -> Survives {
    match (kept.is_on_disk, kept.replicas) {
        (true, _) => Survives::Yes(String::new()),
        (false, 1) => Survives::No(String::new()),
        (false, _) => Survives::Yes("of one server at a time".to_owned()),
    }
}

fn power_failure(kept: &Kept, sync: Sync) -> Survives {
    let whole = match kept.replicas {
        1 => "",
        _ => "of all at once, ",
    };
    match (kept.is_on_disk, sync) {
        (false, _) => Survives::No(format!("{whole}nothing is on disk")),
        (true, Sync::Always) => Survives::Yes(String::new()),
        (true, Sync::Every(every)) => Survives::No(format!(
            "{whole}up to the last {} may be missing",
            humantime::format_duration(every)
        )),
        (true, Sync::Unknown) => Survives::Unknown(format!(
            "{whole}the server does not tell this user its sync_interval, which is 2m unless configured"
        )),
    }
}

fn machine_loss(kept: &Kept) -> Survives {
    let quorum = kept.replicas / 2 + 1;
    match (kept.replicas, kept.current.checked_sub(quorum)) {
        (1, _) => Survives::No(String::new()),
        (_, None) => Survives::No("even now too few servers have all of it".to_owned()),
        (_, Some(0)) => Survives::No("not one more".to_owned()),
        (replicas, Some(spare)) => Survives::Yes(format!("{spare} of {replicas}")),
    }
}

fn advice(kept: &Kept, sync: Sync) -> String {
    let mut advice = Vec::new();
    if !kept.is_on_disk {
        advice.push("set nats.storage=file");
    }
    if !kept.behind.is_empty() {
        advice.push("bring back the servers that are behind");
    }
    if kept.replicas == 1 {
        advice.push("for machine loss run three servers and set nats.replicas=3");
    }
    if kept.is_on_disk && sync != Sync::Always {
        advice.push("for power failure set sync_interval: always in the jetstream block of every server");
    }
    advice.join("; ")
}

impl Survives {
    fn text(&self) -> String {
        let (word, detail) = match self {
            Self::Yes(detail) => ("yes", detail),
            Self::No(detail) => ("no", detail),
            Self::Unknown(detail) => ("unknown", detail),
        };
        if detail.is_empty() {
            word.to_owned()
        } else {
            format!("{word} ({detail})")
        }
    }
}

const CHECK: &str = "guarantee";
/// Every server's JetStream, its configuration included.
const JSZ: &str = "$SYS.REQ.SERVER.PING.JSZ";
/// Servers of one cluster answer within this of each other.
const SYNC_PATIENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Verdict;
    use super::*;

    fn alone() -> Value {
        json!({"config": {"storage": "file", "num_replicas": 1}})
    }

    fn three(peers: &Value) -> Value {
        json!({
            "config": {"storage": "file", "num_replicas": 3},
            "cluster": {"leader": "n1", "replicas": peers},
        })
    }

    fn judged(info: &Value, sync: Sync) -> Finding {
        judge("2.15.1", &[read_stream("S", info).unwrap()], sync)
    }

    #[test]
    fn one_server_survives_a_kill_and_loses_with_its_machine() {
        let finding = judged(&alone(), Sync::Every(Duration::from_secs(120)));
        assert_eq!(finding.verdict, Verdict::Warn);
        assert_eq!(
            finding.found,
            "survives: process kill yes, power failure no (up to the last 2m may be missing), machine loss no \
             (nats-server 2.15.1, S in file, 1 copy)"
        );
        let unknown = judged(&alone(), Sync::Unknown).found;
        assert!(
            unknown.contains("power failure unknown (the server does not tell"),
            "{unknown}"
        );
        let always = judged(&alone(), Sync::Always).found;
        assert!(always.contains("power failure yes, machine loss no"), "{always}");
    }

    #[test]
    fn three_copies_survive_what_the_servers_that_are_there_allow() {
        let current = |name| json!({"name": name, "current": true});
        let whole = judged(&three(&json!([current("n2"), current("n3")])), Sync::Always);
        assert_eq!((whole.verdict, whole.advice), (Verdict::Ok, None));
        assert!(
            whole.found.contains("machine loss yes (1 of 3)"),
            "{}",
            whole.found
        );
        let offline = json!({"name": "n3", "current": false, "offline": true});
        let weak = judged(&three(&json!([current("n2"), offline])), Sync::Always);
        assert_eq!(weak.verdict, Verdict::Warn);
        assert!(
            weak.found.contains("machine loss no (not one more)"),
            "{}",
            weak.found
        );
        assert!(weak.found.ends_with("; n3 is offline"), "{}", weak.found);
    }

    #[test]
    fn most_careless_server_counts() {
        let every = |seconds| Sync::Every(Duration::from_secs(seconds));
        assert_eq!(more_careless(Sync::Unknown, Sync::Always), Sync::Always);
        assert_eq!(more_careless(every(1), Sync::Always), every(1));
        assert_eq!(more_careless(every(1), every(120)), every(120));
        let config = json!({"max_memory": 1, "sync_interval": 120_000_000_000_u64});
        assert_eq!(sync_of(&config), Some(every(120)));
        assert_eq!(
            sync_of(&json!({"sync_always": true, "sync_interval": 1})),
            Some(Sync::Always)
        );
    }
}
