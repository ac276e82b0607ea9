//! The command line: flags and subcommands.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::commands::{
    bench, cancel, child, config, dead, drain, health, journal, models, profile, results, role, run,
    simulate, submit, top, up, why,
};

/// Serves many language models on a fleet of workers, with NATS JetStream between its parts.
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// Flags of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 NATS not reachable, \
    4 refused (busy, invalid request), 130 interrupted.";

/// Flags of every command.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Global {
    /// Configuration file [default: ./flotilla.toml, else /etc/flotilla/flotilla.toml, if there]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Overrides one setting; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Settings that the command's own flags stand for, as `key=value`.
    #[arg(skip)]
    of_command: Vec<String>,
    /// Address of the NATS server (= --set nats.url=URL)
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) nats: Option<String>,
    /// Namespace of the fleet (= --set nats.namespace=NAME)
    #[arg(long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Prints JSON instead of tables
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Logs more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

impl Global {
    /// All overrides, as `key=value`, the strongest last.
    pub(crate) fn settings(&self) -> Vec<String> {
        let mut settings = self.set.clone();
        settings.extend(self.nats.iter().map(|url| format!("nats.url={url}")));
        settings.extend(self.namespace.iter().map(|name| format!("nats.namespace={name}")));
        settings.extend(self.of_command.clone());
        settings
    }
}

impl Arguments {
    /// The flags of every command, with the settings that the command's own flags stand for, and the command.
    pub(crate) fn split(self) -> (Global, Command) {
        let mut of_command = Vec::new();
        if let Command::Worker(arguments) = &self.command {
            of_command = arguments.settings();
        }
        let global = Global {
            of_command,
            ..self.global
        };
        (global, self.command)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts a whole fleet on this machine: nats-server, dispatcher, workers and three demo models
    Up(up::UpArguments),
    /// Runs one dispatcher
    Dispatcher(role::RoleArguments),
    /// Runs one worker
    Worker(role::WorkerArguments),
    /// Generates, and prints the answer as it comes
    Run(Box<run::RunArguments>),
    /// Publishes a batch of requests, a file in OpenAI's batch format; run again, it goes on where it was
    Submit(submit::SubmitArguments),
    /// Collects the answers of a batch; run again, it goes on where it was
    Results(results::ResultsArguments),
    /// Lists workers, their devices and the models on them
    Ps,
    /// Shows what ps lists, again every second; q ends it
    Top(top::TopArguments),
    /// The catalog, and which of its models are loaded
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// How fast each device kind serves each model
    #[command(subcommand)]
    Profile(profile::ProfileCommand),
    /// Lists the requests that wait and run
    Queue,
    /// Tells why a request stands where it stands
    Why(why::WhyArguments),
    /// Ends a request
    Cancel(cancel::CancelArguments),
    /// Prints every stored event of a request
    Journal(journal::JournalArguments),
    /// Requests that were given up, kept for operators
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Has a worker take no new work, finish or hand back what it runs, and end
    Drain(drain::DrainArguments),
    /// The configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Checks server, streams, fleet and machine, and says what to mend
    Doctor,
    /// Whether a role on this machine is ready, for health checks of containers
    Health(health::HealthArguments),
    /// Measures
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Compares policies on a virtual clock: what each makes of a trace and a fleet
    Simulate(simulate::SimulateArguments),
    /// Becomes another program that ends when its parent does
    #[command(hide = true)]
    Child(child::ChildArguments),
}

impl Command {
    /// Whether this is a process that runs on, and not a command that prints a result.
    pub(crate) fn is_role(&self) -> bool {
        matches!(self, Self::Dispatcher(_) | Self::Worker(_))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Arguments {
        Arguments::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn shortcuts_become_settings_and_the_last_override_is_strongest() {
        let arguments = parse(
            "flotilla worker --set worker.slots=1 --nats nats://x:1 --set worker.slots=2 --namespace b",
        );
        assert_eq!(
            arguments.global.settings(),
            [
                "worker.slots=1",
                "worker.slots=2",
                "nats.url=nats://x:1",
                "nats.namespace=b"
            ]
        );
    }

    #[test]
    fn flags_of_a_worker_are_settings_too() {
        let (global, _) = parse(
            "flotilla worker --engine simulated --profile all.json --profile m=own.json --count 3 --namespace b",
        )
        .split();
        assert_eq!(
            global.settings(),
            [
                "nats.namespace=b",
                "worker.engine=simulated",
                "worker.simulated.profile=all.json,m=own.json",
                "worker.simulated.count=3",
            ]
        );
        let (global, _) = parse("flotilla worker").split();
        assert!(global.settings().is_empty());
    }

    #[test]
    fn flags_of_every_command_may_stand_before_and_after_it() {
        assert!(parse("flotilla --json ps").global.json);
        assert!(parse("flotilla ps --json").global.json);
        assert_eq!(parse("flotilla -v models list -v").global.verbose, 1);
    }

    #[test]
    fn a_prompt_may_begin_with_a_dash_after_the_model() {
        let Command::Run(run) = parse("flotilla run adder -").command else {
            panic!("not run")
        };
        assert_eq!(run.prompt.as_deref(), Some("-"));
    }

    #[test]
    fn an_unknown_flag_is_refused() {
        assert!(Arguments::try_parse_from(["flotilla", "ps", "--jsno"]).is_err());
    }
}
