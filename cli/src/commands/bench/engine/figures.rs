//! What was measured, and how it is shown.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::bandwidth::Memory;
use super::shape::Shape;
use super::work::{Named, Unit, per_s};
use crate::commands::bench::Outcome;
use crate::table::{Table, numbers, words};

/// The figures of `flotilla bench engine`.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    /// Of the engine, of the peer and of the memory's measurement alike.
    threads: NonZeroUsize,
    /// The best that the threads read from memory together, in gigabytes (10^9) a second.
    memory_gb_per_s: f64,
    /// What the engine is compared with, if anything.
    llama_cpp: Option<String>,
    measures: Vec<Row>,
}

/// One kind of work on one model.
#[derive(Debug, Serialize)]
struct Row {
    model: &'static str,
    weights: &'static str,
    measure: String,
    unit: Unit,
    /// The engine's speed.
    ours: f64,
    /// The peer's.
    llama_cpp: Option<f64>,
    /// The engine's speed over the peer's: above 1, the engine is faster.
    vs_llama_cpp: Option<f64>,
    /// The engine's speed over its own with bf16 weights.
    vs_bf16: Option<f64>,
    /// The bytes of weights that the engine went through, over what can be read from memory in that time.
    vs_memory: Option<f64>,
}

/// One kind of work on one model, and what it took in each round.
#[derive(Debug)]
pub(crate) struct Measure {
    work: Arc<Named>,
    model: &'static str,
    weights: &'static str,
    rounds: Vec<Round>,
}

/// What a piece of work took in one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    /// The engine.
    pub(super) ours: Duration,
    /// The bytes of its weights.
    pub(super) weights_bytes: usize,
    /// The engine with bf16 weights, if these are others.
    pub(super) bf16: Option<Duration>,
    /// The peer, if there is one.
    pub(super) peer: Option<Duration>,
    /// The memory's read bandwidth beside it, bytes a second.
    pub(super) bandwidth: f64,
}

impl Measure {
    /// Nothing was measured yet.
    pub(crate) fn new(shape: &Shape, weights: &'static str, work: &Arc<Named>) -> Self {
        Self {
            work: Arc::clone(work),
            model: shape.name,
            weights,
            rounds: Vec::new(),
        }
    }

    /// Adds a round.
    pub(crate) fn add(&mut self, round: Round) {
        self.rounds.push(round);
    }

    fn row(&self) -> Row {
        let work = &self.work.work;
        let speed = |round: &Round, time| work.speed(time, round.weights_bytes);
        let ours = |round: &Round| speed(round, round.ours);
        let peer = |round: &Round| Some(speed(round, round.peer?));
        let passed = |round: &Round| Some(work.weight_passes()? * round.weights_bytes);
        Row {
            model: self.model,
            weights: self.weights,
            measure: self.work.name.clone(),
            unit: work.unit(),
            ours: self.median(|round| Some(ours(round))).expect("there is a round"),
            llama_cpp: self.median(peer),
            vs_llama_cpp: self.median(|round| Some(ours(round) / peer(round)?)),
            vs_bf16: self.median(|round| Some(round.bf16?.as_secs_f64() / round.ours.as_secs_f64())),
            vs_memory: self.median(|round| Some(per_s(passed(round)?, round.ours) / round.bandwidth)),
        }
    }

    /// The middle of what the rounds have.
    fn median(&self, of_round: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.rounds.iter().filter_map(of_round).collect();
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.get(values.len() / 2)?;
        let before = values.get((values.len() - 1) / 2)?;
        Some(f64::midpoint(*before, *middle))
    }
}

impl Figures {
    /// # Panics
    /// When a measure has no round.
    pub(crate) fn new(
        threads: NonZeroUsize,
        memory: &Memory,
        llama_cpp: Option<String>,
        measures: &[Measure],
    ) -> Self {
        Self {
            threads,
            memory_gb_per_s: memory.best() / 1e9,
            llama_cpp,
            measures: measures.iter().map(Measure::row).collect(),
        }
    }

    /// Every ratio with its name, such as `smollm2-135m.bf16.decode_1.vs_llama_cpp`.
    pub(crate) fn ratios(&self) -> impl Iterator<Item = (String, f64)> {
        self.measures.iter().flat_map(|row| {
            let ratios = [
                ("vs_llama_cpp", row.vs_llama_cpp),
                ("vs_bf16", row.vs_bf16),
                ("vs_memory", row.vs_memory),
            ];
            ratios.into_iter().filter_map(move |(bound, ratio)| {
                let name = format!("{}.{}.{}.{bound}", row.model, row.weights, row.measure);
                Some((name, ratio?))
            })
        })
    }
}

/// The measures, and what they were made with.
pub(crate) fn tables(outcome: &Outcome<Figures>) -> Vec<Table> {
    let figures = &outcome.figures;
    vec![measures(&figures.measures), circumstances(outcome)]
}

fn measures(rows: &[Row]) -> Table {
    let mut table = Table::new([
        words("MODEL"),
        words("WEIGHTS"),
        words("MEASURE"),
        numbers("OURS"),
        numbers("LLAMA.CPP"),
        words("UNIT"),
        numbers("VS LLAMA.CPP"),
        numbers("VS BF16"),
        numbers("VS MEMORY"),
    ]);
    for row in rows {
        table.row([
            row.model.to_owned(),
            row.weights.to_owned(),
            row.measure.clone(),
            shown(Some(row.ours), 2),
            shown(row.llama_cpp, 2),
            row.unit.shown().to_owned(),
            shown(row.vs_llama_cpp, 3),
            shown(row.vs_bf16, 3),
            shown(row.vs_memory, 3),
        ]);
    }
    table
}

fn circumstances(outcome: &Outcome<Figures>) -> Table {
    let figures = &outcome.figures;
    let mut table = Table::new([words("MEASURED"), words("WITH")]);
    let rows = [
        ("threads", figures.threads.to_string()),
        ("memory", format!("{:.1} GB/s read", figures.memory_gb_per_s)),
        ("keys and values", "f32, llama.cpp f16".to_owned()),
        ("llama.cpp", figures.llama_cpp.clone().unwrap_or_else(dash)),
        ("machine", outcome.machine.clone()),
        ("commit", outcome.commit.clone().unwrap_or_else(dash)),
    ];
    for (name, value) in rows {
        table.row([name.to_owned(), value]);
    }
    table
}

fn shown(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(dash, |value| format!("{value:.decimals$}"))
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::shape::ShapeName;
    use super::super::work::Work;
    use super::*;

    const WEIGHTS_BYTES: usize = 300_000;

    fn measure(work: Work, rounds: &[(u64, Option<u64>)]) -> Measure {
        let name = "it".to_owned();
        let work = Arc::new(Named { name, work });
        let mut measure = Measure::new(&ShapeName::Tiny.shape(), "int8", &work);
        for (ours, peer) in rounds {
            measure.add(Round {
                ours: Duration::from_millis(*ours),
                weights_bytes: WEIGHTS_BYTES,
                bf16: Some(Duration::from_millis(2 * ours)),
                peer: peer.map(Duration::from_millis),
                bandwidth: 1e9,
            });
        }
        measure
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_own_ratios() {
        let prompt = vec![1; 100];
        // The machine was slow in the second round, for both.
        let rounds = [(100, Some(200)), (1_000, Some(3_000)), (100, Some(100))];
        let row = measure(Work::Prefill { prompt }, &rounds).row();
        let close = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() < 1e-6;
        assert!(close(Some(row.ours), 1_000.0) && close(row.llama_cpp, 500.0));
        assert!(close(row.vs_llama_cpp, 2.0), "{row:?}");
        assert_eq!((row.vs_memory, row.vs_bf16), (None, Some(2.0)));
    }

    #[test]
    fn without_a_peer_only_the_memory_is_compared_with() {
        let measure = measure(Work::Load, &[(2, None), (1, None)]);
        let row = measure.row();
        let share = WEIGHTS_BYTES as f64 / 1e9 / 0.001;
        let expected = f64::midpoint(share, share / 2.0);
        assert_eq!((row.llama_cpp, row.vs_llama_cpp), (None, None));
        assert!((row.vs_memory.unwrap() - expected).abs() < 1e-9, "{row:?}");
    }
}
