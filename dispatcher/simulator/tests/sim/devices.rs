//! What one device does with what it is given.

use std::time::Duration;

use flotilla_profile::{LoadTier, StepTimes};
use flotilla_protocol::assignment::{AssignReply, Assignment, Refusal};
use flotilla_protocol::fleet::ModelState;
use flotilla_protocol::{Moment, RequestId};
use flotilla_simulator::device::{Device, Ending, Output, Work};
use flotilla_simulator::fleet::{DeviceSpec, FleetLimits, FleetSpec, ModelSpec, Start};
use flotilla_simulator::policy::Intake;

use crate::scenarios::{assignment, device, model, model_name, sample};

/// A device alone with its clock.
struct Bench {
    device: Device,
    now: Moment,
    given: u32,
}

/// What the device told, and when.
type Told = Vec<(Moment, Output)>;

impl Bench {
    fn new(spec: DeviceSpec, models: Vec<ModelSpec>, intake: Intake) -> Self {
        let fleet = FleetSpec {
            devices: vec![spec],
            models,
            limits: FleetLimits::default(),
        };
        Self {
            device: Device::new(&fleet.devices[0], &fleet, intake),
            now: Moment::default(),
            given: 0,
        }
    }

    /// A fast device with one model that is there.
    fn warm() -> Self {
        Self::new(device("d"), vec![model("chat")], Intake::ByFreeSlots)
    }

    fn give(&mut self, model: &str, prompt_tokens: u32, output_tokens: u32) -> RequestId {
        let assignment = assignment(self.given, &model_name(model));
        self.give_as(&assignment, prompt_tokens, output_tokens);
        assignment.request
    }

    fn give_as(&mut self, assignment: &Assignment, prompt_tokens: u32, output_tokens: u32) {
        self.given += 1;
        let work = Work {
            prompt_tokens,
            output_tokens,
            output_tokens_max: output_tokens + 10,
        };
        self.device.handle_assignment(self.now, assignment, work);
    }

    /// Lets time pass until so many answers have ended.
    fn until_ended(&mut self, count: usize) -> Told {
        let (mut told, mut ended) = (Vec::new(), 0);
        loop {
            while let Some(output) = self.device.poll_output() {
                ended += usize::from(matches!(output, Output::Ended { .. }));
                told.push((self.now, output));
            }
            if ended == count {
                return told;
            }
            self.now = self.device.poll_timeout().unwrap();
            self.device.handle_timeout(self.now);
        }
    }
}

fn first_token(told: &Told, of: &RequestId) -> Duration {
    moment(
        told,
        |output| matches!(output, Output::FirstToken { request } if request == of),
    )
}

fn end(told: &Told, of: &RequestId) -> Duration {
    moment(
        told,
        |output| matches!(output, Output::Ended { request, .. } if request == of),
    )
}

fn moment(told: &Told, is: impl Fn(&Output) -> bool) -> Duration {
    let (at, _) = told.iter().find(|(_, output)| is(output)).unwrap();
    at.since(Moment::default())
}

fn steps() -> StepTimes {
    StepTimes::from_profile(&sample("fast"))
}

#[test]
fn a_request_alone_takes_the_chunks_of_its_prompt_and_a_step_for_each_further_token() {
    let mut bench = Bench::warm();
    let request = bench.give("chat", 1_300, 40);
    let told = bench.until_ended(1);
    let prefill = steps().step(512, 0) * 2 + steps().step(276, 0);
    assert_eq!(first_token(&told, &request), prefill);
    assert_eq!(end(&told, &request), prefill + steps().step(0, 1) * 39);
}

#[test]
fn a_full_device_makes_as_many_tokens_a_second_as_its_profile_says() {
    let mut bench = Bench::warm();
    for _ in 0..32 {
        bench.give("chat", 2, 500);
    }
    let told = bench.until_ended(32);
    let last = told
        .iter()
        .rfind(|(_, output)| matches!(output, Output::Ended { .. }));
    let rate = 32.0 * 500.0 / last.unwrap().0.since(Moment::default()).as_secs_f64();
    let expected = 32.0 / steps().step(0, 32).as_secs_f64();
    assert!(
        (rate / expected - 1.0).abs() < 0.02,
        "{rate} tokens a second instead of {expected}"
    );
}

#[test]
fn requests_of_the_same_length_do_not_find_each_others_prompts() {
    let mut bench = Bench::warm();
    let one = bench.give("chat", 512, 1);
    let told = bench.until_ended(1);
    let alone = first_token(&told, &one);
    let began = bench.now.since(Moment::default());
    let other = bench.give("chat", 512, 1);
    let told = bench.until_ended(1);
    assert_eq!(first_token(&told, &other) - began, alone);
}

#[test]
fn requests_beyond_the_slots_are_refused_unless_the_worker_queues_them() {
    let few = || DeviceSpec {
        slots: 1,
        ..device("d")
    };
    let replies = |intake| {
        let mut bench = Bench::new(few(), vec![model("chat")], intake);
        bench.give("chat", 10, 5);
        bench.give("chat", 10, 5);
        let told = bench.until_ended(1);
        let replies = told.into_iter().filter_map(|(_, output)| match output {
            Output::Reply { reply, .. } => Some(reply),
            _ => None,
        });
        replies.collect::<Vec<_>>()
    };
    let refused = AssignReply::Refused(Refusal::Full);
    assert_eq!(replies(Intake::ByFreeSlots)[1], refused);
    assert_ne!(replies(Intake::Unbounded)[1], refused);
}

fn cold(name: &str) -> ModelSpec {
    ModelSpec {
        start: Start::Cold,
        ..model(name)
    }
}

fn load_time(tier: LoadTier) -> Duration {
    sample("fast").load_time(tier).unwrap()
}

#[test]
fn a_model_comes_from_its_origin_once_and_from_host_memory_afterwards() {
    let one_at_a_time = DeviceSpec {
        models_max: Some(1),
        ..device("d")
    };
    let mut bench = Bench::new(one_at_a_time, vec![cold("a"), cold("b")], Intake::ByFreeSlots);
    let mut waits = Vec::new();
    for model in ["a", "b", "a"] {
        let began = bench.now.since(Moment::default());
        let request = bench.give(model, 1, 1);
        let told = bench.until_ended(1);
        waits.push(first_token(&told, &request) - began - steps().step(0, 1));
    }
    let (origin, host) = (load_time(LoadTier::Origin), load_time(LoadTier::Host));
    assert_eq!(waits, [origin, origin, host]);
    let usage = bench.device.usage();
    assert_eq!((usage.loads, usage.swaps), (3, 2));
}

#[test]
fn a_prefetched_model_is_loaded_from_host_memory() {
    let mut bench = Bench::new(device("d"), vec![cold("a")], Intake::ByFreeSlots);
    bench.device.handle_prefetch(bench.now, &model_name("a"));
    let (origin, host) = (load_time(LoadTier::Origin), load_time(LoadTier::Host));
    bench.now = bench.now + (origin - host);
    let began = bench.now.since(Moment::default());
    let request = bench.give("a", 1, 1);
    let told = bench.until_ended(1);
    assert_eq!(first_token(&told, &request) - began, host + steps().step(0, 1));
}

#[test]
fn a_load_that_began_beside_its_prefetch_takes_no_longer_than_one_without() {
    let mut bench = Bench::new(device("d"), vec![cold("a")], Intake::ByFreeSlots);
    bench.device.handle_prefetch(bench.now, &model_name("a"));
    let request = bench.give("a", 1, 1);
    let told = bench.until_ended(1);
    assert_eq!(
        first_token(&told, &request),
        load_time(LoadTier::Origin) + steps().step(0, 1)
    );
}

#[test]
fn a_request_whose_deadline_passes_ends_on_the_device_and_leaves_its_place() {
    let mut bench = Bench::warm();
    let mut late = assignment(0, &model_name("chat"));
    late.deadline_in_ms = Some(1_000);
    bench.give_as(&late, 10, 500);
    let told = bench.until_ended(1);
    assert_eq!(end(&told, &late.request), Duration::from_secs(1));
    let Some((
        _,
        Output::Ended {
            output_tokens,
            ending,
            ..
        },
    )) = told
        .iter()
        .find(|(_, output)| matches!(output, Output::Ended { .. }))
    else {
        panic!("{told:?}")
    };
    assert_eq!(*ending, Ending::DeadlineExceeded);
    let further = (Duration::from_secs(1) - steps().step(10, 0)).div_duration_f64(steps().step(0, 1));
    assert_eq!(f64::from(*output_tokens), 1.0 + further.floor());
    let began = bench.now;
    let next = bench.give("chat", 10, 1);
    let told = bench.until_ended(1);
    let waited = first_token(&told, &next) - began.since(Moment::default());
    assert!(
        waited < steps().step(0, 1) + steps().step(10, 0) + Duration::from_millis(1),
        "{waited:?}"
    );
}

#[test]
fn reports_come_at_once_and_then_as_often_as_something_changes() {
    let mut bench = Bench::warm();
    bench.give("chat", 10, 200);
    let told = bench.until_ended(1);
    let reports: Vec<_> = told
        .iter()
        .filter_map(|(at, output)| match output {
            Output::Report(report) => Some((at.since(Moment::default()), report)),
            _ => None,
        })
        .collect();
    let (at, first) = reports[0];
    assert_eq!(at, Duration::ZERO);
    assert_eq!((first.seq, first.models[0].state.clone()), (1, ModelState::Ready));
    assert!(reports.len() >= 3, "2.4 s of work: {}", reports.len());
    let running = reports.iter().flat_map(|(_, report)| &report.running);
    let made: Vec<_> = running.map(|running| running.output_tokens).collect();
    assert!(made.is_sorted() && made.last() > Some(&100), "{made:?}");
    let (_, last) = reports.last().unwrap();
    assert!(last.running.is_empty(), "its end is a change");
}
