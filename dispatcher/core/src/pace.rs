//! How fast a device goes with a given crowd on it, and who would be late because of one more.
//!
//! A share says how many requests of one length a device holds. It does not say what a long prompt does to the short
//! answers beside it, or how soon one with little time to spare is late. Both follow from how a device works, step by
//! step: each step makes one token of everybody who has read the prompt and reads a chunk of the prompts that wait.
//! With `n` decoding, a decode step of `d(n)`, `P` seconds of prompts to read and `c` seconds a chunk
//!
//! ```text
//! a prompt is read after        P · (1 + d(n) / c)
//! k tokens more are made in     k · d(n) / (1 − r) + min(P, k · c)
//! ```
//!
//! where `r` is the part of its time that the device reads prompts lately, as more of them will come.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_profile::StepTimes;
use flotilla_protocol::{ModelName, Moment};

use crate::fleet::{Booking, Device};
use crate::micros::{Micros, micros};
use crate::price::Asked;

/// The steps of one model on a device, and by how much its times are to be corrected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps<'a> {
    pub(crate) times: &'a StepTimes,
    pub(crate) factor: f64,
    /// Prompt tokens of one step.
    pub(crate) chunk_tokens: u32,
}

/// What runs on a device, at any moment until something comes or goes or is reported.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Crew {
    runs: Vec<Run>,
    reading: Reading,
    /// Seconds of a step that makes a token for everybody.
    step_s: f64,
    /// What the sequences of each model take, in the order of their names.
    crowd: Vec<Crowd>,
}

/// A device at a moment.
#[derive(Debug)]
pub(crate) struct Pace<'a> {
    now: Moment,
    crew: &'a Crew,
    /// Seconds until those who run now have read their prompts, if nothing else is done meanwhile.
    reading_s: f64,
    /// The part of its time in which it makes tokens, above 0 and at most 1; in the rest it reads what comes.
    making_part: f64,
}

/// One who runs there.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    asked: Asked,
    published: Micros,
    made: u32,
    made_at: Moment,
    /// Seconds that its model takes for a chunk of a prompt.
    chunk_s: f64,
}

/// The sequences of one model.
#[derive(Debug, Clone, PartialEq)]
struct Crowd {
    model: ModelName,
    /// Seconds of a step.
    step_s: f64,
    /// The same with one more sequence.
    step_with_one_more_s: f64,
}

/// What would become of a request on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Prospect {
    /// Until it has ended, if it is as long as predicted.
    pub(crate) whole: Duration,
    /// How much later it could begin and still be in time, in microseconds, whether short or long.
    pub(crate) slack_us: i64,
}

impl Crew {
    /// A device with these requests; `steps` tells of each model how it runs there.
    pub(crate) fn new<'a>(
        bookings: impl Iterator<Item = &'a Booking>,
        steps: impl Fn(&ModelName) -> Option<Steps<'a>>,
    ) -> Self {
        let mut models: BTreeMap<&ModelName, Option<(Steps<'a>, u32)>> = BTreeMap::new();
        let mut runs = Vec::new();
        let mut reading = Reading::default();
        for booking in bookings {
            let known = models.entry(&booking.model);
            let known = known.or_insert_with(|| steps(&booking.model).map(|steps| (steps, 0)));
            let Some((steps, sequences)) = known else { continue };
            *sequences += 1;
            if booking.made == 0 {
                reading.add(booking.began, prefill_s(*steps, booking.asked.prompt_tokens));
            }
            runs.push(Run {
                asked: booking.asked,
                published: booking.published,
                made: booking.made,
                made_at: booking.made_at,
                chunk_s: chunk_s(*steps),
            });
        }
        let crowd = models.into_iter().filter_map(|(model, known)| {
            let (steps, sequences) = known?;
            Some(Crowd {
                model: model.clone(),
                step_s: decode_s(steps, sequences),
                step_with_one_more_s: decode_s(steps, sequences + 1),
            })
        });
        let mut crew = Self {
            runs,
            reading,
            step_s: 0.0,
            crowd: crowd.collect(),
        };
        crew.step_s = crew.step_with(None);
        crew
    }

    /// How fast the device goes with them at a moment.
    pub(crate) fn at(&self, now: Moment, device: &Device) -> Pace<'_> {
        Pace {
            now,
            crew: self,
            reading_s: self.reading.left_s(now),
            making_part: 1.0 - device.reading_part(now),
        }
    }

    /// Seconds of a round: each model makes one step, one after the other.
    fn step_with(&self, more: Option<(&ModelName, Steps<'_>)>) -> f64 {
        let mut round_s = 0.0;
        let mut is_counted = false;
        for crowd in &self.crowd {
            let joins = more.is_some_and(|(joining, _)| *joining == crowd.model);
            is_counted |= joins;
            round_s += match joins {
                true => crowd.step_with_one_more_s,
                false => crowd.step_s,
            };
        }
        match more {
            Some((_, steps)) if !is_counted => round_s + decode_s(steps, 1),
            Some(_) | None => round_s,
        }
    }
}

impl Pace<'_> {
    /// What would become of one more request that may begin in `starts_in`.
    pub(crate) fn with(
        &self,
        model: &ModelName,
        steps: Steps<'_>,
        asked: &Asked,
        published: Micros,
        starts_in: Duration,
    ) -> Prospect {
        let step_s = self.crew.step_with(Some((model, steps)));
        let prompt_s = prefill_s(steps, asked.prompt_tokens);
        let reading_s = self.reading_s + prompt_s;
        let first_s = reading_s * (1.0 + step_s / chunk_s(steps));
        let token_s = step_s / self.making_part;
        let end_s = |output_tokens: u32| first_s + f64::from(output_tokens) * token_s;
        let begins = Micros::from(self.now) + starts_in;
        let slack_us = slack_us(asked, published, begins, first_s + step_s, end_s);
        Prospect {
            whole: starts_in + span(end_s(asked.prediction.high)),
            slack_us,
        }
    }

    /// Whether one more request with such a prompt makes somebody late by more than `tolerance` who would be in time
    /// without it.
    pub(crate) fn is_harmed_by(
        &self,
        model: &ModelName,
        steps: Steps<'_>,
        prompt_tokens: u32,
        tolerance: Duration,
    ) -> bool {
        let step_s = self.crew.step_with(Some((model, steps)));
        let reading_s = self.reading_s + prefill_s(steps, prompt_tokens);
        self.crew.runs.iter().any(|run| {
            self.slack_of(run, reading_s, step_s) < -micros(tolerance)
                && self.slack_of(run, self.reading_s, self.crew.step_s) >= 0
        })
    }

    /// How much time one of those who run has to spare, when prompts of `reading_s` are to be read and a step takes
    /// `step_s`.
    fn slack_of(&self, run: &Run, reading_s: f64, step_s: f64) -> i64 {
        let now = Micros::from(self.now);
        let token_s = step_s / self.making_part;
        if run.made == 0 {
            let first_s = reading_s * (1.0 + step_s / run.chunk_s);
            let end_s = |output_tokens: u32| first_s + f64::from(output_tokens) * token_s;
            return slack_us(&run.asked, run.published, now, first_s + step_s, end_s);
        }
        let made = self.made_by_now(run);
        let end_s = |output_tokens: u32| {
            let left = (f64::from(output_tokens) - made).max(1.0);
            left * token_s + reading_s.min(left * run.chunk_s)
        };
        let asked = run.asked.after(run.made);
        slack_us(&asked, run.published, now, 0.0, end_s)
    }

    /// Tokens that a request has made, going on from its last report at the device's pace.
    fn made_by_now(&self, run: &Run) -> f64 {
        let since_s = self.now.since(run.made_at).as_secs_f64();
        f64::from(run.made) + since_s * self.making_part / self.crew.step_s.max(STEP_S_MIN)
    }
}

/// How much time a request has to spare that begins at `begins`, has its first token `first_s` later and ends
/// `end_s(tokens)` later: the least of all its bounds, for a short and a long answer.
fn slack_us(
    asked: &Asked,
    published: Micros,
    begins: Micros,
    first_s: f64,
    end_s: impl Fn(u32) -> f64,
) -> i64 {
    let Some(target) = asked.target else {
        return i64::MAX;
    };
    let spare = |within: Duration, takes_s: f64| (published + within).since(begins + span(takes_s));
    let whole = [asked.prediction.low, asked.prediction.high]
        .into_iter()
        .filter_map(|output_tokens| {
            let within = target.end_within(asked.prompt_tokens, output_tokens)?;
            Some(spare(within, end_s(output_tokens)))
        });
    let first = target.first_within().map(|within| spare(within, first_s));
    whole.chain(first).min().unwrap_or(i64::MAX)
}

/// The prompts of those without a token.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Reading {
    /// Seconds that they take, together.
    all_s: f64,
    /// When the first of them came.
    began: Option<Moment>,
}

impl Reading {
    fn add(&mut self, began: Moment, takes_s: f64) {
        self.all_s += takes_s;
        self.began = Some(self.began.map_or(began, |first| first.min(began)));
    }

    /// Seconds of them that are still to be read, without what was read since the first of them came.
    fn left_s(&self, now: Moment) -> f64 {
        let read_s = self.began.map_or(0.0, |began| now.since(began).as_secs_f64());
        (self.all_s - read_s).max(0.0)
    }
}

/// Time that a device needs to read a prompt.
pub(crate) fn reads(steps: Steps<'_>, prompt_tokens: u32) -> Duration {
    span(prefill_s(steps, prompt_tokens))
}

fn prefill_s(steps: Steps<'_>, tokens: u32) -> f64 {
    steps.times.step(tokens, 0).as_secs_f64() * steps.factor
}

/// Seconds of a chunk of a prompt, above 0.
fn chunk_s(steps: Steps<'_>) -> f64 {
    prefill_s(steps, steps.chunk_tokens).max(STEP_S_MIN)
}

fn decode_s(steps: Steps<'_>, sequences: u32) -> f64 {
    steps.times.step(0, sequences).as_secs_f64() * steps.factor
}

fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).map_or(SPAN_MAX, |span| span.min(SPAN_MAX))
}

/// Longest span that is reckoned with, 30 years, so that a profile with absurd figures cannot make sums of
/// spans overflow.
const SPAN_MAX: Duration = Duration::from_secs(1_000_000_000);
/// A step takes no less, in seconds; only to divide by.
const STEP_S_MIN: f64 = 1e-6;
