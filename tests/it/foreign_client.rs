//! A client that is not ours: the public contract through the stock Python client of NATS.

use std::process::Command;

use anyhow::{Context, Result};
use flotilla_tests::Fleet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_client_gets_right_answers_by_the_public_contract() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    // `make test` names a Python that has nats-py; without it this test would have nothing to say.
    let python = std::env::var("FLOTILLA_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/it/foreign_client.py"))
        .arg(fleet.cluster.url())
        .output()
        .context("cannot run Python; `make test` sets it up")?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("every answer was right"), "{said}");
    Ok(())
}
