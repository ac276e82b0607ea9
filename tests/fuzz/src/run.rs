//! Runs: many inputs of many decoders, on some threads.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::finding::{Finding, Problem};
use crate::mutator;
use crate::panics::caught;
use crate::probe::{Cost, Probe, Verdict};
use crate::random::Random;
use crate::target::Target;

/// What is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// What all inputs follow from.
    pub seed: u64,
    /// Inputs of all decoders together; each gets its share by weight, and at least one.
    pub inputs: u64,
    /// The number of the first input of each.
    pub from: u64,
    /// Longest time of one input.
    pub time_max: Duration,
    /// Threads.
    pub threads: usize,
    /// Where inputs that break something are kept.
    pub folder: PathBuf,
}

/// What a run of one decoder found.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Inputs that were read.
    pub inputs: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Those that were taken for what they should be.
    pub accepted: u64,
    /// Those that break a demand.
    pub broken: u64,
    /// Panics that the decoder caught itself, of libraries that trust their input.
    pub caught: u64,
    /// The longest time of one input, and that input's number.
    pub slowest: (Duration, u64),
    /// The most bytes for one byte of an input of at least 1 KiB.
    pub ratio_max: f64,
    /// The most bytes for an input.
    pub bytes_max: usize,
    /// What is wrong; of one kind and place the first alone.
    pub findings: Vec<Finding>,
}

/// One input, read again.
#[derive(Debug)]
pub struct Replayed {
    /// Whether it was accepted; else what is wrong with that.
    pub outcome: Result<bool, Problem>,
    /// Bytes that were allocated at once.
    pub bytes: usize,
    /// How long it took.
    pub time: Duration,
}

/// Runs decoders; the outcomes are in their order.
///
/// # Panics
/// The folder for findings cannot be made.
#[must_use]
pub fn run(targets: &[Target], options: &Options) -> Vec<Outcome> {
    fs::create_dir_all(&options.folder).expect("the folder for findings can be made");
    let weights: u64 = targets.iter().map(|target| target.weight).sum();
    let mut jobs = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        let share = u128::from(options.inputs) * u128::from(target.weight) / u128::from(weights.max(1));
        let share = u64::try_from(share).unwrap_or(u64::MAX).max(1);
        for begin in (0..share).step_by(JOB_INPUTS) {
            let inputs = (share - begin).min(JOB_INPUTS as u64);
            jobs.push((index, options.from + begin..options.from + begin + inputs));
        }
    }
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![Outcome::default(); targets.len()]);
    // A thread has the stack that one of production has: nesting that is too deep for it ends the process.
    thread::scope(|scope| {
        for number in 0..options.threads.max(1) {
            let (jobs, next, outcomes) = (&jobs, &next, &outcomes);
            scope.spawn(move || {
                let running = Running::new(&options.folder, number);
                while let Some((index, inputs)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run_job(&targets[*index], inputs.clone(), options, &running);
                    outcomes.lock().expect("no job panics")[*index].add(outcome);
                }
                running.end();
            });
        }
    });
    outcomes.into_inner().expect("no job panics")
}

/// Reads bytes as a decoder of a run would.
#[must_use]
pub fn replay(target: &Target, input: &[u8], time_max: Duration) -> Replayed {
    let mut probe = Probe::default();
    let (outcome, _) = read(target, &mut probe, input, time_max);
    Replayed {
        outcome: outcome.map(|verdict| verdict == Verdict::Accepted),
        bytes: probe.cost.bytes,
        time: probe.cost.time,
    }
}

fn run_job(target: &Target, inputs: std::ops::Range<u64>, options: &Options, running: &Running) -> Outcome {
    let mut outcome = Outcome::default();
    let mut probe = Probe::default();
    for number in inputs {
        running.note(target, number);
        let input = mutator::input(&target.corpus, &mut Random::of(options.seed, target.name, number));
        let (mut verdict, caught) = read(target, &mut probe, &input, options.time_max);
        let mut tries = 1;
        while probe.cost.time > outcome.slowest.0 && verdict.is_ok() | is_slow(&verdict) && tries < TRIES {
            // The machine may have done something else: the shortest time counts.
            let time = probe.cost.time;
            verdict = read(target, &mut probe, &input, options.time_max).0;
            probe.cost.time = probe.cost.time.min(time);
            tries += 1;
        }
        outcome.count(number, input.len(), probe.cost, caught);
        match verdict {
            Ok(verdict) => outcome.accepted += u64::from(verdict == Verdict::Accepted),
            Err(problem) => {
                outcome.broken += 1;
                let finding = Finding {
                    target: target.name,
                    seed: options.seed,
                    input: number,
                    input_bytes: input.len(),
                    problem,
                    file: None,
                };
                if outcome.is_new(&finding) {
                    let file = options
                        .folder
                        .join(format!("{}-{}-{number}", target.name, options.seed));
                    let file = fs::write(&file, &input).is_ok().then_some(file);
                    outcome.findings.push(Finding { file, ..finding });
                }
            }
        }
    }
    outcome
}

fn is_slow(verdict: &Result<Verdict, Problem>) -> bool {
    matches!(verdict, Err(Problem::Slow { .. }))
}

fn read(
    target: &Target,
    probe: &mut Probe,
    input: &[u8],
    time_max: Duration,
) -> (Result<Verdict, Problem>, usize) {
    probe.cost = Cost::default();
    let (verdict, caught) = caught(|| (target.decode)(probe, input));
    let Cost { time, bytes } = probe.cost;
    let bytes_max = target.bound.bytes(input.len());
    let verdict = match verdict {
        Err(message) => Err(Problem::Panicked { message }),
        Ok(_) if bytes > bytes_max => Err(Problem::Allocated { bytes, bytes_max }),
        Ok(_) if time > time_max => Err(Problem::Slow { time, time_max }),
        Ok(verdict) => Ok(verdict),
    };
    (verdict, caught)
}

impl Outcome {
    #[expect(clippy::cast_precision_loss, reason = "a ratio is shown with two digits")]
    fn count(&mut self, number: u64, input_bytes: usize, cost: Cost, caught: usize) {
        self.inputs += 1;
        self.bytes += input_bytes as u64;
        self.caught += caught as u64;
        self.bytes_max = self.bytes_max.max(cost.bytes);
        self.slowest = self.slowest.max((cost.time, number));
        if input_bytes >= RATIO_BYTES_MIN {
            self.ratio_max = self.ratio_max.max(cost.bytes as f64 / input_bytes as f64);
        }
    }

    fn is_new(&self, finding: &Finding) -> bool {
        let is_alike = |other: &Finding| match (&other.problem, &finding.problem) {
            (Problem::Panicked { message: a }, Problem::Panicked { message: b }) => place(a) == place(b),
            (Problem::Allocated { .. }, Problem::Allocated { .. })
            | (Problem::Slow { .. }, Problem::Slow { .. }) => true,
            (Problem::Panicked { .. } | Problem::Allocated { .. } | Problem::Slow { .. }, _) => false,
        };
        !self.findings.iter().any(is_alike)
    }

    fn add(&mut self, other: Self) {
        self.inputs += other.inputs;
        self.bytes += other.bytes;
        self.accepted += other.accepted;
        self.broken += other.broken;
        self.caught += other.caught;
        self.slowest = self.slowest.max(other.slowest);
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.bytes_max = self.bytes_max.max(other.bytes_max);
        for finding in other.findings {
            if self.is_new(&finding) {
                self.findings.push(finding);
            }
        }
    }
}

/// The first line of a panic's words, which says where it was.
fn place(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

/// Which input a thread reads, in a file: one that ends the process is found there.
struct Running {
    path: PathBuf,
    file: Option<File>,
}

impl Running {
    fn new(folder: &Path, thread: usize) -> Self {
        let path = folder.join(format!("running-{thread}"));
        let file = File::create(&path).ok();
        Self { path, file }
    }

    fn note(&self, target: &Target, number: u64) {
        if let Some(file) = &self.file {
            let line = format!("--target {} --from {number} --inputs 1\n", target.name);
            // A note that is not written costs a search, should the process end.
            let _ = file.write_all_at(format!("{line:<72}").as_bytes(), 0);
        }
    }

    fn end(self) {
        // It says nothing any more, and the next run writes it anew.
        let _ = fs::remove_file(&self.path);
    }
}

/// How often an input is read that takes longer than all before.
const TRIES: u32 = 3;
/// Inputs that a thread takes at once.
const JOB_INPUTS: usize = 1 << 12;
/// Shorter inputs have no ratio: what any input takes is most of theirs.
const RATIO_BYTES_MIN: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Corpus;
    use crate::target::Format;

    fn outcome(decode: impl Fn(&[u8]) + Send + Sync + 'static) -> Outcome {
        let corpus = Corpus::new(Format::Bytes, [b"abc"]);
        let target = Target::new("made", corpus, move |probe, input| {
            probe.measure(|| decode(input));
            Verdict::Accepted
        });
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            seed: 7,
            inputs: 300,
            from: 0,
            time_max: Duration::from_secs(60),
            threads: 2,
            folder: folder.path().to_owned(),
        };
        let mut outcomes = run(&[target], &options);
        for finding in &outcomes[0].findings {
            let kept = fs::read(finding.file.as_ref().unwrap()).unwrap();
            assert_eq!(kept.len(), finding.input_bytes);
        }
        outcomes.remove(0)
    }

    #[test]
    fn decoder_that_panics_is_found_once_with_its_place() {
        let found = outcome(|input| assert!(!input.starts_with(b"ab"), "begins with ab"));
        let [
            Finding {
                problem: Problem::Panicked { message },
                ..
            },
        ] = &found.findings[..]
        else {
            panic!("{:?}", found.findings);
        };
        assert!(
            message.contains("begins with ab") && message.contains("run.rs"),
            "{message}"
        );
        assert!(
            found.broken > 1 && found.accepted > 0 && found.inputs == 300,
            "{found:?}"
        );
    }

    #[test]
    fn panic_that_a_decoder_catches_is_counted_and_no_finding() {
        let found = outcome(|_| drop(std::panic::catch_unwind(|| panic!("of a library"))));
        assert_eq!((found.caught, found.findings.len()), (300, 0));
    }

    #[test]
    fn decoder_that_takes_memory_out_of_proportion_is_found() {
        let found = outcome(|_| drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20))));
        assert!(
            matches!(found.findings[..], [Finding { problem: Problem::Allocated { bytes, .. }, .. }] if bytes == 1 << 20),
            "{:?}",
            found.findings
        );
    }
}
