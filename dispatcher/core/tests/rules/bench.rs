//! What the rules' tests say to a dispatcher in one word.

#[path = "../shared/bench.rs"]
mod shared;

use flotilla_dispatcher_core::{Action, Arrival, AssignOutcome, JournalState, Origin};
use flotilla_protocol::assignment::{AssignReply, Assignment, AttemptEnd, Done, Refusal};
use flotilla_protocol::event::Event;
use flotilla_protocol::fleet::{
    DeviceReport, DeviceState, ModelReport, ModelState, Report, RunningRequest, WorkerState,
};
use flotilla_protocol::{Attempt, Epoch, Strikes};

pub use shared::{Bench, arrival, model, request, settings, worker};

pub fn report(id: &str, seq: u64, free_slots: u32, running: &[(&str, u32)]) -> Report {
    let running = running.iter().map(|(id, attempt)| RunningRequest {
        request: request(id),
        attempt: Attempt(*attempt),
        model: model("m"),
        prompt_tokens: 5,
        output_tokens: 0,
        alone: false,
    });
    Report {
        worker: worker(id),
        incarnation: 1,
        seq,
        epoch_seen: Epoch(7),
        state: WorkerState::Ready,
        free_slots,
        running: running.collect(),
        models: Vec::new(),
        devices: vec![DeviceReport {
            device: 0,
            page_bytes: 1,
            pages_total: 100,
            pages_weights: 0,
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

pub fn with_model(mut report: Report, name: &str, state: ModelState) -> Report {
    report.models.push(ModelReport {
        model: model(name),
        state,
        device: Some(0),
        leases: 0,
        waiting: 0,
        weights_bytes: 10,
        expires_in_ms: None,
        load_ms: None,
        shards: Vec::new(),
        kv_tokens_max: None,
        loaded_from: None,
    });
    report
}

pub fn done(from: &str, id: &str, attempt: u32, end: AttemptEnd) -> Done {
    Done {
        worker: worker(from),
        incarnation: 1,
        request: request(id),
        attempt: Attempt(attempt),
        end,
        prompt_tokens: 5,
        output_tokens: 3,
    }
}

pub fn open(attempt: u32, strikes: u32, by: &str) -> JournalState {
    JournalState::Open {
        attempt: Attempt(attempt),
        strikes: Strikes(strikes),
        worker: worker(by),
        incarnation: None,
        alone: false,
    }
}

impl Bench {
    pub fn new() -> Self {
        Self::with(settings())
    }

    /// Everything that is to be done, as short texts; progress is left out.
    pub fn actions(&mut self) -> Vec<String> {
        self.dispatcher.check_invariants();
        let actions = std::iter::from_fn(|| self.dispatcher.poll_action());
        actions.filter_map(|action| tell(&action)).collect()
    }

    pub fn places(&mut self) -> Vec<(String, u64)> {
        let actions = std::iter::from_fn(|| self.dispatcher.poll_action());
        let places = actions.filter_map(|action| match action {
            Action::Progress {
                request, progress, ..
            } => Some((request.to_string(), progress.position?)),
            _ => None,
        });
        places.collect()
    }

    pub fn assignment(&mut self) -> Assignment {
        let actions = std::iter::from_fn(|| self.dispatcher.poll_action());
        let mut assignments = actions.filter_map(|action| match action {
            Action::Assign { assignment, .. } => Some(assignment),
            _ => None,
        });
        assignments.next().expect("something is assigned")
    }

    pub fn end(&mut self) -> Event {
        let actions = std::iter::from_fn(|| self.dispatcher.poll_action());
        let mut ends = actions.filter_map(|action| match action {
            Action::End { event, .. } => Some(event),
            _ => None,
        });
        ends.next().expect("something is ended")
    }

    /// The workers that are asked for reports; nothing else may be to be done.
    pub fn asked_for_reports(&mut self) -> Vec<String> {
        let actions = std::iter::from_fn(|| self.dispatcher.poll_action());
        let asked = actions.map(|action| match action {
            Action::AskForReport { worker } => worker.to_string(),
            other => panic!("{other:?} was not expected"),
        });
        asked.collect()
    }

    pub fn absent(&mut self, id: &str) {
        self.dispatcher.handle_absent(self.now, &worker(id));
    }

    pub fn arrive(&mut self, id: &str, sequence: u64) {
        self.arrive_as(arrival(id, sequence));
    }

    pub fn arrive_again(&mut self, id: &str, sequence: u64) {
        let origin = Origin::MaybeSeen;
        self.arrive_as(Arrival {
            origin,
            ..arrival(id, sequence)
        });
    }

    pub fn journal(&mut self, id: &str, state: JournalState) {
        self.dispatcher.handle_journal(self.now, &request(id), state);
    }

    pub fn outcome(&mut self, from: &str, id: &str, attempt: u32, outcome: AssignOutcome) {
        self.dispatcher
            .handle_assign_reply(self.now, &worker(from), &request(id), Attempt(attempt), outcome);
    }

    pub fn accept(&mut self, from: &str, id: &str, attempt: u32, report_seq: u64) {
        let reply = AssignReply::Accepted {
            report_seq,
            incarnation: None,
        };
        self.outcome(from, id, attempt, AssignOutcome::Replied(reply));
    }

    pub fn refuse(&mut self, from: &str, id: &str, attempt: u32, refusal: Refusal) {
        self.outcome(
            from,
            id,
            attempt,
            AssignOutcome::Replied(AssignReply::Refused(refusal)),
        );
    }

    pub fn done(&mut self, done: Done) {
        self.dispatcher.handle_done(self.now, done);
    }

    pub fn ended(&mut self, id: &str) {
        self.dispatcher.handle_ended(self.now, &request(id));
    }
}

fn tell(action: &Action) -> Option<String> {
    Some(match action {
        Action::Assign { worker, assignment } => {
            let Assignment {
                request,
                attempt,
                strikes,
                alone,
                ..
            } = assignment;
            let alone = if *alone { ", alone" } else { "" };
            format!("assign {request} to {worker}: attempt {attempt}, {strikes} strikes{alone}")
        }
        Action::ReadJournal { request } => format!("read {request}"),
        Action::End {
            request,
            event: Event::Failed(failed),
            ..
        } => format!("end {request}: {}", failed.error.code),
        Action::End { request, .. } => format!("end {request}: finished"),
        Action::DeadLetter { request, .. } => format!("bury {request}"),
        Action::Ack { request, sequences } => {
            let sequences: Vec<String> = sequences.iter().map(ToString::to_string).collect();
            format!("ack {request}: {}", sequences.join(" "))
        }
        Action::CancelOnWorker { worker, request } => format!("cancel {request} on {worker}"),
        Action::Prefetch { .. } | Action::Progress { .. } | Action::AskForReport { .. } => return None,
        Action::StepDown { seen } => format!("step down: epoch {seen} was seen"),
    })
}
