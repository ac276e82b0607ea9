//! Dead letters: an operator looks at them, replays them and removes them.

use anyhow::{Context, Result};
use flotilla_client::{Answer, Events};
use flotilla_protocol::RequestId;
use flotilla_tests::{Fleet, eventually};
use serde_json::Value;

use crate::command_line::{flotilla, stdout};

/// Publishes messages without ids, which are nobody's requests, and waits until they are letters.
async fn kill_letters(fleet: &Fleet, bodies: &[(&str, &str)]) -> Result<Vec<Value>> {
    for (model, body) in bodies {
        let subject = format!("flotilla.request.interactive.{model}");
        let body = (*body).to_owned().into();
        fleet.connection.jetstream.publish(subject, body).await?.await?;
    }
    let all = async || {
        let found = list(fleet, &[]).ok()?;
        (found.len() == bodies.len()).then_some(found)
    };
    Ok(eventually("all of them are dead letters", all).await)
}

fn list(fleet: &Fleet, arguments: &[&str]) -> Result<Vec<Value>> {
    let command = [&["dead", "list", "--json"], arguments].concat();
    Ok(serde_json::from_str(&stdout(&flotilla(fleet, &command)?)?)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_shown_and_replayed_once() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    assert!(list(&fleet, &[])?.is_empty());
    let letters = kill_letters(&fleet, &[("adder", r#"{"prompt":"20+22="}"#)]).await?;
    let letter = letters[0]["letter"].to_string();
    assert_eq!(letters[0]["model"], "adder");
    assert_eq!(letters[0]["body_bytes"], 19);
    let table = stdout(&flotilla(&fleet, &["dead", "list"])?)?;
    assert!(
        table.contains("adder") && table.contains("Nats-Msg-Id"),
        "{table}"
    );
    let shown = stdout(&flotilla(&fleet, &["dead", "show", &letter])?)?;
    assert!(
        shown.contains("20+22=") && shown.contains("Nats-Msg-Id"),
        "{shown}"
    );

    let replayed: Value = serde_json::from_str(&stdout(&flotilla(
        &fleet,
        &["dead", "replay", "--json", &letter],
    )?)?)?;
    let request = RequestId::new(replayed["request"].as_str().context("an id")?)?;
    assert!(request.as_str().ends_with(&format!("-r{letter}")), "{request}");
    let mut events = Events::subscribe(&fleet.connection, request).await?;
    let answer = Answer::collect(&mut events).await?;
    assert_eq!((answer.text.as_str(), answer.end.is_ok()), ("42", true));

    assert!(list(&fleet, &[])?.is_empty());
    let gone = flotilla(&fleet, &["dead", "replay", &letter])?;
    assert!(!gone.status.success());
    let error = String::from_utf8_lossy(&gone.stderr);
    assert!(
        error.contains(&format!("there is no dead letter {letter}")),
        "{error}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_of_one_model_are_removed_and_the_others_stay() -> Result<()> {
    let fleet = Fleet::builder().start().await?;
    let body = r#"{"prompt":"1+1="}"#;
    let letters = kill_letters(
        &fleet,
        &[
            ("adder", body),
            ("org=2Freverser", body),
            ("adder", body),
            ("other", body),
        ],
    )
    .await?;
    assert_eq!(list(&fleet, &["--limit", "2"])?, letters[..2]);
    // Which ones must be said.
    assert_eq!(flotilla(&fleet, &["dead", "purge"])?.status.code(), Some(2));
    let purged = stdout(&flotilla(&fleet, &["dead", "purge", "--model", "org/reverser"])?)?;
    assert_eq!(purged, "1 removed\n");
    let first = letters[0]["letter"].to_string();
    assert_eq!(
        stdout(&flotilla(&fleet, &["dead", "purge", &first])?)?,
        "1 removed\n"
    );
    assert_eq!(list(&fleet, &[])?, letters[2..]);
    assert_eq!(
        stdout(&flotilla(&fleet, &["dead", "purge", "--all"])?)?,
        "2 removed\n"
    );
    assert!(list(&fleet, &[])?.is_empty());
    Ok(())
}
