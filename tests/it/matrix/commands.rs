//! Rows of the command line: each command through a proxy of its own, so that all of them run at once.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use flotilla_tests::{Exchanges, Fault, Fleet, PATIENCE, Refusal, Rule, Side, flotilla_binary};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::{ASK_MAX, LATE, SLOW, assert_at_rest, start};

/// A command, what it asks, and what it says where it gets no answer; it fails then.
struct Asked {
    command: &'static [&'static str],
    /// Of its question; its answers may be many.
    subject: &'static str,
    words: &'static str,
}

const COMMANDS: [Asked; 13] = [
    admin(&["ps"], "flotilla.admin.workers"),
    admin(&["queue"], "flotilla.admin.queue"),
    admin(&["why", "r"], "flotilla.admin.why"),
    admin(&["cancel", "r"], "flotilla.admin.cancel"),
    admin(&["models", "load", "m"], "flotilla.admin.load"),
    admin(&["drain", "nobody"], "flotilla.admin.drain"),
    store(
        &["models", "list"],
        "$JS.API.STREAM.INFO.KV_flotilla_models",
        "cannot open model",
    ),
    store(
        &["models", "list"],
        "$JS.API.CONSUMER.CREATE.KV_flotilla_models",
        "cannot list model",
    ),
    store(
        &["models", "show", "m"],
        "$JS.API.STREAM.MSG.GET.KV_flotilla_models",
        "cannot read model",
    ),
    store(
        &["models", "rm", "none"],
        "$JS.API.STREAM.MSG.GET.KV_flotilla_models",
        "cannot read model",
    ),
    store(
        &["profile", "show"],
        "$JS.API.STREAM.INFO.KV_flotilla_profiles",
        "cannot open profile",
    ),
    store(
        &["dead", "list"],
        "$JS.API.STREAM.INFO.FLOTILLA_DEAD",
        "cannot open dead letters",
    ),
    store(
        &["journal", "r"],
        "$JS.API.DIRECT.GET.FLOTILLA_JOURNAL",
        "journal of r",
    ),
];

const fn admin(command: &'static [&'static str], subject: &'static str) -> Asked {
    Asked {
        command,
        subject,
        words: "no answer on flotilla.admin",
    }
}

const fn store(command: &'static [&'static str], subject: &'static str, words: &'static str) -> Asked {
    Asked {
        command,
        subject,
        words,
    }
}

/// What is disturbed, and whether there is an answer in the end.
fn faults() -> [(&'static str, Side, Fault, bool); 6] {
    [
        (
            "silent: the question is lost",
            Side::Question,
            Fault::Silent,
            false,
        ),
        ("silent: the answer is lost", Side::Answer, Fault::Silent, false),
        ("slow", Side::Answer, Fault::Late(SLOW), true),
        ("late", Side::Answer, Fault::Late(LATE), false),
        (
            "refused: not allowed",
            Side::Question,
            Fault::Refused(Refusal::NotAllowed),
            false,
        ),
        ("twice", Side::Answer, Fault::Twice, true),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_ends_in_time_and_says_who_did_not_answer() -> Result<()> {
    let (mut fleet, _folder) = start(1).await?;
    let cells = COMMANDS
        .iter()
        .flat_map(|asked| faults().into_iter().map(move |fault| (asked, fault)));
    let cells: Vec<_> = cells.collect();
    let fleet_now = &fleet;
    let run = futures_util::stream::iter(&cells).map(async |(asked, fault)| {
        let outcome = run(fleet_now, asked, fault).await;
        let what = || format!("`{}` at {}, {}", asked.command.join(" "), asked.subject, fault.0);
        outcome.with_context(what).err()
    });
    let found: Vec<String> = run
        .buffer_unordered(COMMANDS_AT_ONCE)
        .filter_map(async |fault| fault.map(|fault| format!("{fault:#}")))
        .collect()
        .await;
    ensure!(found.is_empty(), "of {} rows:\n{}", cells.len(), found.join("\n"));
    assert_at_rest(&mut fleet).await
}

async fn run(
    fleet: &Fleet,
    asked: &Asked,
    (_, side, fault, is_answered): &(&str, Side, Fault, bool),
) -> Result<()> {
    let undisturbed = output(fleet, asked, &fleet.cluster.url()).await?;
    let proxy = Exchanges::start(fleet.cluster.ports()[0]).await?;
    let disturbance = proxy.disturb(Rule::new(asked.subject, *side, fault.clone()));
    let (code, words) = output(fleet, asked, &proxy.url()).await?;
    ensure!(
        disturbance.met() > 0,
        "nothing came that could be disturbed: {words}"
    );
    if *is_answered {
        ensure!(
            code == undisturbed.0,
            "{code} instead of {}: {words}",
            undisturbed.0
        );
    } else {
        ensure!(code == 1, "{code}: {words}");
        ensure!(words.contains(asked.words), "{words}");
    }
    Ok(())
}

/// The exit code of a command, and what it says.
async fn output(fleet: &Fleet, asked: &Asked, url: &str) -> Result<(i32, String)> {
    let mut command = Command::new(flotilla_binary());
    command
        .args(asked.command)
        .args(["--nats", url])
        .args([
            "--set",
            &format!("nats.request_timeout_ms={}", ASK_MAX.as_millis()),
        ])
        .current_dir(fleet.folder())
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = timeout(PATIENCE, output).await.context("it hangs")???;
    let words = [output.stdout, output.stderr].concat();
    let code = output.status.code().context("a signal ended it")?;
    Ok((code, String::from_utf8_lossy(&words).into_owned()))
}

/// Processes at once: more would only wait for the machine.
const COMMANDS_AT_ONCE: usize = 8;
