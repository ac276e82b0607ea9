//! From the document that travels to figures that can be used: every fault at once.

use std::ops::RangeInclusive;

use flotilla_protocol::profile::{LoadSeconds, Profile, ProfileSlos};

use crate::fault::{Place, ProfileFault, ProfileFaults};
use crate::figures::{FIGURE_MAX, FIGURE_MIN};

/// Checks a document, figure by figure.
///
/// # Errors
/// Every fault.
pub(crate) fn check(profile: &Profile) -> Result<(), ProfileFaults> {
    let mut check = Check { faults: Vec::new() };
    check.name(&profile.gpu);
    check.figure(&COST, &[], profile.cost);
    check.figure(&CREATED, &[], profile.created);
    let shape = check.axes(&profile.indexes);
    check.tputs(&profile.tputs, shape);
    check.times(profile, shape);
    profile.slos.iter().for_each(|slos| check.slos(slos));
    check.steps(profile);
    profile
        .load_seconds_by_tier
        .iter()
        .for_each(|load| check.load(load));
    match check.faults.is_empty() {
        true => Ok(()),
        false => Err(ProfileFaults(check.faults)),
    }
}

/// How many rows and columns the matrices have, when the axes say so.
#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: Option<usize>,
    columns: Option<usize>,
}

/// What the figures of one field may be.
struct Rule {
    field: &'static str,
    range: RangeInclusive<f64>,
    /// Whether 0 is one of them although the range begins later.
    zero: bool,
    expected: &'static str,
}

impl Rule {
    const fn new(field: &'static str, range: RangeInclusive<f64>, expected: &'static str) -> Self {
        Self {
            field,
            range,
            zero: false,
            expected,
        }
    }

    const fn seconds(field: &'static str) -> Self {
        Self::new(field, FIGURE_MIN..=FIGURE_MAX, SECONDS)
    }

    const fn or_zero(self) -> Self {
        Self { zero: true, ..self }
    }

    fn holds(&self, figure: f64) -> bool {
        self.range.contains(&figure) || (self.zero && figure == 0.0)
    }
}

struct Check {
    faults: Vec<ProfileFault>,
}

impl Check {
    fn name(&mut self, kind: &str) {
        let place = Place::new("gpu", &[]);
        if kind.is_empty() {
            let expected = "the device kind";
            self.faults.push(ProfileFault::Missing { place, expected });
        } else if kind.len() > KIND_BYTES_MAX || kind.chars().any(char::is_control) {
            let (found, max) = (kind.len(), KIND_BYTES_MAX);
            self.faults.push(ProfileFault::Name { place, found, max });
        }
    }

    fn figure(&mut self, rule: &Rule, path: &[usize], found: f64) {
        if !rule.holds(found) {
            self.faults.push(ProfileFault::Figure {
                place: Place::new(rule.field, path),
                found,
                expected: rule.expected,
            });
        }
    }

    fn length(&mut self, place: Place, found: usize, expected: Option<usize>, reason: &'static str) {
        if let Some(expected) = expected.filter(|&expected| expected != found) {
            self.faults.push(ProfileFault::Length {
                place,
                found,
                expected,
                reason,
            });
        }
    }

    fn axes(&mut self, indexes: &[Vec<f64>]) -> Shape {
        let place = Place::new("indexes", &[]);
        if indexes.is_empty() {
            let expected = "[output ticks, input ticks], in tokens";
            self.faults.push(ProfileFault::Missing { place, expected });
        } else {
            let reason = "output ticks and input ticks";
            self.length(place, indexes.len(), Some(2), reason);
        }
        for (axis, ticks) in indexes.iter().enumerate() {
            self.ticks(axis, ticks);
        }
        let count = |axis: usize| indexes.get(axis).map(Vec::len).filter(|&count| count > 0);
        Shape {
            rows: count(0),
            columns: count(1),
        }
    }

    fn ticks(&mut self, axis: usize, ticks: &[f64]) {
        let place = Place::new("indexes", &[axis]);
        if ticks.is_empty() {
            let expected = "at least one tick, in tokens";
            self.faults.push(ProfileFault::Missing { place, expected });
        } else if ticks.len() > TICKS_MAX {
            let (found, max) = (ticks.len(), TICKS_MAX);
            self.faults.push(ProfileFault::TooMany { place, found, max });
        }
        for (index, &tick) in ticks.iter().enumerate() {
            self.figure(&TICK, &[axis, index], tick);
        }
        self.ascending("indexes", &[axis], "ticks", ticks.iter().copied());
    }

    fn ascending(
        &mut self,
        field: &'static str,
        path: &[usize],
        what: &'static str,
        figures: impl Iterator<Item = f64>,
    ) {
        let mut before = None;
        for (index, found) in figures.enumerate() {
            if let Some(before) = before.filter(|&before| found <= before) {
                self.faults.push(ProfileFault::NotAscending {
                    place: Place::new(field, &[path, &[index]].concat()),
                    found,
                    before,
                    what,
                });
            }
            before = Some(found);
        }
    }

    fn tputs(&mut self, tputs: &[Vec<f64>], shape: Shape) {
        if tputs.is_empty() {
            self.faults.push(ProfileFault::Missing {
                place: Place::new("tputs", &[]),
                expected: "requests a second, [output][input]",
            });
            return;
        }
        let before = self.faults.len();
        self.matrix(&TPUTS, tputs, shape);
        let is_sound = self.faults.len() == before;
        if is_sound && tputs.iter().flatten().all(|&tput| tput == 0.0) {
            self.faults.push(ProfileFault::NothingFeasible);
        }
    }

    fn times(&mut self, profile: &Profile, shape: Shape) {
        match &profile.e2e {
            Some(e2e) if !e2e.is_empty() => self.matrix(&E2E, e2e, shape),
            Some(_) | None => self.faults.push(ProfileFault::Missing {
                place: Place::new("e2e", &[]),
                expected: "mean seconds of a request, [output][input]",
            }),
        }
        for (rule, matrix) in [(&TTFT, &profile.ttft), (&TPOT, &profile.tpot)] {
            matrix.iter().for_each(|matrix| self.matrix(rule, matrix, shape));
        }
    }

    fn matrix(&mut self, rule: &Rule, matrix: &[Vec<f64>], shape: Shape) {
        self.length(
            Place::new(rule.field, &[]),
            matrix.len(),
            shape.rows,
            "one row for each output tick",
        );
        for (output, row) in matrix.iter().enumerate() {
            self.length(
                Place::new(rule.field, &[output]),
                row.len(),
                shape.columns,
                "one column for each input tick",
            );
            for (input, &found) in row.iter().enumerate() {
                self.figure(rule, &[output, input], found);
            }
        }
    }

    fn slos(&mut self, slos: &ProfileSlos) {
        let ProfileSlos {
            percentile,
            e2e,
            ttft,
            tpot,
            tpat,
            tput,
            tt,
        } = slos;
        for (rule, figure) in [(&PERCENTILE, percentile), (&SLO_TPUT, tput), (&SLO_TT, tt)] {
            figure.iter().for_each(|&figure| self.figure(rule, &[], figure));
        }
        let targets = [
            ("slos.e2e", e2e),
            ("slos.ttft", ttft),
            ("slos.tpot", tpot),
            ("slos.tpat", tpat),
        ];
        for (field, figure) in targets {
            let rule = Rule::seconds(field).or_zero();
            figure.iter().for_each(|&figure| self.figure(&rule, &[], figure));
        }
    }

    fn steps(&mut self, profile: &Profile) {
        if let Some(found) = profile.prefill_tokens_per_s {
            self.figure(&PREFILL, &[], found);
        }
        let Some(steps) = &profile.tpot_by_batch else {
            return;
        };
        let place = Place::new("tpot_by_batch", &[]);
        if steps.is_empty() {
            let expected = "at least one [batch size, seconds], or leave the field out";
            self.faults.push(ProfileFault::Missing { place, expected });
        } else if steps.len() > BATCHES_MAX {
            let (found, max) = (steps.len(), BATCHES_MAX);
            self.faults.push(ProfileFault::TooMany { place, found, max });
        }
        for (index, &(batch, seconds)) in steps.iter().enumerate() {
            self.figure(&BATCH, &[index, 0], batch);
            self.figure(&BATCH_SECONDS, &[index, 1], seconds);
        }
        let batches = steps.iter().map(|&(batch, _)| batch);
        self.ascending("tpot_by_batch", &[], "batch sizes", batches);
    }

    fn load(&mut self, load: &LoadSeconds) {
        let tiers = [
            ("load_seconds_by_tier.host", load.host),
            ("load_seconds_by_tier.peer", load.peer),
            ("load_seconds_by_tier.origin", load.origin),
        ];
        for (field, seconds) in tiers {
            let rule = Rule::seconds(field).or_zero();
            seconds
                .iter()
                .for_each(|&seconds| self.figure(&rule, &[], seconds));
        }
    }
}

const SECONDS: &str = "a number of seconds above 0";
const COST: Rule = Rule::new("cost", 0.0..=f64::MAX, "a number that is not negative");
const CREATED: Rule = Rule::new("created", 0.0..=CREATED_MAX, "Unix seconds");
const TICK: Rule = Rule::new("indexes", 1.0..=4_294_967_295.0, "a number of tokens from 1");
const TPUTS: Rule = Rule::new(
    "tputs",
    FIGURE_MIN..=FIGURE_MAX,
    "requests a second above 0, or 0 where the targets cannot be met",
)
.or_zero();
const E2E: Rule = Rule::seconds("e2e");
const TTFT: Rule = Rule::seconds("ttft");
const TPOT: Rule = Rule::seconds("tpot");
const PERCENTILE: Rule = Rule::new("slos.percentile", 0.0..=100.0, "a percentile from 0 to 100");
const SLO_TPUT: Rule = Rule::new("slos.tput", 0.0..=FIGURE_MAX, "requests a second");
const SLO_TT: Rule = Rule::new("slos.tt", 0.0..=f64::MAX, "tokens a second");
const PREFILL: Rule = Rule::new(
    "prefill_tokens_per_s",
    FIGURE_MIN..=f64::MAX,
    "tokens a second above 0",
);
const BATCH: Rule = Rule::new("tpot_by_batch", 1.0..=FIGURE_MAX, "a number of sequences from 1");
const BATCH_SECONDS: Rule = Rule::seconds("tpot_by_batch");

/// The last second of the year 9999: what lies later was not written in seconds.
const CREATED_MAX: f64 = 253_402_300_799.0;
/// Longest name of a device kind, in bytes: the longest of a model, and together they fit a key of NATS.
const KIND_BYTES_MAX: usize = 128;
/// Most ticks of an axis: doubling from 1 to beyond any context takes 24, halves between them 48.
const TICKS_MAX: usize = 64;
/// Most batch sizes with a measured step.
const BATCHES_MAX: usize = 1024;
