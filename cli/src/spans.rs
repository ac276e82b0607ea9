//! The spans of a role, on their way to a collector.

use std::collections::HashSet;
use std::process;

use anyhow::Context as _;
use flotilla_config::{Config, Sampler as Choice, TelemetryOtlp};
use flotilla_telemetry::{Exporter, ExporterSettings, Sampler, Tracer};

/// Begins to send spans, if there is an endpoint for them; ends when the exporter is dropped.
///
/// # Errors
/// When a header is none; the setting is named.
pub(crate) fn open(
    config: &Config,
    role: &str,
    id: Option<&str>,
) -> anyhow::Result<(Tracer, Option<Exporter>)> {
    let otlp = &config.telemetry.otlp;
    let Some(endpoint) = &otlp.endpoint else {
        return Ok((Tracer::default(), None));
    };
    let headers = otlp.headers.iter().flatten();
    let headers = headers.map(|(name, value)| (name.clone(), value.expose().to_owned()));
    let settings = ExporterSettings {
        endpoint: endpoint.clone(),
        headers: headers.collect(),
        timeout: otlp.timeout,
        queue_spans_max: otlp.queue_spans_max,
        sampler: sampler(otlp),
        resource: resource(otlp, role, id),
    };
    let started = Exporter::start(settings);
    let (tracer, exporter) = started.context("spans cannot be sent; see telemetry.otlp.headers")?;
    tracing::info!(endpoint, "spans of requests are sent");
    Ok((tracer, Some(exporter)))
}

fn sampler(otlp: &TelemetryOtlp) -> Sampler {
    let (follows_caller, part) = match otlp.sampler {
        Choice::AlwaysOn => (false, 1.0),
        Choice::AlwaysOff => (false, 0.0),
        Choice::Ratio => (false, otlp.sampled_ratio),
        Choice::ParentOrOn => (true, 1.0),
        Choice::ParentOrOff => (true, 0.0),
        Choice::ParentOrRatio => (true, otlp.sampled_ratio),
    };
    Sampler { follows_caller, part }
}

/// What is told of the process; what an operator says of it counts before what we say.
fn resource(otlp: &TelemetryOtlp, role: &str, id: Option<&str>) -> Vec<(String, String)> {
    let mut told: Vec<(String, String)> = Vec::new();
    let service = otlp.service_name.iter().cloned();
    told.extend(service.map(|name| ("service.name".to_owned(), name)));
    told.extend(otlp.resource_attributes.iter().flatten().cloned());
    let instance = id.map_or_else(|| process::id().to_string(), str::to_owned);
    let ours = [
        ("service.name", format!("flotilla-{role}")),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", instance),
    ];
    told.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    let mut names = HashSet::new();
    told.retain(|(name, _)| names.insert(name.clone()));
    told
}

#[cfg(test)]
mod tests {
    use flotilla_config::LoadOptions;

    use super::*;

    #[test]
    fn name_of_the_service_is_the_one_that_was_given_most_exactly() {
        let name = |flags: &[&str]| {
            let options = LoadOptions {
                flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
                ..LoadOptions::default()
            };
            let config = Config::load(&options).unwrap();
            let told = resource(&config.telemetry.otlp, "worker", Some("w"));
            let names: Vec<String> = told
                .iter()
                .filter(|(name, _)| name == "service.name")
                .map(|(_, value)| value.clone())
                .collect();
            assert_eq!(names.len(), 1, "{told:?}");
            names[0].clone()
        };
        let attributes = "telemetry.otlp.resource_attributes=service.name=b,x=y";
        assert_eq!(name(&[]), "flotilla-worker");
        assert_eq!(name(&[attributes]), "b");
        assert_eq!(name(&[attributes, "telemetry.otlp.service_name=a"]), "a");
    }
}
