//! The worker's metrics: names, help, buckets. Where they are counted is in the modules below, and in `flotilla_weights`.

mod answers;
mod residency;
mod standing;
mod steps;

use flotilla_telemetry::{Buckets, SECONDS, catalogue};

pub(crate) use answers::AnswerTally;
use flotilla_weights::WEIGHTS_BYTES;
use residency::DEPARTURE_REASONS;
pub(crate) use residency::{count_departure, count_load};
pub(crate) use standing::{Standing, publish};
pub(crate) use steps::{StepSize, StepTally};

/// Sequences of a step.
const SEQUENCES: Buckets = Buckets {
    upper: &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0],
    reason: "powers of two, as devices are measured by them; 32 is the default of worker.slots",
};

/// How long a model was there.
const AGES: Buckets = Buckets {
    upper: &[
        0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0, 86400.0,
    ],
    reason: "5 s is the default of worker.min_residency_max_ms, 300 s that of worker.keep_alive_s",
};

/// Times of a step.
const STEPS: Buckets = Buckets {
    upper: &[
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    ],
    reason: "half a millisecond is a small model on a fast device, 2.5 s a long prompt's chunk on a slow one",
};

/// Those of vLLM.
const VLLM_FIRST_TOKEN: Buckets = Buckets {
    upper: &[
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
        40.0, 80.0, 160.0, 640.0, 2560.0,
    ],
    reason: "those of vLLM, so that its dashboards add both up",
};

/// Those of vLLM.
const VLLM_TOKEN: Buckets = Buckets {
    upper: &[
        0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
        80.0,
    ],
    reason: "those of vLLM, so that its dashboards add both up",
};

/// Those of vLLM.
const VLLM_REQUEST: Buckets = Buckets {
    upper: &[
        0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
        480.0, 960.0, 1920.0, 7680.0,
    ],
    reason: "those of vLLM, so that its dashboards add both up",
};

/// Lets everything be there from the beginning whose labels are known then.
pub(crate) fn register() {
    for reason in DEPARTURE_REASONS {
        DEPARTURES.register(&[reason]);
        DEPARTURE_AGE.register(&[reason]);
    }
    for tier in ["host", "disk", "peer"] {
        LOAD_SECONDS.register(&[tier]);
        LOAD_BYTES.register(&[tier]);
    }
    for (metric, reasons) in [
        (LOADS_FAILED, &["cancelled", "broken"][..]),
        (REFUSALS, &["full", "draining", "stale_epoch", "model_unloadable"]),
        (APPENDS_FAILED, &["conflict", "unconfirmed"]),
    ] {
        reasons.iter().for_each(|reason| metric.register(&[reason]));
    }
    for way in [["relay", "in"], ["relay", "out"], ["hub", "in"]] {
        WEIGHTS_BYTES.register(&way);
    }
}

catalogue! {
    DRAINING: gauge "flotilla_worker_draining" []
        "1 while the worker takes no new work.";
    EPOCH_SEEN: level "flotilla_worker_epoch_seen" []
        "The newest term of a dispatcher that has spoken to this worker.";
    NATS_CONNECTED: gauge "flotilla_worker_nats_connected" []
        "1 while the connection to NATS is up.";
    NATS_CONNECTS: total "flotilla_worker_nats_connects_total" []
        "Times that the connection to NATS was made, the first one included.";
    NATS_IN_BYTES: total "flotilla_worker_nats_received_bytes_total" []
        "Bytes received from NATS, without weights, which have a connection of their own.";
    NATS_OUT_BYTES: total "flotilla_worker_nats_sent_bytes_total" []
        "Bytes sent to NATS, without weights.";
    SLOTS: gauge "flotilla_worker_slots" []
        "Requests that the worker holds at most.";
    HELD: gauge "flotilla_worker_held_requests" []
        "Requests that it holds: waiting for their model, running or writing their last event.";

    LEDGER_PAGES: gauge "flotilla_worker_ledger_pages" ["device", "purpose"]
        "Pages of 2 MiB of a device: weights, kv (keys and values, cached ones included), workspace, free.";
    LEDGER_BYTES: gauge "flotilla_worker_ledger_bytes" []
        "Bytes of all devices that the ledger has given away.";
    RESIDENT_BYTES: gauge "flotilla_worker_resident_bytes" []
        "Bytes of all devices in use by the system's own count, to compare the ledger with; absent where it counts none.";
    DEVICE_WORKS: gauge "flotilla_worker_device_works" ["device"]
        "1 while a device works, 0 when it failed.";
    HOST_BYTES: gauge "flotilla_worker_host_memory_bytes" ["purpose"]
        "Host memory for weights that have left their device: weights (in it), free.";
    MODEL_STATE: gauge "flotilla_worker_model_state" ["model", "device", "state"]
        "1 for the state that a model is in: loading, ready, draining, unloading, failed; on each device that has a part of it, or on none while it has no place. A model that is in none is absent.";
    MODEL_BYTES: gauge "flotilla_worker_model_weights_bytes" ["model"]
        "Bytes of the weights of a model that is not absent.";
    RELAY_BYTES: gauge "flotilla_worker_weights_relay_bytes" []
        "Bytes of weights that this worker has in the relay: the window of its copies.";
    DEPARTURES: counter "flotilla_worker_departures_total" ["reason"]
        "Models that left a device: idle (nobody wanted it), room (another model needed it), ordered, replaced, removed, device_failed.";
    DEPARTURE_AGE: histogram(AGES) "flotilla_worker_departure_age_seconds" ["reason"]
        "How long a model had been ready when it left.";
    LOAD_SECONDS: histogram(SECONDS) "flotilla_worker_load_seconds" ["tier"]
        "Time of a load, by where the weights came from: host (host memory), disk, peer (another worker or a hub, placed as they came).";
    LOAD_BYTES: counter "flotilla_worker_load_bytes_total" ["tier"]
        "Bytes of weights placed on devices.";
    LOADS_FAILED: counter "flotilla_worker_loads_failed_total" ["reason"]
        "Loads without success: cancelled (nobody wanted the model any more), broken.";

    STEP_SEQUENCES: histogram(SEQUENCES) "flotilla_worker_step_sequences" ["model"]
        "Sequences of a step of the engine: the batch size.";
    STEP_SECONDS: histogram(STEPS) "flotilla_worker_step_seconds" ["model"]
        "Time of a step of the engine.";
    STEP_TOKENS: counter "flotilla_worker_step_tokens_total" ["model", "phase"]
        "Tokens that steps have read (prefill) and made (decode).";

    ATTEMPTS: counter "flotilla_worker_attempts_total" ["model", "outcome"]
        "Attempts at requests by how they ended: terminal, fenced (a newer one wrote the journal), handed_back, model_unloadable, panicked, journal_broken (nobody can go on with it).";
    REFUSALS: counter "flotilla_worker_refusals_total" ["reason"]
        "Assignments refused: full, draining, stale_epoch, model_unloadable.";
    APPEND_SECONDS: histogram(SECONDS) "flotilla_worker_journal_append_seconds" []
        "Time from an append to the journal to its confirmation: what answers lag behind their tokens.";
    APPENDS_FAILED: counter "flotilla_worker_journal_appends_failed_total" ["reason"]
        "Appends that were not confirmed: conflict (another entry was in the place), unconfirmed.";

    VLLM_RUNNING: gauge "vllm:num_requests_running" ["model_name"]
        "Requests that hold their model.";
    VLLM_WAITING: gauge "vllm:num_requests_waiting" ["model_name"]
        "Requests on this worker that wait for their model; the dispatcher adds those that wait for a worker.";
    VLLM_KV: level "vllm:kv_cache_usage_perc" ["model_name"]
        "Part of the pages for keys and values of a model's devices that is in use, cached ones included; 1 is full.";
    VLLM_FIRST_TOKEN_SECONDS: histogram(VLLM_FIRST_TOKEN) "vllm:time_to_first_token_seconds" ["model_name"]
        "Time from the publish of a request to the first token of its first attempt.";
    VLLM_TOKEN_SECONDS: histogram(VLLM_TOKEN) "vllm:time_per_output_token_seconds" ["model_name"]
        "Time between tokens of an answer.";
    VLLM_E2E_SECONDS: histogram(VLLM_REQUEST) "vllm:e2e_request_latency_seconds" ["model_name"]
        "Time from the publish of a request to the end of its answer.";
    VLLM_QUEUE_SECONDS: histogram(VLLM_REQUEST) "vllm:request_queue_time_seconds" ["model_name"]
        "Time from the publish of a request until the engine has it.";
    VLLM_PROMPT_TOKENS: counter "vllm:prompt_tokens_total" ["model_name"]
        "Tokens of prompts that the engine was given.";
    VLLM_GENERATION_TOKENS: counter "vllm:generation_tokens_total" ["model_name"]
        "Tokens of answers.";
    VLLM_SUCCESS: counter "vllm:request_success_total" ["model_name", "finished_reason"]
        "Requests with an answer: stop, length, or abort when it was cancelled.";
}
