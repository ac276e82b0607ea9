//! The real dispatcher as a policy.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use flotilla_dispatcher_core::{
    Action, Admission, Arrival, AssignOutcome, Dispatcher, JournalState, Origin, PolicySettings, PromptCount,
    Settings, StreamSequence,
};
use flotilla_profile::DeviceProfile;
use flotilla_protocol::assignment::{AssignReply, AttemptEnd, Done};
use flotilla_protocol::catalog::{self, CatalogEntry};
use flotilla_protocol::event::{ErrorCode, Event};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::{Attempt, Encoding, Epoch, Moment, RequestId, Strikes, WorkerId};

use super::{Arriving, EndReason, Intake, Order, Policy, left};
use crate::fleet::FleetSpec;

/// The dispatcher's core, with stream and journals so far as it asks for them.
#[derive(Debug)]
pub struct Flotilla {
    core: Dispatcher,
    /// Requests whose journals are terminal and that the core still holds.
    terminal: BTreeSet<RequestId>,
    orders: VecDeque<Order>,
}

impl Flotilla {
    /// Begins a term at the origin of time, with the fleet's catalog, registrations and profiles. `placement` is
    /// how every model's requests are placed; `None` leaves it to the catalog.
    #[must_use]
    pub fn new(fleet: &FleetSpec, placement: Option<catalog::Policy>) -> Self {
        Self::told(fleet, placement, DeviceProfile::clone)
    }

    /// The same with wrong profiles: of everything it is told that it takes `times` as long as it does.
    ///
    /// # Panics
    /// When `times` is not above 0, or so extreme that times so far off are no numbers any more.
    #[must_use]
    pub fn misinformed(fleet: &FleetSpec, placement: Option<catalog::Policy>, times: f64) -> Self {
        Self::told(fleet, placement, |profile| slower(profile, times))
    }

    fn told(
        fleet: &FleetSpec,
        placement: Option<catalog::Policy>,
        told: impl Fn(&DeviceProfile) -> DeviceProfile,
    ) -> Self {
        let now = Moment::default();
        let mut core = Dispatcher::new(now, settings());
        for model in &fleet.models {
            let policy = placement.or(model.policy);
            core.handle_catalog(
                now,
                &CatalogEntry {
                    policy,
                    ..model.entry()
                },
            );
        }
        for device in &fleet.devices {
            core.handle_registration(now, &device.registration());
        }
        for model in &fleet.models {
            let devices = fleet.devices.iter();
            let profiles = devices.map(|device| (&device.kind, fleet.profile(model, device)));
            for (_, profile) in profiles.collect::<BTreeMap<_, _>>() {
                core.handle_profile(now, &model.name, told(profile));
            }
        }
        let mut begun = Self {
            core,
            terminal: BTreeSet::new(),
            orders: VecDeque::new(),
        };
        begun.carry_out(now);
        begun
    }

    /// Carries out what the core wants, until it wants nothing more.
    fn carry_out(&mut self, now: Moment) {
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Assign { worker, assignment } => {
                    self.orders.push_back(Order::Assign { worker, assignment });
                }
                Action::ReadJournal { request } => {
                    let state = match self.terminal.contains(&request) {
                        true => JournalState::Terminal,
                        false => JournalState::Empty,
                    };
                    self.core.handle_journal(now, &request, state);
                }
                Action::End { request, event, .. } => {
                    self.core.handle_ended(now, &request);
                    let reason = reason(&event);
                    self.orders.push_back(Order::End { request, reason });
                }
                Action::Ack { request, .. } => {
                    self.terminal.remove(&request);
                }
                Action::Prefetch { worker, model } => {
                    self.orders.push_back(Order::Prefetch { worker, model });
                }
                Action::DeadLetter { .. } | Action::CancelOnWorker { .. } | Action::Progress { .. } => {}
                // Workers report when something changes and are never lost.
                Action::AskForReport { .. } => {}
                Action::StepDown { seen } => unreachable!("there is one leader, and epoch {seen} was seen"),
            }
        }
    }
}

impl Policy for Flotilla {
    fn intake(&self) -> Intake {
        Intake::ByFreeSlots
    }

    fn handle_arrival(&mut self, now: Moment, arriving: &Arriving) {
        let arrival = Arrival {
            sequence: StreamSequence(arriving.index as u64 + 1),
            request: arriving.id.clone(),
            class: arriving.class,
            model: arriving.model.clone(),
            encoding: Encoding::Json,
            body: Bytes::new(),
            prompt_tokens: arriving.prompt_tokens,
            prompt_count: PromptCount::Counted,
            output_tokens_max: arriving.output_tokens_max,
            tenant: arriving.tenant.clone(),
            slo: arriving.slo,
            age: now.since(arriving.published),
            deadline_in: left(now, arriving.deadline),
            only_worker: None,
            origin: Origin::Fresh,
        };
        let admission = self.core.handle_arrival(now, arrival);
        assert_eq!(admission, Admission::Held, "nothing bounds what is held here");
        self.carry_out(now);
    }

    fn handle_report(&mut self, now: Moment, report: Report) {
        self.core.handle_report(now, report);
        self.carry_out(now);
    }

    fn handle_done(&mut self, now: Moment, done: Done) {
        if done.end == AttemptEnd::Terminal && self.core.holds(&done.request) {
            self.terminal.insert(done.request.clone());
        }
        self.core.handle_done(now, done);
        self.carry_out(now);
    }

    fn handle_reply(
        &mut self,
        now: Moment,
        worker: &WorkerId,
        request: &RequestId,
        attempt: Attempt,
        reply: AssignReply,
    ) {
        let outcome = AssignOutcome::Replied(reply);
        self.core
            .handle_assign_reply(now, worker, request, attempt, outcome);
        self.carry_out(now);
    }

    fn handle_timeout(&mut self, now: Moment) {
        self.core.handle_timeout(now);
        self.carry_out(now);
    }

    fn poll_timeout(&self) -> Option<Moment> {
        self.core.poll_timeout()
    }

    fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }
}

/// A profile that says of everything but loads that it takes `times` as long.
fn slower(profile: &DeviceProfile, times: f64) -> DeviceProfile {
    let mut document = profile.document().clone();
    let matrices = [&mut document.e2e, &mut document.ttft, &mut document.tpot];
    for seconds in matrices.into_iter().flatten().flatten().flatten() {
        *seconds *= times;
    }
    for rate in document.tputs.iter_mut().flatten() {
        *rate /= times;
    }
    for (_, seconds) in document.tpot_by_batch.iter_mut().flatten() {
        *seconds *= times;
    }
    document.prefill_tokens_per_s = document.prefill_tokens_per_s.map(|rate| rate / times);
    DeviceProfile::try_from(document).expect("a profile with all times in proportion is one")
}

fn reason(event: &Event) -> EndReason {
    match event {
        Event::Failed(failed) if failed.error.code == ErrorCode::DeadlineExceeded => {
            EndReason::DeadlineExceeded
        }
        Event::Failed(_)
        | Event::Finished(_)
        | Event::Accepted(_)
        | Event::Progress(_)
        | Event::Tokens(_) => EndReason::Refused,
    }
}

fn settings() -> Settings {
    Settings {
        epoch: Epoch(1),
        worker_lost_after: WORKER_LOST_AFTER,
        strikes_max: STRIKES_MAX,
        held_max: usize::MAX,
        workers_max: WORKERS_MAX,
        progress_interval: PROGRESS_INTERVAL,
        policy: PolicySettings::default(),
    }
}

/// As the dispatcher's own default.
const WORKER_LOST_AFTER: Duration = Duration::from_secs(4);
/// As the dispatcher's own default.
const WORKERS_MAX: usize = 1_000;
/// As the dispatcher's own default.
const STRIKES_MAX: Strikes = Strikes(3);
/// As the dispatcher's own; its news go nowhere.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
