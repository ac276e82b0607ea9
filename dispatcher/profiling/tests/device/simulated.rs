//! A device in virtual time: steps of a profile's lengths, a number of slots, and a queue before them.

use std::collections::VecDeque;
use std::time::Duration;

use flotilla_profile::{DeviceProfile, Signature, StepTimes};
use flotilla_profiling::{Measurement, Offered, Outcome, Plan, PointReport, RequestTimes};
use flotilla_protocol::profile::Profile;

/// A device that answers requests step by step.
#[derive(Debug, Clone)]
pub struct Simulated {
    steps: StepTimes,
    pub slots: usize,
    /// Time on the way to the device and back, of every request.
    pub way: Duration,
}

/// What a device is made of.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    pub prefill_tokens_per_s: f64,
    pub step_s: f64,
    pub each_s: f64,
    pub slots: u32,
}

struct Running {
    index: usize,
    prompt_left: u32,
    made: u32,
}

impl Simulated {
    pub fn new(made: Made) -> Self {
        let Made {
            prefill_tokens_per_s,
            step_s,
            each_s,
            slots,
        } = made;
        let last = f64::from(slots) + 1.0;
        let document = Profile {
            gpu: "simulated".to_owned(),
            cost: 1.0,
            tputs: vec![vec![1.0]],
            indexes: vec![vec![16.0], vec![16.0]],
            created: 0.0,
            e2e: Some(vec![vec![1.0]]),
            ttft: None,
            tpot: None,
            slos: None,
            tpot_by_batch: Some(vec![(1.0, step_s + each_s), (last, step_s + each_s * last)]),
            prefill_tokens_per_s: Some(prefill_tokens_per_s),
            load_seconds_by_tier: None,
            samples: None,
            source: None,
        };
        Self::of(&DeviceProfile::try_from(document).unwrap(), slots)
    }

    pub fn of(profile: &DeviceProfile, slots: u32) -> Self {
        Self {
            steps: StepTimes::from_profile(profile),
            slots: slots as usize,
            way: Duration::ZERO,
        }
    }

    /// Answers requests of one length that are sent at these times, in order.
    pub fn answer(&self, length: Signature, sent: &[Duration]) -> Vec<RequestTimes> {
        let mut times: Vec<RequestTimes> = sent
            .iter()
            .map(|&sent| RequestTimes {
                sent,
                started: sent,
                first_token: sent,
                end: sent,
                output_tokens: length.output_tokens,
            })
            .collect();
        let mut waiting: VecDeque<usize> = (0..sent.len()).collect();
        let mut running: Vec<Running> = Vec::new();
        let mut now = Duration::ZERO;
        loop {
            while running.len() < self.slots
                && let Some(index) = waiting.pop_front_if(|index| sent[*index] + self.way <= now)
            {
                times[index].started = now;
                running.push(Running {
                    index,
                    prompt_left: length.prompt_tokens,
                    made: 0,
                });
            }
            if running.is_empty() {
                match waiting.front() {
                    Some(next) => now = sent[*next] + self.way,
                    None => return times,
                }
                continue;
            }
            now += self.step(&mut running);
            for it in &running {
                if it.made == 1 && times[it.index].first_token <= times[it.index].started {
                    times[it.index].first_token = now + self.way;
                }
                if it.made == length.output_tokens {
                    times[it.index].end = now + self.way;
                }
            }
            running.retain(|it| it.made < length.output_tokens);
        }
    }

    /// One step; how long it takes.
    fn step(&self, running: &mut [Running]) -> Duration {
        let (mut budget, mut decoding) = (STEP_TOKENS, 0);
        for it in running.iter_mut() {
            if it.prompt_left == 0 {
                decoding += 1;
                it.made += 1;
                continue;
            }
            let read = it.prompt_left.min(budget);
            budget -= read;
            it.prompt_left -= read;
            if read > 0 && it.prompt_left == 0 {
                it.made = 1;
            }
        }
        self.steps.step(STEP_TOKENS - budget, decoding)
    }

    /// Sends what a point asks for.
    pub fn measure(&self, point: &flotilla_profiling::Point) -> Measurement {
        let times = match point.offered {
            Offered::PerSecond(_) => self.answer(point.signature, &point.arrivals()),
            Offered::Alone => {
                let mut times: Vec<RequestTimes> = Vec::new();
                for _ in 0..point.requests {
                    let at = times.last().map_or(Duration::ZERO, |last| last.end);
                    times.extend(self.answer(point.signature, &[at]));
                }
                times
            }
        };
        let took = times.iter().map(|it| it.end).max().unwrap_or_default();
        Measurement {
            outcomes: times.into_iter().map(Outcome::Answered).collect(),
            took,
        }
    }

    /// Carries a plan out.
    pub fn carry_out(&self, plan: &mut Plan) -> Vec<PointReport> {
        let mut reports = Vec::new();
        while let Some(point) = plan.poll_point() {
            let measurement = self.measure(&point);
            reports.push(plan.handle_point(&point, &measurement).unwrap());
        }
        reports
    }

    /// What the device does when it never lacks work: requests a second, and the middle ones' times. The first ones come
    /// one after the other, so that they are not in step.
    pub fn saturated(&self, length: Signature) -> (f64, Vec<RequestTimes>) {
        let alone = self.answer(length, &[Duration::ZERO])[0].end;
        let slots = u32::try_from(self.slots).unwrap();
        let begin = |index: u32| alone * index.min(slots) / slots;
        let sent: Vec<Duration> = (0..slots * 30 + 30).map(begin).collect();
        let times = self.answer(length, &sent);
        let mut ends: Vec<Duration> = times.iter().map(|it| it.end).collect();
        ends.sort();
        let (from, to) = (self.slots * 10, self.slots * 20);
        let span = (ends[to] - ends[from]).as_secs_f64();
        let middle = times[from..to].to_vec();
        ((to - from) as f64 / span, middle)
    }
}

/// Prompt tokens that one step reads.
const STEP_TOKENS: u32 = 512;
