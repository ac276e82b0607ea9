//! `flotilla models add`: a folder, a model of a hub or one that is simulated becomes an entry of the catalog.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use flotilla_hub::Hub;
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelSource, Quantize};
use flotilla_protocol::hub::HubModel;

use super::simulated::SimulatedArguments;
use super::treatment::TreatmentArguments;
use crate::commands::UsageError;
use crate::context::Context;

/// Arguments of `flotilla models add`.
#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    /// What clients call it; or a model of the hub, hf:org/name or hf:org/name@revision
    #[arg(value_name = "NAME|hf:ORG/NAME[@REVISION]", value_parser = added)]
    model: Added,
    /// The folder, at the same path on every worker's machine
    #[arg(conflicts_with_all = SimulatedArguments::NAMES)]
    folder: Option<PathBuf>,
    /// What clients call a model of the hub; org/name unless it is given
    #[arg(long, value_name = "NAME")]
    name: Option<ModelName>,
    /// Rounds the weights when they are loaded: int8 halves the memory of bf16, int4 takes a third
    #[arg(long, value_name = "int8|int4", conflicts_with = "simulated")]
    quantize: Option<Quantize>,
    /// What a model without files is said to be.
    #[command(flatten)]
    pub(super) simulated: SimulatedArguments,
    /// How its requests are to be treated.
    #[command(flatten)]
    treatment: TreatmentArguments,
}

/// What the first argument is.
#[derive(Debug, Clone)]
enum Added {
    Named(ModelName),
    Hub(HubModel),
}

/// What is to be added, once the arguments fit together.
#[derive(Debug)]
enum Wanted<'a> {
    Folder(ModelName, &'a Path),
    Simulated(ModelName),
    Hub(ModelName, &'a HubModel),
}

impl AddArguments {
    /// The entry that is to be added.
    ///
    /// # Errors
    /// The arguments do not fit together, or the model cannot be described.
    pub(super) async fn entry(&self, context: &Context) -> anyhow::Result<CatalogEntry> {
        let entry = match self.wanted()? {
            Wanted::Folder(name, folder) => describe(name, folder)?,
            Wanted::Simulated(name) => self.simulated.entry(name),
            Wanted::Hub(name, model) => describe_hub(context, name, model).await?,
        };
        let quantize = self.quantize;
        Ok(self.treatment.apply(CatalogEntry { quantize, ..entry }))
    }

    fn wanted(&self) -> Result<Wanted<'_>, UsageError> {
        match (&self.model, &self.folder, self.simulated.simulated) {
            (Added::Hub(_), Some(_), _) | (Added::Hub(_), _, true) => Err(UsageError::new(
                "a model of the hub has no folder and is not simulated; give hf:org/name alone",
            )),
            (Added::Hub(model), None, false) => {
                let name = match &self.name {
                    Some(name) => name.clone(),
                    None => ModelName::new(model.repo.as_str())
                        .map_err(|error| UsageError::new(error.to_string()))?,
                };
                Ok(Wanted::Hub(name, model))
            }
            (Added::Named(_), _, _) if self.name.is_some() => Err(UsageError::new(
                "--name goes with a model of the hub, hf:org/name",
            )),
            (Added::Named(name), Some(folder), _) => Ok(Wanted::Folder(name.clone(), folder)),
            (Added::Named(name), None, true) => Ok(Wanted::Simulated(name.clone())),
            (Added::Named(name), None, false) => Err(UsageError::new(format!(
                "give the folder of {name}, or --simulated; a model of the hub is added as hf:org/name"
            ))),
        }
    }
}

fn added(text: &str) -> Result<Added, String> {
    match text.starts_with(HubModel::SCHEME) {
        true => text.parse().map(Added::Hub).map_err(|error| format!("{error}")),
        false => ModelName::new(text)
            .map(Added::Named)
            .map_err(|error| error.to_string()),
    }
}

fn describe(name: ModelName, folder: &Path) -> anyhow::Result<CatalogEntry> {
    let folder = std::path::absolute(folder)
        .with_context(|| format!("cannot find the path of {}", folder.display()))?;
    Ok(flotilla_worker::describe(name, &folder)?)
}

/// Reads what describing takes: every small file, and of the weights their headers.
async fn describe_hub(context: &Context, name: ModelName, model: &HubModel) -> anyhow::Result<CatalogEntry> {
    let hub = Hub::new(&context.config.worker.hub)?;
    let repository = hub.repository(model).await?;
    let folder = tempfile::tempdir().context("cannot make a folder for the model's small files")?;
    hub.outline(&repository, folder.path()).await?;
    let described = flotilla_worker::describe(name, folder.path());
    Ok(CatalogEntry {
        source: ModelSource::Hub(repository.model.clone()),
        ..described.with_context(|| format!("{} cannot be served", repository.model))?
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};
    use crate::commands::models::ModelsCommand;

    fn parse(line: &str) -> AddArguments {
        match Arguments::try_parse_from(line.split(' ')).unwrap().command {
            Command::Models(ModelsCommand::Add(arguments)) => *arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn models_of_the_hub_are_called_by_their_repository_unless_a_name_is_given() {
        let named = |line: &str| match parse(line).wanted().unwrap() {
            Wanted::Hub(name, model) => (name.to_string(), model.to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            named("flotilla models add hf:org/name"),
            ("org/name".to_owned(), "hf:org/name@main".to_owned())
        );
        assert_eq!(
            named("flotilla models add hf:org/name@v1 --name chat"),
            ("chat".to_owned(), "hf:org/name@v1".to_owned())
        );
    }

    #[test]
    fn arguments_that_do_not_fit_together_are_refused() {
        for wrong in [
            "flotilla models add m",
            "flotilla models add m /folder --name n",
            "flotilla models add hf:org/name /folder",
            "flotilla models add hf:org/name --simulated --weights-bytes 1GiB",
        ] {
            assert!(parse(wrong).wanted().is_err(), "{wrong}");
        }
        let line = "flotilla models add hf:org/na/me";
        assert!(Arguments::try_parse_from(line.split(' ')).is_err());
    }
}
