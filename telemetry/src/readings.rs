//! What the owners of things say of them at the moment of a scrape.

use std::collections::BTreeMap;

use crate::exposition;
use crate::metric::{Kind, Metric};

/// Values that were read for one scrape.
#[derive(Debug, Default)]
pub struct Readings {
    families: BTreeMap<&'static str, Family>,
}

/// The series of one metric, by their labels as they are written.
#[derive(Debug)]
struct Family {
    metric: Metric,
    series: BTreeMap<String, f64>,
}

impl Readings {
    /// Adds a value; `values` are those of the labels, in their order. What several workers of a process say is put
    /// together as the metric's kind wants it.
    ///
    /// # Panics
    /// When the metric is counted where it happens, or has other labels.
    pub fn read(&mut self, metric: &Metric, values: &[&str], value: f64) {
        let labels = exposition::labels(metric.pairs(values));
        let metric = *metric;
        let family = self.families.entry(metric.name).or_insert_with(|| Family {
            metric,
            series: BTreeMap::new(),
        });
        let told = family.series.entry(labels);
        match metric.kind {
            Kind::Total | Kind::Gauge => *told.or_default() += value,
            Kind::Level => {
                told.and_modify(|told| *told = told.max(value)).or_insert(value);
            }
            Kind::Counter | Kind::Histogram(_) => panic!("{} is counted where it happens", metric.name),
        }
    }

    /// The same of a whole number. Above 2^53 it is rounded, as everything that Prometheus keeps.
    ///
    /// # Panics
    /// As [`Self::read`].
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
    pub fn count(&mut self, metric: &Metric, values: &[&str], value: u64) {
        self.read(metric, values, value as f64);
    }

    /// Writes them in the text format of Prometheus.
    pub(crate) fn write(&self, text: &mut String) {
        for family in self.families.values() {
            exposition::head(text, &family.metric);
            for (labels, value) in &family.series {
                exposition::sample(text, family.metric.name, labels, *value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: Metric = Metric {
        name: "pages",
        kind: Kind::Gauge,
        labels: &["purpose"],
        help: "Pages.",
    };
    const AGE: Metric = Metric {
        name: "age_seconds",
        kind: Kind::Level,
        labels: &[],
        help: "Age\nof \\ something.",
    };

    #[test]
    fn workers_of_one_process_are_added_up_unless_a_sum_means_nothing() {
        let mut readings = Readings::default();
        readings.count(&PAGES, &["kv"], 3);
        readings.count(&PAGES, &["weights \"q\"\n"], 1);
        readings.count(&PAGES, &["kv"], 4);
        readings.read(&AGE, &[], 0.5);
        readings.read(&AGE, &[], 0.25);
        let mut text = String::new();
        readings.write(&mut text);
        let wanted = "# HELP age_seconds Age\\nof \\\\ something.\n\
                      # TYPE age_seconds gauge\n\
                      age_seconds 0.5\n\
                      # HELP pages Pages.\n\
                      # TYPE pages gauge\n\
                      pages{purpose=\"kv\"} 7\n\
                      pages{purpose=\"weights \\\"q\\\"\\n\"} 1\n";
        assert_eq!(text, wanted);
    }

    #[test]
    #[should_panic(expected = "has the labels")]
    fn labels_that_were_not_declared_are_refused() {
        Readings::default().read(&PAGES, &["kv", "cpu0"], 1.0);
    }
}
