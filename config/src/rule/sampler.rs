//! Which requests have spans.

/// Which traces are told to a collector, as OpenTelemetry names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// All.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A part of them.
    Ratio,
    /// What the caller says; all that have no caller's trace.
    ParentOrOn,
    /// What the caller says; none that have no caller's trace.
    ParentOrOff,
    /// What the caller says; a part of those that have no caller's trace.
    ParentOrRatio,
}
