//! What both roles tell of single requests.

use std::time::Duration;

use crate::rule::{Choice, HiddenPairs, Millis, Number, Pairs, Text, WebAddress, Whole};
use crate::schema::{optional, required, section};
use crate::{Sampler, Secret};

section! {
    /// `[telemetry]`.
    pub struct Telemetry at "telemetry" {
    } with {
        /// `[telemetry.otlp]`.
        otlp: TelemetryOtlp;
    }
}

section! {
    /// `[telemetry.otlp]`: spans of requests, for a collector that takes OTLP over HTTP. The variables that other programs
    /// read for the same, `OTEL_...`, count where neither the file nor anything stronger says otherwise.
    pub struct TelemetryOtlp at "telemetry.otlp" {
        /// Where the collector takes OTLP in protobuf over HTTP; `/v1/traces` is added. Unset: the variable
        /// `OTEL_EXPORTER_OTLP_ENDPOINT`, else no spans are made.
        endpoint: Option<String> = "endpoint", optional(WebAddress);

        /// Headers of each export, `name=value` separated by commas, with `%2C` for a comma. Never shown. Unset: the
        /// variable `OTEL_EXPORTER_OTLP_HEADERS`, else none.
        headers: Option<Vec<(String, Secret)>> = "headers", optional(HiddenPairs);

        /// Name of the service in the spans. Unset: the variable `OTEL_SERVICE_NAME`, else `flotilla-dispatcher` or
        /// `flotilla-worker`.
        service_name: Option<String> = "service_name", optional(Text);

        /// More that is told of each process, `name=value` separated by commas. Unset: the variable
        /// `OTEL_RESOURCE_ATTRIBUTES`, else nothing.
        resource_attributes: Option<Vec<(String, String)>> = "resource_attributes", optional(Pairs);

        /// Which requests have spans, under the names of `OTEL_TRACES_SAMPLER`, which counts where this is not set.
        /// Default parentbased_always_on: as the request's `traceparent` says, and all that have none. The dispatcher
        /// decides, and workers follow.
        sampler: Sampler = "sampler", required(Choice(&[
            ("always_on", Sampler::AlwaysOn),
            ("always_off", Sampler::AlwaysOff),
            ("traceidratio", Sampler::Ratio),
            ("parentbased_always_on", Sampler::ParentOrOn),
            ("parentbased_always_off", Sampler::ParentOrOff),
            ("parentbased_traceidratio", Sampler::ParentOrRatio),
        ]), "parentbased_always_on");

        /// Part of the traces that the samplers with `traceidratio` take, 0 to 1. Default 1; the variable
        /// `OTEL_TRACES_SAMPLER_ARG` counts where this is not set.
        sampled_ratio: f64 = "sampled_ratio", required(Number { min: 0.0, max: 1.0 }, 1.0_f64);

        /// How long one export may take, in ms on the wire. Default 10 s, as elsewhere; `OTEL_EXPORTER_OTLP_TIMEOUT`
        /// counts where this is not set.
        timeout: Duration = "timeout_ms", required(Millis { min: 1 }, 10_000_u64);

        /// Spans that wait for the collector; more are dropped and counted. Default 8192, a few MB: what a busy
        /// dispatcher makes in the seconds that a collector takes to start again.
        queue_spans_max: usize = "queue_spans_max", required(Whole { min: 1, max: 1_000_000_usize }, 8_192_u64);
    }
}
