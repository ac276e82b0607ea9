//! Models that are simulated: an entry of the catalog that stands for itself.

use clap::Args;
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelFacts, ModelSource, ModelTask};

/// What a model without files is said to be.
#[derive(Debug, Args)]
pub(crate) struct SimulatedArguments {
    /// Adds a model without files, which workers with `worker.engine = "simulated"` serve
    #[arg(long, requires = "weights_bytes")]
    pub(super) simulated: bool,
    /// Size of the simulated weights, such as 14GiB
    #[arg(long, value_name = "SIZE", requires = "simulated", value_parser = size)]
    weights_bytes: Option<u64>,
    /// Longest prompt and answer together, in tokens
    #[arg(long, value_name = "TOKENS", requires = "simulated", default_value_t = CONTEXT_TOKENS)]
    context: u32,
    /// Size of the keys and values of one token
    #[arg(long, value_name = "SIZE", requires = "simulated", value_parser = size, default_value = KV_BYTES_PER_TOKEN)]
    kv_bytes_per_token: u64,
    /// Entries of the vocabulary
    #[arg(long, value_name = "TOKENS", requires = "simulated", default_value_t = VOCABULARY_SIZE,
        value_parser = clap::value_parser!(u32).range(2..))]
    vocabulary: u32,
}

impl SimulatedArguments {
    /// The arguments, as clap knows them: none goes with a folder.
    pub(super) const NAMES: [&str; 5] = [
        "simulated",
        "weights_bytes",
        "context",
        "kv_bytes_per_token",
        "vocabulary",
    ];

    /// The model's entry.
    pub(super) fn entry(&self, name: ModelName) -> CatalogEntry {
        CatalogEntry {
            name,
            source: ModelSource::Simulated {
                kv_bytes_per_token: self.kv_bytes_per_token,
            },
            facts: ModelFacts {
                architecture: "simulated".to_owned(),
                context_tokens_max: self.context,
                vocabulary_size: self.vocabulary,
                weights_bytes: self.weights_bytes.unwrap_or_default(),
                task: ModelTask::Generate,
            },
            root: None,
            slots: None,
            keep_alive: None,
            pin: false,
            slo: None,
            quantize: None,
            policy: None,
            output_tokens_prior: None,
        }
    }
}

fn size(text: &str) -> Result<u64, String> {
    let bytes = flotilla_config::parse_bytes(text).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "give bytes above 0, as a whole number or as 512KiB or 14GiB".to_owned())
}

/// What most models of today's chats have at least.
const CONTEXT_TOKENS: u32 = 8192;
/// That of 32 layers with 8 heads of 128 for keys and values in 16 bits, as many models of 8 billion parameters
/// have.
const KV_BYTES_PER_TOKEN: &str = "128KiB";
/// Llama 2's: words of three syllables.
const VOCABULARY_SIZE: u32 = 32_000;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};
    use crate::commands::models::ModelsCommand;

    fn parse(line: &str) -> Result<ModelsCommand, clap::Error> {
        match Arguments::try_parse_from(line.split(' '))?.command {
            Command::Models(command) => Ok(command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn simulated_model_needs_a_size_and_has_no_folder() {
        for wrong in [
            "flotilla models add m --simulated",
            "flotilla models add m /folder --simulated --weights-bytes 14GiB",
            "flotilla models add m /folder --weights-bytes 14GiB",
            "flotilla models add m /folder --context 4096",
            "flotilla models add m --simulated --weights-bytes much",
            "flotilla models add m --simulated --weights-bytes 0",
            "flotilla models add m --simulated --weights-bytes 1GiB --vocabulary 1",
            "flotilla models add m --simulated --weights-bytes 1GiB --quantize int8",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse("flotilla models add m /folder").is_ok());
    }

    #[test]
    fn simulated_model_is_described_by_its_flags() {
        let line = "flotilla models add m --simulated --weights-bytes 14GiB --context 4096";
        let ModelsCommand::Add(arguments) = parse(line).unwrap() else {
            panic!("not add")
        };
        let entry = arguments.simulated.entry(ModelName::new("m").unwrap());
        assert_eq!(entry.facts.weights_bytes, 14 << 30);
        assert_eq!(
            (entry.facts.context_tokens_max, entry.facts.vocabulary_size),
            (4096, 32_000)
        );
    }
}
