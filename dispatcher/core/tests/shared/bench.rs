//! A dispatcher under a clock that its tests move, and the words in which they speak of requests.

use std::time::Duration;

use bytes::Bytes;
use flotilla_dispatcher_core::{
    Admission, Arrival, Dispatcher, Origin, PolicySettings, PromptCount, Settings, StreamSequence,
};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::{Class, Encoding, Epoch, ModelName, Moment, RequestId, Strikes, WorkerId};

pub struct Bench {
    pub dispatcher: Dispatcher,
    pub now: Moment,
}

pub fn request(id: &str) -> RequestId {
    RequestId::new(id).unwrap()
}

pub fn worker(id: &str) -> WorkerId {
    WorkerId::new(id).unwrap()
}

pub fn model(name: &str) -> ModelName {
    ModelName::new(name).unwrap()
}

pub fn arrival(id: &str, sequence: u64) -> Arrival {
    Arrival {
        sequence: StreamSequence(sequence),
        request: request(id),
        class: Class::Interactive,
        model: model("m"),
        encoding: Encoding::Json,
        body: Bytes::from_static(b"{}"),
        prompt_tokens: 5,
        prompt_count: PromptCount::Counted,
        output_tokens_max: 16,
        tenant: None,
        slo: None,
        only_worker: None,
        age: Duration::ZERO,
        deadline_in: None,
        origin: Origin::Fresh,
    }
}

pub fn settings() -> Settings {
    Settings {
        epoch: Epoch(7),
        worker_lost_after: Duration::from_secs(4),
        strikes_max: Strikes(3),
        held_max: 2000,
        workers_max: 4,
        progress_interval: Duration::from_secs(1),
        policy: PolicySettings::default(),
    }
}

impl Bench {
    pub fn with(settings: Settings) -> Self {
        let now = Moment::after_origin(Duration::from_secs(100));
        Self {
            dispatcher: Dispatcher::new(now, settings),
            now,
        }
    }

    pub fn arrive_as(&mut self, arrival: Arrival) {
        assert_eq!(self.dispatcher.handle_arrival(self.now, arrival), Admission::Held);
    }

    pub fn report(&mut self, report: Report) {
        self.dispatcher.handle_report(self.now, report);
    }

    /// Lets time pass, firing every timer at its moment.
    pub fn wait(&mut self, seconds: f64) {
        let until = self.now + Duration::from_secs_f64(seconds);
        while let Some(at) = self.dispatcher.poll_timeout().filter(|at| *at <= until) {
            self.dispatcher.handle_timeout(at);
        }
        self.now = until;
    }
}
