//! What was accepted against what is answered, as the leading dispatcher found it.

use flotilla_client::Connection;
use flotilla_protocol::RequestId;
use flotilla_protocol::admin::Reconciliation;

use super::Finding;
use crate::admin::{self, Nothing};

/// The account of the leader.
pub(super) async fn check(connection: &Connection) -> Finding {
    match admin::ask::<_, Reconciliation>(connection, "reconciliation", &Nothing {}).await {
        Ok(found) => judge(&found),
        Err(error) => Finding::warn(
            CHECK,
            error.to_string(),
            "a dispatcher of an older version does not tell",
        ),
    }
}

fn judge(found: &Reconciliation) -> Finding {
    if found.last_round_age_ms.is_none() {
        let advice = "it compares them within dispatcher.reconcile_interval_ms of its election; ask again";
        return Finding::warn(CHECK, "the dispatcher has not compared the streams yet", advice);
    }
    let sum = format!(
        "{} messages in the queue, {} held, {} to be delivered",
        found.stream_messages, found.held_messages, found.pending_messages
    );
    lost(found, &sum)
        .or_else(|| gone(found, &sum))
        .or_else(|| under_way(found, &sum))
        .unwrap_or_else(|| sound(found, &sum))
}

fn lost(found: &Reconciliation, sum: &str) -> Option<Finding> {
    let some: Vec<&str> = found.lost.iter().map(RequestId::as_str).collect();
    let (count, some) = (found.lost_requests, some.join(", "));
    let advice = "their messages were removed, or the server lost them; `flotilla journal REQUEST` shows how far each \
                  came: submit them again";
    let fail = || Finding::fail(CHECK, format!("{sum}; {count} requests are lost: {some}"), advice);
    (count > 0).then(fail)
}

fn gone(found: &Reconciliation, sum: &str) -> Option<Finding> {
    let told = format!(
        "{sum}; of {} held ones the messages are gone",
        found.gone_messages
    );
    let advice =
        "do not stop the leading dispatcher before these requests have ended; find out who removed messages";
    (found.gone_messages > 0).then(|| Finding::fail(CHECK, told, advice))
}

fn under_way(found: &Reconciliation, sum: &str) -> Option<Finding> {
    let told = format!("{sum}; {} are on their way, or stuck", found.unaccounted_messages);
    let advice = "the dispatcher gets what is stuck out of the queue by itself; ask again in half a minute";
    (found.unaccounted_messages > 0).then(|| Finding::warn(CHECK, told, advice))
}

fn sound(found: &Reconciliation, sum: &str) -> Finding {
    let told = format!("{sum}; nothing is lost or stuck");
    if found.max_deliveries_total + found.terminated_total + found.stuck_total == 0 {
        return Finding::ok(CHECK, told);
    }
    let told = format!(
        "{told} now; since this leader began {} messages were given up by the server, {} taken out by others, {} stuck",
        found.max_deliveries_total, found.terminated_total, found.stuck_total
    );
    let advice =
        "leave the consumers of the request stream to the dispatcher: no max_deliver, no other puller";
    Finding::warn(CHECK, told, advice)
}

const CHECK: &str = "account";

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn looked() -> Reconciliation {
        Reconciliation {
            last_round_age_ms: Some(10),
            stream_messages: 3,
            ..Reconciliation::default()
        }
    }

    #[test]
    fn what_is_lost_fails_by_name_and_what_is_on_its_way_does_not() {
        let lost = Reconciliation {
            lost_requests: 1,
            lost: vec![RequestId::new("r1").unwrap()],
            ..looked()
        };
        let finding = judge(&lost);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(
            finding.found.contains("1 requests are lost: r1"),
            "{}",
            finding.found
        );
        let gone = Reconciliation {
            gone_messages: 1,
            ..looked()
        };
        assert_eq!(judge(&gone).verdict, Verdict::Fail);
        let on_the_way = Reconciliation {
            unaccounted_messages: 1,
            ..looked()
        };
        assert_eq!(judge(&on_the_way).verdict, Verdict::Warn);
        assert_eq!(judge(&looked()).verdict, Verdict::Ok);
        assert_eq!(judge(&Reconciliation::default()).verdict, Verdict::Warn);
    }
}
