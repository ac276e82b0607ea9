//! What operators ask and are told, what stands in the catalog, and what the server says about streams.

use flotilla_dispatcher::Advisory;
use flotilla_protocol::admin::{
    CancelReply, CancelRequest, FleetStatus, ProfileStatuses, QueueStatus, Reconciliation, ReplayRequest,
    ResidencyReply, ResidencyRequest, WhyReply, WhyRequest,
};
use flotilla_protocol::catalog::CatalogEntry;
use serde_json::json;

use super::messages::{answer, json};
use crate::corpus::Corpus;
use crate::probe::Verdict;
use crate::target::{Format, Target};

pub(super) fn targets() -> Vec<Target> {
    let golden = |names: &[&str]| Corpus::golden(Format::Json, names);
    let values = |values: Vec<serde_json::Value>| Corpus::of_values(Format::Json, values);
    vec![
        json::<CancelRequest>("admin-cancel", golden(&["admin-cancel"]), QUESTION_BYTES_MAX),
        json::<ResidencyRequest>(
            "admin-residency",
            golden(&["admin-residency"]),
            QUESTION_BYTES_MAX,
        ),
        json::<WhyRequest>("admin-why", golden(&["admin-cancel"]), QUESTION_BYTES_MAX),
        json::<ReplayRequest>("replay", values(vec![json!({"after": 7})]), QUESTION_BYTES_MAX),
        answer::<QueueStatus>("admin-queue-answer", &["admin-queue"]),
        answer::<FleetStatus>("admin-workers-answer", &["admin-workers"]),
        answer::<Reconciliation>("admin-reconciliation-answer", &["admin-reconciliation"]),
        answer::<CancelReply>("admin-cancel-answer", &["admin-cancel-reply"]),
        answer::<ResidencyReply>("admin-residency-answer", &["admin-residency-reply"]),
        json::<WhyReply>("admin-why-answer", values(vec![why()]), 8 << 20),
        json::<ProfileStatuses>("admin-profiles-answer", values(vec![profiles()]), 8 << 20),
        json::<CatalogEntry>("catalog-entry", catalog(), ENTRY_BYTES_MAX),
        advisory(),
    ]
}

fn catalog() -> Corpus {
    let facts = json!({"architecture": "BertModel", "context_tokens_max": 512, "vocabulary_size": 30522, "weights_bytes": 1,
                       "task": {"embed": {"dimensions": 384}}});
    let hub = json!({"name": "n", "facts": facts, "source": {"hub": {"repo": "org/name", "revision": "main"}}, "quantize": "int4",
                     "policy": "pack", "root": "a7".repeat(32), "output_tokens_prior": 9});
    let simulated = json!({"name": "n", "facts": facts, "source": {"simulated": {"kv_bytes_per_token": 1}}});
    let samples = [hub, simulated].map(|value| value.to_string());
    Corpus::golden(Format::Json, &["catalog-entry"]).and(samples)
}

fn advisory() -> Target {
    let sample = json!({"type": "io.nats.jetstream.advisory.v1.max_deliver", "id": "x", "stream": "FLOTILLA_REQUESTS", "consumer": "batch",
                        "stream_seq": 9, "deliveries": 3, "reason": "gone"});
    Target::new(
        "advisory",
        Corpus::of_values(Format::Json, [sample]),
        |probe, input| {
            Verdict::from(
                &probe
                    .measure(|| Advisory::read("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.S.batch", input)),
            )
        },
    )
}

fn why() -> serde_json::Value {
    let candidate = json!({"worker": "w-1", "device": 0, "device_kind": "cpu", "profile": "measured", "room": "now", "model": "ready",
        "load": 0.5, "share": 0.25, "starts_in_ms": 1, "ends_in_ms": 2, "slack_ms": -3, "cost": 1.5, "victims": ["a"]});
    let decision = json!({"device_kind": "cpu", "starts_in_ms": 1, "ends_in_ms": 2, "slack_ms": null, "share": 0.1, "load": 0.2,
        "not_preferred": 1, "too_late": 0, "no_room": 0, "no_copy": 2});
    json!({"request": "r", "found": {"model": "m", "class": "batch", "tenant": null, "age_ms": 1, "prompt_tokens": 2,
        "prompt_estimated": false, "output_tokens": [1, 9], "target_ms": 100, "candidates": [candidate], "candidates_total": 1,
        "standing": {"assigned": {"worker": "w-1", "attempt": 1, "decision": decision}}}})
}

fn profiles() -> serde_json::Value {
    json!({"profiles": [{"model": "m", "device_kind": "cpu", "source": "estimated", "correction": 1.5, "samples": 4,
        "is_drifting": false, "extrapolated": 0}]})
}

/// As the dispatcher's services have it.
const QUESTION_BYTES_MAX: usize = 4 << 10;
/// As the catalog has it.
const ENTRY_BYTES_MAX: usize = 64 << 10;
