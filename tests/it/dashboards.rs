//! The dashboards of `deploy/grafana`: what Grafana wants of them, and that a real Prometheus with a real fleet has data
//! for every panel.

mod board;
pub mod traffic;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flotilla_tests::{PATIENCE, Prometheus};
use serde_json::Value;
use tokio::time::{Instant, interval};

use crate::alerts;
use board::boards;
use traffic::Traffic;

fn grafana() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana")
}

fn python() -> String {
    std::env::var("FLOTILLA_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

#[test]
fn panels_have_what_grafana_and_a_tired_reader_need() -> Result<()> {
    let boards = boards()?;
    assert_eq!(boards.len(), 4);
    for board in &boards {
        let faults = board.faults();
        assert!(faults.is_empty(), "{}: {faults:#?}", board.name);
    }
    Ok(())
}

/// Grafana's own schema, as its package for Python has it: no key that it does not know, no value of another type. `make
/// test` installs the package; without it, the test is left out.
#[test]
fn dashboards_are_of_grafanas_schema() -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/it/dashboards/schema.py");
    let files = boards()?.into_iter().map(|board| board.path);
    let checked = Command::new(python()).arg(script).args(files).output()?;
    let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    if checked.status.code() == Some(NO_PACKAGE) {
        println!("skipped: {said}");
        return Ok(());
    }
    assert!(checked.status.success(), "{said}");
    Ok(())
}

#[test]
fn expressions_are_about_metrics_that_exist() -> Result<()> {
    for board in boards()? {
        for expression in board.expressions() {
            alerts::check_selectors(&expression).with_context(|| board.name.clone())?;
        }
    }
    Ok(())
}

/// With `BLESS=1` it goes on for some minutes and writes `docs/dashboards`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_panel_has_data_of_a_fleet_under_load() -> Result<()> {
    let rules = alerts::read("alerts.yml")?;
    let Some(prometheus) = Prometheus::start(&rules).await? else {
        println!("skipped: there is no prometheus beside FLOTILLA_TEST_PROMTOOL");
        return Ok(());
    };
    let fleet = traffic::fleet().await?;
    prometheus.watch(&fleet).await?;
    prometheus.wait_until_all_are_up(4).await;
    let traffic = Traffic::new(&fleet);
    let is_blessed = std::env::var_os("BLESS").is_some();
    let seen = async {
        if is_blessed {
            // What happens is in the middle of the picture.
            tokio::time::sleep(PICTURE / 2).await;
        }
        traffic.incidents().await?;
        everything_has_data(&prometheus).await?;
        is_drawn(&prometheus, is_blessed).await
    };
    tokio::select! {
        seen = seen => seen,
        () = traffic.clients() => unreachable!("they go on for ever"),
    }
}

/// Asks until every expression of every dashboard, every selector of them and of the alerts, and every variable has had
/// a value.
async fn everything_has_data(prometheus: &Prometheus) -> Result<()> {
    let mut missing: Vec<String> = Vec::new();
    let mut now = Vec::new();
    for board in boards()? {
        for target in board.targets() {
            let expression = board::substituted(&target.expression);
            missing.extend(
                alerts::selectors(&expression)
                    .into_iter()
                    .map(|selector| selector.text),
            );
            match target.is_instant {
                true => now.push(expression),
                false => missing.push(expression),
            }
        }
        for metric in board.variables()? {
            missing.push(metric);
        }
    }
    let rules = alerts::read("alerts.yml")?;
    missing.extend(
        alerts::selectors(&rules)
            .into_iter()
            .map(|selector| selector.text),
    );
    let begun = Instant::now();
    let mut looks = interval(Prometheus::INTERVAL);
    while !missing.is_empty() || !now.is_empty() {
        looks.tick().await;
        let past = u32::try_from(begun.elapsed().as_secs())? + INCIDENTS_SECONDS_MAX;
        missing = without_data(missing, async |it| prometheus.query_range(it, past).await).await?;
        now = without_data(now, async |it| prometheus.query(it).await).await?;
        ensure!(begun.elapsed() < PATIENCE, "no data: {missing:#?} {now:#?}");
    }
    rules_are_healthy(prometheus).await
}

/// Those of the expressions that give no number.
async fn without_data(
    expressions: Vec<String>,
    ask: impl AsyncFn(&str) -> Result<Vec<Value>>,
) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for expression in expressions {
        if !ask(&expression).await?.iter().any(board::has_a_number) {
            missing.push(expression);
        }
    }
    Ok(missing)
}

/// Prometheus has evaluated every rule without an error.
async fn rules_are_healthy(prometheus: &Prometheus) -> Result<()> {
    let told = prometheus.ask("rules").await?;
    let groups = told["groups"].as_array().context("groups")?;
    let rules: Vec<&Value> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array())
        .flatten()
        .collect();
    ensure!(!rules.is_empty(), "{told}");
    for rule in rules {
        ensure!(rule["health"] == "ok", "{rule}");
    }
    Ok(())
}

/// The script that draws dashboards finds data for every panel, too.
async fn is_drawn(prometheus: &Prometheus, is_blessed: bool) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (out, shown) = match is_blessed {
        true => (grafana().join("../../docs/dashboards"), PICTURE),
        false => (folder.path().to_owned(), SHOWN),
    };
    if is_blessed {
        tokio::time::sleep(PICTURE / 3).await;
    }
    let drawn = tokio::process::Command::new(python())
        .arg("-B")
        .arg(grafana().join("draw.py"))
        .args(["--prometheus", &prometheus.url(), "--strict"])
        .args(["--minutes", &(shown.as_secs_f64() / 60.0).to_string()])
        .args(["--scrape-seconds", "1"])
        .arg("--out")
        .arg(&out)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&drawn.stderr);
    ensure!(drawn.status.success(), "{said}");
    for board in boards()? {
        let picture = std::fs::read_to_string(out.join(format!("{}.svg", board.name)))?;
        let panels = picture.matches("<g data-panel=").count();
        ensure!(
            panels == board.targets_by_panel().count(),
            "{}: {panels} panels",
            board.name
        );
        ensure!(
            picture.len() < PICTURE_BYTES_MAX,
            "{}: {} bytes",
            board.name,
            picture.len()
        );
    }
    Ok(())
}

/// What `schema.py` ends with where Grafana's package is not installed.
const NO_PACKAGE: i32 = 3;
/// The incidents took no longer than this.
const INCIDENTS_SECONDS_MAX: u32 = 300;
/// What the pictures that are kept show, and those that are only looked at for data: the incidents are in both.
const PICTURE: Duration = Duration::from_secs(240);
const SHOWN: Duration = Duration::from_secs(180);
/// A picture is looked at in a browser, and kept.
const PICTURE_BYTES_MAX: usize = 200_000;
