//! What every part of the shell stands on.

use std::fs;
use std::sync::Arc;

use flotilla_client::Connection;
use flotilla_config::Config;
use flotilla_telemetry::Telemetry;

/// Connection, settings and name of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    pub(crate) connection: Connection,
    pub(crate) config: Arc<Config>,
    pub(crate) telemetry: Telemetry,
    /// Name of this process among the dispatchers.
    pub(crate) id: Arc<str>,
    /// Name of the machine, for people.
    pub(crate) host: Arc<str>,
}

impl Ground {
    pub(crate) fn new(config: &Config, connection: Connection, telemetry: Telemetry) -> Self {
        let host = host();
        let id = match &config.dispatcher.id {
            Some(id) => id.clone(),
            None => generated_id(&host, std::process::id()),
        };
        Self {
            connection,
            config: Arc::new(config.clone()),
            telemetry,
            id: id.into(),
            host: host.into(),
        }
    }
}

fn generated_id(host: &str, process: u32) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let host: String = host.chars().filter(allowed).take(48).collect();
    format!("{host}-{process}")
}

/// The kernel's host name; `localhost` where it tells none.
fn host() -> String {
    match fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) if !name.trim().is_empty() => name.trim().to_owned(),
        Ok(_) | Err(_) => "localhost".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_id_keeps_only_what_an_id_may_hold() {
        assert_eq!(generated_id("gpu-1.example.com", 7), "gpu-1examplecom-7");
    }
}
