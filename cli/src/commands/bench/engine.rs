//! `flotilla bench engine`: how fast the engine reads and writes text on this machine, against two bounds of
//! the same run: the memory's read bandwidth, and llama.cpp on the same weights and tokens.
//!
//! A machine's speed drifts, so the engine, the peer and the memory take turns in every round. A speed is the
//! median of its rounds, a ratio the median of the rounds' own ratios.
//!
//! Both sides run with the same number of threads, read prompts in chunks of [`CHUNK_TOKENS`], and are given the
//! same tokens, also for those that follow the prompt. The engine keeps keys and values in f32 and draws a token
//! in every step; llama.cpp keeps them in f16, draws none, and has flash attention on or off, whichever is
//! faster for the work in question.

mod bandwidth;
mod figures;
mod ours;
mod peer;
mod shape;
mod weights;
mod work;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::available_parallelism;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use flotilla_worker_engine::{CpuThreads, Precision};

pub(super) use self::bandwidth::Memory;
use self::figures::{Measure, Round};
use self::ours::Ours;
use self::peer::Peer;
use self::work::{Named, Sizes};
use super::{Outcome, machine};
use crate::output;

pub(super) use self::figures::{Figures, tables};
pub(super) use self::shape::{Shape, ShapeName};
pub(super) use self::weights::{WEIGHTS_FILE, write as write_weights};
pub(super) use self::work::per_s;

/// Arguments of `flotilla bench engine`.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArguments {
    /// A model's shape; may be repeated
    #[arg(long, value_enum, default_values = ["smollm2-135m", "llama-3.2-1b"])]
    shape: Vec<ShapeName>,
    /// How exact the engine keeps the weights; may be repeated. llama.cpp keeps bf16
    #[arg(long, value_enum, default_values = ["bf16", "int8", "int4"])]
    weights: Vec<Weights>,
    /// Threads of the engine, of llama.cpp and of the memory's measurement [default: the cores]
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// How often everything is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// Tokens of a prompt; may be repeated
    #[arg(long, value_name = "TOKENS", default_values = ["128", "2048"], value_parser = tokens(4_096))]
    prefill: Vec<u32>,
    /// Sequences that are continued at once; may be repeated
    #[arg(long, value_name = "SEQUENCES", default_values = ["1", "8"], value_parser = tokens(64))]
    decode: Vec<u32>,
    /// Tokens before the first that is continued with
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = tokens(2_048))]
    decode_context: u32,
    /// Tokens that each sequence is continued with
    #[arg(long, value_name = "TOKENS", default_value = "32", value_parser = tokens(2_048))]
    decode_steps: u32,
    /// Memory that is read to know its bandwidth, in MiB; what a cache holds is too little
    #[arg(long, hide = true, default_value_t = 1_024, value_parser = clap::value_parser!(u16).range(1..))]
    memory_mib: u16,
    /// Where the random weights are kept, 2.5 GB for each billion of parameters and format
    /// [default: flotilla-bench in the folder for temporary files]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// A Python that has the packages llama-cpp-python and gguf; without it nothing is compared
    #[arg(long, value_name = "PYTHON")]
    llama_cpp: Option<PathBuf>,
}

/// How exact weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Weights {
    Bf16,
    Int8,
    Int4,
}

impl Weights {
    const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    const fn precision(self) -> Precision {
        match self {
            Self::Bf16 => Precision::Stored,
            Self::Int8 => Precision::Int8,
            Self::Int4 => Precision::Int4,
        }
    }
}

fn tokens(max: i64) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=max)
}

/// Measures; takes minutes, all of them on blocking threads.
///
/// # Errors
/// When weights cannot be written or loaded, or the peer does not answer.
pub(super) async fn run(arguments: &EngineArguments) -> anyhow::Result<Outcome<Figures>> {
    let arguments = arguments.clone();
    tokio::task::spawn_blocking(move || measure_all(&arguments))
        .await
        .context("the measurement ended early")?
}

fn measure_all(arguments: &EngineArguments) -> anyhow::Result<Outcome<Figures>> {
    let threads = match arguments.threads {
        Some(threads) => threads,
        None => available_parallelism().context("cannot count the cores; say --threads")?,
    };
    if arguments.llama_cpp.is_none() {
        output::note("bench: no Python with llama-cpp-python was given; measuring the engine alone");
    }
    let mut memory = Memory::new(arguments.memory_mib, threads);
    let mut measured = Vec::new();
    let mut peer = None;
    for shape in &arguments.shape {
        let of_shape = measure_shape(arguments, *shape, threads, &mut memory)?;
        measured.extend(of_shape.measures);
        peer = of_shape.peer.or(peer);
    }
    let figures = Figures::new(threads, &memory, peer, &measured);
    let ratios = figures.ratios().map(|(name, ratio)| (name, ratio.into()));
    Ok(Outcome {
        name: "engine",
        machine: machine::machine(),
        commit: machine::commit(),
        ratios: ratios.collect(),
        figures,
    })
}

/// What was measured on one shape, and the version of what it was compared with.
struct OfShape {
    measures: Vec<Measure>,
    peer: Option<String>,
}

fn measure_shape(
    arguments: &EngineArguments,
    name: ShapeName,
    threads: NonZeroUsize,
    memory: &mut Memory,
) -> anyhow::Result<OfShape> {
    let shape = name.shape();
    let sizes = arguments.sizes();
    ensure!(
        sizes.positions_max() <= shape.context_tokens,
        "{name} has positions for {} tokens, {} are to be measured",
        shape.context_tokens,
        sizes.positions_max()
    );
    let folder = arguments.folder().join(shape.name);
    output::note(&format!("bench: {name}: weights in {}", folder.display()));
    weights::write(&shape, &folder, threads)?;
    let works = sizes.works(shape.vocabulary);
    let mut peer = match &arguments.llama_cpp {
        Some(python) => Some(Peer::start(python, &folder, threads)?),
        None => None,
    };
    let pool = Arc::new(CpuThreads::new(threads));
    let mut engines: Vec<Contender> = arguments
        .weights
        .iter()
        .map(|weights| Contender {
            weights: *weights,
            ours: Ours::new(
                folder.clone(),
                sizes.clone(),
                Arc::clone(&pool),
                weights.precision(),
            ),
            measures: works
                .iter()
                .map(|work| Measure::new(&shape, weights.name(), work))
                .collect(),
        })
        .collect();
    // The first round finds cold caches, files that are not in memory and threads that are not there yet.
    for index in 0..=arguments.rounds {
        output::note(&match index {
            0 => format!("bench: {name}: warming up"),
            _ => format!("bench: {name}: round {index} of {}", arguments.rounds),
        });
        for (place, work) in works.iter().enumerate() {
            let rounds = take_turns(work, &mut engines, peer.as_mut(), memory)?;
            for (engine, round) in engines.iter_mut().zip(rounds) {
                if index > 0 {
                    engine.measures[place].add(round);
                }
            }
        }
    }
    let measures = engines.into_iter().flat_map(|engine| engine.measures).collect();
    Ok(OfShape {
        measures,
        peer: peer.map(|peer| peer.version().to_owned()),
    })
}

/// The engine with the weights kept in one way, and what was measured of it.
struct Contender {
    weights: Weights,
    ours: Ours,
    /// One for each piece of work.
    measures: Vec<Measure>,
}

/// One round of a piece of work, for each contender.
fn take_turns(
    work: &Named,
    engines: &mut [Contender],
    peer: Option<&mut Peer>,
    memory: &mut Memory,
) -> anyhow::Result<Vec<Round>> {
    let bandwidth = memory.read();
    let mut rounds = Vec::new();
    for engine in &mut *engines {
        let name = engine.weights.name();
        let ours = engine.ours.run(&work.work);
        rounds.push(Round {
            ours: ours.with_context(|| format!("{} of the engine in {name}", work.name))?,
            weights_bytes: engine.ours.weights_bytes(),
            bf16: None,
            peer: None,
            bandwidth,
        });
    }
    let peer = match peer {
        Some(peer) => {
            let done = peer.run(&work.work);
            Some(done.with_context(|| format!("{} of llama.cpp", work.name))?)
        }
        None => None,
    };
    let exact = engines.iter().position(|engine| engine.weights == Weights::Bf16);
    let exact = exact.map(|index| rounds[index].ours);
    for (engine, round) in engines.iter().zip(&mut rounds) {
        match engine.weights {
            Weights::Bf16 => round.peer = peer,
            Weights::Int8 | Weights::Int4 => round.bf16 = exact,
        }
    }
    Ok(rounds)
}

impl EngineArguments {
    fn sizes(&self) -> Sizes {
        let count = |tokens: &u32| *tokens as usize;
        Sizes {
            prefills: self.prefill.iter().map(count).collect(),
            decodes: self.decode.iter().map(count).collect(),
            context: count(&self.decode_context),
            steps: count(&self.decode_steps),
        }
    }

    fn folder(&self) -> PathBuf {
        match &self.folder {
            Some(folder) => folder.clone(),
            None => std::env::temp_dir().join("flotilla-bench"),
        }
    }
}

/// Tokens of a prompt that go through the model at once: what a worker takes by default, and llama.cpp too.
const CHUNK_TOKENS: usize = 512;
