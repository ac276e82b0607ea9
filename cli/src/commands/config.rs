//! `flotilla config`: the settings in force.

use clap::Subcommand;
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::table::{Table, words};

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Prints every setting with its value and where that came from
    Show,
}

/// Runs a command.
///
/// # Errors
/// When nothing can be printed.
pub(crate) fn run(context: &Context, command: &ConfigCommand) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Show => show(context),
    }
}

fn show(context: &Context) -> anyhow::Result<Exit> {
    let settings = context.config.show().settings();
    // A value from a running `up` entered as an override; its reader wants to know the file.
    let source = |key: &str, found: &flotilla_config::Source| match &context.up_file {
        Some(path) if context.from_up.contains(&key) => path.display().to_string(),
        _ => found.to_string(),
    };
    let rows: Vec<_> = settings
        .iter()
        .map(|it| json!({"key": it.key, "value": it.value, "source": source(it.key, &it.source)}))
        .collect();
    context.format.print(&rows, |_| {
        let mut table = Table::new([words("SETTING"), words("VALUE"), words("SOURCE")]);
        for it in settings {
            table.row([
                it.key.to_owned(),
                it.value.to_string(),
                source(it.key, &it.source),
            ]);
        }
        vec![table]
    })?;
    Ok(Exit::Ok)
}
