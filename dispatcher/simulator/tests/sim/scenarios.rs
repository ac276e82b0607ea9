//! Small fleets and traces.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use flotilla_profile::DeviceProfile;
use flotilla_protocol::assignment::Assignment;
use flotilla_protocol::profile::Profile;
use flotilla_protocol::{Attempt, Class, Encoding, Epoch, ModelName, RequestId, Strikes, WorkerId};
use flotilla_simulator::fleet::{DeviceSpec, FleetLimits, FleetSpec, ModelSpec, Start};
use flotilla_simulator::run::Scenario;
use flotilla_simulator::trace::{Trace, TraceRequest};

/// The sample profile of a kind of device, `fast` or `slow`.
pub fn sample(kind: &str) -> DeviceProfile {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/profiles");
    let json = fs::read_to_string(format!("{folder}/sample-{kind}.json")).unwrap();
    DeviceProfile::try_from(Profile::from_json(json.as_bytes()).unwrap()).unwrap()
}

pub fn device(name: &str) -> DeviceSpec {
    DeviceSpec {
        worker: WorkerId::new(name).unwrap(),
        kind: "sim-fast".to_owned(),
        profile: Arc::new(sample("fast")),
        memory_bytes_per_s: None,
        cost_per_hour: 1.0,
        memory_bytes: 48 << 30,
        slots: 32,
        batch_tokens_max: 512,
        models_max: None,
    }
}

pub fn model(name: &str) -> ModelSpec {
    ModelSpec {
        name: ModelName::new(name).unwrap(),
        weights_bytes: 8 << 30,
        kv_bytes_per_token: 128 << 10,
        context_tokens_max: 8_192,
        slots: None,
        slo: None,
        policy: None,
        output_tokens_prior: None,
        start: Start::Warm,
        profiles: BTreeMap::new(),
    }
}

pub fn model_name(name: &str) -> ModelName {
    ModelName::new(name).unwrap()
}

/// A request of 200 tokens with an answer of 50.
pub fn request(index: u32) -> TraceRequest {
    TraceRequest {
        at: Duration::ZERO,
        id: RequestId::new(format!("request-{index}")).unwrap(),
        tenant: None,
        class: Class::Interactive,
        model: model_name("chat"),
        prompt_tokens: 200,
        output_tokens: 50,
        output_tokens_max: 100,
        slo: None,
        deadline: None,
    }
}

/// So many such requests a second.
pub fn steady(count: u32, rate: f64) -> Trace {
    let request = |index: u32| TraceRequest {
        at: Duration::from_secs_f64(f64::from(index) / rate),
        ..request(index)
    };
    Trace {
        name: "steady".to_owned(),
        requests: (0..count).map(request).collect(),
    }
}

/// The first attempt of a request.
pub fn assignment(index: u32, model: &ModelName) -> Assignment {
    Assignment {
        request: RequestId::new(format!("request-{index}")).unwrap(),
        attempt: Attempt(1),
        strikes: Strikes(0),
        epoch: Epoch(1),
        class: Class::Interactive,
        model: model.clone(),
        encoding: Encoding::Json,
        body: Vec::new().into(),
        queued_ms: 0,
        deadline_in_ms: None,
        evict_first: Vec::new(),
        alone: false,
    }
}

pub fn one_device(trace: Trace) -> Scenario {
    let fleet = FleetSpec {
        devices: vec![device("fast-0")],
        models: vec![model("chat")],
        limits: FleetLimits::default(),
    };
    Scenario::new(trace, fleet).unwrap()
}
