//! One encoded sample of every message, kept in `tests/golden`: the wire format cannot change unseen.
//!
//! A failure here means that a peer of the last release, or a client, may no longer understand us. When a
//! field was added on purpose, `BLESS=1 cargo test -p flotilla-protocol --test golden` writes the new
//! sample.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fmt::Debug;
use std::path::PathBuf;

use flotilla_protocol::admin::*;
use flotilla_protocol::assignment::*;
use flotilla_protocol::catalog::*;
use flotilla_protocol::event::*;
use flotilla_protocol::fleet::*;
use flotilla_protocol::profile::*;
use flotilla_protocol::request::{KeepAlive, Slo};
use flotilla_protocol::weights::*;
use flotilla_protocol::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Compares (or writes) `<name>.json` and `<name>.msgpack.hex`, and reads both back.
fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, sample: &T) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let json = serde_json::to_string_pretty(sample).unwrap() + "\n";
    let packed = Encoding::MessagePack.encode(sample).unwrap();
    let hex: String = packed
        .chunks(40)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
        .collect();
    for (file, content) in [
        (format!("{name}.json"), &json),
        (format!("{name}.msgpack.hex"), &hex),
    ] {
        let path = folder.join(file);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, content).unwrap();
        }
        let kept =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(&kept, content, "{} differs", path.display());
    }
    assert_eq!(
        &Encoding::Json.decode::<T>(json.as_bytes(), 1 << 20).unwrap(),
        sample
    );
    assert_eq!(
        &Encoding::MessagePack.decode::<T>(&packed, 1 << 20).unwrap(),
        sample
    );
}

fn request() -> RequestId {
    RequestId::new("00112233445566778899aabbccddeeff").unwrap()
}

fn model() -> ModelName {
    ModelName::new("org/llama3.1:8b").unwrap()
}

fn worker() -> WorkerId {
    WorkerId::new("w-1").unwrap()
}

fn report() -> Report {
    Report {
        worker: worker(),
        incarnation: 77,
        seq: 5,
        epoch_seen: Epoch(3),
        state: WorkerState::Ready,
        free_slots: 6,
        running: vec![RunningRequest {
            request: request(),
            attempt: Attempt(2),
            model: model(),
            prompt_tokens: 9,
            output_tokens: 4,
            alone: false,
        }],
        models: vec![
            ModelReport {
                model: model(),
                state: ModelState::Ready,
                device: Some(0),
                leases: 1,
                waiting: 0,
                weights_bytes: 1_583_296,
                expires_in_ms: None,
                load_ms: Some(12),
                shards: Vec::new(),
                kv_tokens_max: None,
                loaded_from: None,
            },
            ModelReport {
                model: ModelName::new("broken").unwrap(),
                state: ModelState::Failed {
                    reason: "no such folder".into(),
                    retry_in_ms: 1000,
                },
                device: None,
                leases: 0,
                waiting: 0,
                weights_bytes: 0,
                expires_in_ms: None,
                load_ms: None,
                shards: Vec::new(),
                kv_tokens_max: None,
                loaded_from: None,
            },
        ],
        devices: vec![DeviceReport {
            device: 0,
            page_bytes: 2 << 20,
            pages_total: 100,
            pages_weights: 1,
            pages_kv: 2,
            pages_workspace: 1,
            pages_kv_kept: None,
            resident_bytes: Some(4 << 20),
            state: DeviceState::Working,
        }],
        host: None,
        resident_bytes: None,
        departures: Vec::new(),
        fetches: Vec::new(),
    }
}

/// A report with everything that older workers do not tell.
fn report_of_all() -> Report {
    let plain = report();
    let departed = |reason| DepartureReport {
        model: model(),
        device: 0,
        ago_ms: 1500,
        reason,
    };
    Report {
        models: vec![ModelReport {
            loaded_from: Some(LoadSource::Host),
            ..plain.models[0].clone()
        }],
        devices: vec![DeviceReport {
            state: DeviceState::Failed {
                reason: "it computes wrong sums".into(),
            },
            ..plain.devices[0].clone()
        }],
        host: Some(HostReport {
            bytes_total: 8 << 30,
            models: vec![HostModel {
                model: model(),
                bytes: 4 << 20,
            }],
        }),
        departures: vec![
            departed(DepartureReason::Idle),
            departed(DepartureReason::Room {
                newcomer: ModelName::new("other").unwrap(),
            }),
            departed(DepartureReason::Ordered),
            departed(DepartureReason::Replaced),
            departed(DepartureReason::Removed),
            departed(DepartureReason::DeviceFailed {
                reason: "it computes wrong sums".into(),
            }),
        ],
        ..plain
    }
}

/// A report of a worker with a model that lies on two devices of one process.
fn report_of_shards() -> Report {
    let plain = report();
    let device = &plain.devices[0];
    let on = |device: u32| DeviceReport {
        device,
        resident_bytes: None,
        ..plain.devices[0].clone()
    };
    let shard = |device: u32, first_layer: u32, weights_bytes: u64| ShardReport {
        device,
        first_layer,
        layers: 2,
        weights_bytes,
    };
    Report {
        models: vec![ModelReport {
            shards: vec![shard(0, 0, 1_000_000), shard(1, 2, 583_296)],
            ..plain.models[0].clone()
        }],
        devices: vec![on(0), on(1)],
        resident_bytes: device.resident_bytes.map(|bytes| 2 * bytes),
        ..plain
    }
}

fn fetch(bytes_total: Option<u64>, state: FetchState) -> FetchReport {
    FetchReport {
        model: model(),
        bytes: 4 << 20,
        bytes_total,
        state,
    }
}

#[test]
fn reason_of_a_newer_worker_is_read_as_another_one() {
    let told = r#"{"why":"boredom","since":"noon"}"#;
    let reason: DepartureReason = serde_json::from_str(told).unwrap();
    assert_eq!(reason, DepartureReason::Other);
}

fn registration() -> Registration {
    Registration {
        worker: worker(),
        incarnation: 77,
        host: "node-a".into(),
        version: "0.1.0".into(),
        devices: vec![DeviceDescription {
            index: 0,
            kind: "cpu".into(),
            name: "CPU".into(),
            memory_bytes: 200 << 20,
            memory_bytes_per_s: None,
            cost: None,
        }],
    }
}

#[test]
fn events_keep_their_shape() {
    golden(
        "event-accepted",
        &Accepted {
            request: request(),
            model: model(),
            prompt_tokens: 9,
        },
    );
    let progress = Progress {
        phase: Phase::Queued,
        position: Some(3),
        fraction: None,
        eta_ms: Some(250),
    };
    golden("event-progress", &progress);
    golden(
        "event-tokens",
        &Tokens {
            offset: 4,
            token_ids: vec![9, 11],
            text: "79".into(),
            logprobs: Vec::new(),
        },
    );
    golden(
        "event-tokens-logprobs",
        &Tokens {
            offset: 0,
            token_ids: vec![9],
            text: "7".into(),
            logprobs: vec![TokenLogprobs::new(-0.25, [(9, -0.25), (11, f32::NEG_INFINITY)])],
        },
    );
    let timings = Timings {
        queued_ms: 1.5,
        load_ms: 0.0,
        prefill_ms: 2.25,
        decode_ms: 7.0,
    };
    let finished = Finished {
        finish_reason: FinishReason::Stop,
        usage: Usage::new(9, 3),
        timings,
        data: None,
    };
    golden("event-finished", &finished);
    golden(
        "event-finished-cached",
        &Finished {
            usage: finished.usage.with_cached_tokens(8),
            ..finished.clone()
        },
    );
    golden(
        "event-finished-embedding",
        &Finished {
            data: Some(vec![Embedding {
                index: 0,
                embedding: vec![0.5, -0.25],
            }]),
            ..finished
        },
    );
    let error = RequestError {
        code: ErrorCode::InvalidRequest,
        message: "must be at least 1".into(),
        param: Some("max_tokens".into()),
    };
    golden("event-failed", &Failed { error });
}

#[test]
fn fleet_messages_keep_their_shape() {
    golden("registration", &registration());
    golden("report", &report());
    let mut alone = report();
    alone.running[0].alone = true;
    golden("report-alone", &alone);
}

#[test]
fn what_was_reconciled_keeps_its_shape() {
    let sample = Reconciliation {
        rounds: 9,
        last_round_age_ms: Some(120),
        stream_messages: 5,
        held_messages: 4,
        stuck_total: 1,
        lost_requests: 1,
        lost_total: 1,
        lost: vec![request()],
        ..Reconciliation::default()
    };
    golden("admin-reconciliation", &sample);
}

#[test]
fn assignments_and_their_answers_keep_their_shape() {
    let assignment = Assignment {
        request: request(),
        attempt: Attempt(2),
        strikes: Strikes(1),
        epoch: Epoch(3),
        class: Class::Interactive,
        model: model(),
        encoding: Encoding::Json,
        body: bytes::Bytes::from_static(br#"{"prompt":"1+1="}"#),
        queued_ms: 4,
        deadline_in_ms: Some(1000),
        evict_first: Vec::new(),
        alone: false,
    };
    golden("assignment", &assignment);
    let alone = Assignment {
        alone: true,
        ..assignment
    };
    golden("assignment-alone", &alone);
    golden(
        "assign-reply-accepted",
        &AssignReply::Accepted {
            report_seq: 5,
            incarnation: None,
        },
    );
    golden(
        "assign-reply-accepted-incarnation",
        &AssignReply::Accepted {
            report_seq: 5,
            incarnation: Some(77),
        },
    );
    for (name, refusal) in [
        ("full", Refusal::Full),
        ("draining", Refusal::Draining),
        ("stale-epoch", Refusal::StaleEpoch { seen: Epoch(4) }),
        (
            "model-unloadable",
            Refusal::ModelUnloadable {
                reason: "too big".into(),
                retry_in_ms: 1000,
            },
        ),
    ] {
        golden(
            &format!("assign-reply-refused-{name}"),
            &AssignReply::Refused(refusal),
        );
    }
}

#[test]
fn ends_of_attempts_keep_their_shape() {
    for (name, end) in [
        ("terminal", AttemptEnd::Terminal),
        (
            "fenced",
            AttemptEnd::Fenced {
                attempt: Attempt(3),
                strikes: Strikes(1),
            },
        ),
        (
            "journal-broken",
            AttemptEnd::JournalBroken {
                reason: "a gap at 3".into(),
            },
        ),
        (
            "handed-back",
            AttemptEnd::HandedBack {
                reason: "drain".into(),
            },
        ),
        (
            "model-unloadable",
            AttemptEnd::ModelUnloadable {
                reason: "gone".into(),
                retry_in_ms: 1000,
            },
        ),
        (
            "panicked",
            AttemptEnd::Panicked {
                message: "index out of bounds".into(),
            },
        ),
    ] {
        let done = Done {
            worker: worker(),
            incarnation: 77,
            request: request(),
            attempt: Attempt(2),
            end,
            prompt_tokens: 9,
            output_tokens: 4,
        };
        golden(&format!("done-{name}"), &done);
    }
}

#[test]
fn orders_keep_their_shape() {
    golden("cancel", &Cancel { request: request() });
    golden(
        "control-load",
        &Control::Load {
            model: model(),
            keep_alive: Some(KeepAlive::Ms(600_000)),
        },
    );
    golden("control-unload", &Control::Unload { model: model() });
    golden("control-prefetch", &Control::Prefetch { model: model() });
    golden("control-fetch", &Control::Fetch { model: model() });
    golden("control-drain", &Control::Drain);
    golden("control-report", &Control::Report);
    golden("control-reply-accepted", &ControlReply::Accepted);
    golden(
        "control-reply-refused",
        &ControlReply::Refused {
            reason: "in use".into(),
        },
    );
}

#[test]
fn what_the_dispatcher_decides_by_keeps_its_shape() {
    golden(
        "device-description-measured",
        &DeviceDescription {
            index: 1,
            kind: "h200".into(),
            name: "GPU 1".into(),
            memory_bytes: 139 << 30,
            memory_bytes_per_s: Some(4_800_000_000_000),
            cost: Some(3.5),
        },
    );
    golden(
        "model-report-kv",
        &ModelReport {
            shards: Vec::new(),
            kv_tokens_max: Some(4096),
            ..report().models[0].clone()
        },
    );
    golden("report-host-departures", &report_of_all());
    golden("report-shards", &report_of_shards());
    golden(
        "device-report-kv",
        &DeviceReport {
            pages_kv_kept: Some(1),
            ..report().devices[0].clone()
        },
    );
    golden(
        "model-source-simulated",
        &ModelSource::Simulated {
            kv_bytes_per_token: 131_072,
        },
    );
    golden(
        "model-source-hub",
        &ModelSource::Hub(
            "hf:org/name@0123456789abcdef0123456789abcdef01234567"
                .parse()
                .unwrap(),
        ),
    );
    golden(
        "report-fetches",
        &Report {
            fetches: vec![
                fetch(None, FetchState::Running),
                fetch(Some(16 << 30), FetchState::Done),
                fetch(
                    Some(16 << 30),
                    FetchState::Failed {
                        reason: "no token".into(),
                    },
                ),
            ],
            ..report()
        },
    );
    golden(
        "policy",
        &[Policy::Slo, Policy::Pack, Policy::Spread, Policy::Fifo],
    );
}

#[test]
fn catalog_and_profiles_keep_their_shape() {
    golden(
        "catalog-entry",
        &CatalogEntry {
            name: model(),
            source: ModelSource::Folder("/models/llama".into()),
            facts: ModelFacts {
                architecture: "LlamaForCausalLM".into(),
                context_tokens_max: 8192,
                vocabulary_size: 128_256,
                weights_bytes: 16 << 30,
                task: ModelTask::Generate,
            },
            root: None,
            slots: Some(8),
            keep_alive: Some(KeepAlive::UntilEvicted),
            pin: true,
            slo: Some(Slo {
                ttft_ms: Some(500.0),
                ..Slo::default()
            }),
            quantize: None,
            policy: None,
            output_tokens_prior: None,
        },
    );
    golden(
        "model-facts-embed",
        &ModelFacts {
            architecture: "BertModel".into(),
            context_tokens_max: 512,
            vocabulary_size: 30_522,
            weights_bytes: 1 << 27,
            task: ModelTask::Embed { dimensions: 384 },
        },
    );
    golden(
        "profile",
        &Profile {
            gpu: "cpu".into(),
            cost: 1.0,
            tputs: vec![vec![4.0, 2.0], vec![2.0, 1.0]],
            indexes: vec![vec![8.0, 16.0], vec![64.0, 128.0]],
            created: 1.7e9,
            e2e: Some(vec![vec![0.5, 0.6], vec![0.9, 1.0]]),
            ttft: None,
            tpot: None,
            slos: Some(ProfileSlos {
                percentile: Some(99.0),
                e2e: Some(5.0),
                tput: Some(2.0),
                ..ProfileSlos::default()
            }),
            tpot_by_batch: Some(vec![(1.0, 0.01), (8.0, 0.02)]),
            prefill_tokens_per_s: Some(900.0),
            load_seconds_by_tier: Some(LoadSeconds {
                host: Some(0.5),
                peer: None,
                origin: Some(40.0),
            }),
            samples: Some(120),
            source: Some(ProfileSource::Measured),
        },
    );
}

#[test]
fn admin_messages_keep_their_shape() {
    golden(
        "admin-queue",
        &QueueStatus {
            dispatcher: "d-1".into(),
            epoch: Epoch(3),
            queued: vec![QueuedRequest {
                request: request(),
                class: Class::Batch,
                model: model(),
                prompt_tokens: 9,
                age_ms: 40,
                attempts: 1,
            }],
            queued_total: 1,
            assigned: vec![AssignedRequest {
                request: request(),
                class: Class::Batch,
                model: model(),
                worker: worker(),
                attempt: Attempt(1),
                age_ms: 41,
            }],
            stream_pending: 2,
        },
    );
    let status = WorkerStatus {
        registration: Some(registration()),
        report: report(),
        report_age_ms: 7,
    };
    golden(
        "admin-workers",
        &FleetStatus {
            workers: vec![status],
        },
    );
    golden("admin-cancel", &CancelRequest { request: request() });
    golden("admin-cancel-reply", &CancelReply::Told);
    golden(
        "admin-residency",
        &ResidencyRequest {
            model: model(),
            worker: Some(worker()),
            keep_alive: None,
        },
    );
    golden(
        "admin-residency-reply",
        &ResidencyReply {
            workers: vec![worker()],
        },
    );
    let standing = StandingRequest { stream_seq: Some(7) };
    golden("standing", &standing);
    golden("standing-reply-queued", &StandingReply::Queued);
    golden("standing-reply-gone", &StandingReply::Gone);
    golden("admin-drain", &DrainRequest { worker: worker() });
    golden(
        "admin-drain-reply",
        &DrainReply {
            worker: worker(),
            incarnation: 77,
        },
    );
}

#[test]
fn a_message_with_a_field_of_a_newer_release_is_still_read() {
    let mut newer = serde_json::to_value(report()).unwrap();
    newer["link_bytes_per_s"] = serde_json::json!(1.0e9);
    newer["running"][0]["tenant"] = serde_json::json!("team a");
    let packed = Encoding::MessagePack.encode(&newer).unwrap();
    assert_eq!(codec::decode_internal::<Report>(&packed).unwrap(), report());
}

fn segments() -> SegmentSet {
    let mut set = SegmentSet::none(11);
    [0, 1, 10].into_iter().for_each(|segment| set.insert(segment));
    set
}

#[test]
fn weights_on_their_way() {
    let root = Root::new([0xa7; 32]);
    golden(
        "holding",
        &Holding {
            worker: worker(),
            incarnation: 77,
            machine: "0123456789abcdef".into(),
            folder: "/var/lib/flotilla/models/a7".into(),
            sends: 1,
        },
    );
    golden(
        "claim",
        &Claim {
            sender: worker(),
            incarnation: 77,
            generation: Generation(3),
        },
    );
    golden(
        "copy-ask",
        &CopyAsk {
            root,
            incarnation: 77,
        },
    );
    golden(
        "copy-reply-sends",
        &CopyReply::Sends {
            generation: Generation(3),
        },
    );
    golden(
        "copy-reply-sent-by",
        &CopyReply::SentBy {
            sender: worker(),
            incarnation: 77,
        },
    );
    golden(
        "copy-reply-refuses",
        &CopyReply::Refuses {
            reason: CopyRefusal::NotHeld,
        },
    );
    golden(
        "copy-news",
        &CopyNews {
            generation: Generation(3),
            stored: segments(),
            end: Some(CopyEnd::Done),
        },
    );
    golden(
        "copy-have",
        &CopyHave {
            receiver: ReceiverId(5),
            have: segments(),
            missing: SegmentSet::default(),
            stays: true,
        },
    );
    golden(
        "copy-have-missing",
        &CopyHave {
            receiver: ReceiverId(5),
            have: segments(),
            missing: segments(),
            stays: true,
        },
    );
}
