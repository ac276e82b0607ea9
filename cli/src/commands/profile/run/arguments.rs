//! The flags of a measurement, as what they mean.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flotilla_profiling::{Grid, Limits, Objective, Targets};
use flotilla_protocol::catalog::CatalogEntry;
use flotilla_protocol::{ModelName, WorkerId};

use crate::commands::UsageError;

/// What to measure, and how.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The model
    pub(super) model: ModelName,
    /// The worker to measure; it must have nothing else to do
    #[arg(long, value_name = "ID", conflicts_with = "kind")]
    pub(super) worker: Option<WorkerId>,
    /// Measures an idle worker with a device of this kind
    #[arg(long)]
    pub(super) kind: Option<String>,
    /// Lengths of prompts, in tokens, ascending
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 1024], value_name = "TOKENS,...")]
    inputs: Vec<u32>,
    /// Lengths of answers, in tokens, ascending, each at least 2
    #[arg(long, value_delimiter = ',', default_values_t = [16, 64, 256], value_name = "TOKENS,...")]
    outputs: Vec<u32>,
    /// Target for the first token; without any target the catalog's rule, else only throughput counts
    #[arg(long, value_name = "MS")]
    slo_ttft_ms: Option<f64>,
    /// Target for each token after the first
    #[arg(long, value_name = "MS")]
    slo_tpot_ms: Option<f64>,
    /// Target for the whole answer
    #[arg(long, value_name = "MS")]
    slo_e2e_ms: Option<f64>,
    /// Of how many requests in a hundred the targets must hold; 0 means on average
    #[arg(long, default_value_t = 99.0, value_name = "PERCENT")]
    percentile: f64,
    /// Requests of each measurement that count, at least
    #[arg(long, default_value_t = Limits::default().requests, value_name = "COUNT")]
    requests: u32,
    /// Time for the whole grid; what does not fit is measured with fewer requests or less exactly
    #[arg(long, value_name = "SECONDS")]
    budget: Option<u64>,
    /// Prints what would be measured and about how long it would take
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Does not store the profile
    #[arg(long)]
    pub(super) no_store: bool,
    /// Writes the profile to this file
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
}

impl RunArguments {
    /// The grid.
    ///
    /// # Errors
    /// When the lengths make none, or the model has no room for the longest.
    pub(super) fn grid(&self, entry: &CatalogEntry) -> anyhow::Result<Grid> {
        let grid = Grid::new(self.inputs.clone(), self.outputs.clone());
        let grid = grid.map_err(|fault| UsageError::new(format!("--{fault}")))?;
        let longest = |lengths: &[u32]| u64::from(lengths.last().copied().unwrap_or(0));
        let needed = longest(grid.inputs()) + longest(grid.outputs());
        let context = entry.facts.context_tokens_max;
        if needed > u64::from(context) {
            return Err(UsageError::new(format!(
                "the longest prompt and answer have {needed} tokens, the context of {} has {context}; \
                 give shorter --inputs or --outputs",
                entry.name
            ))
            .into());
        }
        Ok(grid)
    }

    /// The targets of the flags; without any those of the catalog.
    ///
    /// # Errors
    /// When a number is no target.
    pub(super) fn objective(&self, entry: &CatalogEntry) -> anyhow::Result<Objective> {
        let given = Targets {
            e2e: span("--slo-e2e-ms", self.slo_e2e_ms)?,
            ttft: span("--slo-ttft-ms", self.slo_ttft_ms)?,
            tpot: span("--slo-tpot-ms", self.slo_tpot_ms)?,
            tpat: None,
        };
        let targets = match (given.is_empty(), &entry.slo) {
            (true, Some(slo)) => Targets::from(slo),
            (true, None) | (false, _) => given,
        };
        let objective = Objective::new(self.percentile, targets);
        Ok(objective.map_err(|fault| UsageError::new(fault.to_string()))?)
    }

    /// How much is measured.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            requests: self.requests,
            budget: self.budget.map(Duration::from_secs),
            ..Limits::default()
        }
    }
}

fn span(flag: &str, ms: Option<f64>) -> Result<Option<Duration>, UsageError> {
    let Some(ms) = ms else { return Ok(None) };
    let span = Duration::try_from_secs_f64(ms / 1e3).ok();
    span.filter(|span| !span.is_zero())
        .map(Some)
        .ok_or_else(|| UsageError::new(format!("{flag} {ms} is no time; give milliseconds above 0")))
}
