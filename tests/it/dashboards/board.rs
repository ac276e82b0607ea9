//! A dashboard as its file says it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use flotilla_tests::Prometheus;
use serde_json::Value;

use super::grafana;

pub struct Board {
    pub name: String,
    pub path: PathBuf,
    json: Value,
}

pub struct Target {
    pub expression: String,
    /// Asked for now, not for a range of time.
    pub is_instant: bool,
}

/// All dashboards, by name.
pub fn boards() -> Result<Vec<Board>> {
    let mut boards = Vec::new();
    for file in fs::read_dir(grafana().join("dashboards"))? {
        let path = file?.path();
        let json = serde_json::from_slice(&fs::read(&path)?).with_context(|| path.display().to_string())?;
        let name = path.file_stem().context("a name")?.to_string_lossy().into_owned();
        boards.push(Board { name, path, json });
    }
    boards.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(boards)
}

/// An expression with its variables as Grafana fills them in: all models, all workers, and the window that it takes for a
/// rate, four scrapes.
pub fn substituted(expression: &str) -> String {
    let window = format!("{}s", 4 * Prometheus::INTERVAL.as_secs());
    expression
        .replace("$__rate_interval", &window)
        .replace("$__range", "5m")
        .replace("$model", ".*")
        .replace("$worker", ".*")
}

/// Whether a series has a value that is a number.
pub fn has_a_number(series: &Value) -> bool {
    let values = series["values"].as_array().cloned().unwrap_or_default();
    let values = values.iter().chain(series.get("value"));
    let mut numbers = values.filter_map(|value| value[1].as_str()?.parse::<f64>().ok());
    numbers.any(f64::is_finite)
}

impl Board {
    /// The panels that draw something.
    fn panels(&self) -> impl Iterator<Item = &Value> {
        let panels = self.json["panels"].as_array().into_iter().flatten();
        panels.filter(|panel| panel["type"] != "row")
    }

    /// The targets of each panel that draws something.
    pub fn targets_by_panel(&self) -> impl Iterator<Item = &Vec<Value>> {
        self.panels().filter_map(|panel| panel["targets"].as_array())
    }

    pub fn targets(&self) -> impl Iterator<Item = Target> {
        self.targets_by_panel().flatten().map(|target| Target {
            expression: text(target, "expr").to_owned(),
            is_instant: target["instant"] == true,
        })
    }

    /// What is asked of Prometheus for panels and for the marks of alerts.
    pub fn expressions(&self) -> impl Iterator<Item = String> {
        self.targets().map(|target| substituted(&target.expression))
    }

    /// The metrics from whose labels variables take their values.
    pub fn variables(&self) -> Result<Vec<String>> {
        let listed = self.json.pointer("/templating/list").and_then(Value::as_array);
        let asked = listed
            .context("variables")?
            .iter()
            .filter(|it| it["type"] == "query");
        asked
            .map(|variable| {
                let query = variable.pointer("/query/query").and_then(Value::as_str);
                let inside = query.and_then(|query| query.strip_prefix("label_values(")?.strip_suffix(')'));
                let (metric, label) = inside
                    .and_then(|it| it.split_once(", "))
                    .context("label_values(METRIC, LABEL)")?;
                Ok(format!("count by ({label}) ({metric}{{{label}!=\"\"}})"))
            })
            .collect()
    }

    /// What is wrong with it.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut say = |is_fault: bool, what: String| {
            if is_fault {
                faults.push(what);
            }
        };
        let json = &self.json;
        say(
            !text(json, "uid").starts_with("flotilla-"),
            "its uid is not ours".into(),
        );
        say(
            json["tags"] != serde_json::json!(["flotilla"]),
            "links find it by its tag".into(),
        );
        say(
            json["schemaVersion"].as_u64() < Some(SCHEMA_VERSION_MIN),
            "its schema is old".into(),
        );
        let ids: BTreeSet<u64> = json["panels"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|it| it["id"].as_u64())
            .collect();
        let count = json["panels"].as_array().map_or(0, Vec::len);
        say(ids.len() != count, "ids of panels come twice".into());
        let mut taken = BTreeSet::new();
        for panel in json["panels"].as_array().into_iter().flatten() {
            let title = text(panel, "title");
            for cell in cells(panel) {
                say(
                    !taken.insert(cell),
                    format!("{title}: another panel is at {cell:?}"),
                );
                say(cell.0 >= COLUMNS, format!("{title}: beyond the right edge"));
            }
        }
        for panel in self.panels() {
            faults.extend(
                panel_faults(panel)
                    .into_iter()
                    .map(|it| format!("{}: {it}", text(panel, "title"))),
            );
        }
        faults
    }
}

fn panel_faults(panel: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for key in ["type", "title", "description"] {
        if text(panel, key).is_empty() {
            faults.push(format!("no {key}"));
        }
    }
    if panel.pointer("/datasource/uid") != Some(&"${datasource}".into()) {
        faults.push("its data source is not the variable".to_owned());
    }
    let unit = panel
        .pointer("/fieldConfig/defaults/unit")
        .and_then(Value::as_str);
    if !unit.is_some_and(|unit| UNITS.contains(&unit) || unit.starts_with("suffix:")) {
        faults.push(format!("unit {unit:?}"));
    }
    let targets = panel["targets"].as_array().cloned().unwrap_or_default();
    let names: BTreeSet<&str> = targets.iter().map(|target| text(target, "refId")).collect();
    if names.len() != targets.len() || names.is_empty() || names.contains("") {
        faults.push("each target needs a refId of its own".to_owned());
    }
    for target in &targets {
        let expression = text(target, "expr");
        if expression.is_empty() {
            faults.push("a target without an expression".to_owned());
        }
        let rest = substituted(expression);
        if rest.contains('$') {
            faults.push(format!("an unknown variable: {rest}"));
        }
        if panel["type"] == "timeseries" && text(target, "legendFormat").is_empty() {
            faults.push("a line without a name".to_owned());
        }
    }
    faults
}

/// The cells of the grid that a panel takes.
fn cells(panel: &Value) -> impl Iterator<Item = (u64, u64)> {
    let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap_or(u64::MAX / 4));
    (x..x + w.min(COLUMNS)).flat_map(move |column| (y..y + h.min(ROWS_MAX)).map(move |row| (column, row)))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Columns of Grafana's grid.
const COLUMNS: u64 = 24;
/// No panel is higher.
const ROWS_MAX: u64 = 100;
/// That of Grafana 12.
const SCHEMA_VERSION_MIN: u64 = 41;
/// Units of Grafana that we use; one of our own begins with `suffix:`.
const UNITS: [&str; 7] = ["none", "short", "s", "bytes", "Bps", "reqps", "percentunit"];
