//! A metric as it is declared: name, kind, labels, help.

use metrics::{Counter, Histogram, Key, KeyName, Label, Level, Metadata, SharedString};

use crate::models::bounded;

/// One metric of a role: a constant, see [`catalogue!`](crate::catalogue).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// `flotilla_<role>_<noun>_<unit>[_total]`, or the name that others have given it.
    pub name: &'static str,
    /// What its value does.
    pub kind: Kind,
    /// Names of its labels; their values come from closed sets, or are models.
    pub labels: &'static [&'static str],
    /// What it means, in a sentence.
    pub help: &'static str,
}

/// What a metric's value does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows, and is counted where it happens.
    Counter,
    /// Only grows, and is read from its owner. Several workers in one process are added up.
    Total,
    /// Goes up and down. Several workers in one process are added up.
    Gauge,
    /// Goes up and down, and a sum of it means nothing: of several workers in one process the largest counts.
    Level,
    /// How often a value lay in each of some ranges.
    Histogram(&'static Buckets),
}

/// The ranges of a histogram.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Buckets {
    /// The upper end of each range, ascending; what is larger than all of them is counted as well.
    pub upper: &'static [f64],
    /// Why these.
    pub reason: &'static str,
}

/// Times from a fraction of a millisecond to an hour.
pub const SECONDS: Buckets = Buckets {
    upper: &[
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
        600.0, 3600.0,
    ],
    reason: "from a hand-over within one machine to a request that waits for an hour, about three to a decade",
};

/// What [`catalogue!`](crate::catalogue) makes the list of.
#[doc(hidden)]
pub type Declared = &'static [&'static Metric];

/// Declares metrics: `NAME: kind "name" [labels] "help";`, where the labels may be a constant of that type and kind is `counter`, `total`, `gauge`, `level` or
/// `histogram(BUCKETS)`. Makes a public constant of each, and `METRICS`, the list of all.
#[macro_export]
macro_rules! catalogue {
    ($($ident:ident: $kind:ident $(($buckets:expr))? $name:literal $labels:tt $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $ident: $crate::Metric = $crate::Metric {
                name: $name,
                kind: $crate::catalogue!(@kind $kind $($buckets)?),
                labels: &$labels,
                help: $help,
            };
        )*

        /// All of them.
        pub const METRICS: $crate::Declared = &[$(&$ident),*];
    };
    (@kind counter) => { $crate::Kind::Counter };
    (@kind total) => { $crate::Kind::Total };
    (@kind gauge) => { $crate::Kind::Gauge };
    (@kind level) => { $crate::Kind::Level };
    (@kind histogram $buckets:expr) => { $crate::Kind::Histogram(&$buckets) };
}

impl Metric {
    /// Counts `by` more; `values` are those of the labels, in their order.
    ///
    /// # Panics
    /// When this is no counter, or has other labels.
    pub fn increment(&self, values: &[&str], by: u64) {
        self.counter(values).increment(by);
    }

    /// Notes a value; `values` are those of the labels, in their order.
    ///
    /// # Panics
    /// When this is no histogram, or has other labels.
    pub fn record(&self, values: &[&str], value: f64) {
        self.histogram(values).record(value);
    }

    /// A counter for who counts often.
    ///
    /// # Panics
    /// When this is no counter, or has other labels.
    pub fn counter(&self, values: &[&str]) -> Counter {
        assert_eq!(self.kind, Kind::Counter, "{} is what it is used as", self.name);
        let key = self.key(values);
        metrics::with_recorder(|recorder| recorder.register_counter(&key, &METADATA))
    }

    /// A histogram for who notes values often.
    ///
    /// # Panics
    /// When this is no histogram, or has other labels.
    pub fn histogram(&self, values: &[&str]) -> Histogram {
        assert!(
            matches!(self.kind, Kind::Histogram(_)),
            "{} is what it is used as",
            self.name
        );
        let key = self.key(values);
        metrics::with_recorder(|recorder| recorder.register_histogram(&key, &METADATA))
    }

    /// Lets a series be there before anything is counted, so that its first increase is seen as one; `values` are those
    /// of the labels, in their order.
    ///
    /// # Panics
    /// When this is read from its owner, or has other labels.
    pub fn register(&self, values: &[&str]) {
        match self.kind {
            Kind::Counter => self.increment(values, 0),
            Kind::Histogram(_) => drop(self.histogram(values)),
            Kind::Total | Kind::Gauge | Kind::Level => panic!("{} is read from its owner", self.name),
        }
    }

    /// Tells the recorder what it means.
    pub(crate) fn describe(&self) {
        let name = KeyName::from_const_str(self.name);
        let help = SharedString::const_str(self.help);
        match self.kind {
            Kind::Counter => metrics::with_recorder(|recorder| recorder.describe_counter(name, None, help)),
            Kind::Histogram(_) => {
                metrics::with_recorder(|recorder| recorder.describe_histogram(name, None, help));
            }
            // They are told whole by each scrape.
            Kind::Total | Kind::Gauge | Kind::Level => return,
        }
        if self.labels.is_empty() {
            self.register(&[]);
        }
    }

    /// Pairs each label with its value.
    pub(crate) fn pairs<'a>(&self, values: &'a [&'a str]) -> impl Iterator<Item = (&'static str, &'a str)> {
        assert_eq!(
            self.labels.len(),
            values.len(),
            "{} has the labels {:?}",
            self.name,
            self.labels
        );
        self.labels.iter().copied().zip(values.iter().copied())
    }

    fn key(&self, values: &[&str]) -> Key {
        let labels = self.pairs(values).map(|(name, value)| {
            let value = match name {
                "model" | "model_name" => bounded(value),
                _ => value,
            };
            Label::new(name, value.to_owned())
        });
        Key::from_parts(self.name, labels.collect::<Vec<_>>())
    }
}

static METADATA: Metadata<'static> = Metadata::new("flotilla", Level::INFO, None);
