//! What every command starts with: the configuration and a way to connect.

use std::path::{Path, PathBuf};

use flotilla_client::{ConnectError, Connection};
use flotilla_config::{Config, ConfigErrors, LoadOptions, Source};

use crate::arguments::Global;
use crate::fleet::UpFile;
use crate::output::Format;

/// The configuration as the flags, the environment, the file and a running `flotilla up` make it.
#[derive(Debug)]
pub(crate) struct Context {
    /// The settings.
    pub(crate) config: Config,
    /// The flags.
    pub(crate) global: Global,
    /// How results are printed.
    pub(crate) format: Format,
    /// The fleet of `flotilla up` that a setting was taken from.
    pub(crate) up_file: Option<PathBuf>,
    /// Keys taken from it.
    pub(crate) from_up: Vec<&'static str>,
}

impl Context {
    /// Loads the settings. Where nobody has said which server to use, the one of a `flotilla up` in this
    /// folder is.
    ///
    /// # Errors
    /// Every fault of the configuration.
    pub(crate) fn load(global: Global) -> Result<Self, ConfigErrors> {
        let config = Config::load(&options(&global, Vec::new()))?;
        let format = Format::new(global.json);
        let path = UpFile::path(&config.worker.data_dir);
        let found = UpFile::read(&path).map(|up| overrides(&config, &up));
        let Some(found) = found.filter(|found| !found.is_empty()) else {
            return Ok(Self {
                config,
                global,
                format,
                up_file: None,
                from_up: Vec::new(),
            });
        };
        let flags = found.iter().map(|(key, value)| format!("{key}={value}"));
        Ok(Self {
            config: Config::load(&options(&global, flags.collect()))?,
            global,
            format,
            up_file: Some(path),
            from_up: found.into_iter().map(|(key, _)| key).collect(),
        })
    }

    /// Connects; `name` is shown by the server's monitoring.
    ///
    /// # Errors
    /// [`ConnectError`], with a word about where the address came from.
    pub(crate) async fn connect(&self, name: &str) -> anyhow::Result<Connection> {
        let opened = Connection::open(&self.config.nats, name).await;
        opened.map_err(|error| match (&error, &self.up_file) {
            (ConnectError::Unreachable { .. }, Some(path)) if self.from_up.contains(&URL) => {
                let hint = format!(
                    "the fleet of {} does not answer; start it with `flotilla up` or say --nats URL",
                    path.display()
                );
                anyhow::Error::new(error).context(hint)
            }
            _ => error.into(),
        })
    }

    /// Arguments that give a child process the same settings.
    pub(crate) fn child_arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(file) = &self.global.config {
            arguments.extend(["--config".to_owned(), file.display().to_string()]);
        }
        for setting in self.global.settings() {
            arguments.extend(["--set".to_owned(), setting]);
        }
        arguments.extend((0..self.global.verbose).map(|_| "-v".to_owned()));
        arguments
    }

    /// Where the fleet of this folder keeps its things.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.config.worker.data_dir
    }
}

/// What is taken from a running `up`: only what nobody has set, and nothing for another server.
fn overrides(config: &Config, up: &UpFile) -> Vec<(&'static str, String)> {
    if is_set(config, URL) {
        return Vec::new();
    }
    [(URL, up.url.clone()), ("nats.namespace", up.namespace.clone())]
        .into_iter()
        .filter(|(key, _)| !is_set(config, key))
        .collect()
}

/// Whether a setting has a value from a file, the environment or a flag.
fn is_set(config: &Config, key: &str) -> bool {
    let mut settings = config.show().settings().iter();
    settings
        .find(|setting| setting.key == key)
        .is_some_and(|setting| setting.source != Source::Default)
}

/// The layers of a process; `weaker` lies under the flags.
fn options(global: &Global, weaker: Vec<String>) -> LoadOptions {
    let mut flags = weaker;
    flags.extend(global.settings());
    LoadOptions::from_process(global.config.clone(), flags)
}

const URL: &str = "nats.url";

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &[&str]) -> Config {
        let options = LoadOptions {
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            ..LoadOptions::default()
        };
        Config::load(&options).unwrap()
    }

    fn taken(flags: &[&str]) -> Vec<&'static str> {
        let up = UpFile {
            url: "nats://127.0.0.1:4300".into(),
            namespace: "ours".into(),
            pid: 1,
            nats_server_pid: 2,
            dispatcher_pid: 3,
            worker_pids: Vec::new(),
            dispatcher_http: None,
            worker_http: Vec::new(),
        };
        let found = overrides(&load(flags), &up);
        found.into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn a_running_up_is_used_only_where_nobody_named_a_server() {
        assert_eq!(taken(&[]), ["nats.url", "nats.namespace"]);
        assert_eq!(taken(&["nats.namespace=theirs"]), ["nats.url"]);
        assert!(taken(&["nats.url=nats://other:4222"]).is_empty());
    }
}
