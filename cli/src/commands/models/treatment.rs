//! How a model's requests are to be treated: targets, placement, expected length.

use clap::Args;
use flotilla_protocol::catalog::{CatalogEntry, Policy};
use flotilla_protocol::request::Slo;

/// What the dispatcher decides by.
#[derive(Debug, Args)]
pub(crate) struct TreatmentArguments {
    /// Target of every request: milliseconds to the first token
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    slo_ttft_ms: Option<f64>,
    /// Milliseconds for each token of the answer
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    slo_tpot_ms: Option<f64>,
    /// Milliseconds for each token of prompt and answer
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    slo_tpat_ms: Option<f64>,
    /// Milliseconds for the whole answer
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    slo_e2e_ms: Option<f64>,
    /// Where its requests run: the cheapest worker that meets the target, the fullest, the emptiest, or any
    #[arg(long, value_name = "slo|pack|spread|fifo")]
    policy: Option<Policy>,
    /// Tokens that an answer usually has, for as long as none was seen
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    answer_tokens: Option<u32>,
}

impl TreatmentArguments {
    /// The entry of a model that is treated so.
    pub(super) fn apply(&self, entry: CatalogEntry) -> CatalogEntry {
        let slo = Slo {
            e2e_ms: self.slo_e2e_ms,
            ttft_ms: self.slo_ttft_ms,
            tpot_ms: self.slo_tpot_ms,
            tpat_ms: self.slo_tpat_ms,
        };
        CatalogEntry {
            slo: Some(slo).filter(|slo| *slo != Slo::default()),
            policy: self.policy,
            output_tokens_prior: self.answer_tokens,
            ..entry
        }
    }
}

/// The targets of an entry in words; `None` when it has none.
pub(super) fn targets(entry: &CatalogEntry) -> Option<String> {
    let slo = entry.slo?;
    let named = [
        ("first token", slo.ttft_ms),
        ("token", slo.tpot_ms),
        ("token of prompt and answer", slo.tpat_ms),
        ("whole answer", slo.e2e_ms),
    ];
    let set = named
        .into_iter()
        .filter_map(|(name, ms)| Some(format!("{name} {} ms", ms?)));
    Some(set.collect::<Vec<_>>().join(", "))
}

fn milliseconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "a number of milliseconds".to_owned())?;
    match value.is_finite() && value > 0.0 {
        true => Ok(value),
        false => Err("a target is above 0".to_owned()),
    }
}
