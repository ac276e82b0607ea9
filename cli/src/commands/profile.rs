//! `flotilla profile`: how fast each device kind serves each model.

mod heat_map;
mod run;

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use flotilla_client::{Profiles, ProfilesError, StoredProfile};
use flotilla_profile::DeviceProfile;
use flotilla_protocol::ModelName;
use flotilla_protocol::profile::{ProfileSlos, ProfileSource};
use serde::Serialize;

use crate::context::Context;
use crate::exit::{self, Exit};
use crate::output;
use crate::table::{Table, numbers, or_dash, words};

/// What to do with profiles.
#[derive(Debug, Subcommand)]
pub(crate) enum ProfileCommand {
    /// Measures a model on a worker of the running fleet, and stores its profile
    Run(Box<run::RunArguments>),
    /// Stores a profile from a file in AIBrix's JSON, unless a newer one is there
    Import {
        /// The file
        file: PathBuf,
        /// The model that it is of
        #[arg(long)]
        model: ModelName,
        /// The device kind, when it is not the one that the file names as its gpu
        #[arg(long)]
        kind: Option<String>,
    },
    /// Prints a profile in AIBrix's JSON
    Export {
        #[command(flatten)]
        which: Which,
        /// Writes it to this file instead
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Lists the profiles, or draws one
    Show {
        /// Only those of this model
        #[arg(long)]
        model: Option<ModelName>,
        /// Only those of this device kind
        #[arg(long)]
        kind: Option<String>,
        /// Draws the grid of the one profile into this file
        #[arg(long, value_name = "FILE", requires = "model", requires = "kind")]
        svg: Option<PathBuf>,
    },
    /// Removes a profile
    #[command(visible_alias = "rm")]
    Remove {
        #[command(flatten)]
        which: Which,
    },
}

/// One profile.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The model
    #[arg(long)]
    model: ModelName,
    /// The device kind
    #[arg(long)]
    kind: String,
}

/// Runs a command.
///
/// # Errors
/// When the file or the stored profiles cannot be read, or are wrong.
pub(crate) async fn run(context: &Context, command: ProfileCommand) -> anyhow::Result<Exit> {
    match command {
        ProfileCommand::Import { file, model, kind } => {
            import(context, &file, &model, kind.as_deref()).await?
        }
        ProfileCommand::Export { which, output } => export(context, &which, output.as_deref()).await?,
        ProfileCommand::Run(arguments) => run::run(context, &arguments).await?,
        ProfileCommand::Show {
            model: Some(model),
            kind: Some(kind),
            svg: Some(file),
        } => draw(context, &Which { model, kind }, &file).await?,
        ProfileCommand::Show { model, kind, svg: _ } => {
            show(context, model.as_ref(), kind.as_deref()).await?
        }
        ProfileCommand::Remove { which } => remove(context, &which).await?,
    }
    Ok(Exit::Ok)
}

async fn open(context: &Context) -> anyhow::Result<Profiles> {
    let connection = context.connect("flotilla-profile").await?;
    Ok(Profiles::open(&connection).await?)
}

async fn import(context: &Context, file: &Path, model: &ModelName, kind: Option<&str>) -> anyhow::Result<()> {
    let name = file.display();
    let body = std::fs::read(file).with_context(|| format!("cannot read {name}"))?;
    let profile = DeviceProfile::from_json(&body, kind).with_context(|| format!("{name} is refused"))?;
    open(context).await?.put(model, &profile).await?;
    let sentence = format_args!("{model} on {} has the profile of {name}", profile.kind()).to_string();
    context.format.print_line(&Row::new(model, &profile), sentence)
}

async fn export(context: &Context, which: &Which, file: Option<&Path>) -> anyhow::Result<()> {
    let profile = which.read(context).await?;
    let json = serde_json::to_string(profile.document())?;
    let Some(file) = file else {
        return output::line(json);
    };
    std::fs::write(file, json + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    context.format.print_line(
        &serde_json::json!({"written": file}),
        format_args!("written to {}", file.display()),
    )
}

async fn draw(context: &Context, which: &Which, file: &Path) -> anyhow::Result<()> {
    let profile = which.read(context).await?;
    let svg = heat_map::svg(&which.model, &profile);
    std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    context.format.print_line(
        &serde_json::json!({"drawn": file}),
        format_args!("drawn into {}", file.display()),
    )
}

async fn show(context: &Context, model: Option<&ModelName>, kind: Option<&str>) -> anyhow::Result<()> {
    let stored = open(context).await?.list().await?;
    let wanted = stored
        .into_iter()
        .filter(|stored| model.is_none_or(|model| stored.model == *model))
        .filter(|stored| kind.is_none_or(|kind| stored.kind == kind));
    let mut rows = Vec::new();
    for StoredProfile { model, kind, profile } in wanted {
        match profile {
            Ok(profile) => rows.push(Row::new(&model, &profile)),
            Err(error) => {
                let told =
                    format!("the profile of {model} on {kind} is not used; import another or remove it");
                exit::report(&anyhow::Error::new(error).context(told));
            }
        }
    }
    context.format.print(&rows, |rows| {
        let mut table = Table::new([
            words("MODEL"),
            words("KIND"),
            words("SOURCE"),
            words("CREATED"),
            numbers("SAMPLES"),
            numbers("COST"),
            numbers("MAX RATE"),
            words("SLO"),
        ]);
        rows.iter().for_each(|row| table.row(row.cells()));
        vec![table]
    })
}

async fn remove(context: &Context, which: &Which) -> anyhow::Result<()> {
    let Which { model, kind } = which;
    open(context).await?.remove(model, kind).await?;
    context.format.print_line(
        &serde_json::json!({"removed": {"model": model, "kind": kind}}),
        format_args!("the profile of {model} on {kind} is removed"),
    )
}

impl Which {
    async fn read(&self, context: &Context) -> anyhow::Result<DeviceProfile> {
        let found = open(context).await?.entry(&self.model, &self.kind).await?;
        Ok(found.ok_or_else(|| self.unknown())?)
    }

    fn unknown(&self) -> ProfilesError {
        ProfilesError::Unknown {
            model: self.model.clone(),
            kind: self.kind.clone(),
        }
    }
}

/// A profile in a line.
#[derive(Debug, Serialize)]
struct Row {
    model: ModelName,
    kind: String,
    source: ProfileSource,
    created: f64,
    samples: Option<u64>,
    cost: f64,
    max_rate_per_s: f64,
    slos: ProfileSlos,
}

impl Row {
    fn new(model: &ModelName, profile: &DeviceProfile) -> Self {
        Self {
            model: model.clone(),
            kind: profile.kind().to_owned(),
            source: profile.source(),
            created: profile.created(),
            samples: profile.samples(),
            cost: profile.cost(),
            max_rate_per_s: profile.rate_max(),
            slos: profile.slos().clone(),
        }
    }

    fn cells(&self) -> [String; 8] {
        [
            self.model.to_string(),
            self.kind.clone(),
            self.source.to_string(),
            created_text(self.created),
            or_dash(self.samples),
            self.cost.to_string(),
            format!("{:.2}/s", self.max_rate_per_s),
            slo_text(&self.slos),
        ]
    }
}

/// A checked profile was made before the year 10000, which is as far as the text goes.
fn created_text(unix_s: f64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs_f64(unix_s)).to_string()
}

/// The targets with their percentile: `tpot 0.05 s p99`; a dash without any.
fn slo_text(slos: &ProfileSlos) -> String {
    let seconds = [
        ("e2e", slos.e2e),
        ("ttft", slos.ttft),
        ("tpot", slos.tpot),
        ("tpat", slos.tpat),
    ];
    let targets: Vec<String> = seconds
        .into_iter()
        .filter_map(|(name, seconds)| Some(format!("{name} {} s", seconds?)))
        .collect();
    if targets.is_empty() {
        return or_dash(None::<String>);
    }
    let percentile = match slos.percentile {
        None | Some(0.0) => "mean".to_owned(),
        Some(percentile) => format!("p{percentile}"),
    };
    format!("{} {percentile}", targets.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_with_their_percentile() {
        let slos = ProfileSlos {
            percentile: Some(99.0),
            tpot: Some(0.05),
            ttft: Some(1.5),
            ..ProfileSlos::default()
        };
        assert_eq!(slo_text(&slos), "ttft 1.5 s, tpot 0.05 s p99");
        let mean = ProfileSlos {
            percentile: Some(0.0),
            e2e: Some(5.0),
            ..ProfileSlos::default()
        };
        assert_eq!(slo_text(&mean), "e2e 5 s mean");
        assert_eq!(slo_text(&ProfileSlos::default()), "-");
    }

    #[test]
    fn any_time_that_a_profile_may_have_is_a_date() {
        assert_eq!(created_text(0.0), "1970-01-01T00:00:00Z");
        assert_eq!(created_text(1_748_888_478.258), "2025-06-02T18:21:18Z");
        assert_eq!(created_text(253_402_300_799.0), "9999-12-31T23:59:59Z");
    }
}
