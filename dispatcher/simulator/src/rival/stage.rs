//! Small situations for the rivals' tests: a fleet of one model, and somebody who plays its workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_profile::DeviceProfile;
use flotilla_protocol::assignment::{AttemptEnd, Done};
use flotilla_protocol::fleet::{DeviceReport, DeviceState, ModelReport, ModelState, Report, WorkerState};
use flotilla_protocol::profile::Profile;
use flotilla_protocol::{Attempt, Class, Epoch, ModelName, Moment, RequestId, WorkerId};
use flotilla_worker_core::ledger::PAGE_BYTES;

use crate::fleet::{DeviceSpec, FleetLimits, FleetSpec, INCARNATION, ModelSpec, Start};
use crate::policy::{Arriving, EndReason, Order, Policy};
use crate::trace::TraceRequest;

pub(super) fn seconds(seconds: f64) -> Moment {
    Moment::after_origin(Duration::from_secs_f64(seconds))
}

pub(super) fn model_name(name: &str) -> ModelName {
    ModelName::new(name).unwrap()
}

/// A profile with 4..512 output and 128..2048 prompt tokens, as the published grid. `cell` gives throughput
/// and time.
pub(super) fn profile(kind: &str, cell: impl Fn(usize, usize) -> (f64, f64)) -> Profile {
    let matrix = |pick: fn((f64, f64)) -> f64| {
        let row = |output| (0..5).map(|input| pick(cell(output, input))).collect();
        (0..8).map(row).collect::<Vec<Vec<f64>>>()
    };
    Profile {
        gpu: kind.to_owned(),
        cost: 1.0,
        tputs: matrix(|(tput, _)| tput),
        indexes: vec![
            (2..10).map(|log| f64::from(1 << log)).collect(),
            (7..12).map(|log| f64::from(1 << log)).collect(),
        ],
        created: 1.0,
        e2e: Some(matrix(|(_, e2e)| e2e)),
        ttft: None,
        tpot: None,
        slos: None,
        tpot_by_batch: Some(vec![(1.0, 0.01), (32.0, 0.04)]),
        prefill_tokens_per_s: Some(10_000.0),
        load_seconds_by_tier: None,
        samples: None,
        source: None,
    }
}

/// So many devices of one kind, of 16 GiB.
pub(super) fn devices(profile: &Profile, count: usize) -> Vec<DeviceSpec> {
    let checked = Arc::new(DeviceProfile::try_from(profile.clone()).unwrap());
    let device = |number| DeviceSpec {
        worker: WorkerId::new(format!("{}-{number}", profile.gpu)).unwrap(),
        kind: profile.gpu.clone(),
        profile: checked.clone(),
        cost_per_hour: 1.0,
        memory_bytes: 16 << 30,
        memory_bytes_per_s: None,
        slots: 8,
        batch_tokens_max: 512,
        models_max: None,
    };
    (0..count).map(device).collect()
}

/// A model with 4 GiB of weights and 0.5 GiB of keys and values for a full context.
pub(super) fn model(name: &str) -> ModelSpec {
    ModelSpec {
        name: model_name(name),
        weights_bytes: 4 << 30,
        kv_bytes_per_token: 128 << 10,
        context_tokens_max: 4_096,
        slots: None,
        slo: None,
        policy: None,
        output_tokens_prior: None,
        start: Start::Cold,
        profiles: BTreeMap::new(),
    }
}

pub(super) fn fleet(devices: Vec<DeviceSpec>, models: &[&str]) -> FleetSpec {
    FleetSpec {
        devices,
        models: models.iter().map(|name| model(name)).collect(),
        limits: FleetLimits::default(),
    }
}

/// A request for `model` that comes at a moment; `name` is all that tells it from others.
pub(super) fn arriving(name: &str, model: &str, at: Moment, prompt_tokens: u32) -> Arriving {
    Arriving {
        id: RequestId::new(name).unwrap(),
        index: 0,
        published: at,
        tenant: None,
        class: Class::Interactive,
        model: model_name(model),
        prompt_tokens,
        output_tokens_max: 512,
        slo: None,
        deadline: None,
    }
}

/// The same request in a trace.
pub(super) fn in_trace(arriving: &Arriving) -> TraceRequest {
    TraceRequest {
        at: arriving.published.since(Moment::default()),
        id: arriving.id.clone(),
        tenant: None,
        class: arriving.class,
        model: arriving.model.clone(),
        prompt_tokens: arriving.prompt_tokens,
        output_tokens: 1,
        output_tokens_max: arriving.output_tokens_max,
        slo: arriving.slo,
        deadline: None,
    }
}

/// What a policy has ordered since this was last asked, as `request>worker`, `request!reason` and
/// `model-worker`.
pub(super) fn orders(policy: &mut dyn Policy) -> Vec<String> {
    std::iter::from_fn(|| policy.poll_order())
        .map(|order| match order {
            Order::Assign { worker, assignment } => format!("{}>{worker}", assignment.request),
            Order::Unload { worker, model } => format!("{model}-{worker}"),
            Order::Prefetch { worker, model } => format!("{model}+{worker}"),
            Order::End { request, reason } => match reason {
                EndReason::DeadlineExceeded => format!("{request}!deadline"),
                EndReason::Refused => format!("{request}!refused"),
            },
        })
        .collect()
}

/// A request has ended on a worker, with an answer of so many tokens.
pub(super) fn done(worker: &str, request: &str, prompt_tokens: u32, output_tokens: u32) -> Done {
    Done {
        worker: WorkerId::new(worker).unwrap(),
        incarnation: INCARNATION,
        request: RequestId::new(request).unwrap(),
        attempt: Attempt(1),
        end: AttemptEnd::Terminal,
        prompt_tokens,
        output_tokens,
    }
}

/// A report of a worker with 16 GiB on which these models stand so.
pub(super) fn report(worker: &str, seq: u64, models: &[(&str, ModelState)]) -> Report {
    let resident = models.iter().map(|(name, state)| ModelReport {
        model: model_name(name),
        state: state.clone(),
        device: Some(0),
        leases: 0,
        waiting: 0,
        weights_bytes: 4 << 30,
        expires_in_ms: None,
        load_ms: None,
        shards: Vec::new(),
        kv_tokens_max: None,
        loaded_from: None,
    });
    let taken = (9 << 29) / PAGE_BYTES * models.len() as u64;
    Report {
        worker: WorkerId::new(worker).unwrap(),
        incarnation: INCARNATION,
        seq,
        epoch_seen: Epoch(1),
        state: WorkerState::Ready,
        free_slots: u32::MAX,
        running: Vec::new(),
        models: resident.collect(),
        devices: vec![DeviceReport {
            device: 0,
            page_bytes: PAGE_BYTES,
            pages_total: (16 << 30) / PAGE_BYTES,
            pages_weights: taken,
            pages_kv: 0,
            pages_workspace: 0,
            pages_kv_kept: None,
            resident_bytes: None,
            state: DeviceState::Working,
        }],
        host: None,
        resident_bytes: None,
        departures: Vec::new(),
        fetches: Vec::new(),
    }
}
